// SPDX-License-Identifier: Apache-2.0

// The echo server of the benchmark: `echo --port P [--buf BYTES] [--timeout SECONDS] [--workers N]`: with a deadline around each request, and on several workers. Prints `ready 1 bool` and serves until it is ended by a signal.

import FiberNet
import Fibers
import Glibc

func flag(_ name: String, _ fallback: Int) -> Int {
    let arguments = CommandLine.arguments
    guard let at = arguments.firstIndex(of: name), at + 1 < arguments.count, let value = Int(arguments[at + 1]) else { return fallback }
    return value
}

func serve() throws {
    let server = try TCPServer.bind(to: .loopback(port: flag("--port", 9000)))
    print("ready 1 bool")
    fflush(nil)
    let limit: Duration? = flag("--timeout", 0) > 0 ? .seconds(flag("--timeout", 0)) : nil
    try server.serve { stream in
        while try withTimeout(limit, { try stream.readAvailable { try stream.writeAll($0) } }) {}
    }
}

var configuration = FiberRuntime.Configuration(workers: flag("--workers", 1))
configuration.readBufferSize = flag("--buf", 16384)
try FiberRuntime.run(configuration, serve)
