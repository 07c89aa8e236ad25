// SPDX-License-Identifier: Apache-2.0

// A single value from one side to the other, or the news that it will not come.

import CFaults
import Fibers
import Testing

/// Both kinds in one type.
private final class OneShot<Value: Sendable> {
    var sender: OneShotSendingEnd<Value>?
    var receive: (() throws -> Value)!
    var tryReceive: (() -> TryReceiveResult<Value>)!

    init(_ reach: Reach) {
        switch reach {
        case .local:
            let (sender, receiver) = makeLocalOneShot(of: Value.self)
            self.sender = sender
            receive = { try receiver.receive() }
            tryReceive = { receiver.tryReceive() }
        case .shared:
            let (sender, receiver) = makeOneShot(of: Value.self)
            self.sender = sender
            receive = { try receiver.receive() }
            tryReceive = { receiver.tryReceive() }
        }
    }
}

private struct Unique: ~Copyable, Sendable {
    let number: Int
    let ends: Counter
    deinit { ends.add() }
}

private func word<Value>(_ result: TryReceiveResult<Value>) -> String {
    switch result {
    case .message(let value): "\(value)"
    case .empty: "empty"
    case .ended: "ended"
    }
}

extension KernelTests {
    @Suite struct OneShotTests {
        @Test(arguments: Reach.allCases)
        func value_arrives_whoeverComesFirst(_ reach: Reach) throws {
            var values: [Int] = []
            try runQuietly {
                let early = OneShot<Int>(reach)
                early.sender!.send(1)
                values.append(try early.receive())
                let late = OneShot<Int>(reach)
                let receiving = try Fiber.spawnLocal { try late.receive() }
                letTheOthersPark()
                late.sender!.send(2)
                values.append(try receiving.join())
            }
            #expect(values == [1, 2])
        }

        @Test(arguments: Reach.allCases)
        func tryReceive_says_whatIsThere(_ reach: Reach) throws {
            var words: [String] = []
            try runQuietly {
                let oneShot = OneShot<Int>(reach)
                words.append(word(oneShot.tryReceive()))
                oneShot.sender!.send(5)
                words.append(word(oneShot.tryReceive()))
                words.append(word(oneShot.tryReceive()))
                let dropped = OneShot<Int>(reach)
                dropped.sender = nil
                words.append(word(dropped.tryReceive()))
            }
            #expect(words == ["empty", "5", "ended", "ended"])
        }

        @Test(arguments: Reach.allCases)
        func receive_throws_whenTheSenderIsDroppedUnsent(_ reach: Reach) throws {
            var unsent: [Bool] = []
            try runQuietly {
                let before = OneShot<Int>(reach)
                before.sender = nil
                unsent.append(failure { _ = try before.receive() } is OneShotUnsentError)
                let after = OneShot<Int>(reach)
                let receiving = try Fiber.spawnLocal { try after.receive() }
                letTheOthersPark()
                after.sender = nil
                unsent.append(failure { _ = try receiving.join() } is OneShotUnsentError)
                // Again, when all is over.
                unsent.append(failure { _ = try after.receive() } is OneShotUnsentError)
            }
            #expect(unsent == [true, true, true])
        }

        /// Half of the senders are dropped unsent; the other side waits already, or does not yet.
        @Test(arguments: Side.all)
        func everyValue_arrives_orIsKnownNotTo(_ side: Side) throws {
            let rounds = scaled(4_000, sanitized: 400)
            let (sent, ends) = (Counter(), Counter())
            var (sum, unsent, seed) = (0, 0, SeededGenerator(seed: 3))
            try onWorkers(side.workers) {
                let (senders, toDo) = makeChannel(of: OneShotSender<Token>.self, .bounded(4))
                let box = Box<Receiver<OneShotSender<Token>>?>(toDo)
                let join = try side.run {
                    var random = SeededGenerator(seed: 4)
                    var number = 0
                    let queries = box.value.take()!
                    while let sender = try queries.receive() {
                        delay(&random)
                        number += 1
                        if random.next() % 2 == 0 {
                            sent.add(number)
                            sender.send(Token(number, ends))
                        }
                    }
                }
                for _ in 0..<rounds {
                    let (sender, receiver) = makeOneShot(of: Token.self)
                    try senders.send(sender)
                    drop(consume sender)
                    delay(&seed)
                    do { sum += try receiver.receive().number } catch is OneShotUnsentError { unsent += 1 }
                }
                senders.close()
                try join()
            }
            #expect(sum == sent.value)
            #expect(ends.value == rounds - unsent)
            #expect(unsent > rounds / 4 && unsent < rounds * 3 / 4)
        }

