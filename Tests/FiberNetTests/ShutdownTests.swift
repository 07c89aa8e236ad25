// SPDX-License-Identifier: Apache-2.0

// Ending one half of a stream while fibers wait on it: they all learn of it at once, on every transport.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct ShutdownTests {
        @Test(arguments: Transport.all, [Connection.Half.write, .both])
        func waitingWriter_throwsReset_whenItsHalfIsShutDown(transport: Transport, half: Connection.Half) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let sent = pattern(scaled(8_000_000, sanitized: 1_000_000))
                let writer = try Fiber.spawnLocal { failure { try withTimeout(.seconds(10)) { try client.writeAll(sent) } } }
                letOthersRun()
                expect(!writer.fiber.isFinished)
                try client.shutdown(half)
                let error = try writer.join()
                expect(error?.code == .reset && error?.errno == .brokenPipe, "\(String(describing: error))")
                let count = error?.bytesTransferred ?? 0
                expect(same(try server.readToEnd(), Array(sent.prefix(count))), "what had been written is delivered")
            }
        }

        @Test(arguments: Transport.all, [Connection.Half.write, .both])
        func writersInLine_allThrowReset_whenTheirHalfIsShutDown(transport: Transport, half: Connection.Half) throws {
            try withNet(transport) { net in
                let (client, _) = try net.narrowPair()
                let block = [UInt8](repeating: 7, count: 8_000_000)
                let ways: [() throws -> Void] = [
                    { try withTimeout(.seconds(10)) { try client.writeAll(block) } },
                    { try withTimeout(.seconds(10)) { try client.writeAll(pieces: [[1], block]) } },
                    { try withTimeout(.seconds(10)) { try client.writeAll(block.span.bytes, block.span.bytes) } },
                ]
                let writers = try ways.map { way in try Fiber.spawnLocal { failure(way) } }
                letOthersRun()
                try client.shutdown(half)
                for writer in writers {
                    let error = try writer.join()
                    expect(error?.code == .reset, "\(String(describing: error))")
                }
            }
        }

        @Test(arguments: Transport.all)
        func waitWritable_returns_whenItsHalfIsShutDown(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, _) = try net.narrowPair()
                _ = failure { try withTimeout(.milliseconds(1)) { try client.writeAll([UInt8](repeating: 7, count: 8_000_000)) } }
                let waiters = try (0..<2).map { _ in try Fiber.spawnLocal { try withTimeout(.seconds(10)) { try client.waitWritable() } } }
                letOthersRun()
                try client.shutdown(.write)
                for waiter in waiters { try waiter.join() }
                try withTimeout(.seconds(10)) { try client.waitWritable() }
                expect(.reset) { try client.writeAll("x") }
            }
        }

        @Test(.onlyOn(.epoll, because: "it asks for the state in between, which others reach later"), arguments: Transport.all)
        func fileBeingSent_throwsReset_whenTheHalfIsShutDown(transport: Transport) throws {
            let path = try makeFile(pattern(scaled(8_000_000, sanitized: 4_000_000)))
            defer { unlink(path) }
            try withNet(transport) { net in
                let (client, _) = try net.narrowPair()
                let file = try File.open(path)
                let sender = try Fiber.spawnLocal { failure { _ = try withTimeout(.seconds(10)) { try client.send(file) } } }
                // It waits for the peer once nothing more goes.
                expect(.timedOut) {
                    while true { try withTimeout(.milliseconds(300)) { try client.waitWritable() } }
                }
                expect(!sender.fiber.isFinished)
                try client.shutdown(.write)
                let error = try sender.join()
                expect(error?.code == .reset && (error?.bytesTransferred ?? 0) > 0, "\(String(describing: error))")
                try file.close()
            }
        }

        @Test(arguments: Transport.all, [Connection.Half.read, .both])
        func readersInLine_allSeeTheEnd_whenTheirHalfIsShutDown(transport: Transport, half: Connection.Half) throws {
            try withNet(transport) { net in
                let (client, _) = try net.pair()
                let readers = try (0..<3).map { _ in try Fiber.spawnLocal { try withTimeout(.seconds(10)) { try client.read(upTo: 10) } } }
                let waiter = try Fiber.spawnLocal { try withTimeout(.seconds(10)) { try client.waitReadable() } }
                letOthersRun()
                expect(readers.allSatisfy { !$0.fiber.isFinished })
                try client.shutdown(half)
                for reader in readers { expect(try reader.join().isEmpty) }
                try waiter.join()
                expect(try client.read(upTo: 10).isEmpty)
            }
        }

        @Test(arguments: Transport.all)
        func waitingReader_goesOn_whenTheOtherHalfIsShutDown(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let reader = try Fiber.spawnLocal { try client.read(upTo: 10) }
                letOthersRun()
                try client.shutdown(.write)
                letOthersRun()
                expect(!reader.fiber.isFinished)
                expect(try server.readToEnd().isEmpty)
                try server.writeAll("answer")
                expect(try reader.join() == Array("answer".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func waitingWriter_goesOn_whenTheOtherHalfIsShutDown(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let sent = pattern(scaled(2_000_000, sanitized: 500_000))
                let writer = try Fiber.spawnLocal { try client.writeAll(sent) }
                letOthersRun()
                try client.shutdown(.read)
                letOthersRun()
                expect(!writer.fiber.isFinished)
                expect(same(try server.readExactly(sent.count), sent))
                try writer.join()
            }
        }

        @Test(arguments: Transport.all)
        func shutdown_throwsClosed_andReachesNobodyElse_afterClose(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                client.close()
                for half in [Connection.Half.read, .write, .both] { expect(.closed) { try client.shutdown(half) } }
                expect(try server.readToEnd().isEmpty)
                try server.shutdown(.write)
            }
        }
    }
}
