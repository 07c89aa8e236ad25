// SPDX-License-Identifier: Apache-2.0

// Channels and select between workers and threads, at random: what is sent, received and handed back must be equal in the end.

import CFiber
import Fibers
import Glibc
import Testing

/// Who takes part, each with a number.
private enum Party: CaseIterable {
    case fibers, threads, both
}

/// What a party has done.
private struct Books: Sendable {
    var sent: [Int] = []
    var back: [Int] = []
    var received: [Int] = []
    var failures: [String] = []
}

extension KernelTests {
    @Suite struct ChannelRaceTests {
        private static let rounds = scaled(60, sanitized: 3) * min(timesLonger, 1000)

        /// Lets time go by: none, or some instructions, or a turn.
        private static func delay(_ generator: inout SeededGenerator) {
            switch Int.random(in: 0..<8, using: &generator) {
            case 0: if Worker.current != nil { Fiber.yield() } else { sched_yield() }
            case 1: for _ in 0..<Int.random(in: 0..<300, using: &generator) { cfiber_relax() }
            default: break
            }
        }

        private static func send(_ sender: Sender<Int>, _ other: Sender<Int>, from first: Int, seed: UInt64) -> Books {
            var generator = SeededGenerator(seed: seed)
            var books = Books()
            for number in first..<first + 200 {
                delay(&generator)
                do {
                    switch Int.random(in: 0..<4, using: &generator) {
                    case 0:
                        switch sender.trySend(number) {
                        case .sent: books.sent.append(number)
                        case .full, .closed: books.back.append(number)
                        }
                    case 1:
                        try select {
                            sender.onSend(number) {
                                books.sent.append(number)
                            } closed: {
                                books.back.append(number)
                            }
                            other.onSend(number) {
                                books.sent.append(number)
                            } closed: {
                                books.back.append(number)
                            }
                        }
                    case 2:
                        let limit = Duration.microseconds(Int.random(in: 0..<50, using: &generator))
                        try select {
                            other.onSend(number) {
                                books.sent.append(number)
                            } closed: {
                                books.back.append(number)
                            }
                            onTimeout(limit) { books.back.append(number) }
                        }
                    default:
                        try sender.send(number)
                        books.sent.append(number)
                    }
                } catch is ChannelClosedError {
                    books.back.append(number)
                } catch { books.failures.append("\(error)") }
            }
            return books
        }

        private static func receive(_ receiver: Receiver<Int>, _ other: Receiver<Int>, seed: UInt64) -> Books {
            var generator = SeededGenerator(seed: seed)
            var books = Books()
            var isOpen = (true, true)
            while isOpen.0 || isOpen.1 {
                delay(&generator)
                do {
                    switch Int.random(in: 0..<4, using: &generator) {
                    case 0 where isOpen.0:
                        switch receiver.tryReceive() {
                        case .message(let number): books.received.append(number)
                        case .empty: break
                        case .ended: isOpen.0 = false
                        }
                    case 1 where isOpen.0:
                        if let number = try receiver.receive() { books.received.append(number) } else { isOpen.0 = false }
                    case 2:
                        let limit = Duration.microseconds(Int.random(in: 0..<50, using: &generator))
                        try select {
                            if isOpen.0 {
                                receiver.onReceive {
                                    books.received.append($0)
                                } end: {
                                    isOpen.0 = false
                                }
                            }
                            if isOpen.1 {
                                other.onReceive {
                                    books.received.append($0)
                                } end: {
                                    isOpen.1 = false
                                }
                            }
                            onTimeout(limit) {}
                        }
                    default:
                        try select {
                            if isOpen.0 {
                                receiver.onReceive {
                                    books.received.append($0)
                                } end: {
                                    isOpen.0 = false
                                }
                            }
                            if isOpen.1 {
                                other.onReceive {
                                    books.received.append($0)
                                } end: {
                                    isOpen.1 = false
                                }
                            }
                        }
                    }
                } catch { books.failures.append("\(error)") }
            }
            return books
        }

        /// Four that send, four that receive, and one that closes, on fibers of some workers, on threads, or on both.
        @Test(arguments: [1, 2, 4], [ChannelCapacity.rendezvous, .bounded(1), .bounded(7), .unbounded])
        func eachMessage_isDeliveredOnce_orHandedBack(workers: Int, capacity: ChannelCapacity) throws {
            var failures: [String] = []
            for round in 0..<Self.rounds {
                let party = Party.allCases[round % 3]
                let seed = UInt64(round) << 16 | UInt64(workers) << 8
                let (sender, receiver) = makeChannel(of: Int.self, capacity)
                let (other, second) = makeChannel(of: Int.self, capacity)
                let books = Guarded<[Books]>([])
                var receivers: [(Receiver<Int>, Receiver<Int>)] = []
                for _ in 0..<4 { receivers.append((receiver.share(), second.share())) }
                let ends = Box(receivers)
                receivers = []
                let closeAfter = SeededGenerator.number(seed, below: 900)
                try onWorkers(workers) {
                    var threads: [Thread] = []
                    var handles: [FiberHandle<Void>] = []
                    for i in 0..<4 {
                        let sends: @Sendable () -> Void = {
                            let result = Self.send(sender, other, from: i * 1_000, seed: seed + UInt64(i))
                            books.withLock { $0.append(result) }
                        }
                        let receives: @Sendable () -> Void = {
                            let (first, second) = ends.value[i]
                            let result = Self.receive(first, second, seed: seed + 100 + UInt64(i))
                            books.withLock { $0.append(result) }
                        }
                        for (half, body) in [sends, receives].enumerated() {
                            if party == .threads || (party == .both && (i + half) % 2 == 0) {
                                threads.append(Thread(body))
                            } else {
                                handles.append(try Fiber.spawn(on: (i + half) % workers) { body() })
                            }
                        }
                    }
                    // Closes at some moment; what is on its way then is delivered or handed back.
                    for _ in 0..<closeAfter { Fiber.yield() }
                    if round % 2 == 0 {
                        sender.close()
                        other.close()
                    } else {
                        other.close()
                        sender.close()
                    }
                    for handle in handles { try handle.join() }
                    try withBlockingThread { [threads = Box(threads)] in for thread in threads.value { thread.join() } }
                }
                let all = books.value
                let sent = all.flatMap(\.sent).sorted()
                let received = all.flatMap(\.received).sorted()
                let back = all.flatMap(\.back).sorted()
                let numbers = (0..<4).flatMap { ($0 * 1_000)..<($0 * 1_000 + 200) }
                if sent != received { failures.append("round \(round): sent \(sent.count), received \(received.count)") }
                if (sent + back).sorted() != numbers { failures.append("round \(round): \(sent.count) sent and \(back.count) handed back") }
                failures += all.flatMap(\.failures)
                let left = [sender.waiting, other.waiting].flatMap { [$0.senders, $0.receivers] }
                if left != [0, 0, 0, 0] || receiver.count + second.count != 0 { failures.append("round \(round): left behind \(left)") }
            }
            #expect(failures.isEmpty)
        }

