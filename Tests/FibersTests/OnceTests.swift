// SPDX-License-Identifier: Apache-2.0

// Values that are made once.

import CFaults
import Fibers
import Testing

private func makeOnce(shared: Bool, _ make: @escaping () throws -> Int) -> any OnceLike {
    // One worker runs it.
    nonisolated(unsafe) let make = make
    return shared ? FiberOnce { try make() } : LocalOnce(make)
}

extension KernelTests {
    @Suite struct OnceTests {
        @Test(arguments: [false, true])
        func value_isMadeOnce_andOthersWaitMeanwhile(shared: Bool) throws {
            var makings = 0
            var values: [Int] = []
            var before: Int?
            var after: Int?
            var isClean = false
            try onWorkers(1) {
                let once = makeOnce(shared: shared) {
                    makings += 1
                    try Fiber.sleep(for: .milliseconds(1))
                    return 7
                }
                before = once.valueIfMade
                let askers = try (0..<10).map { _ in try Fiber.spawnLocal { try once.value } }
                for asker in askers { values.append(try asker.join()) }
                after = once.valueIfMade
                isClean = once.hasNoWaiters()
            }
            #expect(makings == 1)
            #expect(values == Array(repeating: 7, count: 10))
            #expect(before == nil)
            #expect(after == 7)
            #expect(isClean)
        }

        @Test(arguments: [false, true])
        func nextOne_triesAgain_whenTheInitialiserThrowsOrIsCancelled(shared: Bool) throws {
            var makings = 0
            var fates: [Fate] = []
            var value = 0
            try onWorkers(1) {
                let once = makeOnce(shared: shared) {
                    makings += 1
                    let making = makings
                    Fiber.yield()
                    if making == 1 { throw TestError(number: 1) }
                    if making == 2 { try Fiber.sleep(for: long) }
                    return making
                }
                let askers = try (0..<5).map { _ in try Fiber.spawnLocal { _ = try once.value } }
                settle()
                askers[3].cancel()
                askers[1].cancel()
                for asker in askers { fates.append(fate { try asker.join() }) }
                value = try once.value
            }
            #expect(makings == 3)
            #expect(fates == [.threw("TestError(number: 1)"), .cancelled, .returned, .cancelled, .returned])
            #expect(value == 3)
        }

        @Test(arguments: [false, true])
        func asking_isRefused_inACancelledFiber_untilTheValueIsThere(shared: Bool) throws {
            var fates: [Fate] = []
            try onWorkers(1) {
                let once = makeOnce(shared: shared) { 1 }
                let early = try Fiber.spawnLocal { _ = try once.value }
                early.cancel()
                fates.append(fate { try early.join() })
                _ = try once.value
                let late = try Fiber.spawnLocal { _ = try once.value }
                late.cancel()
                fates.append(fate { try late.join() })
            }
            #expect(fates == [.cancelled, .returned])
        }

        @Test func initialiser_isLetGoOf_onceTheValueIsMade() throws {
            let ends = Box(0)
            var seen = -1
            try onWorkers(1) {
                let once = LocalOnce { [counted = Counted(ends)] in withExtendedLifetime(counted) { 1 } }
                _ = try once.value
                seen = ends.value
                withExtendedLifetime(once) {}
            }
            #expect(seen == 1)
        }

        /// Initialisers that fail at random, and askers that give up.
        @Test(arguments: Crowd.all)
        func allSeeTheSameValue_whenTheInitialiserFailsNowAndThen(crowd: Crowd) throws {
            let rounds = scaled(200, sanitized: 30) * timesLonger
            final class State: Sendable {
                let attempts = Counter()
                let successes = Counter()
            }
            let states = (0..<rounds).map { _ in State() }
            let values = states.map { state in
                FiberOnce<Int> {
                    state.attempts.add()
                    if Fiber.current != nil { Fiber.yield() }
                    if state.attempts.value < 3 { throw TestError() }
                    state.successes.add()
                    return state.attempts.value
                }
            }
            let wrong = Counter()
            try crowd.run(seed: 9) { _, random in
                for once in values {
                    var value = 0
                    while !tryUnderADeadline(&random, { value = try once.value }) {}
                    if once.valueIfMade != value { wrong.add() }
                }
            }
            let isClean = values.allSatisfy { $0.hasNoWaiters() } && states.allSatisfy { $0.successes.value == 1 }
            #expect(wrong.value == 0)
            #expect(isClean)
        }

        #if compiler(>=6.2)
            @Test func askingFromTheInitialiser_stopsAndNamesTheFiber() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            var once: LocalOnce<Int>?
                            once = LocalOnce { try once!.value + 1 }
                            try Fiber.spawnLocal(name: "maker") { _ = try once!.value }.join()
                        }
                    }
                }
                expectMessage(result, "fiber #2 \"maker\" asks for a once-value while it makes it")
            }
        #endif
    }
}
