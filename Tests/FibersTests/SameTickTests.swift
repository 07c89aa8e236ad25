// SPDX-License-Identifier: Apache-2.0

// Two things happen to one wait before its fiber has run: exactly one counts, and nothing of the other is left behind.

import CFaults
import CFiber
import Fibers
import Testing

extension KernelTests {
    @Suite struct SameTickTests {
        /// What ends a wait by its time.
        enum Clock: CaseIterable, Sendable, CustomTestStringConvertible {
            case deadlineOfTheCall, deadlineOfTheScope, deadlineOfAScopeFurtherOut

            var testDescription: String { "\(self)" }

            /// What the wait comes to, if its time is over first.
            var outcome: Outcome { self == .deadlineOfTheCall ? .timedOut : .cancelled }
        }

        /// A fiber that waits in a list for a millisecond at most, and then without a deadline.
        private final class Waiting {
            let list = UnsafeMutablePointer<WaitList>.allocate(capacity: 1)
            var outcomes: [Outcome] = []
            var waiters: [Waiter] = []
            private(set) var handle: FiberHandle<Void>?

            init(_ clock: Clock) throws {
                list.initialize(to: WaitList())
                let worker = Worker.current!
                handle = try Fiber.spawnLocal { [unowned self] in
                    let deadline = Deadline.after(.milliseconds(1))
                    switch clock {
                    case .deadlineOfTheCall: wait(until: deadline)
                    case .deadlineOfTheScope: try withTimeout(.milliseconds(1)) { wait() }
                    case .deadlineOfAScopeFurtherOut: try withTimeout(.milliseconds(1)) { try withTimeout(long) { wait() } }
                    }
                    waiters.append(worker.beginPark())
                    outcomes.append(worker.park(.other))
                }
                Fiber.yield()
                compute(for: .milliseconds(2))
            }

            private func wait(until deadline: Int64 = .max) {
                outcomes.append(Worker.current!.park(in: list, .other, until: deadline))
            }

            /// Ends the second wait; true when nothing had ended it before.
            func finish() throws -> Bool {
                letTheOthersPark()
                let wasWaiting = waiters.count == 1 && Worker.current!.unpark(waiters[0], .closed)
                try handle?.join()
                return wasWaiting
            }

            deinit { list.deallocate() }
        }

        @Test(arguments: Clock.allCases, 0..<64)
        func readiness_counts_whenItCameBeforeTheDeadline(_ clock: Clock, _ turns: Int) throws {
            var outcomes: [Outcome] = []
            var entries: [Int] = []
            var observed: [Bool] = []
            try runQuietly {
                let worker = Worker.current!
                // The worker looks at the timers after every tick, of 64 turns at most: one of the arguments has it do so between the wake-up and the turn of the fiber.
                for _ in 0..<turns { Fiber.yield() }
                let waiting = try Waiting(clock)
                // Its time is over by the clock, and nobody has looked at that.
                worker.wakeAll(&waiting.list.pointee, .ready)
                observed.append(waiting.list.pointee.isEmpty)
                expireTimers()
                letTheOthersPark()
                entries.append(worker.timerCount)
                observed.append(waiting.list.pointee.isEmpty)
                observed.append(try waiting.finish())
                outcomes = waiting.outcomes
                entries.append(worker.timerCount)
            }
            #expect(outcomes == [.ready, .closed])
            #expect(observed == [true, true, true])
            #expect(entries == [0, 0])
        }

        @Test(arguments: Clock.allCases)
        func deadline_counts_whenItCameBeforeTheReadiness(_ clock: Clock) throws {
            var outcomes: [Outcome] = []
            var entries: [Int] = []
            var observed: [Bool] = []
            try runQuietly {
                let worker = Worker.current!
                let waiting = try Waiting(clock)
                let waiter = waiting.list.pointee.first!.pointee.waiter
                expireTimers()
                // The fiber is ready and stands in the list as long as it has not run.
                observed.append(!waiting.list.pointee.isEmpty)
                observed.append(!worker.unpark(waiter, .ready))
                worker.wakeAll(&waiting.list.pointee, .ready)
                entries.append(worker.timerCount)
                letTheOthersPark()
                observed.append(waiting.list.pointee.isEmpty)
                observed.append(try waiting.finish())
                outcomes = waiting.outcomes
                entries.append(worker.timerCount)
            }
            #expect(outcomes == [clock.outcome, .closed])
            #expect(observed == [true, true, true, true])
            #expect(entries == [0, 0])
        }