        /// The same the other way round: a plain thread waits, or a fiber elsewhere.
        @Test(arguments: Side.all)
        func everyWaiter_goesOn_whereverItWaits(_ side: Side) throws {
            let rounds = scaled(4_000, sanitized: 400)
            let (received, unsent) = (Counter(), Counter())
            var (sum, random) = (0, SeededGenerator(seed: 7))
            try onWorkers(side.workers) {
                let (receivers, toDo) = makeChannel(of: OneShotReceiver<Int>.self, .bounded(1))
                let box = Box<Receiver<OneShotReceiver<Int>>?>(toDo)
                let join = try side.run {
                    var random = SeededGenerator(seed: 8)
                    let answers = box.value.take()!
                    while let answer = try answers.receive() {
                        delay(&random)
                        do { received.add(try answer.receive()) } catch is OneShotUnsentError { unsent.add() }
                    }
                }
                for i in 0..<rounds {
                    let (sender, receiver) = makeOneShot(of: Int.self)
                    try receivers.send(receiver)
                    delay(&random)
                    if random.next() % 2 == 0 {
                        sum += i
                        sender.send(i)
                    }
                }
                receivers.close()
                try join()
            }
            #expect(received.value == sum)
            #expect(unsent.value > 0)
        }

        @Test(arguments: Reach.allCases)
        func nothingIsLost_whenAWaitIsCancelledOrTimesOut(_ reach: Reach) throws {
            var results: [String] = []
            try runQuietly {
                let oneShot = OneShot<Int>(reach)
                results.append("\(failure { try withTimeout(.microseconds(10)) { _ = try oneShot.receive() } } is TimeoutError)")
                let cancelled = try Fiber.spawnLocal { try oneShot.receive() }
                letTheOthersPark()
                cancelled.cancel()
                // It has been claimed, and is still in line.
                oneShot.sender!.send(1)
                results.append("\(failure { _ = try cancelled.join() } is CancellationError)")
                results.append("\(try oneShot.receive())")
                // Refused at once, also where the value is there.
                let ready = OneShot<Int>(reach)
                ready.sender!.send(2)
                let late = try Fiber.spawnLocal { try ready.receive() }
                late.cancel()
                results.append("\(failure { _ = try late.join() } is CancellationError)")
                results.append("\(try ready.receive())")
            }
            #expect(results == ["true", "true", "1", "true", "2"])
        }

        @Test(arguments: [Side.worker(1, of: 2), .worker(3, of: 4), .thread])
        func nothingIsLost_whenDeadlinesRaceWithTheValue(_ side: Side) throws {
            let rounds = scaled(1_000, sanitized: 200)
            let (ends, expired) = (Counter(), Counter())
            var (sum, random) = (0, SeededGenerator(seed: 10))
            try onWorkers(side.workers) {
                let (senders, toDo) = makeChannel(of: OneShotSender<Token>.self, .bounded(1))
                let box = Box<Receiver<OneShotSender<Token>>?>(toDo)
                let join = try side.run {
                    var random = SeededGenerator(seed: 9)
                    var number = 0
                    let queries = box.value.take()!
                    while let sender = try queries.receive() {
                        for i in 0..<random.next() % 3_000 { _ = opaque(Int(i)) }
                        number += 1
                        if number % 16 == 0 { waitForNext(expired) }
                        sender.send(Token(number, ends))
                    }
                }
                for _ in 0..<rounds {
                    let (sender, receiver) = makeOneShot(of: Token.self)
                    try senders.send(sender)
                    while true {
                        do {
                            sum += try withTimeout(limit(&random)) { try receiver.receive().number }
                            break
                        } catch is TimeoutError { expired.add() }
                    }
                }
                senders.close()
                try join()
            }
            #expect(sum == rounds * (rounds + 1) / 2)
            #expect(ends.value == rounds)
            #expect(expired.value >= rounds / 16)
        }

        @Test(arguments: Reach.allCases)
        func send_handsTheValueBack_whenTheReceiverHasGone(_ reach: Reach) throws {
            let ends = Counter()
            var (numbers, closed): ([Int?], [Bool]) = ([], [])
            try runQuietly {
                let oneShot = OneShot<Token>(reach)
                closed.append(oneShot.sender!.isClosed)
                (oneShot.receive, oneShot.tryReceive) = (nil, nil)
                closed.append(oneShot.sender!.isClosed)
                numbers.append(oneShot.sender!.send(Token(7, ends))?.number)
                let kept = OneShot<Token>(reach)
                numbers.append(kept.sender!.send(Token(8, ends))?.number)
                // Goes with the receiver.
                kept.sender = nil
                numbers.append(ends.value)
                (kept.receive, kept.tryReceive) = (nil, nil)
                numbers.append(ends.value)
            }
            #expect(numbers == [7, nil, 1, 2])
            #expect(closed == [false, true])
        }

