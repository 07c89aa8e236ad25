// SPDX-License-Identifier: Apache-2.0

// Scopes inside one another: whose deadline ends a wait, what the wait throws, and what each scope makes of that.

import CFaults
import CFiber
import Fibers
import Testing

extension KernelTests {
    @Suite struct ScopeTests {
        /// What happened in two scopes, one in the other, and in a wait inside both; then in a wait inside the outer one alone, and in one outside both.
        private struct Nested: Equatable {
            var wait: Fate?
            var inner: Fate?
            var outer: Fate?
            var waitBetween: Fate?
            var waitAfter: Fate?
        }

        /// Waits for a long time in two scopes, after computing for a time there.
        private static func nest(
            outer: Duration, inner: Duration, computing: Duration = .zero, shieldBetween: Bool = false, clockIsStopped: Bool = false
        ) throws -> Nested {
            var seen = Nested()
            func scoped(_ limit: Duration, _ body: () throws -> Void) throws { try withTimeout(limit, body) }
            try runQuietly {
                if clockIsStopped { cfaults_stop_clock() }
                defer { cfaults_release_clock() }
                seen.outer = fate {
                    try scoped(outer) {
                        func innerScope() throws {
                            try scoped(inner) {
                                if clockIsStopped { cfaults_release_clock() }
                                if computing > .zero { compute(for: computing) }
                                do { try Fiber.sleep(for: long) } catch {
                                    seen.wait = Fate(of: error)
                                    throw error
                                }
                            }
                        }
                        var thrown: (any Error)?
                        do { if shieldBetween { try withCancellationShield(innerScope) } else { try innerScope() } } catch {
                            thrown = error
                            seen.inner = Fate(of: error)
                        }
                        seen.waitBetween = fate { try Fiber.sleep(for: .nanoseconds(1)) }
                        if let thrown { throw thrown }
                    }
                }
                seen.waitAfter = fate { try Fiber.sleep(for: .nanoseconds(1)) }
            }
            return seen
        }

        private static let brief = Duration.milliseconds(2)
        private static let briefer = Duration.milliseconds(1)

        @Test func innerDeadline_endsTheInnerScopeAlone_whenItComesFirst() throws {
            let seen = try Self.nest(outer: long, inner: Self.brief)
            // The outer scope throws on what the body has thrown, unchanged.
            let own = Fate.timedOut(Self.brief)
            #expect(seen == Nested(wait: own, inner: own, outer: own, waitBetween: .returned, waitAfter: .returned))
        }

        @Test func outerDeadline_endsBothScopes_whenItComesFirst() throws {
            let seen = try Self.nest(outer: Self.brief, inner: long)
            let own = Fate.timedOut(Self.brief)
            #expect(seen == Nested(wait: .cancelled, inner: .cancelled, outer: own, waitBetween: own, waitAfter: .returned))
        }

        @Test func innerDeadline_countsFirst_whenBothHavePassedAndItWasEarlier() throws {
            let seen = try Self.nest(outer: Self.brief, inner: Self.briefer, computing: .milliseconds(5))
            let (inner, outer) = (Fate.timedOut(Self.briefer), Fate.timedOut(Self.brief))
            // What the body throws is the error of the inner scope, which the outer one does not turn into its own.
            #expect(seen == Nested(wait: inner, inner: inner, outer: inner, waitBetween: outer, waitAfter: .returned))
        }

        @Test func outerDeadline_countsFirst_whenBothHavePassedAndItWasEarlier() throws {
            let seen = try Self.nest(outer: Self.briefer, inner: Self.brief, computing: .milliseconds(5))
            let own = Fate.timedOut(Self.briefer)
            #expect(seen == Nested(wait: .cancelled, inner: .cancelled, outer: own, waitBetween: own, waitAfter: .returned))
        }