        @Test(arguments: Clock.allCases)
        func fiber_leavesTheList_whenItsTimeIsOver(_ clock: Clock) throws {
            // Between two that stay.
            var outcomes: [Outcome] = []
            var order: [Int] = []
            try runQuietly {
                let worker = Worker.current!
                let list = UnsafeMutablePointer<WaitList>.allocate(capacity: 1)
                list.initialize(to: WaitList())
                defer { list.deallocate() }
                func wait(_ number: Int, until deadline: Int64 = .max) {
                    outcomes.append(worker.park(in: list, .other, until: deadline))
                    order.append(number)
                }
                for i in 0..<3 {
                    try Fiber.spawnLocal {
                        switch (i, clock) {
                        case (1, .deadlineOfTheCall): wait(1, until: Deadline.after(.milliseconds(1)))
                        case (1, .deadlineOfTheScope): try withTimeout(.milliseconds(1)) { wait(1) }
                        case (1, .deadlineOfAScopeFurtherOut): try withTimeout(.milliseconds(1)) { try withTimeout(long) { wait(1) } }
                        default: wait(i)
                        }
                    }
                }
                Fiber.yield()
                _ = yield { order == [1] }
                worker.wakeAll(&list.pointee, .ready)
                letTheOthersPark()
            }
            #expect(order == [1, 0, 2])
            #expect(outcomes == [clock.outcome, .ready, .ready])
        }

        @Test func oneDeadline_counts_whenThoseOfCallAndScopeHaveBothPassed() throws {
            // The earlier one.
            var outcomes: [Outcome] = []
            var observed: [Bool] = []
            try runQuietly {
                let worker = Worker.current!
                for (call, scope) in [(1, 3), (3, 1)] {
                    let handle = try Fiber.spawnLocal {
                        try withTimeout(.milliseconds(scope)) {
                            _ = worker.beginPark()
                            outcomes.append(worker.park(.other, until: Deadline.after(.milliseconds(call))))
                            observed.append(Fiber.isCancelled)
                        }
                    }
                    Fiber.yield()
                    compute(for: .milliseconds(4))
                    expireTimers()
                    try handle.join()
                }
            }
            #expect(outcomes == [.timedOut, .cancelled])
            // By the time it goes on, that of the scope has passed in any case.
            #expect(observed == [true, true])
        }

        @Test(.enabled(if: cfaults_available() != 0, "the clock cannot be stopped under sanitizers"))
        func deadlineOfTheScope_counts_whenThatOfTheCallIsEqual() throws {
            var outcome: Outcome?
            try runQuietly {
                let worker = Worker.current!
                cfaults_stop_clock()
                defer { cfaults_release_clock() }
                try withTimeout(.milliseconds(1)) {
                    let deadline = Deadline.after(.milliseconds(1))
                    cfaults_release_clock()
                    _ = worker.beginPark()
                    outcome = worker.park(.other, until: deadline)
                }
            }
            #expect(outcome == .cancelled)
        }

        @Test func join_returnsTheResult_whenTheFiberEndsInTheTickOfTheDeadline() throws {
            var result: Int?
            var fates: [Fate] = []
            try runQuietly {
                let worker = Worker.current!
                // The worker must not look at the timers before the target has ended.
                worker.beginLongestTick()
                var waiter: Waiter?
                let target = try Fiber.spawnLocal {
                    waiter = worker.beginPark()
                    _ = worker.park(.other)
                    return 5
                }
                let joiner = try Fiber.spawnLocal {
                    fates.append(
                        fate {
                            try withTimeout(.milliseconds(1)) {
                                result = try target.join()
                                fates.append(fate { try Fiber.sleep(for: .zero) })
                            }
                        })
                }
                Fiber.yield()
                compute(for: .milliseconds(2))
                _ = worker.unpark(waiter!, .ready)
                Fiber.yield()
                fates.append(target.fiber.isFinished ? .returned : .threw("has not ended"))
                expireTimers()
                try joiner.join()
            }
            #expect(result == 5)
            #expect(fates == [.returned, .timedOut(.milliseconds(1)), .returned])
        }

