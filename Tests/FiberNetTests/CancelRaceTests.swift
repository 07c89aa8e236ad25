// SPDX-License-Identifier: Apache-2.0

// What is waited for and what ends the wait, in one moment: exactly one of them is the outcome, and the loser takes nothing and leaves nothing behind.
//
// Both reach a fiber through its worker, so "in one moment" means: before the fiber goes on. The rounds bring the two about in either order and at random.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct CancelRaceTests {
        // Bytes.

        @Test(arguments: Transport.all, seeds)
        func bytes_areReadOnce_whenTheyComeAtTheMomentOfTheCancellation(transport: Transport, seed: UInt64) throws {
            let rounds = scaled(1_500, sanitized: 300)
            var (read, ended) = (0, 0)
            try withNet(transport, seconds: 60) { net in
                var random = SeededGenerator(seed: seed)
                let moment = try Moment(net, seed: seed)
                let (client, server) = try net.pair()
                var counter = Counter()
                for round in 0..<rounds {
                    let way = ReadWay.allCases.randomElement(using: &random) ?? .upTo
                    let outcome = try moment.race {
                        try way.read(server)
                    } against: {
                        try client.writeAll(counter.next(.random(in: 1...50, using: &random)))
                    }
                    switch outcome {
                    case .success(let bytes):
                        counter.take(bytes)
                        read += 1
                    case .failure(let error):
                        moment.expectEnd(error, "round \(round)")
                        ended += 1
                    }
                    // What it did not take is there for the next.
                    while counter.missing > 0 { counter.take(try withTimeout(.seconds(10)) { try server.read(upTo: 100) }) }
                }
                counter.expectInOrder()
                client.close()
                expect(try server.readToEnd().isEmpty)
            }
            // No case that never comes.
            #expect(read > rounds / 10 && ended > rounds / 10, "\(read) read, \(ended) ended")
        }

        @Test(arguments: Transport.all, seeds)
        func turns_arePassedOn_whenReadersAreCancelledAtTheMomentOfTheirBytes(transport: Transport, seed: UInt64) throws {
            let rounds = scaled(400, sanitized: 80)
            var (read, ended) = (0, 0)
            try withNet(transport, seconds: 60) { net in
                var random = SeededGenerator(seed: seed)
                let moment = try Moment(net, seed: seed)
                let (client, server) = try net.pair()
                var counter = Counter()
                for _ in 0..<rounds {
                    let readers = try (0..<5).map { _ in try Fiber.spawnLocal { try server.read(upTo: 1) } }
                    letOthersRun()
                    // The first has the turn, the others get it from one another.
                    let gone = readers.indices.filter { _ in Bool.random(using: &random) }.shuffled(using: &random)
                    try moment.together {
                        for i in gone { readers[i].cancel() }
                    } and: {
                        try client.writeAll(counter.next(.random(in: 1...6, using: &random)))
                    }
                    // For everybody: nobody waits for ever who was not ended.
                    try client.writeAll(counter.next(5))
                    var taken: [UInt8] = []
                    for (i, reader) in readers.enumerated() {
                        do { taken += try reader.join() } catch {
                            expect(error is CancellationError && gone.contains(i), "\(error)")
                            ended += 1
                        }
                    }
                    read += taken.count
                    expect(taken.count >= readers.count - gone.count)
                    // Which of them was served first is another test's business.
                    counter.take(sorted: taken)
                    while counter.missing > 0 { counter.take(try withTimeout(.seconds(10)) { try server.read(upTo: 100) }) }
                }
                counter.expectInOrder()
            }
            #expect(read > rounds && ended > rounds, "\(read) read, \(ended) ended")
        }

        @Test(arguments: Transport.all, seeds)
        func whatAWriteSaysItSent_arrives_whenRoomComesAtTheMomentOfTheCancellation(transport: Transport, seed: UInt64) throws {
            // A TCP connection whose window was closed takes its time to open it.
            let rounds = scaled(transport == .unix ? 300 : 20, sanitized: 15)
            var (whole, ended) = (0, 0)
            try withNet(transport, seconds: 60) { net in
                var random = SeededGenerator(seed: seed)
                let moment = try Moment(net, seed: seed)
                let (client, server) = try net.narrowPair()
                var round = 0
                // Until both have come, whatever the seed.
                while round < rounds || (round < 20 * rounds && (whole == 0 || ended == 0)) {
                    defer { round += 1 }
                    let way = WriteWay.allCases.randomElement(using: &random) ?? .array
                    // More than the kernel takes at once, or all of it.
                    let size = round % 4 == 3 ? Int.random(in: 1...10_000, using: &random) : .random(in: 40_000...300_000, using: &random)
                    let sent = letters(size, seed: UInt64(round))
                    var received: [UInt8] = []
                    var written = 0
                    let outcome = try moment.race {
                        try way.write(sent, to: client, written: &written)
                        return []
                    } against: {
                        received += takeAll(try server.fd)
                    }
                    let count: Int
                    switch outcome {
                    case .success:
                        count = sent.count
                        whole += 1
                    case .failure(let error):
                        moment.expectEnd(error, "round \(round)")
                        count = written
                        ended += 1
                    }
                    // Then another fiber's, in order.
                    let next = letters(300, seed: UInt64(round) + 1_000_000)
                    let writer = try Fiber.spawnLocal { try client.writeAll(next) }
                    received += try server.readExactly(count + next.count - received.count)
                    try writer.join()
                    expect(same(received, Array(sent.prefix(count)) + next), "round \(round): not the \(count) bytes that went")
                }
                client.close()
                expect(try server.readToEnd().isEmpty)
            }
            #expect(whole > 0 && ended > rounds / 4, "\(whole) went whole, \(ended) were ended")
        }

        // Connections.

        @Test(arguments: Transport.all, seeds)
        func connections_areAcceptedOnce_whenTheyComeAtTheMomentOfTheCancellation(transport: Transport, seed: UInt64) throws {
            let rounds = scaled(500, sanitized: 100)
            var (accepted, ended) = (0, 0)
            try withNet(transport, seconds: 60) { net in
                let moment = try Moment(net, seed: seed)
                let listener = try net.listener()
                for round in 0..<rounds {
                    var clients: [Int32] = []
                    var stream: Connection?
                    let outcome = try moment.race {
                        stream = round % 2 == 0 ? try listener.accept() : try listener.next()
                        return []
                    } against: {
                        clients.append(try connectNow(to: listener.address, UInt8(round % 251)))
                    }
                    if case .failure(let error) = outcome {
                        moment.expectEnd(error, "round \(round)")
                        expect(stream == nil)
                        ended += 1
                    } else {
                        accepted += 1
                    }
                    if stream == nil && !clients.isEmpty { stream = try withTimeout(.seconds(10)) { try listener.accept() } }
                    expect(try stream?.readExactly(1) == (clients.isEmpty ? nil : [UInt8(round % 251)]), "round \(round)")
                    clients.forEach { close($0) }
                    expect(.timedOut) { _ = try withTimeout(.zero) { try listener.accept() } }
                }
            }
            #expect(accepted > rounds / 10 && ended > rounds / 10, "\(accepted) accepted, \(ended) ended")
        }

        // Readiness.

        @Test(arguments: seeds)
        func readiness_isReportedToTheNextWaiter_whenItComesAtTheMomentOfTheCancellation(seed: UInt64) throws {
            let rounds = scaled(1_000, sanitized: 200)
            var (ready, ended) = (0, 0)
            try withNet(.ipv4, seconds: 60) { net in
                let moment = try Moment(net, seed: seed)
                let fds = try makePipe(nonBlocking: true)
                defer { fds.forEach { close($0) } }
                let input = FileDescriptor(rawValue: fds[0])
                let (a, b) = try net.pair()
                for round in 0..<rounds {
                    let isForeign = round % 2 == 0
                    // Every other time a second fiber waits, too, and must hear of it.
                    let other =
                        round % 4 < 2 ? nil : try Fiber.spawnLocal { isForeign ? try waitReadable(input) : try b.waitReadable() }
                    Fiber.yield()
                    let outcome = try moment.race {
                        if isForeign { try waitReadable(input) } else { try b.waitReadable() }
                        return []
                    } against: {
                        if isForeign { expect(write(fds[1], "x", 1) == 1) } else { try a.writeAll("x") }
                    }
                    if case .failure(let error) = outcome {
                        moment.expectEnd(error, "round \(round)")
                        ended += 1
                    } else {
                        ready += 1
                    }
                    if isForeign {
                        try withTimeout(.seconds(10)) { try waitReadable(input) }
                    } else {
                        try withTimeout(.seconds(10)) { try b.waitReadable() }
                    }
                    try other?.join()
                    var byte: UInt8 = 0
                    expect(try read(isForeign ? fds[0] : b.fd, &byte, 1) == 1)
                }
            }
            // A wait that was seen to be over and then cancelled is cancelled: it has taken nothing.
            #expect(ready > 0 && ended > rounds / 10, "\(ready) ready, \(ended) ended")
        }

        // Timers.

        @Test(arguments: Transport.all)
        func bytesAndDeadline_whenSeenTogether_areBytes_andTheScopeIsOver(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let limit = Duration.milliseconds(1)
                for way in ReadWay.allCases {
                    var bytes: [UInt8] = []
                    var second: Failure?
                    var outside: (any Error)?
                    var isCancelled = (inside: false, outside: true)
                    let reader = try Fiber.spawnLocal {
                        outside = thrown {
                            try withTimeout(limit) {
                                bytes = try way.read(server)
                                isCancelled.inside = Fiber.isCancelled
                                second = failure { _ = try way.read(server) }
                            }
                        }
                        isCancelled.outside = Fiber.isCancelled
                        // Not woken by what is left of that deadline, nor of the event.
                        return try way.read(server)
                    }
                    // It waits now; nobody looks at timers before the bytes are there.
                    Fiber.yield()
                    try client.writeAll("there")
                    spin(for: limit)
                    try waitUntil { !bytes.isEmpty }
                    letOthersRun()
                    expect(bytes == Array("there".utf8))
                    expect(isCancelled == (true, false))
                    expect(second?.code == .timedOut && second?.timeout?.limit == limit, "\(String(describing: second))")
                    expect(outside == nil, "the body returned: \(String(describing: outside))")
                    expect(!reader.fiber.isFinished)
                    try client.writeAll("later")
                    expect(try reader.join() == Array("later".utf8))
                }
            }
        }

        @Test(arguments: Transport.all)
        func bytesAndTimeoutOfTheCall_whenSeenTogether_areBytes(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                for way in ReadWay.allCases {
                    var bytes: [UInt8] = []
                    let reader = try Fiber.spawnLocal {
                        bytes = try withTimeout(.milliseconds(1)) { try way.read(server) }
                        expect(!Fiber.isCancelled)
                        return try way.read(server)
                    }
                    // It waits now; nobody looks at timers before the bytes are there.
                    Fiber.yield()
                    try client.writeAll("there")
                    spin(for: .milliseconds(1))
                    try waitUntil { !bytes.isEmpty }
                    letOthersRun()
                    expect(!reader.fiber.isFinished, "a timer was left behind")
                    try client.writeAll("later")
                    expect(try reader.join() == Array("later".utf8))
                }
            }
        }

        @Test(arguments: Transport.all)
        func deadlineThatCameTooLate_endsNothing(transport: Transport) throws {
            // Each read is in time, mostly by little; the deadline of each passes during the next, which is another one's business.
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let rounds = scaled(300, sanitized: 100)
                var late = 0
                let reader = try Fiber.spawnLocal {
                    var received = 0
                    while received < rounds {
                        do {
                            received += try withTimeout(.microseconds(300)) { try server.read(upTo: 1).count }
                        } catch is TimeoutError { late += 1 }
                        expect(!Fiber.isCancelled)
                        let clock = ContinuousClock()
                        let start = clock.now
                        try Fiber.sleep(for: .microseconds(400))
                        expect(clock.now - start >= .microseconds(400), "woken by somebody else's deadline")
                    }
                    return received
                }
                for _ in 0..<rounds {
                    try client.writeAll("x")
                    try Fiber.sleep(for: .microseconds(500))
                }
                expect(try reader.join() == rounds)
            }
        }
    }
}