        @Test(.enabled(if: cfaults_available() != 0, "the clock cannot be stopped under sanitizers"), arguments: [0, 3])
        func outerDeadline_counts_whenBothAreEqual(_ milliseconds: Int) throws {
            // To the nanosecond: the clock stands still while the scopes are entered. The limits tell the scopes apart where they can: zero and less are one deadline.
            let limit = Duration.milliseconds(milliseconds)
            let innerLimit = milliseconds == 0 ? .seconds(-1) : limit
            let own = Fate.timedOut(limit)
            for computing in [Duration.zero, .milliseconds(5)] {
                let seen = try Self.nest(outer: limit, inner: innerLimit, computing: computing, clockIsStopped: true)
                #expect(seen == Nested(wait: .cancelled, inner: .cancelled, outer: own, waitBetween: own, waitAfter: .returned))
            }
        }

        @Test func innerDeadline_counts_whenAShieldHidesTheOuterOne() throws {
            for (outer, computing) in [(Self.briefer, Duration.zero), (Self.briefer, .milliseconds(5)), (Self.brief, .milliseconds(5))] {
                let seen = try Self.nest(outer: outer, inner: .milliseconds(3), computing: computing, shieldBetween: true)
                let inner = Fate.timedOut(.milliseconds(3))
                #expect(seen == Nested(wait: inner, inner: inner, outer: inner, waitBetween: .timedOut(outer), waitAfter: .returned))
            }
        }

        @Test func waitsInAShield_endWell_whenTheDeadlineOutsidePassesMeanwhile() throws {
            var fates: [Fate] = []
            var observed: [Bool] = []
            var early = false
            try runQuietly {
                fates.append(
                    fate {
                        try withTimeout(.milliseconds(2)) {
                            withCancellationShield {
                                let start = cfiber_now()
                                fates.append(fate { try Fiber.sleep(for: .milliseconds(4)) })
                                early = cfiber_now() - start < 4_000_000
                                observed.append(Fiber.isCancelled)
                            }
                            observed.append(Fiber.isCancelled)
                            do { try Fiber.sleep(for: .zero) } catch {
                                fates.append(Fate(of: error))
                                throw error
                            }
                        }
                    })
            }
            #expect(fates == [.returned, .timedOut(.milliseconds(2)), .timedOut(.milliseconds(2))])
            #expect(observed == [false, true])
            #expect(!early)
        }

        @Test func middleScope_endsWhatIsInIt_whenThereAreThree() throws {
            var fates: [String: Fate] = [:]
            try runQuietly {
                fates["outermost"] = fate {
                    try withTimeout(long) {
                        fates["middle"] = fate {
                            try withTimeout(.milliseconds(2)) {
                                do {
                                    try withTimeout(.seconds(50)) {
                                        do { try Fiber.sleep(for: long) } catch {
                                            fates["wait"] = Fate(of: error)
                                            throw error
                                        }
                                    }
                                } catch {
                                    fates["innermost"] = Fate(of: error)
                                    throw error
                                }
                            }
                        }
                        try Fiber.sleep(for: .nanoseconds(1))
                    }
                }
            }
            #expect(
                fates == ["wait": .cancelled, "innermost": .cancelled, "middle": .timedOut(.milliseconds(2)), "outermost": .returned])
        }

        @Test func errors_sayWhatWasDoneAndHowLongItMightTake() throws {
            var errors: [TimeoutError] = []
            var id: UInt64 = 0
            func note(_ body: () throws -> Void) {
                do { try body() } catch let error as TimeoutError { errors.append(error) } catch {}
            }
            try runQuietly {
                let sleeper = try Fiber.spawnLocal { try Fiber.sleep(for: .milliseconds(8)) }
                id = sleeper.fiber.id
                note { try withTimeout(.milliseconds(1)) { try sleeper.join() } }
                // One that was not waiting says so.
                note { try withTimeout(.microseconds(1_500)) { while true { try Fiber.checkCancellation() } } }
            }
            #expect(errors.map(\.limit) == [.milliseconds(1), .microseconds(1_500)])
            #expect(errors.map(\.operation) == ["join fiber #\(id)", "running or ready"])
            #expect("\(errors[0])" == "timed out after \(Duration.milliseconds(1)) (join fiber #\(id))")
        }

