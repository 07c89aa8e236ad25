// A TCP echo server: one fiber per connection, written as if each had a thread.

import FiberNet
import Fibers

@main
struct Echo {
    static func main() {
        let options = Options.parse(CommandLine.arguments.dropFirst())
        do {
            try FiberRuntime.run(.init(stackSize: options.stackSize)) { try serve(options) }
        } catch {
            fail("\(error)", status: 1)
        }
    }

    static func serve(_ options: Options) throws {
        var open: [ObjectIdentifier: TCPStream] = [:]
        var connections = 0
        var bytes = 0
        let listener = try TCPListener.bind(to: options.address)
        let signals = try Signals.of(.interrupt, .terminate)
        printNow("listening on \(listener.address)")

        try Fiber.spawnLocal(name: "signals") {
            printNow("\(try signals.next()): ending")
            listener.close()
            for stream in open.values { stream.close() }
        }
        while let stream = try listener.next() {
            let session = {
                defer { open.removeValue(forKey: ObjectIdentifier(stream))?.close() }
                let echo = { (data: RawSpan) in
                    try stream.writeAll(data, timeout: options.idleTimeout)
                    bytes += data.byteCount
                }
                do {
                    while try stream.readAvailable(timeout: options.idleTimeout, echo) {}
                } catch let error as IOError where [.reset, .closed, .timedOut].contains(error.code) {
                    // The client went away, we are ending, or it was silent for too long.
                }
            }
            do {
                try Fiber.spawnLocal(name: "connection", session)
                connections += 1
                open[ObjectIdentifier(stream)] = stream
            } catch {
                printNow("refused a connection: \(error)")
                stream.close()
            }
        }
        while !open.isEmpty { Fiber.yield() }
        printNow("served \(connections) connections, \(bytes) bytes")
    }
}