/// Brings an event about at the moment when a fiber that waits for it is ended.
private final class Moment {
    /// A connection whose bytes arrive together with the event: who reads there runs before or after the fiber that waits for the event.
    private let signal: (client: Connection, server: Connection)
    private var limit: Duration?
    private var random: SeededGenerator

    init(_ net: Net, seed: UInt64) throws {
        signal = try net.pair()
        random = SeededGenerator(seed: seed &+ 1)
    }

    /// Makes a fiber that waits end and what it waits for happen in one moment, in either order.
    func together(cancel: @escaping () -> Void, and event: () throws -> Void) throws {
        switch Int.random(in: 0..<3, using: &random) {
        case 0:
            // It has happened, but nobody has looked: the cancellation comes first.
            try event()
            cancel()
        case 1:
            cancel()
            try event()
        default:
            // It has been seen, and the fiber is cancelled before it goes on: another fiber, whose event came before, does it.
            let killer = try Fiber.spawnLocal {
                _ = try self.signal.server.read(upTo: 1)
                cancel()
            }
            letOthersRun()
            try signal.client.writeAll("x")
            try event()
            try killer.join()
        }
    }

    /// Runs `call` in a fiber, and makes it end and `event` happen in one moment. Returns what became of the call.
    func race(_ call: @escaping () throws -> [UInt8], against event: () throws -> Void) throws -> Result<[UInt8], any Error> {
        var result: Result<[UInt8], any Error>?
        limit = nil
        func run() throws {
            do { result = .success(try call()) } catch {
                result = .failure(error)
                throw error
            }
        }
        switch Int.random(in: 0..<8, using: &random) {
        case 0...3:
            let fiber = try Fiber.spawnLocal { try run() }
            for _ in 0..<Int.random(in: 0...3, using: &random) { Fiber.yield() }
            try together(cancel: { fiber.cancel() }, and: event)
            try wait(fiber)
        case 4:
            // The event and the deadline are seen together.
            let limit = Duration.microseconds(Int.random(in: 1...200, using: &random))
            self.limit = limit
            let fiber = try Fiber.spawnLocal { try withTimeout(limit) { try run() } }
            for _ in 0..<Int.random(in: 0...3, using: &random) { Fiber.yield() }
            try event()
            spin(for: limit)
            try wait(fiber)
        case 5:
            // At random.
            let limit = Duration.microseconds(Int.random(in: 1...100, using: &random))
            self.limit = limit
            let fiber = try Fiber.spawnLocal { try withTimeout(limit) { try run() } }
            Fiber.yield()
            if Bool.random(using: &random) { try Fiber.sleep(for: .microseconds(.random(in: 1...100, using: &random))) }
            try event()
            try wait(fiber)
        case 6:
            // With a group, in whose cancelled scope this fiber itself stands.
            try withFiberGroup { group in
                try group.spawnLocal { try run() }
                for _ in 0..<Int.random(in: 0...2, using: &random) { Fiber.yield() }
                if Bool.random(using: &random) {
                    try event()
                    group.cancel()
                } else {
                    group.cancel()
                    try withCancellationShield { try event() }
                }
            }
        default:
            // The event is seen first and the fiber goes on, then it is cancelled: too late, or in its last moments.
            let fiber = try Fiber.spawnLocal { try run() }
            letOthersRun()
            try event()
            for _ in 0..<Int.random(in: 0...100, using: &random) { Fiber.yield() }
            if Bool.random(using: &random) { try Fiber.sleep(for: .nanoseconds(1)) }
            fiber.cancel()
            try wait(fiber)
        }
        guard let result else { throw TestError(text: "the call had no outcome") }
        return result
    }