        // Leaving.

        @Test func value_isReturned_whenTheBodyEndsAfterItsDeadline() throws {
            var values: [Int] = []
            var fates: [Fate] = []
            try runQuietly {
                // Nobody noticed.
                values.append(
                    try withTimeout(.milliseconds(1)) {
                        compute(for: .milliseconds(2))
                        return 1
                    })
                // It was told, and cared not.
                values.append(
                    try withTimeout(.milliseconds(1)) {
                        fates.append(fate { try Fiber.sleep(for: long) })
                        return 2
                    })
                values.append(try withTimeout(.zero) { 3 })
                values.append(
                    try withTimeout(.zero) {
                        try withTimeout(long) {
                            fates.append(fate { try Fiber.sleep(for: long) })
                            return 4
                        }
                    })
                fates.append(fate { try Fiber.sleep(for: .nanoseconds(1)) })
            }
            #expect(values == [1, 2, 3, 4])
            #expect(fates == [.timedOut(.milliseconds(1)), .cancelled, .returned])
        }

        @Test func deadline_disturbsNobody_whenItsScopeWasLeftBefore() throws {
            // Each scope is left early by a wake-up, and its entry in the timer queue stays behind; then each fiber waits without a deadline until long after.
            let count = 20
            var outcomes: [Outcome] = []
            var wokenByUs = 0
            var sleeps = -1
            var setting = Duration.seconds(1)
            var entries: [Int] = []
            // The worker wakes once for all that are due within ten milliseconds. Setting them takes much less, unless the machine stands still meanwhile: then again.
            for _ in 0..<50 where setting >= .milliseconds(9) {
                (outcomes, entries, wokenByUs) = ([], [], 0)
                try runQuietly {
                    let worker = Worker.current!
                    var waiters = [Waiter?](repeating: nil, count: count)
                    let start = ContinuousClock.now
                    for i in 0..<count {
                        try Fiber.spawnLocal {
                            func wait() {
                                waiters[i] = worker.beginPark()
                                outcomes.append(worker.park(.other))
                            }
                            try withTimeout(.milliseconds(100 + i / 10), wait)
                            wait()
                        }
                    }
                    Fiber.yield()
                    setting = ContinuousClock.now - start
                    for waiter in waiters { _ = worker.unpark(waiter!, .ready) }
                    Fiber.yield()
                    entries.append(worker.timerCount)
                    let before = worker.pointee.statistics.sleeps
                    try Fiber.sleep(for: .milliseconds(120))
                    sleeps = worker.pointee.statistics.sleeps - before
                    entries.append(worker.timerCount)
                    for waiter in waiters where worker.unpark(waiter!, .ready) { wokenByUs += 1 }
                }
            }
            #expect(outcomes == [Outcome](repeating: .ready, count: 2 * count))
            #expect(wokenByUs == count)
            // Once for all of them, and nothing is left in the queue.
            #expect(sleeps <= 2, "set within \(setting)")
            #expect(entries == [count, 0])
        }

        @Test func deadline_isGone_whenTheFiberHasEndedBefore() throws {
            var entries: [Int] = []
            var records = Set<FiberPointer>()
            var outcomes: [Outcome] = []
            try runQuietly {
                let worker = Worker.current!
                for _ in 0..<10 {
                    var waiter: Waiter?
                    let handle = try Fiber.spawnLocal {
                        records.insert(worker.running)
                        try withTimeout(.milliseconds(50)) {
                            waiter = worker.beginPark()
                            outcomes.append(worker.park(.other))
                        }
                    }
                    Fiber.yield()
                    _ = worker.unpark(waiter!, .ready)
                    entries.append(worker.timerCount)
                    try handle.join()
                    entries.append(worker.timerCount)
                }
                // The next life on that stack is not woken by the deadlines of those before.
                let handle = try Fiber.spawnLocal {
                    records.insert(worker.running)
                    let list = UnsafeMutablePointer<WaitList>.allocate(capacity: 1)
                    list.initialize(to: WaitList())
                    defer { list.deallocate() }
                    outcomes.append(worker.park(in: list, .other, until: Deadline.after(.milliseconds(60))))
                }
                try handle.join()
            }
            #expect(entries == (0..<10).flatMap { _ in [1, 0] })
            #expect(records.count == 1)
            #expect(outcomes == [Outcome](repeating: .ready, count: 10) + [.timedOut])
        }

