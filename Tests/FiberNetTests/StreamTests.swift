// SPDX-License-Identifier: Apache-2.0

// What a connection carries, and what it says about itself.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct StreamTests {
        @Test(arguments: Transport.all)
        func bytes_arriveInOrder_inBothDirections(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                try client.writeAll("to the server")
                expect(try server.readExactly(13) == Array("to the server".utf8))
                try server.writeAll("to the client")
                expect(try client.readExactly(13) == Array("to the client".utf8))
            }
        }

        @Test func pair_isConnected() throws {
            try inRuntime {
                let (a, b) = try Connection.pair()
                try a.writeAll("1")
                try b.writeAll("2")
                expect(try b.read(upTo: 9) == Array("1".utf8))
                expect(try a.read(upTo: 9) == Array("2".utf8))
            }
        }

        @Test(.onlyOn(.epoll, .completing, because: "it uses a pipe"))
        func read_givesWhatIsThere_howeverMuchIsAskedFor() throws {
            try inRuntime {
                let (a, b) = try Connection.pair()
                try a.writeAll("few")
                expect(try b.read(upTo: .max) == Array("few".utf8))
                expect(try b.read(upTo: 0).isEmpty && b.read(upTo: -1).isEmpty)
                let pipe = try Pipe.make()
                try pipe.writer.writeAll("few")
                expect(try pipe.reader.read(upTo: .max) == Array("few".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func read_waits_untilBytesCome(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                var order: [String] = []
                let reader = try Fiber.spawnLocal {
                    order.append("wait")
                    let bytes = try server.read(upTo: 100)
                    order.append(String(decoding: bytes, as: UTF8.self))
                }
                letOthersRun()
                order.append("write")
                try client.writeAll("late")
                try reader.join()
                expect(order == ["wait", "write", "late"])
            }
        }

        @Test(arguments: Transport.all)
        func everyWayToRead_getsTheBytes(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                try client.writeAll("abcdefgh")
                let raw = UnsafeMutableRawBufferPointer.allocate(byteCount: 2, alignment: 1)
                defer { raw.deallocate() }
                expect(try server.read(into: raw) == 2)
                expect(Array(raw) == Array("ab".utf8))
                var array: [UInt8] = [0, 0]
                var span = array.mutableSpan
                var bytes = span.mutableBytes
                expect(try server.read(into: &bytes) == 2)
                expect(array == Array("cd".utf8))
                expect(try server.read(upTo: 2) == Array("ef".utf8))
                var lent: [UInt8] = []
                expect(try server.readAvailable { $0.withUnsafeBytes { lent += $0 } })
                expect(lent == Array("gh".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func everyWayToRead_saysSo_atTheEnd(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                client.close()
                for _ in 0..<3 { expect(try server.read(upTo: 10).isEmpty) }
                var called = false
                expect(try !server.readAvailable { _ in called = true })
                expect(!called)
                let raw = UnsafeMutableRawBufferPointer.allocate(byteCount: 2, alignment: 1)
                defer { raw.deallocate() }
                expect(try server.read(into: raw) == 0)
            }
        }

        @Test(arguments: Transport.all)
        func readAvailable_lendsAtMostABuffer_andLosesNothing(transport: Transport) throws {
            let sent = pattern(100_000)
            var configuration = FiberRuntime.Configuration()
            configuration.readBufferSize = 1_000
            var largest = 0
            var received: [UInt8] = []
            try withNet(transport, configuration) { net in
                let (client, server) = try net.pair()
                try Fiber.spawnLocal {
                    try client.writeAll(sent)
                    client.close()
                }
                while try server.readAvailable({ span in
                    largest = max(largest, span.byteCount)
                    span.withUnsafeBytes { received += $0 }
                }) {}
            }
            expect(largest == 1_000)
            expect(same(received, sent))
        }

        @Test func readAvailable_givesItsBufferBack_whenTheBodyThrows() throws {
            try inRuntime {
                let (a, b) = try Connection.pair()
                var buffers: Set<UnsafeRawPointer> = []
                for _ in 0..<100 {
                    try a.writeAll("x")
                    do {
                        _ = try b.readAvailable {
                            $0.withUnsafeBytes { _ = buffers.insert($0.baseAddress!) }
                            throw TestError()
                        }
                        Issue.record("the error was swallowed")
                    } catch {
                        expect(error is TestError)
                    }
                }
                expect(buffers.count == 1)
            }
        }

        @Test func idleConnections_holdNoBuffer() throws {
            // Fifty readers wait, and get their bytes one after the other: all out of the one buffer there is.
            var buffers: Set<UnsafeRawPointer> = []
            try inRuntime {
                var served = 0
                let pairs = try (0..<50).map { _ in try Connection.pair() }
                for (_, b) in pairs {
                    try Fiber.spawnLocal {
                        while try b.readAvailable({
                            $0.withUnsafeBytes { _ = buffers.insert($0.baseAddress!) }
                            served += 1
                        }) {}
                    }
                }
                letOthersRun()
                for (i, (a, _)) in pairs.enumerated() {
                    try a.writeAll("x")
                    try waitUntil { served == i + 1 }
                }
                for (a, _) in pairs { a.close() }
            }
            expect(buffers.count == 1)
        }

        @Test func readAvailable_lendsEachFiberItsOwnBuffer_whenBodiesPark() throws {
            try inRuntime {
                let pairs = try (0..<20).map { _ in try Connection.pair() }
                let wrong = try pairs.enumerated().map { i, pair in
                    try Fiber.spawnLocal {
                        var wrong = 0
                        _ = try pair.1.readAvailable { span in
                            letOthersRun()
                            span.withUnsafeBytes { bytes in
                                if Array(bytes) != [UInt8](repeating: UInt8(i), count: 500) { wrong += 1 }
                            }
                        }
                        return wrong
                    }
                }
                for (i, pair) in pairs.enumerated() { try pair.0.writeAll([UInt8](repeating: UInt8(i), count: 500)) }
                for handle in wrong { expect(try handle.join() == 0) }
            }
        }

        // Nothing at all.

        @Test(arguments: Transport.all)
        func emptyReadsAndWrites_returnAtOnce_andAreNoEnd(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                var othersRan = false
                let other = try Fiber.spawnLocal { othersRan = true }
                try client.writeAll([])
                try client.writeAll("")
                try client.writeAll(pieces: [])
                try client.writeAll(pieces: [[], [], []])
                let nothing: [UInt8] = []
                try client.writeAll(nothing.span.bytes, nothing.span.bytes)
                expect(try server.read(upTo: 0).isEmpty)
                expect(try server.read(into: UnsafeMutableRawBufferPointer(start: nil, count: 0)) == 0)
                var array: [UInt8] = []
                var span = array.mutableSpan
                var bytes = span.mutableBytes
                expect(try server.read(into: &bytes) == 0)
                expect(!othersRan, "something parked")
                try other.join()
                try client.writeAll("x")
                expect(try server.read(upTo: 10) == Array("x".utf8))
            }
        }

        @Test func emptyWrite_throwsClosed_whenTheStreamIsClosed() throws {
            try inRuntime {
                let (a, _) = try Connection.pair()
                a.close()
                expect(.closed) { try a.writeAll([]) }
                expect(.closed) { try a.writeAll(pieces: []) }
            }
        }

        @Test func emptyWrite_doesNotWait_whileAnotherFiberWrites() throws {
            try inRuntime {
                let (a, b) = try Connection.pair()
                let writer = try Fiber.spawnLocal { try a.writeAll([UInt8](repeating: 1, count: 4_000_000)) }
                letOthersRun()
                let nothing: [UInt8] = []
                // A timeout, so that a wait ends in an error here and not in a hang.
                expect(nil) { try withTimeout(.zero) { try a.writeAll([]) } }
                expect(nil) { try withTimeout(.zero) { try a.writeAll(pieces: [[], []]) } }
                expect(nil) { try withTimeout(.zero) { try a.writeAll(nothing.span.bytes, nothing.span.bytes) } }
                expect(try b.readExactly(4_000_000).count == 4_000_000)
                try writer.join()
            }
        }

        // Halves.

        @Test(arguments: Transport.all)
        func bytesBeforeTheEnd_areAllRead_whenItComesWithThem(transport: Transport) throws {
            let sent = pattern(150_000)
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let writer = try Fiber.spawnLocal {
                    // The reader waits by now, so that bytes and end come as events.
                    try client.writeAll("first")
                    letOthersRun()
                    try client.writeAll(sent)
                    try client.shutdown(.write)
                    return try client.readToEnd()
                }
                expect(try server.readExactly(5) == Array("first".utf8))
                expect(same(try server.readToEnd(chunk: 1_000), sent))
                expect(try server.read(upTo: 1_000).isEmpty, "the end stays the end")
                try server.writeAll(sent)
                server.close()
                expect(same(try writer.join(), sent), "the other half goes on")
            }
        }

        @Test(arguments: Transport.all)
        func endAlone_isSeen_whenTheReaderWaits(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let reader = try Fiber.spawnLocal { try server.read(upTo: 10) }
                letOthersRun()
                try client.shutdown(.write)
                expect(try reader.join().isEmpty)
            }
        }

        @Test(arguments: Transport.all)
        func write_throwsReset_afterShutdownOfItsHalf(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                try client.shutdown(.write)
                expect(.reset) { try client.writeAll("x") }
                try server.writeAll("still")
                expect(try client.readExactly(5) == Array("still".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func waitingReader_seesTheEnd_whenItsOwnHalfIsShutDown(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let reader = try Fiber.spawnLocal { try client.read(upTo: 10) }
                letOthersRun()
                try client.shutdown(.read)
                expect(try reader.join().isEmpty)
                try client.writeAll("out")
                expect(try server.readExactly(3) == Array("out".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func bothHalves_end_afterShutdownOfBoth(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let reader = try Fiber.spawnLocal { try client.read(upTo: 10) }
                letOthersRun()
                try client.shutdown(.both)
                expect(try reader.join().isEmpty)
                expect(try server.readToEnd().isEmpty)
                expect(.reset) { try client.writeAll("x") }
                expect(client.isOpen)
            }
        }

        @Test(.onlyOn(.epoll, .completing, because: "it is about what Linux says"))
        func shutdown_throws_whenThePeerOfATCPConnectionResetIt() throws {
            try withNet(.ipv4) { net in
                let (client, server) = try net.pair()
                server.reset()
                expect(.reset) { _ = try client.read(upTo: 1) }
                let error = expect(.system) { try client.shutdown(.write) }
                expect(error?.errno?.rawValue == ENOTCONN)
            }
        }

        // Timeouts.

        @Test(arguments: Transport.all)
        func everyWayToRead_timesOut_whenNothingComes(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let raw = UnsafeMutableRawBufferPointer.allocate(byteCount: 2, alignment: 1)
                defer { raw.deallocate() }
                expect(.timedOut) { _ = try withTimeout(.milliseconds(2)) { try server.read(upTo: 10) } }
                expect(.timedOut) { _ = try withTimeout(.milliseconds(2)) { try server.read(into: raw) } }
                expect(.timedOut) { _ = try withTimeout(.milliseconds(2)) { try server.readAvailable { _ in } } }
                expect(.timedOut) { try withTimeout(.milliseconds(2)) { try server.waitReadable() } }
                expect(.timedOut) { _ = try withTimeout(.zero) { try server.read(upTo: 10) } }
                expect(.timedOut) { _ = try withTimeout(.seconds(-1)) { try server.read(upTo: 10) } }
                try client.writeAll("after")
                expect(try server.readExactly(5) == Array("after".utf8), "a timeout ends the wait, not the stream")
            }
        }

        @Test(.onlyOn(.epoll, .completing, because: "it is about the real clock"))
        func read_isNotEarly_whenItTimesOut() throws {
            try inRuntime {
                let (a, b) = try Connection.pair()
                defer { b.close() }
                let clock = ContinuousClock()
                let start = clock.now
                expect(.timedOut) { _ = try withTimeout(.milliseconds(20)) { try a.read(upTo: 1) } }
                expect(clock.now - start >= .milliseconds(20))
            }
        }

        @Test(arguments: Transport.all)
        func read_returnsWhatIsThere_whenTheTimeoutIsZero(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                try client.writeAll("there")
                expect(try withTimeout(.zero) { try server.read(upTo: 10) } == Array("there".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func write_timesOut_andSaysHowMuchWent(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let sent = pattern(scaled(8_000_000, sanitized: 1_000_000))
                var count = 0
                expect(.timedOut) { try withTimeout(.milliseconds(10)) { try client.writeAll(sent, written: &count) } }
                expect(count > 0 && count < sent.count)
                client.close()
                expect(same(try server.readToEnd(), Array(sent.prefix(count))))
            }
        }

        // What it says about itself.

        @Test(arguments: Transport.all)
        func addresses_areThoseOfTheOtherEnd(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                expect(try client.peerAddress() == server.localAddress())
                expect(try server.peerAddress() == client.localAddress())
                if transport != .unix { expect(try client.localAddress().port! > 0) }
            }
        }

        @Test(.onlyOn(.epoll, .completing, because: "it is about options of the system"), arguments: Transport.tcp)
        func noDelay_isOn_forConnectedAndAcceptedStreams(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                expect(try client.option(.noDelay))
                expect(try server.option(.noDelay))
                try client.setOption(.noDelay, to: false)
                expect(try !client.option(.noDelay))
            }
        }

        @Test(.onlyOn(.epoll, .completing, because: "it is about options of the system"))
        func options_areReadBack() throws {
            try withNet(.ipv4) { net in
                let (client, _) = try net.pair()
                expect(try !client.option(.keepAlive))
                try client.setOption(.keepAlive, to: true)
                expect(try client.option(.keepAlive))
                try client.setOption(.keepAliveIdleSeconds, to: 77)
                expect(try client.option(.keepAliveIdleSeconds) == 77)
                try client.setOption(.sendBufferSize, to: 20_000)
                expect(try client.option(.sendBufferSize) == 40_000)
                try client.setOption(SocketOption<Int>(level: SOL_SOCKET, name: SO_PRIORITY), to: 3)
                expect(try client.option(SocketOption<Int>(level: SOL_SOCKET, name: SO_PRIORITY)) == 3)
            }
        }

        @Test(.onlyOn(.epoll, .completing, because: "it is about options of the system"))
        func options_throw_whenTheSocketHasNoSuch() throws {
            try inRuntime {
                let (a, _) = try Connection.pair()
                let error = expect(.system) { try a.setOption(.noDelay, to: true) }
                expect(error?.operation == "setsockopt")
                expect(.system) { try a.setOption(.sendBufferSize, to: .max) }
                let other = expect(.system) { _ = try a.option(.noDelay) }
                expect(other?.operation == "getsockopt")
            }
        }

        @Test func descriptor_isNonBlockingAndClosedOnExec() throws {
            try withNet(.ipv4) { net in
                let (client, server) = try net.pair()
                let listener = try net.listener()
                for endpoint in [client, server, listener] as [Endpoint] {
                    let flags = try endpoint.withFileDescriptor { (fcntl($0.rawValue, F_GETFL), fcntl($0.rawValue, F_GETFD)) }
                    expect(flags.0 & O_NONBLOCK != 0)
                    expect(flags.1 & FD_CLOEXEC != 0)
                }
            }
        }
    }
}
