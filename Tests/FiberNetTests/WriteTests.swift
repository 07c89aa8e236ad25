// SPDX-License-Identifier: Apache-2.0

// Large writes, writes out of many pieces, and several fibers on one stream.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct WriteTests {
        // What must survive.

        @Test(arguments: Transport.all)
        func tenMegabytes_arriveWhole_whenTheReaderIsSlow(transport: Transport) throws {
            let sent = pattern(scaled(10_000_000, sanitized: 4_000_000))
            var received: [UInt8] = []
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                var turns = 0
                let other = try Fiber.spawnLocal {
                    while received.count < sent.count {
                        turns += 1
                        Fiber.yield()
                    }
                }
                let writer = try Fiber.spawnLocal {
                    try client.writeAll(sent)
                    client.close()
                }
                received.reserveCapacity(sent.count)
                while true {
                    let bytes = try server.read(upTo: 10_007)
                    if bytes.isEmpty { break }
                    received += bytes
                    Fiber.yield()
                }
                try writer.join()
                try other.join()
                expect(turns > 100, "the others went on")
            }
            #expect(same(received, sent))
        }

        @Test(arguments: Transport.all)
        func largeEcho_comesBackWhole_whenBothWaysAreFull(transport: Transport) throws {
            let sent = pattern(scaled(4_000_000, sanitized: 1_000_000))
            var received: [UInt8] = []
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                try Fiber.spawnLocal {
                    while try server.readAvailable({ try server.writeAll($0) }) {}
                    server.close()
                }
                try Fiber.spawnLocal {
                    try client.writeAll(sent)
                    try client.shutdown(.write)
                }
                received = try client.readToEnd()
            }
            #expect(same(received, sent))
        }

        // Pieces.

        @Test(arguments: Transport.all)
        func pieces_arriveInOrder_whenSomeAreEmpty(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let pieces: [[UInt8]] = [[], [1], [], [], [2, 3], [4], []]
                try client.writeAll(pieces: pieces)
                let head: [UInt8] = [5], tail: [UInt8] = [6, 7], nothing: [UInt8] = []
                try client.writeAll(head.span.bytes, tail.span.bytes)
                try client.writeAll(nothing.span.bytes, head.span.bytes)
                try client.writeAll(head.span.bytes, nothing.span.bytes)
                client.close()
                expect(try server.readToEnd() == [1, 2, 3, 4, 5, 6, 7, 5, 5])
            }
        }

        @Test(arguments: Transport.all)
        func pieces_arriveWhole_whenEachIsLargerThanTheKernelTakes(transport: Transport) throws {
            let pieces = [pattern(700_001, seed: 1), [], pattern(3, seed: 2), pattern(900_007, seed: 3), pattern(300_000, seed: 4)]
            var received: [UInt8] = []
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                try Fiber.spawnLocal {
                    try client.writeAll(pieces: pieces)
                    client.close()
                }
                received = try server.readToEnd()
            }
            #expect(same(received, pieces.flatMap { $0 }))
        }

        @Test(arguments: Transport.all)
        func twoSpans_arriveWhole_whenTheFirstFillsTheKernelsBuffer(transport: Transport) throws {
            let head = pattern(1_000_003, seed: 1)
            let body = pattern(1_000_033, seed: 2)
            var received: [UInt8] = []
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                try Fiber.spawnLocal {
                    try client.writeAll(head.span.bytes, body.span.bytes)
                    client.close()
                }
                received = try server.readToEnd()
            }
            #expect(same(received, head + body))
        }

        #if compiler(>=6.2)
            // In processes of their own: a stack that is too small for many pieces ends the program.

            @Test func thousandsOfPieces_arriveInOrder() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors { try sendPieces(count: 5_000, size: { $0 % 7 == 0 ? 0 : $0 % 60 }) }
                }
            }

            @Test func thousandsOfPieces_arriveInOrder_whenTheReaderIsSlow() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors { try sendPieces(count: 3_000, size: { $0 % 5 == 0 ? 0 : 700 + $0 % 13 }) }
                }
            }

            @Test func piecesBeyondTheKernelsLimit_areSentInSeveralCalls() async {
                // UIO_MAXIOV is 1,024.
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for count in [1_023, 1_024, 1_025, 2_048, 2_049] { try sendPieces(count: count, size: { _ in 1 }) }
                    }
                }
            }
        #endif

        // Several fibers.

        @Test(arguments: Transport.all)
        func whatTwoFibersWrite_isNeverMixed(transport: Transport) throws {
            let size = 300_000
            let rounds = scaled(6, sanitized: 2)
            var received: [UInt8] = []
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let writers = try (1...3).map { i in
                    try Fiber.spawnLocal {
                        for round in 0..<rounds {
                            let block = [UInt8](repeating: UInt8(i), count: size)
                            // Each way to write takes its turn.
                            switch (i + round) % 3 {
                            case 0: try client.writeAll(block)
                            case 1: try client.writeAll(pieces: [Array(block[..<7]), [], Array(block[7...])])
                            default:
                                let head = Array(block[..<1_000]), tail = Array(block[1_000...])
                                try client.writeAll(head.span.bytes, tail.span.bytes)
                            }
                        }
                    }
                }
                try Fiber.spawnLocal {
                    for writer in writers { try writer.join() }
                    client.close()
                }
                received = try server.readToEnd()
            }
            #expect(received.count == 3 * rounds * size)
            #expect(runs(received).allSatisfy { $0.count % size == 0 })
        }

        @Test(arguments: Transport.all)
        func writers_goInTheOrderInWhichTheyBegan(transport: Transport) throws {
            var order: [UInt8] = []
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let writers = try (1...3).map { i in
                    try Fiber.spawnLocal { for _ in 0..<3 { try client.writeAll([UInt8](repeating: UInt8(i), count: 500_000)) } }
                }
                try Fiber.spawnLocal {
                    for writer in writers { try writer.join() }
                    client.close()
                }
                order = runs(try server.readToEnd()).flatMap { run in [UInt8](repeating: run.byte, count: run.count / 500_000) }
            }
            // A second block begins after the others' first.
            #expect(order == [1, 2, 3, 1, 2, 3, 1, 2, 3])
        }

        @Test(arguments: Transport.all)
        func nextWriter_hasItsTurn_whenTheOneBeforeItGaveUpWaiting(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let first = try Fiber.spawnLocal { try client.writeAll([UInt8](repeating: 1, count: 2_000_000)) }
                let second = try Fiber.spawnLocal {
                    failure(writing: { written in try withTimeout(.milliseconds(2)) { try client.writeAll([2], written: &written) } })
                }
                let third = try Fiber.spawnLocal { try client.writeAll([3]) }
                let error = try second.join()
                expect(error?.code == .timedOut)
                expect(error?.written == 0)
                expect(runs(try server.readExactly(2_000_001)).map(\.byte) == [1, 3])
                try first.join()
                try third.join()
            }
        }

        @Test(.onlyOn(.epoll, .completing, because: "it is about the real clock"))
        func nextWriter_hasItsTurn_whenTheOneBeforeItTimesOutInTheSameMoment() throws {
            // The first writer can go on and the second one's time is over when the worker looks next: the first finishes, finds the second in line but
            // already woken by its deadline, and must hand the turn to the third. A timeout there, so that a lost turn is an error and not a hang.
            try inRuntime {
                let (a, b) = try Connection.pair()
                // One byte more than the kernel takes.
                let size = try room(in: a, drainedBy: b) + 1
                for _ in 0..<20 {
                    let first = try Fiber.spawnLocal { try a.writeAll([UInt8](repeating: 1, count: size)) }
                    let receiver = try b.fd
                    try waitUntil { unread(receiver) == size - 1 }
                    let second = try Fiber.spawnLocal { failure { try withTimeout(.milliseconds(3)) { try a.writeAll([2]) } } }
                    let third = try Fiber.spawnLocal { failure { try withTimeout(.seconds(2)) { try a.writeAll([3]) } } }
                    letOthersRun()
                    let taken = drain(receiver)
                    // No other fiber runs meanwhile.
                    let clock = ContinuousClock()
                    let start = clock.now
                    while clock.now - start < .milliseconds(4) {}
                    try first.join()
                    expect(try second.join()?.code == .timedOut)
                    if let error = try third.join() { throw error.error }
                    expect(try b.readExactly(size + 1 - taken).last == 3)
                }
            }
        }

        @Test(arguments: Transport.all)
        func nextWriter_hasItsTurn_whenTheOneBeforeItTimedOutHalfWay(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let first = try Fiber.spawnLocal {
                    let block = [UInt8](repeating: 1, count: 8_000_000)
                    return failure(writing: { written in try withTimeout(.milliseconds(5)) { try client.writeAll(block, written: &written) }
                    })
                }
                let second = try Fiber.spawnLocal { try client.writeAll([2]) }
                let count = try first.join()?.written ?? 0
                expect(count > 0)
                let bytes = try server.readExactly(count + 1)
                try second.join()
                expect(bytes.last == 2 && runs(bytes).count == 2)
            }
        }

        @Test(arguments: Transport.all)
        func readers_areServedInTheOrderInWhichTheyCame(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                var order: [Int] = []
                for i in 1...3 {
                    try Fiber.spawnLocal {
                        for _ in 0..<3 {
                            _ = try server.read(upTo: 100)
                            order.append(i)
                        }
                    }
                }
                letOthersRun()
                for n in 1...9 {
                    try client.writeAll("x")
                    try waitUntil { order.count == n }
                }
                expect(order == [1, 2, 3, 1, 2, 3, 1, 2, 3], "\(order)")
            }
        }

        @Test(arguments: Transport.all)
        func readers_allGetBytes_whenManyComeAtOnce(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let readers = try (0..<10).map { _ in try Fiber.spawnLocal { try server.read(upTo: 1) } }
                letOthersRun()
                try client.writeAll(Array(0..<10))
                expect(try readers.map { try $0.join() } == (0..<10).map { [UInt8($0)] })
            }
        }

        @Test(arguments: Transport.all)
        func allReaders_seeTheEnd(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let readers = try (0..<5).map { _ in try Fiber.spawnLocal { try server.read(upTo: 1) } }
                letOthersRun()
                client.close()
                for reader in readers { expect(try reader.join().isEmpty) }
            }
        }

        @Test(arguments: Transport.all)
        func readerWithATimeout_leavesTheOthersInLine(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let first = try Fiber.spawnLocal { failure { _ = try withTimeout(.milliseconds(2)) { try server.read(upTo: 1) } } }
                let second = try Fiber.spawnLocal { try server.read(upTo: 1) }
                expect(try first.join()?.code == .timedOut)
                try client.writeAll("x")
                expect(try second.join() == Array("x".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func readerAndWriter_areIndependent_onOneStream(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                // The client's writer waits all the time; its reader goes on.
                let block = pattern(4_000_000)
                let writer = try Fiber.spawnLocal { try client.writeAll(block) }
                letOthersRun()
                for i in 0..<100 {
                    try server.writeAll("\(i)")
                    expect(try client.read(upTo: 100) == Array("\(i)".utf8))
                }
                expect(!writer.fiber.isFinished)
                // And the other way round: its reader waits all the time, its writer goes on.
                let reader = try Fiber.spawnLocal { try client.read(upTo: 100) }
                expect(same(try server.readExactly(block.count), block))
                try writer.join()
                expect(!reader.fiber.isFinished)
                try server.writeAll("end")
                expect(try reader.join() == Array("end".utf8))
            }
        }
    }
}

