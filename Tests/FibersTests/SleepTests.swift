// SPDX-License-Identifier: Apache-2.0

// Sleeping fibers. The timer queue is tested through them: every deadline and every order of insertion and removal goes through a sleep.

import CFaults
import CFiber
import Fibers
import Glibc
import Synchronization
import Testing

extension KernelTests {
    @Suite struct SleepTests {
        @Test(arguments: [1, 999, 50_000, 1_000_000, 7_654_321])
        func sleep_endsNoEarlierThanAsked(_ nanoseconds: Int64) throws {
            var shortest = Int64.max
            try FiberRuntime.run {
                for _ in 0..<5 {
                    let start = cfiber_now()
                    try Fiber.sleep(for: .nanoseconds(nanoseconds))
                    shortest = min(shortest, cfiber_now() - start)
                }
            }
            #expect(shortest >= nanoseconds)
        }

        @Test func sleep_endsNoEarlierThanAsked_whenAFractionOfANanosecondIsAsked() throws {
            let deadline = Duration(secondsComponent: 0, attosecondsComponent: 1_000_500_000_000_000)
            let start = cfiber_now()
            try FiberRuntime.run { try Fiber.sleep(for: deadline) }
            #expect(cfiber_now() - start >= 1_000_501)
        }

        @Test(arguments: [1, 2, 3])
        func sleepers_wakeInTheOrderOfTheirDeadlines_whenTheseAreRandom(_ seed: UInt64) throws {
            var random = SeededGenerator(seed: seed)
            let count = 500
            let delays = (1...Int64(count)).map { $0 * 10_000 }.shuffled(using: &random)
            var order: [Int64] = []
            var early = 0
            // All must sleep before the first deadline; on a machine that holds us up that long it is tried again with more time.
            var ahead: Int64 = 10_000_000
            var allSlept = false
            while !allSlept {
                order = []
                try FiberRuntime.run {
                    let start = cfiber_now() + ahead
                    for delay in delays {
                        try Fiber.spawnLocal {
                            let worker = Worker.current!
                            _ = worker.beginPark()
                            _ = worker.park(.sleep, until: start + delay)
                            if cfiber_now() < start + delay { early += 1 }
                            order.append(delay)
                        }
                    }
                    Fiber.yield()
                    allSlept = cfiber_now() < start
                }
                ahead *= 2
            }
            #expect(early == 0)
            #expect(order == delays.sorted())
        }

        @Test func sleepers_allWake_whenTimersComeAndGoInAnyOrder() throws {
            // Parks with deadlines that are taken out of the middle of the queue by a wake-up, against a model of who must be waiting.
            var random = SeededGenerator(seed: 4)
            let count = 400
            var outcomes = [Outcome?](repeating: nil, count: count)
            var expected = [Outcome](repeating: .timedOut, count: count)
            try FiberRuntime.run {
                let worker = Worker.current!
                var waiters: [Waiter?] = Array(repeating: nil, count: count)
                for i in 0..<count {
                    let delay = Int64.random(in: 40_000_000...60_000_000, using: &random)
                    try Fiber.spawnLocal {
                        waiters[i] = worker.beginPark()
                        outcomes[i] = worker.park(.other, until: cfiber_now() + delay)
                    }
                }
                Fiber.yield()
                for i in (0..<count).shuffled(using: &random).prefix(count / 2) {
                    if worker.unpark(waiters[i]!, .ready) { expected[i] = .ready }
                    if i % 10 == 0 { Fiber.yield() }
                }
            }
            #expect(outcomes == expected)
            #expect(expected.count { $0 == .ready } > 0)
        }

        @Test(arguments: [
            Duration.zero, .nanoseconds(-1), .seconds(-5), .seconds(Int64.min), Duration(secondsComponent: .min, attosecondsComponent: 0),
        ])
        func sleep_letsTheOthersRunOnce_whenItIsZeroOrNegative(_ duration: Duration) throws {
            var trace: [String] = []
            try FiberRuntime.run {
                try Fiber.spawnLocal {
                    trace.append("other")
                    Fiber.yield()
                    trace.append("other again")
                }
                trace.append("before")
                try Fiber.sleep(for: duration)
                trace.append("after")
            }
            #expect(trace == ["before", "other", "after", "other again"])
        }

