// SPDX-License-Identifier: Apache-2.0

// Conditions: the mutex is given up for the wait and held after it, whatever ended it, and no signal is lost.

import CFaults
import Fibers
import Testing

private protocol Signalled: AnyObject {
    func wait() throws
    func signal()
    func broadcast()
    var lock: any LockLike { get }
    func hasNoWaiters() -> Bool
}

private final class LocalSignalled: Signalled {
    let local = LocalLock()
    let condition = LocalCondition()
    var lock: any LockLike { local }
    func wait() throws { try condition.wait(local.mutex) }
    func signal() { condition.signal() }
    func broadcast() { condition.broadcast() }
    func hasNoWaiters() -> Bool { condition.hasNoWaiters() && local.hasNoWaiters() }
}

private final class SharedSignalled: Signalled, Sendable {
    let shared = SharedLock()
    let condition = FiberCondition()
    var lock: any LockLike { shared }
    func wait() throws { try condition.wait(shared.mutex) }
    func signal() { condition.signal() }
    func broadcast() { condition.broadcast() }
    func hasNoWaiters() -> Bool { condition.hasNoWaiters() && shared.hasNoWaiters() }
}

private func make(shared: Bool) -> any Signalled { shared ? SharedSignalled() : LocalSignalled() }

/// Work for those who wait for it.
private final class Jobs: Sendable {
    let queue = FiberMutex<[Int]>([])
    let hasJobs = FiberCondition()
}

extension KernelTests {
    @Suite struct ConditionTests {
        @Test(arguments: [false, true])
        func signal_letsTheFirstInLineGoOn_andBroadcastAll(shared: Bool) throws {
            var order: [Int] = []
            var steps: [Int] = []
            var isClean = false
            try onWorkers(1) {
                let signalled = make(shared: shared)
                signalled.signal()
                let waiting = try (0..<6).map { i in
                    try Fiber.spawnLocal {
                        try signalled.lock.lock()
                        try signalled.wait()
                        order.append(i)
                        // It is held: nobody else is here meanwhile.
                        Fiber.yield()
                        order.append(i)
                        signalled.lock.unlock()
                    }
                }
                settle()
                steps.append(order.count)
                signalled.signal()
                settle()
                steps.append(order.count)
                signalled.signal()
                signalled.signal()
                settle()
                steps.append(order.count)
                signalled.broadcast()
                for fiber in waiting { try fiber.join() }
                isClean = signalled.hasNoWaiters() && signalled.lock.tryLock()
                signalled.lock.unlock()
            }
            #expect(order == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
            #expect(steps == [0, 2, 6])
            #expect(isClean)
        }

        @Test(arguments: [false, true])
        func wait_hasTheMutexAgain_alsoWhenItThrows(shared: Bool) throws {
            var events: [String] = []
            var fates: [Fate] = []
            var isClean = false
            try onWorkers(1) {
                let signalled = make(shared: shared)
                let waiting = try Fiber.spawnLocal {
                    try signalled.lock.lock()
                    defer { signalled.lock.unlock() }
                    do { try signalled.wait() } catch {
                        events.append("cancelled with the mutex: \(!signalled.lock.tryLock())")
                        throw error
                    }
                }
                settle()
                try signalled.lock.lock()
                waiting.cancel()
                settle()
                // It cannot go on before that.
                events.append("unlocked")
                signalled.lock.unlock()
                fates.append(fate { try waiting.join() })
                try signalled.lock.lock()
                fates.append(fate { try withTimeout(.milliseconds(1)) { try signalled.wait() } })
                signalled.lock.unlock()
                // A cancelled fiber does not wait at all, and keeps the mutex.
                let refused = try Fiber.spawnLocal {
                    withCancellationShield { try? signalled.lock.lock() }
                    defer { signalled.lock.unlock() }
                    try signalled.wait()
                }
                refused.cancel()
                fates.append(fate { try refused.join() })
                isClean = signalled.hasNoWaiters() && signalled.lock.tryLock()
                signalled.lock.unlock()
            }
            #expect(events == ["unlocked", "cancelled with the mutex: true"])
            #expect(fates == [.cancelled, .timedOut(.milliseconds(1)), .cancelled])
            #expect(isClean)
        }

