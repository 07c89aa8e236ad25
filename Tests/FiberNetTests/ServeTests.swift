// SPDX-License-Identifier: Apache-2.0

// Serving connections: their limit, their end, and what is told about it.

import FiberNet
import Fibers
import Testing

extension NetTests {
    @Suite struct ServeTests {
        @Test(arguments: Transport.all)
        func everyConnection_isServed_andClosed_whenItsHandlerReturns(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let serving = try Fiber.spawnLocal {
                    try listener.serve { stream in
                        let byte = try stream.read(upTo: 1)
                        try stream.writeAll(byte)
                    }
                }
                for i in 0..<20 {
                    let client = try Connection.connect(to: listener.address)
                    try client.writeAll([UInt8(i)])
                    let echo = try client.read(upTo: 10)
                    let end = try client.read(upTo: 10)
                    expect(echo == [UInt8(i)] && end.isEmpty)
                    client.close()
                }
                listener.close()
                let report = try serving.join()
                expect(report == ServeReport(connections: 20, finished: 0, cancelled: 0), "\(report)")
            }
        }

        @Test func connection_isClosed_andItsErrorTold_whenItsHandlerThrows() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                var errors: [any Error] = []
                let serving = try Fiber.spawnLocal {
                    try listener.serve(onError: { errors.append($0) }) { _ in throw TestError(text: "no") }
                }
                for _ in 0..<3 {
                    let client = try Connection.connect(to: listener.address)
                    expect(try client.read(upTo: 1).isEmpty)
                    client.close()
                }
                listener.close()
                expect(try serving.join().connections == 3)
                expect(errors.count == 3 && errors.allSatisfy { $0 as? TestError == TestError(text: "no") })
            }
        }

        @Test func runtimeHears_ofErrors_butNotOfResets_whenNobodyElseDoes() throws {
            let heard = Box<[String]>([])
            var configuration = FiberRuntime.Configuration()
            configuration.onUnhandledError = { heard.value.append("\($0)") }
            try FiberRuntime.run(configuration) {
                let listener = try Listener.bind(to: .loopback(port: 0))
                var sessions = 0
                let serving = try Fiber.spawnLocal {
                    try listener.serve { stream in
                        sessions += 1
                        if sessions == 1 { throw TestError(text: "told") }
                        _ = try stream.read(upTo: 1)
                    }
                }
                let first = try Connection.connect(to: listener.address)
                _ = try first.read(upTo: 1)
                let second = try Connection.connect(to: listener.address)
                try waitUntil { sessions == 2 }
                second.reset()
                listener.close()
                _ = try serving.join()
            }
            #expect(heard.value.count == 1, "\(heard.value)")
            #expect(heard.value.first?.contains("\"connection\"") == true && heard.value.first?.contains("told") == true, "\(heard.value)")
        }

        @Test func connections_waitInTheQueue_whenTheLimitIsReached() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                var running = 0
                var most = 0
                let serving = try Fiber.spawnLocal {
                    try listener.serve(maxConnections: 3) { stream in
                        running += 1
                        most = max(most, running)
                        defer { running -= 1 }
                        try stream.writeAll(try stream.read(upTo: 1))
                    }
                }
                let clients = try (0..<10).map { _ in net.keep(try Connection.connect(to: listener.address)) }
                try waitUntil { running == 3 }
                letOthersRun()
                expect(running == 3)
                // Each that is served makes room for one more, in the order in which they came.
                for (i, client) in clients.enumerated() {
                    try client.writeAll([UInt8(i)])
                    expect(try client.read(upTo: 1) == [UInt8(i)])
                }
                listener.close()
                expect(try serving.join() == ServeReport(connections: 10, finished: 0, cancelled: 0))
                expect(most == 3)
            }
        }

        @Test func drain_beginsAtOnce_whenTheListenerIsClosedWhileFull() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                let serving = try Fiber.spawnLocal {
                    try listener.serve(maxConnections: 1, draining: .seconds(1000)) { stream in
                        while try stream.readAvailable({ try stream.writeAll($0) }) {}
                    }
                }
                let client = net.keep(try Connection.connect(to: listener.address))
                let waiting = net.keep(try Connection.connect(to: listener.address))
                try client.writeAll([1])
                expect(try client.read(upTo: 1) == [1])
                letOthersRun()
                listener.close()
                letOthersRun()
                // The one in the queue is not let in any more.
                expect(.reset) { _ = try waiting.read(upTo: 1) }
                try client.writeAll([2])
                expect(try client.read(upTo: 1) == [2])
                client.close()
                expect(try serving.join() == ServeReport(connections: 1, finished: 1, cancelled: 0))
            }
        }

        @Test func drain_letsFinish_andCancelsTheRest_whenItsTimeIsOver() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                var ends: [Failure.Code] = []
                let serving = try Fiber.spawnLocal {
                    let onError = { (error: any Error) in expect(false, "a cancelled handler's error was reported") }
                    return try listener.serve(draining: .milliseconds(100), onError: onError) { stream in
                        do {
                            while try stream.readAvailable({ try stream.writeAll($0) }) {}
                        } catch {
                            ends.append(Failure(error: error).code)
                            throw error
                        }
                    }
                }
                let clients = try (0..<5).map { _ in net.keep(try Connection.connect(to: listener.address)) }
                for client in clients {
                    try client.writeAll([1])
                    _ = try client.read(upTo: 1)
                }
                listener.close()
                letOthersRun()
                for client in clients[..<2] { try client.shutdown(.write) }
                for client in clients { expect(try client.read(upTo: 1).isEmpty) }
                let report = try serving.join()
                expect(report == ServeReport(connections: 5, finished: 2, cancelled: 3), "\(report)")
                expect(ends == [.cancelled, .cancelled, .cancelled], "\(ends)")
            }
        }

        @Test(arguments: [false, true])
        func connections_areCancelled_whenTheServingFiberIs(duringTheDrain isDraining: Bool) throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                var ended = 0
                let serving = try Fiber.spawnLocal {
                    try listener.serve(draining: .seconds(1000)) { stream in
                        defer { ended += 1 }
                        _ = try stream.read(upTo: 1)
                    }
                }
                let clients = try (0..<5).map { _ in net.keep(try Connection.connect(to: listener.address)) }
                letOthersRun()
                if isDraining { listener.close() }
                letOthersRun()
                serving.cancel()
                do {
                    _ = try serving.join()
                    expect(false, "no error was thrown")
                } catch { expect(error is CancellationError, "\(error)") }
                expect(ended == 5)
                for client in clients { expect(try client.read(upTo: 1).isEmpty) }
                expect(listener.isOpen == !isDraining)
            }
        }

        @Test func serve_isBound_byADeadlineAroundIt() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                let client = net.keep(try Connection.connect(to: listener.address))
                do {
                    try withTimeout(.milliseconds(50)) { try listener.serve { _ = try $0.read(upTo: 1) } }
                    expect(false, "no error was thrown")
                } catch { expect((error as? TimeoutError)?.limit == .milliseconds(50), "\(error)") }
                expect(try client.read(upTo: 1).isEmpty)
            }
        }

        @Test func listener_isServedAgain_afterServeWasCancelled() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                for _ in 0..<3 {
                    let serving = try Fiber.spawnLocal { try listener.serve { try $0.writeAll([7]) } }
                    let client = net.keep(try Connection.connect(to: listener.address))
                    expect(try client.read(upTo: 2) == [7])
                    serving.cancel()
                    _ = try? serving.join()
                }
            }
        }

        @Test func twoServers_shareAListener() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                let serving = try (0..<2).map { _ in
                    try Fiber.spawnLocal { try listener.serve(maxConnections: 2) { _ = try $0.read(upTo: 1) } }
                }
                let clients = try (0..<6).map { _ in net.keep(try Connection.connect(to: listener.address)) }
                letOthersRun()
                for client in clients {
                    try client.writeAll([1])
                    expect(try client.read(upTo: 1).isEmpty)
                }
                listener.close()
                let served = try serving.map { try $0.join().connections }
                expect(served.reduce(0, +) == 6, "\(served)")
            }
        }
    }
}