        @Test(arguments: Side.all)
        func receiver_hears_whenTheQueryIsDroppedUnread(_ side: Side) throws {
            var isUnsent = false
            try onWorkers(side.workers) {
                let (queries, server) = makeChannel(of: OneShotSender<Int>.self, .bounded(1))
                let (reply, answer) = makeOneShot(of: Int.self)
                try queries.send(reply)
                drop(consume reply)
                let box = Box<Receiver<OneShotSender<Int>>?>(server)
                drop(consume server)
                let join = try side.run { box.value = nil }
                isUnsent = failure { _ = try answer.receive() } is OneShotUnsentError
                try join()
            }
            #expect(isUnsent)
        }

        @Test func value_isMoved_whenItCannotBeCopied() throws {
            let ends = Counter()
            var numbers: [Int] = []
            try runQuietly {
                let (sender, receiver) = makeOneShot(of: Unique.self)
                try Fiber.spawnLocal { sender.send(Unique(number: 3, ends: ends)) }
                let value = try receiver.receive()
                numbers.append(value.number)
                numbers.append(ends.value)
                drop(consume value)
                numbers.append(ends.value)
                let (local, end) = makeLocalOneShot(of: Unique.self)
                local.send(Unique(number: 4, ends: ends))
                numbers.append(try end.receive().number)
                numbers.append(ends.value)
            }
            #expect(numbers == [3, 0, 1, 4, 2])
        }

        /// A value that nobody received owns the sender of the next one, and its deinit sends there.
        @Test(arguments: Reach.allCases)
        func deinitOfAValue_maySend_whenItIsDroppedUnreceived(_ reach: Reach) throws {
            let ends = Counter()
            var number = 0
            try runQuietly {
                let (sender, receiver) = makeOneShot(of: Int.self)
                let oneShot = OneShot<Token>(reach)
                oneShot.sender!.send(Token(0, ends) { sender.send(9) })
                (oneShot.sender, oneShot.receive, oneShot.tryReceive) = (nil, nil, nil)
                number = try receiver.receive()
            }
            #expect(number == 9)
            #expect(ends.value == 1)
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"), arguments: Reach.allCases)
        func oneShot_allocatesTwice_andNothingToWait(_ reach: Reach) throws {
            let rounds = 1_000
            var (count, sum) = (-1, 0)
            try runQuietly {
                switch reach {
                case .local:
                    let (senders, toDo) = makeLocalChannel(of: LocalOneShotSender<Int>.self, .rendezvous)
                    try Fiber.spawnLocal { while let sender = try toDo.receive() { sender.send(1) } }
                    letTheOthersPark()
                    count = try allocations {
                        for _ in 0..<rounds {
                            let (sender, receiver) = makeLocalOneShot(of: Int.self)
                            try senders.send(sender)
                            sum += try receiver.receive()
                        }
                    }
                    senders.close()
                case .shared:
                    let (senders, toDo) = makeLocalChannel(of: OneShotSender<Int>.self, .rendezvous)
                    try Fiber.spawnLocal { while let sender = try toDo.receive() { sender.send(1) } }
                    letTheOthersPark()
                    count = try allocations {
                        for _ in 0..<rounds {
                            let (sender, receiver) = makeOneShot(of: Int.self)
                            try senders.send(sender)
                            sum += try receiver.receive()
                        }
                    }
                    senders.close()
                }
            }
            #expect(sum == rounds)
            #expect(count == 2 * rounds)
        }

        #if compiler(>=6.2)
            @Test func send_stopsAndSaysWhatToDo_theSecondTime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    let (sender, receiver) = makeOneShot(of: Int.self)
                    sender.send(1)
                    sender.send(2)
                    withExtendedLifetime(receiver) {}
                }
                expectMessage(result, "a one-shot was sent twice: it carries one value; for several use makeChannel")
            }

            @Test func receive_stopsAndSaysWhatToDo_theSecondTime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let (sender, receiver) = makeOneShot(of: Int.self)
                        sender.send(1)
                        _ = try receiver.receive()
                        _ = try receiver.receive()
                    }
                }
                expectMessage(result, "a one-shot was received twice: keep the value that came first")
            }

            @Test func receive_stopsAndSaysWhatToDo_whenAnotherWaits() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            let (sender, receiver) = makeLocalOneShot(of: Int.self)
                            try Fiber.spawnLocal { try receiver.receive() }
                            Fiber.yield()
                            _ = try receiver.receive()
                            withExtendedLifetime(sender) {}
                        }
                    }
                }
                expectMessage(result, "two wait for one one-shot: let one receive and pass the value on")
            }

            @Test func receive_stopsAndSaysWhatToDo_whenALocalOneIsUsedOnAThread() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let (sender, receiver) = makeLocalOneShot(of: Int.self)
                        sender.send(1)
                        _ = try receiver.receive()
                    }
                }
                expectMessage(result, "a Local… thing was used on a thread without fibers: use the one without Local")
            }
        #endif
    }
}

/// Ends the life of a value here, in every build.
private func drop<Value: ~Copyable>(_ value: consuming Value) { _ = consume value }