        /// Signalled, and cancelled before it had the mutex again: the signal was had, so the wait returns.
        @Test(arguments: [false, true])
        func noSignalIsLost_whenAWaiterIsCancelled(shared: Bool) throws {
            var fates: [Fate] = []
            try onWorkers(1) {
                let signalled = make(shared: shared)
                let waiting = try (0..<3).map { _ in
                    try Fiber.spawnLocal {
                        try signalled.lock.lock()
                        defer { signalled.lock.unlock() }
                        try signalled.wait()
                    }
                }
                settle()
                waiting[0].cancel()
                // Passes over the first one.
                signalled.signal()
                waiting[1].cancel()
                fates += waiting[..<2].map { fiber in fate { try fiber.join() } }
                signalled.signal()
                fates.append(fate { try waiting[2].join() })
            }
            #expect(fates == [.cancelled, .returned, .returned])
        }

        @Test func waitUntil_returns_onlyWhenThePredicateHolds() throws {
            var (looks, seen) = (0, -1)
            var value: [Int?] = []
            try onWorkers(1) {
                let condition = LocalCondition()
                let mutex = LocalMutex<Void>()
                var number = 0
                let waiting = try Fiber.spawnLocal {
                    try mutex.withLock { _ in
                        try condition.wait(mutex) {
                            looks += 1
                            return number >= 3
                        }
                        seen = number
                    }
                }
                for _ in 0..<3 {
                    settle()
                    number += 1
                    condition.signal()
                }
                try waiting.join()
                let queue = LocalMutex<[Int]>([])
                let taker = try Fiber.spawnLocal {
                    try queue.withLock(waitingOn: condition, until: { !$0.isEmpty }) { $0.removeFirst() }
                }
                settle()
                try queue.withLock { $0 = [7, 8] }
                condition.signal()
                value = [try taker.join(), try queue.withLock(waitingOn: condition, until: { !$0.isEmpty }) { $0.removeFirst() }]
            }
            #expect(looks == 4)
            #expect(seen == 3)
            #expect(value == [7, 8])
        }

        /// Those who put jobs in, and those who take them out, some of whom give up now and then.
        @Test(arguments: Crowd.all)
        func everyJobIsDoneOnce_whenWaitsAreCancelled(crowd: Crowd) throws {
            let rounds = scaled(1_000, sanitized: 150) * timesLonger
            let jobs = Jobs()
            let (sum, done, wanted) = (Counter(), Counter(), Counter())
            // The last of them takes jobs until all are done.
            let producers = crowd.members / 2
            try crowd.run(seed: 5) { member, random in
                if member < producers {
                    for i in 1...rounds {
                        try jobs.queue.withLock { $0.append(i) }
                        wanted.add(i)
                        jobs.hasJobs.signal()
                        dawdle(&random)
                    }
                } else {
                    while done.value < rounds * producers {
                        _ = tryUnderADeadline(&random) {
                            let job = try jobs.queue.withLock(
                                waitingOn: jobs.hasJobs, until: { !$0.isEmpty || done.value == rounds * producers }
                            ) { $0.popLast() }
                            if let job {
                                sum.add(job)
                                done.add()
                            }
                        }
                    }
                    // With the mutex, so that nobody is between a look and a wait.
                    try jobs.queue.withLock { _ in jobs.hasJobs.broadcast() }
                }
            }
            let isClean = jobs.hasJobs.hasNoWaiters() && jobs.queue.hasNoWaiters()
            #expect(sum.value == wanted.value)
            #expect(isClean)
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"), arguments: [false, true])
        func waiting_allocatesNothing(shared: Bool) throws {
            var count = -1
            try onWorkers(1) {
                let signalled = make(shared: shared)
                let lock = signalled.lock
                for _ in 0..<5 {
                    try Fiber.spawnLocal {
                        try lock.lock()
                        defer { lock.unlock() }
                        while true { try signalled.wait() }
                    }
                }
                func turn(_ times: Int) {
                    for _ in 0..<times {
                        signalled.broadcast()
                        settle()
                    }
                }
                turn(10)
                count = allocations { turn(500) }
                FiberRuntime.shutDown()
            }
            #expect(count == 0)
        }

        #if compiler(>=6.2)
            @Test func wait_stops_withoutTheMutex() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            let mutex = LocalMutex<Void>()
                            try LocalCondition().wait(mutex)
                        }
                    }
                }
                expectMessage(result, "wait on a condition was called without its mutex: lock() it before")
            }
        #endif
    }
}
