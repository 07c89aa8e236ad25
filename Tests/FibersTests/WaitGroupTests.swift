// SPDX-License-Identifier: Apache-2.0

// Counts of what is to be done.

import CFaults
import Fibers
import Testing

extension KernelTests {
    @Suite struct WaitGroupTests {
        @Test(arguments: [false, true])
        func waiters_goOn_whenAllIsDone_andTheGroupIsUsedAgain(shared: Bool) throws {
            var steps: [Int] = []
            var isClean = false
            try onWorkers(1) {
                let group = makeWaitGroup(shared: shared)
                try group.wait()
                for _ in 0..<3 {
                    group.add(2)
                    var ends = 0
                    let waiting = try (0..<4).map { _ in
                        try Fiber.spawnLocal {
                            try group.wait()
                            ends += 1
                        }
                    }
                    settle()
                    group.done()
                    settle()
                    steps.append(ends)
                    group.done()
                    for fiber in waiting { try fiber.join() }
                    steps.append(ends)
                }
                isClean = group.count == 0 && group.hasNoWaiters()
            }
            #expect(steps == [0, 4, 0, 4, 0, 4])
            #expect(isClean)
        }

        @Test(arguments: [false, true])
        func wait_leavesNothing_whenItIsCancelled(shared: Bool) throws {
            var fates: [Fate] = []
            var isClean = false
            try onWorkers(1) {
                let group = makeWaitGroup(shared: shared)
                group.add(1)
                let waiting = try (0..<3).map { _ in try Fiber.spawnLocal { try group.wait() } }
                settle()
                waiting[1].cancel()
                group.done()
                for fiber in waiting { fates.append(fate { try fiber.join() }) }
                group.add(1)
                fates.append(fate { try withTimeout(.milliseconds(1)) { try group.wait() } })
                isClean = group.hasNoWaiters() && group.count == 1
            }
            #expect(fates == [.returned, .cancelled, .returned, .timedOut(.milliseconds(1))])
            #expect(isClean)
        }

        @Test(arguments: Crowd.all)
        func noneGoesOnEarly_whenManyWorkAndWait(crowd: Crowd) throws {
            let rounds = scaled(300, sanitized: 60) * timesLonger
            let groups = (0..<rounds).map { _ in WaitGroup() }
            for group in groups { group.add(crowd.members) }
            let finished = (0..<rounds).map { _ in Counter() }
            let early = Counter()
            try crowd.run(seed: 2) { _, random in
                for (group, count) in zip(groups, finished) {
                    dawdle(&random)
                    count.add()
                    group.done()
                    while !tryUnderADeadline(&random, { try group.wait() }) {}
                    if count.value != crowd.members { early.add() }
                }
            }
            let isClean = groups.allSatisfy { $0.hasNoWaiters() && $0.count == 0 }
            #expect(early.value == 0)
            #expect(isClean)
        }

        #if compiler(>=6.2)
            @Test func countBelowZero_stops() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    let group = WaitGroup()
                    group.add()
                    group.done()
                    group.done()
                }
                expectMessage(result, "a wait group of 0 was changed by -1: call add() before what is counted begins")
            }
        #endif
    }
}
