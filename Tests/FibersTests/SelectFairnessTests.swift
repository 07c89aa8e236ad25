// SPDX-License-Identifier: Apache-2.0

// Which arm of a select happens where several could: of those that wait at one channel, and of those beside a time.

import Fibers
import Glibc
import Testing

/// Whether each of several counts is what chance makes of equal shares, but for one time in ten million: within five and a half standard deviations.
private func areAlike(_ counts: [Int]) -> Bool {
    let (sum, share) = (Double(counts.reduce(0, +)), 1 / Double(counts.count))
    return counts.allSatisfy { abs(Double($0) - sum * share) <= 5.5 * (sum * share * (1 - share)).squareRoot() }
}

/// In handlers, which return nothing.
func recordIssue(_ text: String) { Issue.record(Comment(rawValue: text)) }

private let rounds = 2_000

extension KernelTests {
    @Suite struct SelectFairnessTests {
        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(1)])
        func armsThatSend_areServedAlike_whenTheyHaveWaitedAtOneChannel(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var counts = [0, 0, 0]
            try FiberRuntime.run(.init(workers: 1)) {
                let (sender, receiver) = kind.make(of: Int.self, capacity)
                let chooser = try Fiber.spawnLocal {
                    for _ in 0..<rounds {
                        try select {
                            sender.onSend(0) { counts[0] += 1 }
                            sender.onSend(1) { counts[1] += 1 }
                            sender.onSend(2) { counts[2] += 1 }
                        }
                    }
                }
                if capacity != .rendezvous { try sender.send(-1) }
                for _ in 0..<rounds {
                    #expect(yield(until: { sender.waiting.senders == 3 }))
                    _ = try receiver.receive()
                }
                try chooser.join()
            }
            #expect(areAlike(counts), "\(counts)")
        }

        @Test(arguments: ChannelKind.allCases)
        func armsThatReceive_areServedAlike_whenTheyHaveWaitedAtOneChannel(kind: ChannelKind) throws {
            var counts = [0, 0]
            try FiberRuntime.run(.init(workers: 1)) {
                let (sender, receiver) = kind.make(of: Int.self, .bounded(1))
                let (silentSender, silent) = kind.make(of: Int.self, .bounded(1))
                let chooser = try Fiber.spawnLocal {
                    for _ in 0..<rounds {
                        try select {
                            receiver.onReceive { _ in counts[0] += 1 }
                            silent.onReceive { _ in }
                            onTimeout(.seconds(1_000)) {}
                            receiver.onReceive { _ in counts[1] += 1 }
                        }
                    }
                }
                for i in 0..<rounds {
                    #expect(yield(until: { sender.waiting.receivers == 2 }))
                    try sender.send(i)
                }
                try chooser.join()
                withExtendedLifetime(silentSender) {}
            }
            #expect(areAlike(counts), "\(counts)")
        }

        /// Arms of both directions between them change nothing: of those of one direction each is as likely to be the first.
        @Test(arguments: ChannelKind.allCases)
        func armsOfBothDirections_areServedAlike_whenTheyHaveWaited(kind: ChannelKind) throws {
            var (sends, receives) = ([0, 0], [0, 0])
            try FiberRuntime.run(.init(workers: 1)) {
                let (sender, receiver) = kind.make(of: Int.self, .rendezvous)
                let chooser = try Fiber.spawnLocal {
                    for _ in 0..<2 * rounds {
                        try select {
                            sender.onSend(0) { sends[0] += 1 }
                            receiver.onReceive { _ in receives[0] += 1 }
                            sender.onSend(1) { sends[1] += 1 }
                            receiver.onReceive { _ in receives[1] += 1 }
                        }
                    }
                }
                for i in 0..<2 * rounds {
                    #expect(yield(until: { sender.waiting == (2, 2) }))
                    if i % 2 == 0 { try sender.send(i) } else { _ = try receiver.receive() }
                }
                try chooser.join()
            }
            #expect(areAlike(sends), "\(sends)")
            #expect(areAlike(receives), "\(receives)")
        }

        @Test func armsOfAThread_areServedAlike_whenTheyHaveWaitedAtOneChannel() {
            let n = 400
            let (sender, receiver) = makeChannel(of: Int.self, .rendezvous)
            let counts = Box([0, 0])
            let thread = Thread {
                for _ in 0..<n {
                    _ = try? select {
                        sender.onSend(0) { counts.value[0] += 1 }
                        sender.onSend(1) { counts.value[1] += 1 }
                    }
                }
            }
            for _ in 0..<n {
                while sender.waiting.senders < 2 { sched_yield() }
                _ = try? receiver.receive()
            }
            thread.join()
            #expect(areAlike(counts.value), "\(counts.value)")
        }

        // Beside a time.

        @Test(arguments: ChannelKind.allCases)
        func timeout_neverHappens_besideWhatIsThere(kind: ChannelKind) throws {
            var messages = 0
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .unbounded)
                for i in 0..<400 { try sender.send(i) }
                for limit in [Duration.zero, .seconds(-5), .nanoseconds(1), .seconds(1_000)] {
                    for _ in 0..<100 {
                        try select {
                            onTimeout(limit) { recordIssue("a timeout of \(limit) happened beside a message") }
                            receiver.onReceive { _ in messages += 1 }
                            onTimeout(.zero) { recordIssue("a timeout of nothing happened beside a message") }
                            otherwise { recordIssue("\"otherwise\" happened beside a message") }
                        }
                    }
                }
            }
            #expect(messages == 400)
        }

        @Test(arguments: ChannelKind.allCases)
        func timeout_neverHappens_besideRoomOrAnEnd(kind: ChannelKind) throws {
            var (sent, ended) = (0, 0)
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .bounded(100))
                let (closed, end) = kind.make(of: Int.self, .bounded(1))
                closed.close()
                for _ in 0..<100 {
                    try select {
                        onTimeout(.zero) { recordIssue("a timeout happened beside room for a message") }
                        sender.onSend(1) { sent += 1 }
                    }
                    try select {
                        onTimeout(.zero) { recordIssue("a timeout happened beside an end") }
                        end.onReceive { _ in
                        } end: {
                            ended += 1
                        }
                    }
                }
                withExtendedLifetime(receiver) {}
            }
            #expect(sent == 100 && ended == 100)
        }

        @Test func timeoutOfNothing_happensAtOnce_andBeforeOtherwise_whereNothingElseCan() throws {
            var counts = [0, 0]
            var others = 0
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: Int.self, .rendezvous)
                for _ in 0..<rounds {
                    try select {
                        otherwise { others += 1 }
                        onTimeout(.zero) { counts[0] += 1 }
                        receiver.onReceive { _ in others += 1 }
                        onTimeout(.seconds(-1)) { counts[1] += 1 }
                        onTimeout(.seconds(1_000)) { others += 1 }
                    }
                }
                withExtendedLifetime(sender) {}
            }
            #expect(others == 0)
            #expect(areAlike(counts), "\(counts)")
        }

        /// An instant that has come is no lack of anything else: a channel that always has something must not hide it for ever.
        @Test func instantThatHasCome_isAsLikelyAsAMessage_andBeforeATimeout() throws {
            var counts = [0, 0, 0]
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: Int.self, .unbounded)
                let past = ContinuousClock.now - .seconds(1)
                for i in 0..<rounds { try sender.send(i) }
                for _ in 0..<rounds {
                    try select {
                        receiver.onReceive { _ in counts[0] += 1 }
                        onDeadline(past) { counts[1] += 1 }
                        onTimeout(.zero) { counts[2] += 1 }
                    }
                }
            }
            #expect(counts[2] == 0)
            #expect(areAlike(Array(counts[..<2])), "\(counts)")
        }

        @Test func beatThatIsDue_comes_besideAChannelThatAlwaysHasAMessage() throws {
            var beats = 0
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: Int.self, .bounded(1))
                let ticker = Ticker(every: .nanoseconds(1))
                for _ in 0..<200 {
                    _ = sender.trySend(1)
                    try select {
                        receiver.onReceive { _ in }
                        ticker.onTick { _ in beats += 1 }
                        onTimeout(.zero) { recordIssue("a timeout happened beside a beat") }
                    }
                }
            }
            #expect(beats > 0)
        }

        @Test func timeoutOfAThread_neverHappens_besideWhatIsThere() {
            let (sender, receiver) = makeChannel(of: Int.self, .bounded(1))
            for i in 0..<100 {
                _ = sender.trySend(i)
                let received = try? select {
                    onTimeout(.zero) { -1 }
                    receiver.onReceive { $0 }
                }
                #expect(received == i)
            }
        }
    }
}
