// SPDX-License-Identifier: Apache-2.0

// Writes that are ended from outside: they say how many bytes went, exactly those arrive, and what others write comes behind them.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct CancelWriteTests {
        @Test(arguments: Transport.all, Ending.allCases)
        func write_saysHowMuchWent_andThatArrives_whenItIsEnded(transport: Transport, ending: Ending) throws {
            let sent = letters(600_000)
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                for (i, way) in WriteWay.allCases.enumerated() {
                    let count = try end(ending, writing: { try way.write(sent, to: client, written: &$0) })?.written ?? -1
                    expect(ending.comesLater ? count > 0 && count < sent.count : count == 0, "\(way): \(count) bytes")
                    // In order, and nothing in between.
                    let next = letters(2_000, seed: 100 + UInt64(i))
                    let writer = try Fiber.spawnLocal { try client.writeAll(next) }
                    let received = try server.readExactly(max(0, count) + next.count)
                    expect(same(received, Array(sent.prefix(max(0, count))) + next), "\(way): other bytes than the \(count) that went")
                    try writer.join()
                }
                client.close()
                expect(try server.readToEnd().isEmpty)
            }
        }

        @Test(arguments: Ending.allCases)
        func write_saysThatNothingWent_whenTheSocketWasFull(ending: Ending) throws {
            try inRuntime {
                let (a, b) = try Connection.pair()
                for way in WriteWay.allCases {
                    let block = [UInt8](repeating: 1, count: 8_000_000)
                    let filling =
                        failure(writing: { written in try withTimeout(.zero) { try a.writeAll(block, written: &written) } })?.written ?? 0
                    let error = try end(ending, writing: { try way.write(letters(10_000), to: a, written: &$0) })
                    expect(error?.written == 0, "\(way): \(String(describing: error))")
                    let next = try Fiber.spawnLocal { try way.write(letters(5_000, seed: 2), to: a) }
                    expect(try b.readExactly(filling).allSatisfy { $0 == 1 })
                    expect(try b.readExactly(5_000) == letters(5_000, seed: 2), "\(way)")
                    try next.join()
                }
                a.close()
                expect(try b.readToEnd().isEmpty)
            }
        }

        @Test(arguments: Transport.all, Ending.allCases)
        func writeWaitingForItsTurn_sendsNothing_whenItIsEnded(transport: Transport, ending: Ending) throws {
            let first = [UInt8](repeating: 1, count: 400_000)
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                for way in WriteWay.allCases {
                    let writer = try Fiber.spawnLocal { try client.writeAll(first) }
                    letOthersRun()
                    var third: FiberHandle<Void>?
                    let error = try end(
                        ending,
                        meanwhile: {
                            third = try Fiber.spawnLocal { try way.write(letters(3_000), to: client) }
                            letOthersRun()
                        }, writing: { try way.write(letters(1_000, seed: 9), to: client, written: &$0) })
                    expect(error?.written == 0, "\(way): \(String(describing: error))")
                    expect(!writer.fiber.isFinished && third?.fiber.isFinished == false)
                    expect(same(try server.readExactly(first.count), first))
                    expect(try server.readExactly(3_000) == letters(3_000), "\(way)")
                    try writer.join()
                    try third?.join()
                }
                client.close()
                expect(try server.readToEnd().isEmpty)
            }
        }

        @Test(arguments: Transport.all, Ending.allCases)
        func writersBehindIt_haveTheirTurns_whenTheFirstIsEnded(transport: Transport, ending: Ending) throws {
            let sent = letters(400_000)
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                for way in WriteWay.allCases {
                    var others: [FiberHandle<Void>] = []
                    let error = try end(
                        ending,
                        meanwhile: {
                            for i in 0..<3 {
                                others.append(try Fiber.spawnLocal { try way.write(letters(500 + i, seed: UInt64(i)), to: client) })
                            }
                            letOthersRun()
                        }, writing: { try way.write(sent, to: client, written: &$0) })
                    let count = error?.written ?? 0
                    expect(same(try server.readExactly(count), Array(sent.prefix(count))), "\(way)")
                    for i in 0..<3 { expect(try server.readExactly(500 + i) == letters(500 + i, seed: UInt64(i)), "\(way): writer \(i)") }
                    for other in others { try other.join() }
                }
                client.close()
                expect(try server.readToEnd().isEmpty)
            }
        }

        @Test(arguments: Transport.all)
        func writersThatAreLeft_goInOrder_whenAnyOfThemAreCancelled(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                for gone in [[0], [7], [0, 1, 2], [0, 7], [3, 4, 6], [0, 2, 4, 6], [1, 3, 5, 7], Array(0...7)] {
                    let blocks = (0..<8).map { [UInt8](repeating: UInt8($0), count: 300_000) }
                    let writers = try blocks.map { block in
                        try Fiber.spawnLocal { failure(writing: { try client.writeAll(block, written: &$0) }) }
                    }
                    letOthersRun()
                    for i in gone.count % 2 == 0 ? gone : gone.reversed() { writers[i].cancel() }
                    var wanted: [UInt8] = []
                    for i in 0..<8 where gone.contains(i) {
                        let error = try writers[i].join()
                        expect(error?.code == .cancelled, "writer \(i): \(String(describing: error))")
                        expect(i == 0 || error?.written == 0)
                        wanted += blocks[i].prefix(error?.written ?? 0)
                    }
                    for i in 0..<8 where !gone.contains(i) { wanted += blocks[i] }
                    expect(same(try server.readExactly(wanted.count), wanted), "cancelled: \(gone)")
                    for i in 0..<8 where !gone.contains(i) { expect(try writers[i].join() == nil) }
                }
                client.close()
                expect(try server.readToEnd().isEmpty)
            }
        }

        @Test(arguments: Transport.all)
        func reader_goesOn_whenTheWriterOfTheSameStreamIsCancelled_andTheOtherWayRound(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let sent = letters(400_000)
                let writer = try Fiber.spawnLocal { failure(writing: { try client.writeAll(sent, written: &$0) }) }
                let reader = try Fiber.spawnLocal { try client.read(upTo: 10) }
                letOthersRun()
                writer.cancel()
                let count = try writer.join()?.written ?? 0
                expect(!reader.fiber.isFinished)
                try server.writeAll("still")
                expect(try reader.join() == Array("still".utf8))
                expect(same(try server.readExactly(count), Array(sent.prefix(count))))

                let second = try Fiber.spawnLocal { try client.writeAll(sent) }
                let gone = try Fiber.spawnLocal { failure { _ = try client.read(upTo: 10) } }
                letOthersRun()
                gone.cancel()
                expect(try gone.join()?.code == .cancelled)
                expect(!second.fiber.isFinished)
                expect(same(try server.readExactly(sent.count), sent))
                try second.join()
            }
        }

        @Test(arguments: Transport.all)
        func deadlineOfTheCall_andOneFurtherOut_areToldApart(transport: Transport) throws {
            let sent = letters(600_000)
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                for way in WriteWay.allCases {
                    var inner: Failure?
                    func write(_ call: Duration, within scope: Duration) throws -> (any Error)? {
                        let outside = thrown {
                            try withTimeout(scope) {
                                inner = failure(writing: { written in
                                    try withTimeout(call) { try way.write(sent, to: client, written: &written) }
                                })
                                if let inner { throw inner.error }
                            }
                        }
                        let count = inner?.written ?? 0
                        expect(same(try server.readExactly(count), Array(sent.prefix(count))), "\(way)")
                        return outside
                    }
                    let own = try write(.milliseconds(2), within: .seconds(1_000)) as? TimeoutError
                    expect(own?.limit == .milliseconds(2) && own == inner?.timeout, "\(way): \(String(describing: own))")
                    let scope = try write(.seconds(1_000), within: .milliseconds(2)) as? TimeoutError
                    expect(scope?.limit == .milliseconds(2), "\(way): \(String(describing: scope))")
                    expect(inner?.code == .cancelled, "\(way): \(String(describing: inner))")
                }
            }
        }

        @Test func goodbye_isSent_inAShield_whenTheFiberIsCancelled() throws {
            try inRuntime {
                let (a, b) = try Connection.pair()
                let session = try Fiber.spawnLocal {
                    defer { withCancellationShield { try? withTimeout(.seconds(5)) { try a.writeAll("bye") } } }
                    _ = try a.read(upTo: 1)
                }
                letOthersRun()
                session.cancel()
                expect(try b.readExactly(3) == Array("bye".utf8))
                expect(thrown { try session.join() } is CancellationError)
            }
        }
    }
}
