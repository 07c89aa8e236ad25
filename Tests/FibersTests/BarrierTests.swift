// SPDX-License-Identifier: Apache-2.0

// Barriers: rounds of exactly so many parties.

import CFaults
import Fibers
import Testing

extension KernelTests {
    @Suite struct BarrierTests {
        @Test(arguments: [false, true])
        func parties_goOnTogether_andOneOfThemIsTheLast(shared: Bool) throws {
            var rounds: [[Int]] = []
            var lasts = 0
            var isClean = false
            try onWorkers(1) {
                let barrier = makeBarrier(parties: 4, shared: shared)
                var numbers: [Int] = []
                try withFiberGroup { group in
                    for i in 0..<4 {
                        try group.spawnLocal {
                            for round in 0..<10 {
                                for _ in 0..<(i * 7 + round) % 5 { Fiber.yield() }
                                numbers.append(round)
                                if try barrier.wait() {
                                    lasts += 1
                                    rounds.append(numbers)
                                    numbers = []
                                }
                                _ = try barrier.wait()
                            }
                        }
                    }
                }
                isClean = barrier.waitingCount == 0 && barrier.hasNoWaiters()
            }
            #expect(rounds == (0..<10).map { Array(repeating: $0, count: 4) })
            #expect(lasts == 10)
            #expect(isClean)
        }

        @Test(arguments: [false, true])
        func cancelledParty_leaves_andItsPlaceIsFree(shared: Bool) throws {
            var fates: [Fate] = []
            var counts: [Int] = []
            try onWorkers(1) {
                let barrier = makeBarrier(parties: 3, shared: shared)
                let first = try (0..<2).map { _ in try Fiber.spawnLocal { _ = try barrier.wait() } }
                settle()
                counts.append(barrier.waitingCount)
                first[0].cancel()
                fates.append(fate { try first[0].join() })
                counts.append(barrier.waitingCount)
                let second = try Fiber.spawnLocal { _ = try barrier.wait() }
                settle()
                counts.append(barrier.waitingCount)
                fates.append(fate { if try !barrier.wait() { throw TestError() } })
                fates.append(fate { try first[1].join() })
                fates.append(fate { try second.join() })
                fates.append(fate { try withTimeout(.milliseconds(1)) { _ = try barrier.wait() } })
                counts.append(barrier.waitingCount)
            }
            #expect(fates == [.cancelled, .returned, .returned, .returned, .timedOut(.milliseconds(1))])
            #expect(counts == [2, 1, 2, 0])
        }

        /// Cancelled in the moment in which the last one comes, it has been counted, and so it goes on like the others.
        @Test(arguments: [false, true])
        func roundIsComplete_whenAPartyIsCancelledAsTheLastOneComes(shared: Bool) throws {
            var fates: [Fate] = []
            var count = -1
            try onWorkers(1) {
                let barrier = makeBarrier(parties: 3, shared: shared)
                let waiting = try (0..<2).map { _ in
                    try Fiber.spawnLocal {
                        _ = try barrier.wait()
                        try Fiber.checkCancellation()
                    }
                }
                settle()
                let alone = try Fiber.spawnLocal { _ = try barrier.wait() }
                waiting[1].cancel()
                _ = alone
                for fiber in waiting { fates.append(fate { try fiber.join() }) }
                fates.append(fate { try alone.join() })
                count = barrier.hasNoWaiters() ? barrier.waitingCount : -1
                if count == 2 { fates.append(.threw("nobody was last")) }
            }
            #expect(fates == [.returned, .cancelled, .returned])
            #expect(count == 0)
        }

        @Test(arguments: Crowd.all)
        func eachRoundHasAllItsParties_whenManyMeet(crowd: Crowd) throws {
            let rounds = scaled(300, sanitized: 60) * timesLonger
            let barrier = Barrier(parties: crowd.members)
            let counts = (0..<rounds).map { _ in Counter() }
            let (early, lasts) = (Counter(), Counter())
            try crowd.run(seed: 4) { _, random in
                for count in counts {
                    dawdle(&random)
                    count.add()
                    var isLast = false
                    while !tryUnderADeadline(&random, { isLast = try barrier.wait() }) {}
                    if isLast { lasts.add() }
                    if count.value != crowd.members { early.add() }
                }
            }
            let isClean = barrier.hasNoWaiters() && barrier.waitingCount == 0
            #expect(early.value == 0)
            #expect(lasts.value == rounds)
            #expect(isClean)
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"), arguments: [false, true])
        func waiting_allocatesNothing(shared: Bool) throws {
            var count = -1
            try onWorkers(1) {
                let barrier = makeBarrier(parties: 5, shared: shared)
                let others = try (0..<4).map { _ in try Fiber.spawnLocal { while true { _ = try barrier.wait() } } }
                func meet(_ times: Int) throws { for _ in 0..<times { _ = try barrier.wait() } }
                try meet(10)
                count = try allocations { try meet(1_000) }
                for other in others { other.cancel() }
                for other in others { _ = try? other.join() }
            }
            #expect(count == 0)
        }
    }
}
