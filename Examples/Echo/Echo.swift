// SPDX-License-Identifier: Apache-2.0

// A TCP echo server: one fiber per connection, written as if each had a thread.

import FiberNet
import Fibers

@main
struct Echo {
    static func main() {
        let options = Options.parse(CommandLine.arguments.dropFirst())
        do {
            let report = try FiberRuntime.run(.init(workers: options.workers, stackSize: options.stackSize)) { try serve(options) }
            exitNow(report.cancelled == 0 ? .drained : .cancelled)
        } catch is CancellationError {
            exitNow(.cancelled)
        } catch {
            fail("\(error)", status: 1)
        }
    }

    static func serve(_ options: Options) throws -> ServeReport {
        let server = try TCPServer.bind(to: options.address)
        let signals = try Signals.of(.interrupt, .terminate)
        let (connections, bytes) = (Total(), Total())
        printNow("listening on \(server.address)")

        return try withFiberGroup { group in
            try group.spawnDaemon(name: "signals") {
                let first = try signals.next()
                server.close()
                printNow("\(first): draining, for \(options.drainLimit) at most; a second one ends it now")
                let second = try signals.next()
                group.cancel()
                printNow("\(second): ending")
            }
            defer { printNow("served \(connections.value) connections, \(bytes.value) bytes") }
            return try server.serve(draining: options.drainLimit, onError: logFailure) { stream in
                connections.add(1)
                var count = 0
                defer { bytes.add(count) }
                let echo = { (data: RawSpan) in
                    try stream.writeAll(data)
                    count += data.byteCount
                }
                while try withTimeout(options.idleTimeout, { try stream.readAvailable(echo) }) {}
            }
        }
    }

    /// Clients that go away or fall silent are no news.
    @Sendable static func logFailure(_ error: any Error) {
        if error is TimeoutError || (error as? IOError)?.code == .reset { return }
        printNow("a connection failed: \(error)")
    }
}
