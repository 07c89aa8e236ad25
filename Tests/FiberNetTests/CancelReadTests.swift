// SPDX-License-Identifier: Apache-2.0

// Reads that are ended from outside: they take no bytes, and pass their turn on.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct CancelReadTests {
        @Test(arguments: Transport.all, Ending.allCases)
        func read_takesNothing_whenItIsEnded(transport: Transport, ending: Ending) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                for way in ReadWay.allCases {
                    try end(ending) { _ = try way.read(server) }
                    // The next read gets what comes later, and all of it.
                    try client.writeAll("all of it")
                    expect(try withTimeout(.seconds(10)) { try way.read(server) } == Array("all of it".utf8), "\(way)")
                }
                expect(server.isOpen)
                client.close()
                expect(try server.read(upTo: 1).isEmpty)
            }
        }

        @Test(arguments: Transport.all, Ending.allCases)
        func readWaitingForItsTurn_leavesTheOthersInLine_whenItIsEnded(transport: Transport, ending: Ending) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                for way in ReadWay.allCases {
                    let order = Box<[Int]>([])
                    let first = try Fiber.spawnLocal { try read(server, way, as: 1, order) }
                    letOthersRun()
                    var third: FiberHandle<UInt8>?
                    try end(
                        ending,
                        meanwhile: {
                            third = try Fiber.spawnLocal { try read(server, way, as: 3, order) }
                            letOthersRun()
                        }
                    ) { _ = try way.read(server) }
                    expect(!first.fiber.isFinished && third?.fiber.isFinished == false, "others were ended, too")
                    try client.writeAll("a")
                    expect(try first.join() == UInt8(ascii: "a"))
                    try client.writeAll("b")
                    expect(try third?.join() == UInt8(ascii: "b"))
                    expect(order.value == [1, 3], "\(order.value)")
                }
            }
        }

        @Test(arguments: Transport.all, Ending.allCases)
        func readersBehindIt_haveTheirTurns_whenTheFirstIsEnded(transport: Transport, ending: Ending) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                for way in ReadWay.allCases {
                    let order = Box<[Int]>([])
                    var others: [FiberHandle<UInt8>] = []
                    try end(
                        ending,
                        meanwhile: {
                            for i in 2...4 { others.append(try Fiber.spawnLocal { try read(server, way, as: i, order) }) }
                            letOthersRun()
                        }
                    ) { _ = try way.read(server) }
                    expect(!others.contains { $0.fiber.isFinished })
                    for (i, other) in others.enumerated() {
                        try client.writeAll([UInt8(i)])
                        expect(try other.join() == UInt8(i))
                    }
                    expect(order.value == [2, 3, 4], "\(order.value)")
                }
            }
        }

        @Test(arguments: Transport.all)
        func readersThatAreLeft_areServedInOrder_whenAnyOfThemAreCancelled(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                for gone in [[0], [9], [0, 1, 2], [0, 9], [3, 4, 7], [0, 2, 4, 6, 8], [1, 3, 5, 7, 9], Array(0...9)] {
                    let readers = try (0..<10).map { _ in try Fiber.spawnLocal { try server.read(upTo: 1) } }
                    letOthersRun()
                    // Backwards and forwards: the turn may go to one that will be cancelled, too.
                    for i in gone.count % 2 == 0 ? gone : gone.reversed() { readers[i].cancel() }
                    let left = (0..<10).filter { !gone.contains($0) }
                    try client.writeAll(left.map { UInt8($0) })
                    for i in left { expect(try readers[i].join() == [UInt8(i)], "reader \(i), without \(gone)") }
                    for i in gone { expect(thrown { _ = try readers[i].join() } is CancellationError) }
                }
            }
        }

        @Test(arguments: Transport.all)
        func readsInAScopeThatIsOver_allFail_andTheOneBehindItSucceeds(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                var errors: [Failure?] = []
                let timeout = thrown {
                    try withTimeout(.milliseconds(2)) {
                        errors.append(failure { _ = try server.read(upTo: 9) })
                        try? client.writeAll("there")
                        for way in ReadWay.allCases { errors.append(failure { _ = try way.read(server) }) }
                        throw errors[0]?.error ?? TestError()
                    }
                }
                expect((timeout as? TimeoutError)?.limit == .milliseconds(2))
                expect(errors.count == 5 && errors.allSatisfy { $0?.code == .timedOut && $0?.timeout?.limit == .milliseconds(2) })
                // The write in there was refused as well.
                expect(.timedOut) { _ = try withTimeout(.zero) { try server.read(upTo: 9) } }
                try client.writeAll("behind")
                expect(try server.read(upTo: 9) == Array("behind".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func deadlineOfTheCall_andOneFurtherOut_areToldApart(transport: Transport) throws {
            try withNet(transport) { net in
                let (_, server) = try net.pair()
                for way in ReadWay.allCases {
                    var inner: (any Error)?
                    func read(_ call: Duration, within scope: Duration) -> (any Error)? {
                        thrown {
                            try withTimeout(scope) {
                                do { _ = try withTimeout(call) { try way.read(server) } } catch {
                                    inner = error
                                    throw error
                                }
                            }
                        }
                    }
                    // The call's own: the scope passes it on as it is.
                    let own = read(.milliseconds(2), within: .seconds(1_000)) as? TimeoutError
                    expect(own?.limit == .milliseconds(2) && own == inner as? TimeoutError, "\(way): \(String(describing: own))")
                    expect(
                        own.map { "\($0)" }?.contains("timed out after \(Duration.milliseconds(2)) (read") == true,
                        "\(String(describing: own))")
                    // The scope's.
                    let scope = read(.seconds(1_000), within: .milliseconds(2)) as? TimeoutError
                    expect(scope?.limit == .milliseconds(2), "\(way): \(String(describing: scope))")
                    expect(inner is CancellationError, "\(String(describing: inner))")
                }
            }
        }

        @Test(arguments: Transport.all)
        func readInAShield_goesOn_whenItsFiberIsCancelled(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                for way in ReadWay.allCases {
                    var bytes: [UInt8] = []
                    var behind: Failure?
                    let reader = try Fiber.spawnLocal {
                        try withTimeout(.seconds(1_000)) {
                            try withCancellationShield {
                                bytes = try way.read(server)
                                // A deadline of its own counts.
                                let error = thrown { try withTimeout(.milliseconds(1)) { _ = try way.read(server) } }
                                expect((error as? TimeoutError)?.limit == .milliseconds(1))
                            }
                            behind = failure { _ = try way.read(server) }
                        }
                    }
                    letOthersRun()
                    reader.cancel()
                    letOthersRun()
                    expect(!reader.fiber.isFinished)
                    try client.writeAll("shielded")
                    try? reader.join()
                    expect(bytes == Array("shielded".utf8), "\(way)")
                    expect(behind?.code == .cancelled, "\(way): \(String(describing: behind))")
                }
            }
        }

        @Test(arguments: Transport.all)
        func cancelledRead_leavesTheStreamToBeClosed(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let readers = try (0..<4).map { _ in try Fiber.spawnLocal { failure { _ = try server.read(upTo: 1) } } }
                letOthersRun()
                // In one moment: whoever comes first decides, and each has one outcome.
                readers[0].cancel()
                readers[2].cancel()
                server.close()
                readers[1].cancel()
                expect(try readers.map { try $0.join()?.code } == [.cancelled, .closed, .cancelled, .closed])
                expect(try client.readToEnd().isEmpty)
            }
        }
    }
}

/// Reads one byte and notes who did.
private func read(_ stream: Connection, _ way: ReadWay, as number: Int, _ order: Box<[Int]>) throws -> UInt8 {
    let bytes = try way.read(stream, upTo: 1)
    order.value.append(number)
    guard bytes.count == 1 else { throw TestError(text: "\(bytes.count) bytes instead of one") }
    return bytes[0]
}