        @Test func deadline_isGone_whenWhatTheFiberHasLeftBehindWaitedAtItsEnd() throws {
            // The handler of errors runs when all else about its fiber is over, and may wait with a timeout. Then the stacks are given back, while the worker
            // sleeps towards a deadline before theirs.
            let count = 200
            let outcomes = Box<[Outcome]>([])
            let waiters = Box<[Waiter]>([])
            var live = -1
            var entries: [Int] = []
            let configuration = FiberRuntime.Configuration(onUnhandledError: { _ in
                let worker = Worker.current!
                try? withTimeout(.milliseconds(800)) {
                    waiters.value.append(worker.beginPark())
                    outcomes.value.append(worker.park(.other))
                }
            })
            try FiberRuntime.run(configuration) {
                let worker = Worker.current!
                for _ in 0..<count { try Fiber.spawnLocal { throw TestError() } }
                _ = yield { waiters.value.count == count }
                for waiter in waiters.value { _ = worker.unpark(waiter, .ready) }
                _ = yield { worker.live == 1 }
                live = worker.live
                entries.append(worker.timerCount)
                try Fiber.sleep(for: .milliseconds(600))
                try Fiber.sleep(for: .milliseconds(300))
                entries.append(worker.timerCount)
            }
            #expect(live == 1)
            #expect(outcomes.value == [Outcome](repeating: .ready, count: count))
            #expect(entries == [0, 0])
        }

        // Limits of every size.

        @Test(arguments: [
            Duration.zero, .nanoseconds(-1), .seconds(-5), .seconds(Int64.min / 1_000_000_000), .seconds(Int64.min),
            Duration(secondsComponent: .min, attosecondsComponent: 0),
        ])
        func scope_hasEndedFromTheStart_whenItsLimitIsZeroOrNegative(_ limit: Duration) throws {
            var trace: [String] = []
            var errors: [TimeoutError] = []
            var value = 0
            try runQuietly {
                try Fiber.spawnLocal { trace.append("other") }
                do {
                    try withTimeout(limit) {
                        trace.append("body")
                        try Fiber.sleep(for: long)
                    }
                } catch let error as TimeoutError { errors.append(error) }
                trace.append("after")
                value = try withTimeout(limit) { 5 }
                try Fiber.sleep(for: .nanoseconds(1))
            }
            #expect(trace == ["body", "other", "after"])
            #expect(value == 5)
            #expect(errors.count == 1)
            // What is too negative to be said in nanoseconds is said as what can.
            #expect(errors.first?.limit == (limit < .nanoseconds(Int64.min) ? .nanoseconds(Int64.min) : limit))
        }

        @Test(arguments: [
            Duration.seconds(Int64.max), .seconds(Int64.max / 1_000_000_000), .nanoseconds(Int64.max), .seconds(250 * 365 * 86_400),
            .seconds(300 * 365 * 86_400), .seconds(10_000 * 365 * 86_400),
        ])
        func scope_doesNotEnd_whenItsLimitIsCenturies(_ limit: Duration) throws {
            var fates: [Fate] = []
            try runQuietly {
                fates.append(fate { try withTimeout(limit) { try Fiber.sleep(for: .milliseconds(1)) } })
                fates.append(fate { try withTimeout(limit) { try withTimeout(.milliseconds(1)) { try Fiber.sleep(for: long) } } })
                fates.append(fate { try withTimeout(.milliseconds(1)) { try withTimeout(limit) { try Fiber.sleep(for: limit) } } })
                fates.append(fate { try withTimeout(.milliseconds(1)) { try withTimeout(limit) { try Fiber.sleep(for: long) } } })
                let handle = try Fiber.spawnLocal { try withTimeout(limit) { try Wait.park() } }
                letTheOthersPark()
                try Fiber.sleep(for: .milliseconds(1))
                fates.append(handle.fiber.isFinished ? .threw("ended") : .returned)
                handle.cancel()
                fates.append(fate { try handle.join() })
            }
            let timeout = Fate.timedOut(.milliseconds(1))
            #expect(fates == [.returned, timeout, timeout, timeout, .returned, .cancelled])
        }

