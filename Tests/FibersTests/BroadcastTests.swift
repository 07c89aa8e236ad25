// SPDX-License-Identifier: Apache-2.0

// Every value to everyone who has subscribed, and what happens to those who are slow.

import Fibers
import Testing

private func makeEnd<Value: Sendable>(
    _ reach: Reach, of _: Value.Type = Value.self, capacity: Int, _ policy: BroadcastPolicy
) -> BroadcastSendingEnd<Value> {
    switch reach {
    case .local: makeLocalBroadcast(capacity: capacity, policy)
    case .shared: makeBroadcast(capacity: capacity, policy)
    }
}

private func subscribe<Value: Sendable>(_ sender: BroadcastSendingEnd<Value>) -> BroadcastReceivingEnd<Value> {
    (sender as? LocalBroadcastSender<Value>)?.subscribe() ?? (sender as! BroadcastSender<Value>).subscribe()
}

private func share<Value: Sendable>(_ subscriber: BroadcastReceivingEnd<Value>) -> BroadcastReceivingEnd<Value> {
    (subscriber as? LocalBroadcastSubscriber<Value>)?.share() ?? (subscriber as! BroadcastSubscriber<Value>).share()
}

private func word(_ call: () throws -> Int?) -> String {
    do { return try call().map { "\($0)" } ?? "end" } catch let lag as LaggedError { return "missed \(lag.missed)" } catch {
        return "\(error)"
    }
}

private func word(_ subscriber: BroadcastReceivingEnd<Int>) -> String {
    do {
        switch try subscriber.tryReceive() {
        case .message(let value): return "\(value)"
        case .empty: return "empty"
        case .ended: return "ended"
        }
    } catch { return "missed \(error.missed)" }
}

extension KernelTests {
    @Suite struct BroadcastTests {
        @Test(arguments: Reach.allCases, [BroadcastPolicy.wait, .dropOldest])
        func subscriber_gets_whatIsSentFromThenOn_andTheEnd(_ reach: Reach, _ policy: BroadcastPolicy) throws {
            var words: [String] = []
            var counts: [Int] = []
            try runQuietly {
                var sender: BroadcastSendingEnd<Int>? = makeEnd(reach, capacity: 4, policy)
                try sender?.send(0)
                let first = subscribe(sender!)
                try sender?.send(1)
                let second = subscribe(sender!)
                counts.append(sender!.subscriberCount)
                words.append(word(first))
                words.append(word(first))
                try sender?.send(2)
                try sender?.send(3)
                let third = share(second)
                counts.append(sender!.subscriberCount)
                let waiting = try Fiber.spawnLocal {
                    [word { try first.receive() }, word { try first.receive() }, word { try first.receive() }]
                }
                letTheOthersPark()
                sender = nil
                words += try waiting.join()
                for subscriber in [second, third] { words += Array(subscriber).map { "\($0)" } }
                words.append(word { try third.receive() })
                words.append(word(third))
            }
            #expect(words == ["1", "empty", "2", "3", "end", "2", "3", "2", "3", "end", "ended"])
            #expect(counts == [2, 3])
        }

        @Test(arguments: Reach.allCases)
        func lag_isCountedExactly_whenTheOldestIsDropped(_ reach: Reach) throws {
            var words: [String] = []
            var missed: [Int] = []
            try runQuietly {
                let sender = makeEnd(reach, of: Int.self, capacity: 4, .dropOldest)
                let subscriber = subscribe(sender)
                for i in 0..<4 { try sender.send(i) }
                words.append(word { try subscriber.receive() })
                // Now 1, 2 and 3 are there, and one place.
                for i in 4..<10 { try sender.send(i) }
                missed.append(subscriber.missed)
                let shared = share(subscriber)
                words.append(word { try subscriber.receive() })
                words.append(word { try subscriber.receive() })
                missed.append(subscriber.missed)
                for i in 10..<14 { try sender.send(i) }
                words.append(word(subscriber))
                for _ in 0..<5 { words.append(word(subscriber)) }
                missed.append(subscriber.missed)
                words.append(word(shared))
                words.append(word(shared))
            }
            #expect(words == ["0", "missed 5", "6", "missed 3", "10", "11", "12", "13", "empty", "missed 9", "10"])
            #expect(missed == [0, 5, 8])
        }

        @Test(arguments: Reach.allCases)
        func loop_goesOn_whereValuesWereMissed(_ reach: Reach) throws {
            var values: [Int] = []
            var missed = -1
            try runQuietly {
                var sender: BroadcastSendingEnd<Int>? = makeEnd(reach, capacity: 3, .dropOldest)
                let subscriber = subscribe(sender!)
                for i in 0..<10 { try sender?.send(i) }
                sender = nil
                for value in subscriber { values.append(value) }
                missed = subscriber.missed
            }
            #expect(values == [7, 8, 9])
            #expect(missed == 7)
        }

