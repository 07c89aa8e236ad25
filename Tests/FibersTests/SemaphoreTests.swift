// SPDX-License-Identifier: Apache-2.0

// Semaphores: strict order, large requests, and permits that are never lost.

import CFaults
import Fibers
import Testing

extension KernelTests {
    @Suite struct SemaphoreTests {
        @Test(arguments: [false, true])
        func permits_areHadAndGivenBack(shared: Bool) throws {
            var results: [Bool] = []
            var left = -1
            try onWorkers(1) {
                let semaphore = makeSemaphore(3, shared: shared)
                try semaphore.acquire(2)
                results = [semaphore.tryAcquire(2), semaphore.tryAcquire(1), semaphore.tryAcquire(1)]
                semaphore.release(5)
                left = semaphore.availablePermits
            }
            #expect(results == [false, true, false])
            #expect(left == 5)
        }

        @Test(arguments: [false, true])
        func waiters_areServedInOrder_andALargeRequestIsNotStarvedBySmallOnes(shared: Bool) throws {
            var order: [Int] = []
            var passed = 0
            var isClean = false
            try onWorkers(1) {
                let semaphore = makeSemaphore(2, shared: shared)
                try semaphore.acquire(2)
                let waiting = try (0..<6).map { i in
                    try Fiber.spawnLocal {
                        try semaphore.acquire(i == 1 ? 4 : 1)
                        order.append(i)
                    }
                }
                settle()
                for _ in 0..<4 {
                    semaphore.release(1)
                    // There would be a permit for this one, behind the large request.
                    if semaphore.tryAcquire(1) { passed += 1 }
                    settle()
                }
                let before = order
                semaphore.release(1)
                settle()
                let then = order
                semaphore.release(4)
                for fiber in waiting { try fiber.join() }
                isClean = before == [0] && then == [0, 1] && semaphore.availablePermits == 0 && semaphore.hasNoWaiters()
            }
            #expect(order == [0, 1, 2, 3, 4, 5])
            #expect(passed == 0)
            #expect(isClean)
        }

        @Test(arguments: [false, true])
        func cancelledWaiter_letsThoseBehindItGoOn_asFarAsPermitsSuffice(shared: Bool) throws {
            var order: [Int] = []
            var fates: [Fate] = []
            var left = -1
            try onWorkers(1) {
                let semaphore = makeSemaphore(2, shared: shared)
                let wanted = [3, 1, 1, 1]
                let waiting = try wanted.indices.map { i in
                    try Fiber.spawnLocal {
                        try semaphore.acquire(wanted[i])
                        order.append(i)
                    }
                }
                settle()
                waiting[0].cancel()
                fates.append(fate { try waiting[0].join() })
                settle()
                fates.append(order == [1, 2] ? .returned : .threw("\(order)"))
                semaphore.release(1)
                try waiting[3].join()
                left = semaphore.hasNoWaiters() ? semaphore.availablePermits : -1
            }
            #expect(fates == [.cancelled, .returned])
            #expect(order == [1, 2, 3])
            #expect(left == 0)
        }

        /// The one who releases finds waiters whose wait has ended and who have not gone on yet.
        @Test(arguments: [false, true])
        func noPermitIsLost_whenAReleaseMeetsCancelledWaiters(shared: Bool) throws {
            var order: [Int] = []
            var left = -1
            try onWorkers(1) {
                let semaphore = makeSemaphore(0, shared: shared)
                let waiting = try (0..<4).map { i in
                    try Fiber.spawnLocal {
                        try semaphore.acquire(2)
                        order.append(i)
                    }
                }
                settle()
                waiting[0].cancel()
                waiting[1].cancel()
                semaphore.release(1)
                waiting[2].cancel()
                semaphore.release(1)
                for fiber in waiting { _ = try? fiber.join() }
                left = semaphore.hasNoWaiters() ? semaphore.availablePermits : -1
            }
            #expect(order == [3])
            #expect(left == 0)
        }

        @Test func withPermits_givesThemBack_whenItsBodyThrows() throws {
            var left: [Int] = []
            try onWorkers(1) {
                let (local, shared) = (LocalSemaphore(2), FiberSemaphore(2))
                _ = failure { try local.withPermits(2) { throw TestError() } }
                _ = failure { try shared.withPermits { throw TestError() } }
                left = [local.availablePermits, shared.availablePermits, try local.withPermits(2) { local.availablePermits }]
            }
            #expect(left == [2, 2, 0])
        }