        /// Fibers that select are cancelled while others send to them.
        @Test(arguments: [1, 2, 4])
        func cancelledSelects_loseNothing(workers: Int) throws {
            var failures: [String] = []
            for round in 0..<Self.rounds {
                let seed = UInt64(round)
                let (sender, receiver) = makeChannel(of: Int.self, round % 2 == 0 ? .rendezvous : .bounded(2))
                let (other, second) = makeChannel(of: Int.self, .rendezvous)
                let received = Guarded<[Int]>([])
                let n = 200
                try onWorkers(workers) {
                    let producers = try [sender, other].enumerated().map { i, sender in
                        try Fiber.spawn(on: i % workers) { for number in 0..<n { try sender.send(i * n + number) } }
                    }
                    let consumers = Guarded<[FiberHandle<Void>]>([])
                    func startConsumer(_ i: Int) throws -> FiberHandle<Void> {
                        let (first, second) = (receiver.share(), second.share())
                        return try Fiber.spawn(on: i % workers) {
                            while true {
                                try select {
                                    first.onReceive { number in received.withLock { $0.append(number) } }
                                    second.onReceive { number in received.withLock { $0.append(number) } }
                                }
                            }
                        }
                    }
                    var generator = SeededGenerator(seed: seed)
                    var handles = try (0..<3).map { try startConsumer($0) }
                    var count = 3
                    while received.withLock({ $0.count }) < 2 * n {
                        handles.remove(at: Int.random(in: 0..<handles.count, using: &generator)).cancel()
                        handles.append(try startConsumer(count))
                        count += 1
                        for _ in 0..<Int.random(in: 0..<20, using: &generator) { Fiber.yield() }
                    }
                    for producer in producers { try producer.join() }
                    for handle in handles { handle.cancel() }
                    _ = consumers
                }
                if received.value.sorted() != Array(0..<2 * n) { failures.append("round \(round): \(received.value.count) received") }
                if sender.waiting != (0, 0) || other.waiting != (0, 0) { failures.append("round \(round): left behind") }
            }
            #expect(failures.isEmpty)
        }

        /// Ends that are let go of on any worker close the channel once, and nobody waits for ever.
        @Test(arguments: [1, 2, 4])
        func channel_ends_whereverItsLastSenderGoes(workers: Int) throws {
            var sums: [Int] = []
            for _ in 0..<Self.rounds {
                try onWorkers(workers) {
                    let (sender, receiver) = makeChannel(of: Int.self, .bounded(4))
                    for i in 0..<8 { try Fiber.spawn(on: i % workers) { for j in 0..<10 { try sender.send(j) } } }
                    _ = consume sender
                    var sum = 0
                    for message in receiver { sum += message }
                    sums.append(sum)
                }
            }
            #expect(sums.allSatisfy { $0 == 8 * 45 })
        }

        /// A fiber that its runtime leaves behind stands in no line any more.
        @Test func channel_goesOn_whenARuntimeLeavesAFiberBehind() throws {
            // With all that the fiber has, which nobody can let go of.
            let (sender, receiver, warnings) = leavingFibersBehind {
                let (sender, receiver) = makeChannel(of: Int.self, .rendezvous)
                let ends = Box((receiver.share(), receiver.share()))
                let warnings = Counter()
                _ = try? FiberRuntime.run(.init(workers: 2, shutdownLimit: .milliseconds(1), onWarning: { _ in warnings.add() })) {
                    for i in 0..<2 {
                        try Fiber.spawn(on: i) {
                            try withCancellationShield {
                                try select {
                                    ends.value.0.onReceive { _ in }
                                    ends.value.1.onReceive { _ in }
                                }
                            }
                        }
                    }
                    while sender.waiting.receivers < 4 { Fiber.yield() }
                    throw TestError()
                }
                return (sender, receiver, warnings)
            }
            #expect(warnings.value > 0)
            #expect(sender.waiting == (0, 0))
            #expect(sender.trySend(1) == .full)
            #expect(receiver.count == 0)
        }
    }
}

extension SeededGenerator {
    fileprivate static func number(_ seed: UInt64, below limit: Int) -> Int {
        var generator = SeededGenerator(seed: seed)
        return Int.random(in: 0..<limit, using: &generator)
    }
}