    /// The end of a fiber says no more than what became of the call.
    private func wait(_ fiber: FiberHandle<Void>) throws {
        if let error = thrown({ try fiber.join() }) {
            expect(error is CancellationError || (error as? TimeoutError)?.limit == limit, "\(error)")
        }
    }

    /// The error is the right one for the way in which the last call was ended.
    func expectEnd(_ error: any Error, _ place: String = "") {
        let failure = Failure(error: error)
        expect(failure.code == (limit == nil ? .cancelled : .timedOut) && failure.timeout?.limit == limit, "\(place): \(error)")
    }
}

/// Bytes that count, so that each that is lost, doubled or out of order shows.
private struct Counter {
    private var sent: UInt64 = 0
    private var received: UInt64 = 0
    private var wrong = 0

    var missing: Int { Int(sent - received) }

    mutating func next(_ count: Int) -> [UInt8] {
        defer { sent += UInt64(count) }
        return (0..<UInt64(count)).map { UInt8(truncatingIfNeeded: sent + $0) }
    }

    mutating func take(_ bytes: [UInt8]) {
        for byte in bytes {
            if byte != UInt8(truncatingIfNeeded: received) { wrong += 1 }
            received += 1
        }
    }

    /// Bytes that several fibers took, fewer than half of those that can be told apart.
    mutating func take(sorted bytes: [UInt8]) {
        let first = UInt8(truncatingIfNeeded: received)
        take(bytes.sorted { $0 &- first < $1 &- first })
    }

    func expectInOrder(sourceLocation: SourceLocation = #_sourceLocation) {
        expect(wrong == 0 && missing == 0, "\(wrong) bytes were wrong, \(missing) are missing", sourceLocation: sourceLocation)
    }
}

/// Lets time pass in which no other fiber runs.
private func spin(for duration: Duration) {
    let clock = ContinuousClock()
    let start = clock.now
    while clock.now - start <= duration {}
}

/// Everything that is there, past the stream.
private func takeAll(_ fd: Int32) -> [UInt8] {
    var all: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65_536)
    while true {
        let n = recv(fd, &buffer, buffer.count, Int32(MSG_DONTWAIT))
        guard n > 0 else { return all }
        all += buffer[..<n]
    }
}