        @Test func deadline_isAnInstant_andItsLimitWhatWasLeft() throws {
            var errors: [TimeoutError] = []
            var early = false
            try runQuietly {
                for distance in [Duration.milliseconds(3), .milliseconds(-3), .seconds(-1_000_000)] {
                    let instant = ContinuousClock.now + distance
                    do { try withDeadline(instant) { try Fiber.sleep(for: long) } } catch let error as TimeoutError { errors.append(error) }
                    if ContinuousClock.now < instant { early = true }
                }
                _ = try withDeadline(.now + long) { try Fiber.sleep(for: .nanoseconds(1)) }
            }
            try #require(errors.count == 3)
            #expect(!early)
            #expect(errors[0].limit > .zero && errors[0].limit <= .milliseconds(3))
            #expect(errors[1].limit <= .milliseconds(-3) && errors[1].limit > .seconds(-100))
            #expect(errors[2].limit <= .seconds(-1_000_000))
        }

        // Trying again.

        @Test(arguments: [
            Duration.milliseconds(1), .microseconds(10), .nanoseconds(1), .zero, .nanoseconds(-1), .seconds(-1_000_000),
            .seconds(Int64.min),
            .milliseconds(7), .seconds(50), .seconds(Int64.max),
        ])
        func retries_end_whenTheDeadlineAroundThemComes(_ limit: Duration) throws {
            // Behind the inner scope only its own error is caught, however its deadline lies to that of the outer one.
            var attempts = 0
            var left: Fate?
            var outer: TimeoutError?
            try runQuietly {
                do {
                    try withTimeout(.milliseconds(7)) {
                        while true {
                            attempts += 1
                            do { try withTimeout(limit) { try Fiber.sleep(for: long) } } catch is TimeoutError { continue } catch {
                                left = Fate(of: error)
                                throw error
                            }
                        }
                    }
                } catch let error as TimeoutError { outer = error }
            }
            #expect(left == .cancelled)
            #expect(outer?.limit == .milliseconds(7))
            #expect(limit > .milliseconds(7) ? attempts == 1 : attempts >= 1)
        }

        @Test func retries_end_whenTheyWaitForAnInstantThatHasPassed() throws {
            let instant = ContinuousClock.now - .seconds(3_600)
            var attempts = 0
            var ending: Fate?
            try runQuietly {
                ending = fate {
                    try withTimeout(.milliseconds(3)) {
                        while true {
                            attempts += 1
                            do { try withDeadline(instant) { try Wait.join() } } catch is TimeoutError {}
                        }
                    }
                }
            }
            #expect(attempts > 1)
            #expect(ending == .timedOut(.milliseconds(3)))
        }

        // Every order.

        @Test(arguments: Level.triples)
        func scopes_obeyTheModel_inEveryOrder(_ kinds: [Level]) throws {
            for order in permutations(of: [0, 1, 2]) {
                for isCancelled in [false, true] {
                    let model = Model(kinds, order, isCancelled)
                    let seen = try observe(kinds, order, isCancelled)
                    #expect(seen == model.expected, "deadlines in the order \(order), \(isCancelled ? "cancelled" : "not cancelled")")
                }
            }
        }
    }
}

// MARK: The model

/// What a level of nesting is.
enum Level: CaseIterable, Sendable, CustomTestStringConvertible {
    /// A scope whose deadline has passed, and nobody has noticed.
    case past
    case future
    case shield
    case none

    var testDescription: String { "\(self)" }

    static var triples: [[Level]] { allCases.flatMap { a in allCases.flatMap { b in allCases.map { c in [a, b, c] } } } }
}