        @Test(arguments: Reach.allCases)
        func sender_waitsForTheSlowest_whoReadsOrGoes(_ reach: Reach) throws {
            var (words, results, sent): ([String], [TrySendResult], [Int]) = ([], [], [])
            try runQuietly {
                let sender = makeEnd(reach, of: Int.self, capacity: 2, .wait)
                var slow: BroadcastReceivingEnd<Int>? = subscribe(sender)
                let fast = subscribe(sender)
                try sender.send(0)
                results.append(sender.trySend(1))
                results.append(sender.trySend(2))
                words += [word(fast), word(fast), word(fast)]
                results.append(sender.trySend(2))
                let sending = try Fiber.spawnLocal {
                    for i in 2..<6 {
                        try sender.send(i)
                        sent.append(i)
                    }
                }
                letTheOthersPark()
                sent.append(-1)
                words.append(word(slow!))
                words.append(word(fast))
                letTheOthersPark()
                sent.append(-2)
                // It has yet to read 1 and 2; fast has yet to read 3 and 4 then.
                slow = nil
                letTheOthersPark()
                sent.append(-3)
                words += [word(fast), word(fast)]
                try sending.join()
                words += [word(fast), word(fast)]
            }
            #expect(results == [.sent, .full, .full])
            #expect(words == ["0", "1", "empty", "0", "2", "3", "4", "5", "empty"])
            #expect(sent == [-1, 2, -2, 3, 4, -3, 5])
        }

        @Test(arguments: Reach.allCases)
        func sender_goesOn_whenTheLastSubscriberGoes(_ reach: Reach) throws {
            let ends = Counter()
            var counts: [Int] = []
            try runQuietly {
                let sender = makeEnd(reach, of: Token.self, capacity: 1, .wait)
                var subscriber: BroadcastReceivingEnd<Token>? = subscribe(sender)
                let handles = try (0..<3).map { i in try Fiber.spawnLocal { try sender.send(Token(i, ends)) } }
                letTheOthersPark()
                counts.append(ends.value)
                counts.append(subscriber?.missed ?? -1)
                subscriber = nil
                for handle in handles { try handle.join() }
                counts.append(ends.value)
                counts.append(sender.subscriberCount)
                // Nobody gets it.
                try sender.send(Token(3, ends))
                counts.append(ends.value)
            }
            #expect(counts == [0, 0, 3, 0, 4])
        }

        @Test(arguments: Reach.allCases)
        func nothingIsLost_whenAWaitToReceiveIsCancelledOrTimesOut(_ reach: Reach) throws {
            var results: [String] = []
            try runQuietly {
                let sender = makeEnd(reach, of: Int.self, capacity: 2, .wait)
                let subscriber = subscribe(sender)
                results.append("\(failure { try withTimeout(.microseconds(10)) { _ = try subscriber.receive() } } is TimeoutError)")
                let cancelled = try Fiber.spawnLocal { try subscriber.receive() }
                letTheOthersPark()
                cancelled.cancel()
                // It has been claimed, and is still in line.
                try sender.send(1)
                results.append("\(failure { _ = try cancelled.join() } is CancellationError)")
                let late = try Fiber.spawnLocal { try subscriber.receive() }
                late.cancel()
                results.append("\(failure { _ = try late.join() } is CancellationError)")
                results.append(word(subscriber))
                results.append(word(subscriber))
                withExtendedLifetime(sender) {}
            }
            #expect(results == ["true", "true", "true", "1", "empty"])
        }

        @Test(arguments: Reach.allCases)
        func nothingIsSent_whenAWaitToSendIsCancelledOrTimesOut(_ reach: Reach) throws {
            var results: [String] = []
            try runQuietly {
                let sender = makeEnd(reach, of: Int.self, capacity: 1, .wait)
                let subscriber = subscribe(sender)
                try sender.send(1)
                results.append("\(failure { try withTimeout(.microseconds(10)) { try sender.send(2) } } is TimeoutError)")
                let cancelled = try Fiber.spawnLocal { try sender.send(3) }
                let patient = try Fiber.spawnLocal { try sender.send(4) }
                letTheOthersPark()
                cancelled.cancel()
                // The first in line has been claimed; the place is for the second.
                results.append(word(subscriber))
                results.append("\(failure { try cancelled.join() } is CancellationError)")
                try patient.join()
                results += [word(subscriber), word(subscriber)]
                let late = try Fiber.spawnLocal { try sender.send(5) }
                late.cancel()
                results.append("\(failure { try late.join() } is CancellationError)")
                results.append(word(subscriber))
            }
            #expect(results == ["true", "1", "true", "4", "empty", "true", "empty"])
        }