        @Test(arguments: [
            Duration.seconds(Int64.max), .seconds(Int64.max / 1_000_000_000), .seconds(300 * 365 * 86_400), .nanoseconds(Int64.max),
        ])
        func sleep_parksForEver_whenTheDurationIsHuge(_ duration: Duration) throws {
            // The runtime waits for all fibers, so this one is woken through the kernel in the end.
            var record: FiberPointer?
            var returned = false
            try FiberRuntime.run {
                let sleeper = try Fiber.spawnLocal {
                    record = Worker.current!.running
                    try Fiber.sleep(for: duration)
                    returned = true
                }
                _ = yield { record != nil }
                try Fiber.sleep(for: .milliseconds(3))
                #expect(!returned)
                let worker = Worker.current!
                #expect(worker.unpark(Waiter(record!), .timedOut))
                try sleeper.join()
            }
            #expect(returned)
        }

        // Until an instant.

        @Test(arguments: [Duration.nanoseconds(1), .microseconds(50), .milliseconds(2)])
        func sleepUntil_endsNoEarlierThanTheInstant(_ distance: Duration) throws {
            var early = 0
            try runQuietly {
                for _ in 0..<5 {
                    let instant = ContinuousClock.now + distance
                    try Fiber.sleep(until: instant)
                    if ContinuousClock.now < instant { early += 1 }
                }
            }
            #expect(early == 0)
        }

        @Test(arguments: [Duration.zero, .nanoseconds(-1), .seconds(-1_000_000)])
        func sleepUntil_letsTheOthersRunOnce_whenTheInstantHasPassed(_ distance: Duration) throws {
            var trace: [String] = []
            try runQuietly {
                try Fiber.spawnLocal {
                    trace.append("other")
                    Fiber.yield()
                    trace.append("other again")
                }
                try Fiber.sleep(until: .now + distance)
                trace.append("after")
            }
            #expect(trace == ["other", "after", "other again"])
        }

        @Test func sleepUntil_doesNotDrift_whenInstantsAreAddedUp() throws {
            var instants: [ContinuousClock.Instant] = []
            var next = ContinuousClock.now
            var early = 0
            try runQuietly {
                for _ in 0..<10 {
                    next += .microseconds(300)
                    try Fiber.sleep(until: next)
                    instants.append(.now)
                    if instants.last! < next { early += 1 }
                }
            }
            #expect(early == 0)
            #expect(instants == instants.sorted())
        }

        @Test func sleepUntil_parksForALongTime_whenTheInstantIsFarAway() throws {
            var fates: [Fate] = []
            try runQuietly {
                let handle = try Fiber.spawnLocal { try Fiber.sleep(until: .now + .seconds(300 * 365 * 86_400)) }
                try Fiber.sleep(for: .milliseconds(1))
                fates.append(handle.fiber.isFinished ? .threw("it returned") : .returned)
                handle.cancel()
                fates.append(fate { try handle.join() })
            }
            #expect(fates == [.returned, .cancelled])
        }

        // The timer queue against a model.

        /// Fibers that wait for what they are told, and note what became of it.
        private final class Sleepers {
            /// What a fiber waits for at present, as it was told; nil once that is over.
            var deadlines: [Int64?]
            var waiters: [Waiter?]
            /// Which deadlines came, in the order in which the fibers went on.
            var expired: [(fiber: Int, deadline: Int64)] = []
            var wrong: [String] = []
            private(set) var orders: [Int64?]
            private var done = false

            init(_ count: Int) throws {
                deadlines = Array(repeating: nil, count: count)
                waiters = Array(repeating: nil, count: count)
                orders = Array(repeating: nil, count: count)
                for i in 0..<count { try Fiber.spawnLocal { [unowned self] in try run(i) } }
                letTheOthersPark()
            }

            private func run(_ me: Int) throws {
                let worker = Worker.current!
                while !done {
                    // For an order, or the end; nothing else may end this wait.
                    waiters[me] = worker.beginPark()
                    if worker.park(.other) != .ready { wrong.append("fiber \(me) was woken while it waited for nothing") }
                    while let deadline = orders[me] {
                        orders[me] = nil
                        deadlines[me] = deadline
                        waiters[me] = worker.beginPark()
                        let outcome = worker.park(.other, until: deadline)
                        let now = cfiber_now()
                        if outcome == .timedOut {
                            if now < deadline { wrong.append("fiber \(me) went on \(deadline - now) ns early") }
                            // Nil where the order to do something else came in the tick of the deadline.
                            if deadlines[me] == deadline { expired.append((me, deadline)) }
                        } else if deadlines[me] != nil {
                            wrong.append("fiber \(me) was woken by nobody")
                        }
                        deadlines[me] = nil
                    }
                }
            }

