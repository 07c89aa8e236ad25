// SPDX-License-Identifier: Apache-2.0

// What closing does to those who wait, to those who come later, and to the number of the descriptor.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct CloseTests {
        // Scenarios 1 and 2.

        @Test(arguments: Transport.all)
        func waitingReader_throwsClosed_whenItsStreamIsClosed(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let raw = UnsafeMutableRawBufferPointer.allocate(byteCount: 2, alignment: 1)
                defer { raw.deallocate() }
                let waits: [() throws -> Void] = [
                    { _ = try server.read(upTo: 10) }, { _ = try server.read(into: raw) }, { _ = try server.readAvailable { _ in } },
                    { try server.waitReadable() }, { _ = try withTimeout(.seconds(60)) { try server.read(upTo: 10) } },
                ]
                let readers = try waits.map { wait in try Fiber.spawnLocal { failure(wait) } }
                letOthersRun()
                expect(!readers.contains { $0.fiber.isFinished }, "one did not wait")
                server.close()
                for reader in readers { expect(try reader.join()?.code == .closed) }
                expect(try client.readToEnd().isEmpty, "the peer sees the end")
            }
        }

        @Test(arguments: Transport.all)
        func waitingWriter_throwsClosed_andSaysHowMuchWent(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let sent = pattern(scaled(8_000_000, sanitized: 1_000_000))
                let writer = try Fiber.spawnLocal { failure { try client.writeAll(sent) } }
                letOthersRun()
                client.close()
                let error = try writer.join()
                expect(error?.code == .closed)
                let count = error?.bytesTransferred ?? 0
                expect(count > 0)
                expect(same(try server.readToEnd(), Array(sent.prefix(count))), "what was written is delivered")
            }
        }

        @Test(arguments: Transport.all)
        func writersWaitingForTheirTurn_throwClosed_whenTheStreamIsClosed(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let block = [UInt8](repeating: 7, count: 8_000_000)
                let writers = try (0..<4).map { _ in try Fiber.spawnLocal { failure { try client.writeAll(block) } } }
                letOthersRun()
                client.close()
                let errors = try writers.map { try $0.join() }
                expect(errors.allSatisfy { $0?.code == .closed })
                expect(errors.dropFirst().allSatisfy { $0?.bytesTransferred == 0 }, "\(errors)")
                _ = try server.readToEnd()
            }
        }

        @Test(arguments: Transport.all)
        func waitingAccept_throwsClosed_andNextReturnsNil_whenTheListenerIsClosed(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let accept = try Fiber.spawnLocal { failure { _ = try listener.accept() } }
                let next = try Fiber.spawnLocal { try listener.next() == nil }
                letOthersRun()
                listener.close()
                expect(try accept.join()?.code == .closed)
                expect(try next.join())
                expect(try listener.next() == nil)
                expect(.closed) { _ = try listener.accept() }
            }
        }

        @Test(arguments: Transport.all)
        func waitingReader_throwsClosed_whenShutdownAndCloseComeBackToBack(transport: Transport) throws {
            for half in [Connection.Half.read, .write, .both] {
                try withNet(transport) { net in
                    let (client, server) = try net.pair()
                    let reader = try Fiber.spawnLocal { failure { _ = try server.read(upTo: 10) } }
                    letOthersRun()
                    try server.shutdown(half)
                    server.close()
                    expect(try reader.join()?.code == .closed)
                    expect(try client.readToEnd().isEmpty)
                }
            }
        }

        @Test(arguments: Transport.all)
        func everyCall_throwsClosed_afterClose(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, _) = try net.pair()
                client.close()
                client.close()
                client.reset()
                expect(!client.isOpen)
                let raw = UnsafeMutableRawBufferPointer.allocate(byteCount: 2, alignment: 1)
                defer { raw.deallocate() }
                let byte: [UInt8] = [1]
                let calls: [() throws -> Void] = [
                    { _ = try client.read(upTo: 1) }, { _ = try client.read(into: raw) }, { _ = try client.readAvailable { _ in } },
                    { try client.writeAll("x") }, { try client.writeAll(pieces: [[1], [2]]) },
                    { try client.writeAll(byte.span.bytes, byte.span.bytes) },
                    { try client.waitReadable() }, { try client.waitWritable() }, { try client.shutdown(.both) },
                    { _ = try client.localAddress() }, { _ = try client.peerAddress() }, { _ = try client.option(.keepAlive) },
                    { try client.setOption(.keepAlive, to: true) }, { try client.withFileDescriptor { _ in } },
                ]
                for (i, call) in calls.enumerated() {
                    let error = failure(call)
                    expect(error?.code == .closed, "call \(i): \(String(describing: error))")
                }
            }
        }

        @Test(arguments: Transport.all)
        func droppedStream_isClosed(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let client = net.keep(try Connection.connect(to: listener.address))
                do { try listener.accept().writeAll("last words") }
                expect(try client.readToEnd() == Array("last words".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func droppedListener_isClosed(transport: Transport) throws {
            try withNet(transport) { net in
                let address = try { try Listener.bind(to: try transport.freshAddress).address }()
                let error = failure { _ = try Connection.connect(to: address) }
                // The file of a Unix listener is gone, too.
                expect(transport == .unix ? error?.errno?.rawValue == ENOENT : error?.code == .refused, "\(String(describing: error))")
            }
        }

        // The other end goes (scenarios 6 and 8).

        @Test(
            .onlyOn(.epoll, .simulated, because: "Linux resets a Unix connection in two steps, which another thread can see apart"),
            arguments: Transport.all)
        func waitingReaderAndWriter_bothEnd_whenTheConnectionIsReset(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                // An error of the socket is told once, so one of the two may see the end, or a broken pipe, instead.
                let reader = try Fiber.spawnLocal { failure { _ = try client.read(upTo: 10) } }
                let writer = try Fiber.spawnLocal { failure { try client.writeAll(pattern(scaled(8_000_000, sanitized: 1_000_000))) } }
                letOthersRun()
                expect(!reader.fiber.isFinished && !writer.fiber.isFinished)
                // On Unix sockets closing with unread bytes is a reset.
                server.reset()
                let errors = [try reader.join(), try writer.join()]
                expect(errors[1]?.code == .reset)
                expect(errors.contains { $0?.errno == .connectionReset }, "\(errors)")
                expect(errors[0] == nil || errors[0]?.code == .reset)
            }
        }

        @Test(arguments: Transport.all)
        func waitingReaderAndWriter_bothEnd_whenTheirOwnSocketHangsUp(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, _) = try net.narrowPair()
                let reader = try Fiber.spawnLocal { try client.read(upTo: 10) }
                let writer = try Fiber.spawnLocal { failure { try client.writeAll(pattern(scaled(8_000_000, sanitized: 1_000_000))) } }
                letOthersRun()
                try client.shutdown(.both)
                expect(try reader.join().isEmpty)
                expect(try writer.join()?.code == .reset)
            }
        }

        @Test(arguments: Transport.all)
        func largeWrite_throwsReset_withTheBytesThatWent_whenThePeerGoes(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let sent = pattern(scaled(10_000_000, sanitized: 1_000_000))
                let writer = try Fiber.spawnLocal { failure { try client.writeAll(sent) } }
                expect(try server.readExactly(50_000) == Array(sent.prefix(50_000)))
                server.reset()
                let error = try writer.join()
                expect(error?.code == .reset, "\(String(describing: error))")
                expect((50_000..<sent.count).contains(error?.bytesTransferred ?? 0), "\(String(describing: error))")
                // No SIGPIPE either: there is a test to go on with.
                expect(.reset) { try client.writeAll("x") }
            }
        }

        @Test(arguments: Transport.tcp)
        func reset_tellsThePeer_andDiscardsWhatWasNotDelivered(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let reader = try Fiber.spawnLocal { failure { _ = try client.read(upTo: 10) } }
                letOthersRun()
                server.reset()
                expect(!server.isOpen)
                let error = try reader.join()
                expect(error?.code == .reset)
                expect(error?.operation == "read")
                expect(error?.errno == .connectionReset)
            }
        }

        // Numbers are used again.

        @Test(.onlyOn(.epoll, because: "it is about events of epoll"), arguments: Transport.all)
        func staleEvent_isDroppedAndCounted_whenTheNumberHasANewOwner(transport: Transport) throws {
            try withNet(transport) { net in
                let statistics = { Worker.current!.pointee.statistics.staleEvents }
                let (client, server) = try net.pair()
                let reader = try Fiber.spawnLocal { failure { _ = try server.read(upTo: 1) } }
                letOthersRun()
                // The kernel reports the events of a descriptor that was closed for as long as a duplicate is open, unless the registration was removed. That fails
                // where the program has put something else under the number behind the stream's back.
                let number = try server.fd
                let duplicate = try server.withFileDescriptor { fcntl($0.rawValue, F_DUPFD_CLOEXEC, 500) }
                defer { close(duplicate) }
                expect(try dup2(client.fd, number) == number)
                server.close()
                expect(try reader.join()?.code == .closed)

                // Other tests of the process may have taken the number, or freed lower ones, so it may take some pairs to come to it.
                var (newClient, newServer) = try net.pair()
                for _ in 0..<200 where try newClient.fd != number && newServer.fd != number { (newClient, newServer) = try net.pair() }
                let numbers = [try newClient.fd, try newServer.fd]
                expect(numbers.contains(number), "the number was not used again")
                var woken = 0
                let readers = try [newClient, newServer].map { stream in
                    try Fiber.spawnLocal {
                        // Wakes for events of this descriptor and for nothing else: a wake without bytes would be one of somebody else.
                        let bytes = try stream.read(upTo: 10)
                        woken += 1
                        return bytes
                    }
                }
                letOthersRun()
                let before = statistics()
                try client.writeAll("for nobody")
                try waitUntil { statistics() > before }
                letOthersRun()
                expect(woken == 0)
                try newClient.writeAll("a")
                try newServer.writeAll("b")
                expect(try readers.map { try $0.join() } == [Array("b".utf8), Array("a".utf8)])
            }
        }

        @Test(.onlyOn(.epoll, because: "others close a number only when the requests on it have completed"), arguments: Transport.all)
        func readerOfTheOldOwner_throwsClosed_whenItsNumberIsUsedAgainInTheSameBatch(transport: Transport) throws {
            try withNet(transport) { net in
                // Both are ready in one batch of events; whoever goes on first closes the other's socket and opens one with the same number.
                let pairs = try (0..<2).map { _ in try net.pair() }
                let server = try net.listener()
                var replacement: (Connection, Connection)?
                var first: Int?
                let readers = try (0..<2).map { i in
                    try Fiber.spawnLocal { () -> Failure? in
                        if let error = failure({ try pairs[i].server.waitReadable() }) { return error }
                        first = i
                        let other = pairs[1 - i].server
                        let number = try other.fd
                        other.close()
                        var client = net.keep(try Connection.pair().0)
                        for _ in 0..<200 where try client.fd != number { client = net.keep(try Connection.pair().0) }
                        expect(try client.fd == number, "the number was not used again")
                        replacement = (client, client)
                        return nil
                    }
                }
                letOthersRun()
                try pairs[0].client.writeAll("zero")
                try pairs[1].client.writeAll("one")
                let errors = try readers.map { try $0.join() }
                expect(first != nil && replacement != nil)
                expect(errors[1 - (first ?? 0)]?.code == .closed, "\(errors)")
                _ = server
            }
        }

        @Test func newOwnerInTheSameBatch_isNotWoken_byItsPredecessorsEvents() throws {
            try inRuntime {
                let a = try Connection.pair()
                let b = try Connection.pair()
                var fresh: (Connection, Connection)?
                var result: [UInt8]?
                let replacer = try Fiber.spawnLocal {
                    _ = try a.1.read(upTo: 10)
                    b.1.close()
                    let pair = try Connection.pair()
                    fresh = pair
                    result = try pair.0.read(upTo: 10)
                }
                let old = try Fiber.spawnLocal { failure { _ = try b.1.read(upTo: 10) } }
                letOthersRun()
                try a.0.writeAll("a")
                try b.0.writeAll("b")
                try waitUntil { fresh != nil }
                letOthersRun()
                expect(try old.join()?.code == .closed)
                expect(result == nil)
                try fresh!.1.writeAll("fresh")
                try replacer.join()
                expect(result == Array("fresh".utf8))
            }
        }

        @Test func aThousandTimesTheSameNumber_eachOwnerGetsItsOwnBytes() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                for i in 0..<1_000 {
                    let client = try Connection.connect(to: listener.address)
                    let server = try listener.accept()
                    let reader = try Fiber.spawnLocal { try server.read(upTo: 100) }
                    Fiber.yield()
                    try client.writeAll("\(i)")
                    expect(try reader.join() == Array("\(i)".utf8))
                    // In turn: closed by the reader's side, by the writer's, and by neither but dropped.
                    if i % 3 == 0 { server.close() } else if i % 3 == 1 { client.close() }
                }
            }
        }
    }
}