        @Test func target_endsWell_whenItsJoinersGaveUpInTheSameTick() throws {
            // They stand in its list of joiners, claimed by their deadlines, when it ends, and until after its record has gone to another fiber.
            let count = 10
            var fates: [Fate] = []
            var results: [Int] = []
            var records: [FiberPointer] = []
            try runQuietly {
                let worker = Worker.current!
                // The worker must not look at the timers before all of them are over.
                worker.beginLongestTick()
                let target = try Fiber.spawnLocal {
                    records.append(worker.running)
                    _ = worker.beginPark()
                    _ = worker.park(.other, until: Deadline.after(.microseconds(500)))
                    return 5
                }
                var next: FiberHandle<Int>?
                for i in 0..<count {
                    try Fiber.spawnLocal {
                        fates.append(fate { try withTimeout(.milliseconds(1)) { results.append(try target.join()) } })
                        guard i == 0 else { return }
                        next = try Fiber.spawnLocal {
                            records.append(worker.running)
                            return 6
                        }
                    }
                }
                Fiber.yield()
                compute(for: .milliseconds(2))
                expireTimers()
                Fiber.yield()
                results.append(try target.join())
                results.append(try next!.join())
            }
            #expect(fates == [Fate](repeating: .timedOut(.milliseconds(1)), count: count))
            #expect(results == [5, 6])
            #expect(records.count == 2 && records.first == records.last)
        }

        @Test(arguments: [1, 2, 3, 4])
        func everyWait_hasOneOutcome_whenTimersWakesAndCancellationsAreRandom(_ seed: UInt64) throws {
            let rounds = scaled(3_000, sanitized: 500)
            var random = SeededGenerator(seed: seed)
            var wakes = 0
            var counts: [Outcome: Int] = [:]
            var waits = 0
            var leftOver = -1
            try runQuietly {
                let worker = Worker.current!
                let list = UnsafeMutablePointer<WaitList>.allocate(capacity: 1)
                list.initialize(to: WaitList())
                defer { list.deallocate() }
                var done = false
                let handles = try (0..<30).map { _ in
                    try Fiber.spawnLocal {
                        while !done {
                            let call =
                                random.next() & 3 == 0
                                ? Deadline.never : Deadline.after(.microseconds(Int64.random(in: 0...50, using: &random)))
                            let limit = Duration.microseconds(Int64.random(in: 0...60, using: &random))
                            waits += 1
                            switch random.next() & 3 {
                            case 0: counts[worker.park(in: list, .other, until: call), default: 0] += 1
                            case 1: try withTimeout(limit) { counts[worker.park(in: list, .other, until: call), default: 0] += 1 }
                            case 2:
                                try withTimeout(limit) {
                                    try withTimeout(limit * 2) { counts[worker.park(in: list, .other, until: call), default: 0] += 1 }
                                }
                            default:
                                try withTimeout(limit) {
                                    withCancellationShield { counts[worker.park(in: list, .other, until: call), default: 0] += 1 }
                                }
                            }
                        }
                    }
                }
                for _ in 0..<rounds {
                    if random.next() & 7 == 0 { expireTimers() } else { Fiber.yield() }
                    for _ in 0..<Int.random(in: 0...3, using: &random) {
                        guard let node = list.pointee.popFirst() else { break }
                        if worker.unpark(node.pointee.waiter, .ready) { wakes += 1 }
                    }
                }
                done = true
                for handle in handles {
                    while !handle.fiber.isFinished {
                        while let node = list.pointee.popFirst() { if worker.unpark(node.pointee.waiter, .ready) { wakes += 1 } }
                        Fiber.yield()
                    }
                }
                leftOver = worker.timerCount + (list.pointee.isEmpty ? 0 : 1)
            }
            #expect(counts.values.reduce(0, +) == waits, "seed \(seed)")
            #expect(counts[.ready] == wakes, "seed \(seed)")
            #expect(Set(counts.keys) == [.ready, .timedOut, .cancelled], "seed \(seed)")
            #expect(leftOver == 0, "seed \(seed)")
        }
    }
}