        /// Two senders, and subscribers on both sides: all see the same order.
        @Test(arguments: Side.all, [1, 7])
        func everySubscriber_getsEveryValueInOrder_whenSendersWait(_ side: Side, capacity: Int) throws {
            let count = scaled(2_000, sanitized: 200)
            let orders = Box<[[Int]]>([[], [], [], []])
            try onWorkers(side.workers) {
                var sender: BroadcastSender<Int>? = makeBroadcast(of: Int.self, capacity: capacity, .wait)
                let joins = try (0..<4).map { index in
                    let box = Box<BroadcastSubscriber<Int>?>(sender!.subscribe())
                    return try (index % 2 == 0 ? side : .worker(0, of: 1)).run {
                        var random = SeededGenerator(seed: UInt64(index))
                        var order: [Int] = []
                        let subscriber = box.value.take()!
                        while let value = try subscriber.receive() {
                            order.append(value)
                            if capacity > 1 { delay(&random) }
                        }
                        let found = order
                        results(orders) { $0[index] = found }
                    }
                }
                let box = Box(sender)
                let other = try side.run {
                    let sender = box.value.take()!
                    for i in 0..<count { try sender.send(2 * i) }
                }
                for i in 0..<count { try sender!.send(2 * i + 1) }
                sender = nil
                try other()
                for join in joins { try join() }
            }
            let first = orders.value[0]
            #expect(orders.value.allSatisfy { $0 == first })
            #expect(first.filter { $0 % 2 == 0 } == (0..<count).map { 2 * $0 })
            #expect(first.filter { $0 % 2 == 1 } == (0..<count).map { 2 * $0 + 1 })
        }

        /// What was received and what was missed is all that was sent, and each gap has the size that was told.
        @Test(arguments: Side.all, [1, 16])
        func everyGap_isToldExactly_whenTheOldestIsDropped(_ side: Side, capacity: Int) throws {
            let count = scaled(20_000, sanitized: 1_000)
            let (wrong, received, missed, ends) = (Counter(), Counter(), Counter(), Counter())
            try onWorkers(side.workers) {
                var sender: BroadcastSender<Token>? = makeBroadcast(capacity: capacity, .dropOldest)
                let joins = try (0..<3).map { index in
                    let box = Box<BroadcastSubscriber<Token>?>(sender!.subscribe())
                    return try side.run {
                        var random = SeededGenerator(seed: UInt64(index))
                        var next = 0
                        let subscriber = box.value.take()!
                        while true {
                            do {
                                // Some waits end early.
                                let value =
                                    Worker.current == nil || index > 0
                                    ? try subscriber.receive() : try withTimeout(limit(&random)) { try subscriber.receive() }
                                guard let value else { break }
                                if value.number != next { wrong.add() }
                                next += 1
                                received.add()
                            } catch let lag as LaggedError { next += lag.missed } catch is TimeoutError {}
                            delay(&random)
                        }
                        if next != count { wrong.add() }
                        missed.add(subscriber.missed)
                    }
                }
                var random = SeededGenerator(seed: 9)
                for i in 0..<count {
                    try sender!.send(Token(i, ends))
                    if random.next() % 8 == 0 { delay(&random) }
                }
                sender = nil
                for join in joins { try join() }
            }
            #expect(wrong.value == 0)
            #expect(received.value + missed.value == 3 * count)
            #expect(ends.value == count)
        }

