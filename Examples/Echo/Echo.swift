// A TCP echo server: one fiber per connection, written as if each had a thread.

import FiberNet
import Fibers

@main
struct Echo {
    static func main() {
        let options = Options.parse(CommandLine.arguments.dropFirst())
        do {
            let report = try FiberRuntime.run(.init(stackSize: options.stackSize)) { try serve(options) }
            exitNow(report.cancelled == 0 ? .drained : .cancelled)
        } catch is CancellationError {
            exitNow(.cancelled)
        } catch {
            fail("\(error)", status: 1)
        }
    }

    static func serve(_ options: Options) throws -> ServeReport {
        let listener = try TCPListener.bind(to: options.address)
        let signals = try Signals.of(.interrupt, .terminate)
        var (connections, bytes) = (0, 0)
        printNow("listening on \(listener.address)")

        return try withFiberGroup { group in
            try group.spawnDaemon(name: "signals") {
                let first = try signals.next()
                listener.close()
                printNow("\(first): draining, for \(options.drainLimit) at most; a second one ends it now")
                let second = try signals.next()
                group.cancel()
                printNow("\(second): ending")
            }
            defer { printNow("served \(connections) connections, \(bytes) bytes") }
            return try listener.serve(draining: options.drainLimit, onError: logFailure) { stream in
                connections += 1
                let echo = { (data: RawSpan) in
                    try stream.writeAll(data)
                    bytes += data.byteCount
                }
                while try withTimeout(options.idleTimeout, { try stream.readAvailable(echo) }) {}
            }
        }
    }

    /// Clients that go away or fall silent are no news.
    static func logFailure(_ error: any Error) {
        if error is TimeoutError || (error as? IOError)?.code == .reset { return }
        printNow("a connection failed: \(error)")
    }
}