            /// Ends what a fiber waits for, and gives it a new deadline, or none.
            func order(_ fiber: Int, _ deadline: Int64?) {
                orders[fiber] = deadline
                deadlines[fiber] = nil
                // Not when its time has come in this tick already: then it finds the order when it goes on.
                _ = Worker.current!.unpark(waiters[fiber]!, .ready)
            }

            func end() {
                done = true
                for (fiber, waiter) in waiters.enumerated() {
                    orders[fiber] = nil
                    deadlines[fiber] = nil
                    _ = Worker.current!.unpark(waiter!, .ready)
                }
            }
        }

        @Test(arguments: [1, 2, 3, 4, 5, 6])
        func timers_obeyTheModel_whenTheyAreSetAndDroppedAtRandom(_ seed: UInt64) throws {
            let (count, rounds) = (60, scaled(150, sanitized: 40))
            var random = SeededGenerator(seed: seed)
            var wrong: [String] = []
            var expirations = 0
            var leftOver = -1
            try runQuietly {
                let worker = Worker.current!
                let sleepers = try Sleepers(count)
                for round in 0..<rounds {
                    // Set, drop, bring forward and put off; some two times, so that entries are put off that have been put off.
                    for _ in 0..<Int.random(in: 0...count, using: &random) {
                        let fiber = Int.random(in: 0..<count, using: &random)
                        let now = cfiber_now()
                        switch random.next() % 6 {
                        case 0: sleepers.order(fiber, nil)
                        case 1: sleepers.order(fiber, now + .random(in: 0...1_000_000_000_000, using: &random))
                        case 2: sleepers.order(fiber, max(1, now - .random(in: 0...1_000_000, using: &random)))
                        case 3: sleepers.order(fiber, (sleepers.deadlines[fiber] ?? now) + .random(in: 0...400_000, using: &random))
                        default: sleepers.order(fiber, now + .random(in: 0...800_000, using: &random))
                        }
                        if random.next() & 1 == 0 { Fiber.yield() }
                    }
                    for _ in 0..<3 { Fiber.yield() }
                    // From here on nobody sets anything, so whose time comes goes on in the order of the deadlines.
                    let waiting = sleepers.deadlines
                    if worker.timerCount > count { wrong.append("\(worker.timerCount) entries for \(count) fibers") }
                    let before = sleepers.expired.count
                    compute(for: .microseconds(Int64.random(in: 0...500, using: &random)))
                    let earliest = cfiber_now()
                    expireTimers()
                    let latest = cfiber_now()
                    for _ in 0..<2 { Fiber.yield() }
                    let came = sleepers.expired[before...]
                    if came.map(\.deadline) != came.map(\.deadline).sorted() { wrong.append("round \(round): not in order") }
                    let model = waiting.enumerated().filter { $0.element.map { $0 <= earliest } ?? false }
                    for (fiber, deadline) in model where !came.contains(where: { $0.fiber == fiber && $0.deadline == deadline }) {
                        wrong.append("round \(round): fiber \(fiber) has not gone on")
                    }
                    // A tick of the worker may have ended after the timers were looked at.
                    for (fiber, deadline) in came where waiting[fiber] != deadline || deadline > max(latest, cfiber_now()) {
                        wrong.append("round \(round): fiber \(fiber) has gone on, and nobody knows why")
                    }
                }
                expirations = sleepers.expired.count
                sleepers.end()
                _ = yield { worker.live == 1 }
                leftOver = worker.timerCount
                wrong += sleepers.wrong
            }
            #expect(wrong.isEmpty, "seed \(seed)")
            #expect(expirations > rounds, "seed \(seed)")
            #expect(leftOver == 0, "seed \(seed)")
        }

        // Threads.

        @Test func earlierDeadline_counts_whenAThreadWakesTheFiberThatSetsIt() throws {
            // The worker sleeps towards a far deadline. The fiber that a thread wakes waits for a short time then, which must not be that of the sleep before.
            let rounds = scaled(50, sanitized: 20)
            let mailbox = Mailbox()
            let tid = cfaults_thread_id()
            let thread = Thread {
                for _ in 0..<rounds {
                    var waiter = mailbox.take()
                    while waiter == nil {
                        sched_yield()
                        waiter = mailbox.take()
                    }
                    while !(contents(of: "/proc/self/task/\(tid)/stat") ?? "").contains(") S ") { sched_yield() }
                    _ = waiter!.unparkFromAnyThread(.ready)
                }
            }
            var outcomes: [Outcome] = []
            var fates: [Fate] = []
            let start = cfiber_now()
            try runQuietly {
                let worker = Worker.current!
                let far = try Fiber.spawnLocal { try Fiber.sleep(for: long) }
                for i in 0..<rounds {
                    let waiter = worker.beginSharedPark()
                    mailbox.offer(waiter)
                    // With and without a deadline of its own, which is far away.
                    outcomes.append(worker.park(in: waiter, .other, until: i % 2 == 0 ? .max : Deadline.after(long)))
                    if i % 3 == 0 {
                        fates.append(fate { try withTimeout(.microseconds(200)) { try Wait.park() } })
                    } else {
                        fates.append(fate { try Fiber.sleep(for: .microseconds(200)) })
                    }
                }
                far.cancel()
            }
            thread.join()
            #expect(outcomes == [Outcome](repeating: .ready, count: rounds))
            #expect(fates == (0..<rounds).map { $0 % 3 == 0 ? .timedOut(.microseconds(200)) : .returned })
            #expect(Duration.nanoseconds(cfiber_now() - start) < long / 2)
        }