/// The byte and length of each run of equal bytes.
private func runs(_ bytes: [UInt8]) -> [(byte: UInt8, count: Int)] {
    var runs: [(byte: UInt8, count: Int)] = []
    bytes.withUnsafeBufferPointer { bytes in
        var start = 0
        while start < bytes.count {
            var end = start + 1
            // Blocks of a thousand at a time, for the sake of unoptimised code.
            while end + 1_000 <= bytes.count, memcmp(bytes.baseAddress! + end - 1, bytes.baseAddress! + end, 1_000) == 0 { end += 1_000 }
            while end < bytes.count, bytes[end] == bytes[start] { end += 1 }
            runs.append((bytes[start], end - start))
            start = end
        }
    }
    return runs
}

/// Reads everything that is there, past the stream.
private func drain(_ fd: Int32) -> Int {
    var buffer = [UInt8](repeating: 0, count: 65_536)
    var total = 0
    while true {
        let n = recv(fd, &buffer, buffer.count, Int32(MSG_DONTWAIT))
        guard n > 0 else { return total }
        total += n
    }
}

/// Bytes that wait to be read.
private func unread(_ fd: Int32) -> Int {
    var count: Int32 = 0
    return ioctl(fd, UInt(FIONREAD), &count) == 0 ? Int(count) : -1
}

/// How many bytes the kernel takes in one write before the writer must wait.
private func room(in a: Connection, drainedBy b: Connection) throws -> Int {
    let block = [UInt8](repeating: 0, count: 8_000_000)
    let sent = failure(writing: { written in try withTimeout(.zero) { try a.writeAll(block, written: &written) } })?.written ?? 0
    expect(try b.withFileDescriptor { drain($0.rawValue) } == sent)
    return sent
}

/// Sends pieces of many sizes over a narrow connection and compares what arrives.
private func sendPieces(count: Int, size: (Int) -> Int) throws {
    let pieces = (0..<count).map { i in [UInt8](repeating: UInt8(truncatingIfNeeded: i), count: size(i)) }
    var received: [UInt8] = []
    try withNet(.ipv4) { net in
        let (client, server) = try net.narrowPair()
        try Fiber.spawnLocal {
            try client.writeAll(pieces: pieces)
            client.close()
        }
        received = try server.readToEnd()
    }
    #expect(same(received, pieces.flatMap { $0 }))
}