/// What is seen of three levels, outermost first: of the wait in the middle of them, what leaves each level, and of a wait just outside each.
private struct Observed: Equatable {
    var wait = Fate.returned
    /// `isCancelled` and `checkCancellation` say the same.
    var agree = true
    var leaving: [Fate] = [.returned, .returned, .returned]
    var waitOutside: [Fate] = [.returned, .returned, .returned]
}

/// The limit of a scope that is over; `rank` 0 ends first.
private func limit(_ rank: Int, _ gap: Duration) -> Duration { gap * (rank + 1) }
private let future = Duration.seconds(90)

private struct Model {
    let kinds: [Level]
    let order: [Int]
    let isCancelled: Bool

    init(_ kinds: [Level], _ order: [Int], _ isCancelled: Bool) {
        self.kinds = kinds
        self.order = order
        self.isCancelled = isCancelled
    }

    /// What ends a wait inside the first `depth` levels: nil for nothing, -1 for the fiber's cancellation, which comes before the deadlines that nobody has noticed.
    private func ender(_ depth: Int) -> Int? {
        let visible = (0..<depth).reversed().prefix { kinds[$0] != .shield }
        if isCancelled && visible.count == depth { return -1 }
        return visible.filter { kinds[$0] == .past }.min { order[$0] < order[$1] }
    }

    /// What such a wait throws: the scope is named only where it is the innermost one.
    private func thrown(_ depth: Int) -> Fate {
        guard let ender = ender(depth) else { return .returned }
        let innermost = (0..<depth).last { kinds[$0] != .none }
        return ender == innermost ? .timedOut(limit(order[ender], gap)) : .cancelled
    }

    private let gap = Observation.gap

    var expected: Observed {
        var expected = Observed()
        expected.wait = thrown(3)
        var error = expected.wait
        for level in (0..<3).reversed() {
            let hasEnded = (level + 1...3).contains { ender($0) == level }
            if error == .cancelled && hasEnded { error = .timedOut(limit(order[level], gap)) }
            expected.leaving[level] = error
            expected.waitOutside[level] = thrown(level)
        }
        return expected
    }
}

private enum Observation {
    /// Between two deadlines.
    static let gap = Duration.microseconds(200)
}

/// Does what the model tells of.
private func observe(_ kinds: [Level], _ order: [Int], _ isCancelled: Bool) throws -> Observed {
    var seen = Observed()
    var isInOrder = false
    func level(_ index: Int, _ start: Int64) throws {
        if index == 3 {
            // Scopes are entered one after another: if that took longer than what lies between their deadlines, these are in another order.
            isInOrder = cfiber_now() - start < 100_000
            compute(for: Observation.gap * 4)
            if isCancelled { Fiber.current!.cancel() }
            let isCancelled = Fiber.isCancelled
            let checked = fate { try Fiber.checkCancellation() }
            do { try Fiber.sleep(for: .nanoseconds(1)) } catch {
                seen.wait = Fate(of: error)
                seen.agree = isCancelled && checked == seen.wait
                throw error
            }
            seen.agree = !isCancelled && checked == .returned
            return
        }
        func next() throws { try level(index + 1, start) }
        var thrown: (any Error)?
        do {
            switch kinds[index] {
            case .past: try withTimeout(limit(order[index], Observation.gap), next)
            case .future: try withTimeout(future, next)
            case .shield: try withCancellationShield(next)
            case .none: try next()
            }
        } catch {
            thrown = error
            seen.leaving[index] = Fate(of: error)
        }
        seen.waitOutside[index] = fate { try Fiber.sleep(for: .nanoseconds(1)) }
        if let thrown { throw thrown }
    }
    while !isInOrder {
        seen = Observed()
        try runQuietly {
            let handle = try Fiber.spawnLocal { _ = fate { try level(0, cfiber_now()) } }
            try handle.join()
        }
    }
    return seen
}

private func permutations(of values: [Int]) -> [[Int]] {
    guard values.count > 1 else { return [values] }
    return values.indices.flatMap { i in
        permutations(of: Array(values[..<i] + values[(i + 1)...])).map { [values[i]] + $0 }
    }
}