        @Test(arguments: [false, true])
        func acquire_isRefused_inAFiberThatIsCancelled(shared: Bool) throws {
            var fates: [Fate] = []
            var left = -1
            try onWorkers(1) {
                let semaphore = makeSemaphore(1, shared: shared)
                let fiber = try Fiber.spawnLocal { try semaphore.acquire(1) }
                fiber.cancel()
                fates.append(fate { try fiber.join() })
                fates.append(fate { try withTimeout(.milliseconds(1)) { try semaphore.acquire(2) } })
                left = semaphore.hasNoWaiters() ? semaphore.availablePermits : -1
            }
            #expect(fates == [.cancelled, .timedOut(.milliseconds(1))])
            #expect(left == 1)
        }

        @Test(arguments: Crowd.all)
        func permitsAreNeitherLostNorMade_whenWaitsAreCancelled(crowd: Crowd) throws {
            let rounds = scaled(1_500, sanitized: 200) * timesLonger
            let semaphore = FiberSemaphore(5)
            let (used, tooMany) = (Counter(), Counter())
            try crowd.run(seed: 3) { _, random in
                for _ in 0..<rounds {
                    let amount = Int(random.next() % 5) + 1
                    if random.next() % 4 == 0 ? semaphore.tryAcquire(amount) : tryUnderADeadline(&random, { try semaphore.acquire(amount) })
                    {
                        used.add(amount)
                        if used.value > 5 { tooMany.add() }
                        dawdle(&random)
                        used.add(-amount)
                        semaphore.release(amount)
                    }
                }
            }
            let left = semaphore.availablePermits
            let isClean = semaphore.hasNoWaiters()
            #expect(left == 5)
            #expect(tooMany.value == 0)
            #expect(isClean)
        }

        /// Every permit that is released is had by somebody or left over.
        @Test(arguments: [1, 2, 4])
        func permits_balance_whenTheirWaitersAreCancelledFromOtherWorkers(workers: Int) throws {
            let rounds = scaled(150, sanitized: 20)
            var wrong = 0
            for round in 0..<rounds {
                let semaphore = FiberSemaphore(0)
                let (taken, released) = (Counter(), Counter())
                try onWorkers(workers) {
                    var random = SeededGenerator(seed: UInt64(round))
                    let fibers = try (0..<8).map { i in
                        try Fiber.spawn(on: i % workers) {
                            let amount = i % 3 + 1
                            while true {
                                try semaphore.acquire(amount)
                                taken.add(amount)
                            }
                        }
                    }
                    for fiber in fibers {
                        for _ in 0..<random.next() % 4 {
                            semaphore.release(1)
                            released.add()
                            dawdle(&random)
                        }
                        fiber.cancel()
                    }
                    for fiber in fibers { _ = try? fiber.join() }
                }
                if taken.value + semaphore.availablePermits != released.value || !semaphore.hasNoWaiters() { wrong += 1 }
            }
            #expect(wrong == 0)
        }

        /// A fiber that is left behind by its runtime stands first in line; the thread behind it needs less.
        @Test func waiterThatIsLeftBehind_letsThoseBehindItGoOn() throws {
            // The fibers that are left behind own it, too.
            let semaphore = leavingFibersBehind { FiberSemaphore(1) }
            let (begun, ended) = (Counter(), Counter())
            var thread: Thread?
            try leavingFibersBehind {
                try FiberRuntime.run(.init(onWarning: { _ in })) {
                    for _ in 0..<2 { try Fiber.spawnLocal { try withCancellationShield { try semaphore.acquire(5) } } }
                    settle()
                    thread = Thread {
                        begun.add()
                        try? semaphore.acquire()
                        ended.add()
                    }
                    // It is in line soon after that.
                    while begun.value == 0 { Fiber.yield() }
                    for _ in 0..<1_000 { Fiber.yield() }
                    FiberRuntime.shutDown(within: .milliseconds(1))
                }
            }
            thread?.join()
            let isClean = semaphore.hasNoWaiters() && semaphore.availablePermits == 0
            #expect(ended.value == 1)
            #expect(isClean)
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"), arguments: [false, true])
        func waiting_allocatesNothing(shared: Bool) throws {
            var count = -1
            try onWorkers(1) {
                let (ping, pong) = (makeSemaphore(0, shared: shared), makeSemaphore(0, shared: shared))
                let other = try Fiber.spawnLocal {
                    while true {
                        try ping.acquire(1)
                        pong.release(1)
                    }
                }
                func turn(_ times: Int) throws {
                    for _ in 0..<times {
                        ping.release(1)
                        try pong.acquire(1)
                    }
                }
                try turn(10)
                count = try allocations { try turn(1_000) }
                other.cancel()
                _ = try? other.join()
            }
            #expect(count == 0)
        }

        #if compiler(>=6.2)
            @Test func semaphore_stops_whenItIsAskedForNoPermits() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    FiberSemaphore(1).release(0)
                }
                expectMessage(result, "asked for 0 permits: acquire and release at least 1")
            }
        #endif
    }
}
