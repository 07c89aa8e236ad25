// SPDX-License-Identifier: Apache-2.0

// The command line of the UDP echo server.

import FiberNet
import Glibc

struct Options {
    var address = SocketAddress.loopback(port: 7777)

    static let usage = """
        usage: EchoUDP [--port PORT] [--host ADDRESS]

          --port PORT      port to receive on, 0 for any free one (7777)
          --host ADDRESS   address to receive on, IPv4 or IPv6 (127.0.0.1)

        SIGTERM or SIGINT ends it. Exit status 0: it was ended so; 1: the server failed; 2: the command line is wrong.
        """

    static func parse(_ arguments: ArraySlice<String>) -> Options {
        var host = "127.0.0.1"
        var port = 7777
        var rest = arguments
        while let flag = rest.popFirst() {
            if flag == "--help" || flag == "-h" {
                print(usage)
                exit(0)
            }
            guard ["--port", "--host"].contains(flag) else { fail("unknown option \(flag); see --help", status: 2) }
            guard let value = rest.popFirst() else { fail("\(flag) needs a value; see --help", status: 2) }
            if flag == "--host" {
                host = value
            } else {
                guard let number = Int(value), 0...65535 ~= number else {
                    fail("--port takes a number from 0 to 65535, not \"\(value)\"", status: 2)
                }
                port = number
            }
        }
        do { return Options(address: try SocketAddress(host: host, port: port)) } catch { fail("\(error)", status: 2) }
    }
}

/// Prints a line that is seen at once, also through a pipe.
func printNow(_ line: String) {
    print(line)
    fflush(nil)
}

/// Ends the program with one line on standard error.
func fail(_ message: String, status: Int32) -> Never {
    var line = "EchoUDP: \(message)\n"
    line.withUTF8 { _ = write(STDERR_FILENO, $0.baseAddress, $0.count) }
    exit(status)
}