// MARK: Allocations

extension KernelTests {
    @Suite(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"))
    struct ScopeAllocationTests {
        /// Counts the allocations of 1,000 calls of `body` in a fiber, after some that may grow what there is to grow. What it gets waits: until the deadline at
        /// most, and where `isWoken` no longer than until the others have had their turn.
        private static func count(isWoken: Bool, _ body: @escaping (_ wait: (_ deadline: Int64) -> Outcome) throws -> Void) throws -> Int {
            var count = -1
            let waiter = UnsafeMutablePointer<Waiter?>.allocate(capacity: 1)
            waiter.initialize(to: nil)
            defer { waiter.deallocate() }
            try runQuietly {
                let worker = Worker.current!
                let handle = try Fiber.spawnLocal {
                    func wait(_ deadline: Int64) -> Outcome {
                        let own = worker.beginPark()
                        if isWoken { waiter.pointee = own }
                        return worker.park(.other, until: deadline)
                    }
                    // A body may need the timer queue for the first time only when its deadline happens to lie ahead.
                    try Fiber.sleep(for: .nanoseconds(1))
                    for _ in 0..<10 { try body(wait) }
                    count = try allocations { for _ in 0..<1_000 { try body(wait) } }
                }
                while isWoken && !handle.fiber.isFinished {
                    Fiber.yield()
                    guard let parked = waiter.pointee else { continue }
                    waiter.pointee = nil
                    _ = worker.unpark(parked, .ready)
                }
                try handle.join()
            }
            return count
        }

        private static func check(_ outcome: Outcome, _ expected: Outcome) throws {
            if outcome != expected { throw TestError(number: Int(outcome.rawValue)) }
        }

        @Test func timeout_allocatesNothing_whenItsBodyWaitsAndIsWoken() throws {
            let count = try Self.count(isWoken: true) { wait in try withTimeout(long) { try Self.check(wait(.max), .ready) } }
            #expect(count == 0)
        }

        @Test func nestedScopes_allocateNothing_whenTheBodyIsWoken() throws {
            let count = try Self.count(isWoken: true) { wait in
                try withTimeout(long) {
                    try withCancellationShield { try withTimeout(long) { try withTimeout(long) { try Self.check(wait(.max), .ready) } } }
                }
            }
            #expect(count == 0)
        }

        @Test func timedWait_allocatesNothing_whenItIsWoken() throws {
            let count = try Self.count(isWoken: true) { wait in try Self.check(wait(Deadline.after(long)), .ready) }
            #expect(count == 0)
        }

        @Test func timedWait_allocatesNothing_whenItsTimeIsOver() throws {
            let count = try Self.count(isWoken: false) { wait in try Self.check(wait(Deadline.after(.nanoseconds(1))), .timedOut) }
            #expect(count == 0)
        }

        @Test func timeout_allocatesNothing_whenItEndsAWait() throws {
            let count = try Self.count(isWoken: false) { wait in
                try withTimeout(long) { try withTimeout(.nanoseconds(1)) { try Self.check(wait(.max), .cancelled) } }
            }
            #expect(count == 0)
        }

        @Test func waits_allocateNothing_whenTheFiberIsCancelled() throws {
            let count = try Self.count(isWoken: false) { wait in
                Fiber.current!.cancel()
                try Self.check(wait(.max), .cancelled)
                try withTimeout(long) { try Self.check(wait(Deadline.after(long)), .cancelled) }
                if !Fiber.isCancelled { throw TestError() }
                try withCancellationShield { if Fiber.isCancelled { throw TestError() } }
            }
            #expect(count == 0)
        }

        @Test func ticker_allocatesNothing() throws {
            var ticker: Ticker?
            let count = try Self.count(isWoken: false) { _ in
                if ticker == nil { ticker = Ticker(every: .nanoseconds(50)) }
                for _ in 0..<3 { _ = try ticker?.next() }
            }
            #expect(count == 0)
        }
    }
}