        /// Whoever comes late or goes early holds up nobody, and everything is let go of once.
        @Test(arguments: [1, 2, 4], [BroadcastPolicy.wait, .dropOldest])
        func sendersGoOn_whileSubscribersComeAndGo(_ workers: Int, _ policy: BroadcastPolicy) throws {
            let count = scaled(5_000, sanitized: 500)
            let (ends, wrong, visits) = (Counter(), Counter(), Counter())
            try onWorkers(workers) {
                var sender: BroadcastSender<Token>? = makeBroadcast(capacity: 3, policy)
                var keeper: BroadcastSubscriber<Token>? = sender!.subscribe()
                var joins: [() throws -> Void] = []
                for index in 0...workers {
                    let box = Box<BroadcastSubscriber<Token>?>(keeper!.share())
                    joins.append(
                        try (index == workers ? .thread : Side.worker(index, of: workers)).run {
                            var random = SeededGenerator(seed: UInt64(index))
                            let own = box.value.take()!
                            var isOver = false
                            while !isOver {
                                var visitor: BroadcastSubscriber<Token>? = own.share()
                                var last = -1
                                // No more than there is room for, since its owner does not read meanwhile.
                                for _ in 0..<random.next() % 4 {
                                    guard let value = visitor?.next() else { break }
                                    if value.number <= last { wrong.add() }
                                    last = value.number
                                    delay(&random)
                                }
                                visitor = nil
                                for _ in 0..<random.next() % 5 where own.next() == nil { isOver = true }
                                visits.add()
                            }
                        })
                }
                for i in 0..<count {
                    if i == 10 { keeper = nil }
                    try sender!.send(Token(i, ends))
                    if i < 10 { _ = keeper?.next() }
                }
                sender = nil
                for join in joins { try join() }
            }
            #expect(wrong.value == 0)
            #expect(visits.value > workers)
            #expect(ends.value == count)
        }

        @Test(arguments: Reach.allCases)
        func valuesAreLetGoOf_once_andWhenTheLastHasReadThem(_ reach: Reach) throws {
            let ends = Counter()
            var counts: [Int] = []
            try runQuietly {
                let sender = makeEnd(reach, of: Token.self, capacity: 8, .dropOldest)
                let first = subscribe(sender)
                var second: BroadcastReceivingEnd<Token>? = subscribe(sender)
                for i in 0..<4 { try sender.send(Token(i, ends)) }
                _ = try first.receive()
                counts.append(ends.value)
                _ = try second?.receive()
                counts.append(ends.value)
                _ = try first.receive()
                _ = try first.receive()
                counts.append(ends.value)
                // It alone had yet to read two of them.
                second = nil
                counts.append(ends.value)
                for i in 0..<10 { try sender.send(Token(i, ends)) }
                counts.append(ends.value)
                withExtendedLifetime(first) {}
            }
            #expect(counts == [0, 1, 1, 3, 6])
            #expect(ends.value == 14)
        }

        /// It sends, subscribes and receives, where a value is missed, left unread, or sent to nobody; a lock that were held would never be free.
        @Test(arguments: Reach.allCases)
        func deinitOfAValue_mayUseTheBroadcast(_ reach: Reach) throws {
            let (ends, received) = (Counter(), Counter())
            var counts: [Int] = []
            try runQuietly {
                let sender = makeEnd(reach, of: Token.self, capacity: 2, .dropOldest)
                let end = Box<BroadcastSendingEnd<Token>?>(sender)
                func token() -> Token {
                    Token(0, ends) {
                        let sender = end.value!
                        let subscriber = subscribe(sender)
                        sender.trySend(Token(1, ends))
                        if case .message? = try? subscriber.tryReceive() { received.add() }
                    }
                }
                try sender.send(token())
                counts.append(ends.value)
                var subscriber: BroadcastReceivingEnd<Token>? = subscribe(sender)
                for _ in 0..<3 { try sender.send(token()) }
                counts.append(received.value)
                withExtendedLifetime(subscriber) {}
                subscriber = nil
                subscriber = subscribe(sender)
                try sender.send(token())
                counts.append(received.value)
                withExtendedLifetime(subscriber) {}
                subscriber = nil
                counts.append(received.value)
                end.value = nil
            }
            #expect(counts.first == 2)
            // Each deinit receives what it has sent, unless one inside it has sent, too: the value that is being sent may live until that has returned.
            #expect(received.value >= 4 && received.value <= 5)
            #expect(counts.last == received.value && counts[2] == counts[1] && counts[3] == counts[2] + 1)
            #expect(ends.value == 10)
        }

        #if compiler(>=6.2)
            @Test func makeBroadcast_stopsAndSaysWhatToDo_withoutRoom() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    _ = makeBroadcast(of: Int.self, capacity: 0, .wait)
                }
                expectMessage(result, "a broadcast has room for at least 1 value, not 0")
            }

            @Test func receive_stopsAndSaysWhatToDo_whenALocalOneIsUsedOnAThread() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let sender = makeLocalBroadcast(of: Int.self, capacity: 1, .wait)
                        _ = try sender.subscribe().receive()
                    }
                }
                expectMessage(result, "a Local… thing was used on a thread without fibers: use the one without Local")
            }
        #endif
    }
}

/// For results of several sides.
private func results(_ box: Box<[[Int]]>, _ change: (inout [[Int]]) -> Void) { guardian.withLock { _ in change(&box.value) } }
private let guardian = Guarded(0)