        // The time of day.

        @Test(
            .enabled(if: cfaults_available() != 0, "sanitizers interpose the clock themselves"),
            arguments: [3_600, -3_600, 400_000_000])
        func waits_endInTime_whenTheTimeOfDayJumps(_ seconds: Int64) throws {
            var early: [String] = []
            var jumped: Int64 = 0
            var beats: [Int] = []
            let begin = cfiber_now()
            defer { cfaults_shift_time_of_day(0) }
            try runQuietly {
                func timed(_ what: String, _ wanted: Duration, _ body: () throws -> Void) rethrows {
                    let start = cfiber_now()
                    try body()
                    if cfiber_now() - start < Deadline.after(wanted, from: 0) { early.append(what) }
                }
                func timedOut(_ limit: Duration) {
                    timed("timeout", limit) {
                        let end = fate { try withTimeout(limit) { try Fiber.sleep(for: long) } }
                        if end != .timedOut(limit) { early.append("a timeout: \(end)") }
                    }
                }
                let sleepers = try (1...5).map { i in
                    try Fiber.spawnLocal { try timed("sleep", .milliseconds(4 * i)) { try Fiber.sleep(for: .milliseconds(4 * i)) } }
                }
                let until = try Fiber.spawnLocal {
                    try timed("sleep until", .milliseconds(9)) { try Fiber.sleep(until: .now + .milliseconds(10)) }
                }
                let timeouts = try (1...5).map { i in try Fiber.spawnLocal { timedOut(.milliseconds(4 * i)) } }
                let ticking = try Fiber.spawnLocal {
                    let ticker = Ticker(every: .milliseconds(2))
                    let start = cfiber_now()
                    while (beats.last ?? 0) < 10 {
                        let tick = try ticker.next()
                        beats.append(tick.number)
                        // The ticker has begun a little before `start`.
                        if cfiber_now() - start < (Int64(tick.number) * 2 - 1) * 1_000_000 { early.append("beat \(tick.number)") }
                    }
                }
                // In the middle of all that, twice: there and back.
                try Fiber.sleep(for: .milliseconds(5))
                let before = timesOfDay()
                cfaults_shift_time_of_day(seconds)
                jumped = timesOfDay()[0] - before[0]
                try Fiber.sleep(for: .milliseconds(8))
                cfaults_shift_time_of_day(0)
                for handle in sleepers + timeouts + [until, ticking] { try handle.join() }
            }
            // The instrument works.
            #expect(abs(jumped - seconds) <= 5)
            #expect(early.isEmpty)
            #expect(beats == beats.sorted() && Set(beats).count == beats.count)
            // And nothing waits for the hour.
            #expect(Duration.nanoseconds(cfiber_now() - begin) < long / 2)
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose the clock themselves"))
        func timeOfDay_isShifted_forThisThreadAndItsEveryClock() {
            // The instrument itself.
            let before = timesOfDay()
            let monotonic = cfiber_now()
            cfaults_shift_time_of_day(1_000_000)
            let shifted = timesOfDay()
            let elsewhere = onThread { timesOfDay() }
            let monotonicShifted = cfiber_now()
            cfaults_shift_time_of_day(0)
            let after = timesOfDay()
            for i in 0..<3 {
                #expect((999_990...1_000_010).contains(shifted[i] - before[i]))
                #expect((0...10).contains(elsewhere[i] - before[i]))
                #expect((0...10).contains(after[i] - before[i]))
            }
            #expect(monotonicShifted - monotonic < 10_000_000_000)
        }
    }
}

/// What each call that tells the time of day says, in seconds.
private func timesOfDay() -> [Int64] {
    var seconds: [Int64] = [0, 0, 0]
    cfaults_read_time_of_day(&seconds)
    return seconds
}
