// SPDX-License-Identifier: Apache-2.0

// Mutexes: order, hand-off, cancellation, and what stops the program.

import CFaults
import Fibers
import Testing

extension KernelTests {
    @Suite struct MutexTests {
        @Test(arguments: [false, true])
        func waiters_haveTheMutexInOrder_andNobodyComesInBetween(shared: Bool) throws {
            var order: [Int] = []
            var intrusions = 0
            var isClean = false
            try onWorkers(1) {
                let lock = makeLock(shared: shared)
                try lock.lock()
                let waiting = try (0..<20).map { i in
                    try Fiber.spawnLocal {
                        try lock.lock()
                        order.append(i)
                        if i % 3 == 0 { Fiber.yield() }
                        lock.unlock()
                        // The next one has it, though he has not run yet.
                        if lock.tryLock() {
                            if i < 19 { intrusions += 1 }
                            lock.unlock()
                        }
                    }
                }
                settle()
                lock.unlock()
                if lock.tryLock() { intrusions += 1 }
                for fiber in waiting { try fiber.join() }
                isClean = lock.hasNoWaiters() && lock.tryLock()
                lock.unlock()
            }
            #expect(order == Array(0..<20))
            #expect(intrusions == 0)
            #expect(isClean)
        }

        @Test(arguments: [1, 2])
        func mutexesInLocalVariablesAndArrays_areSharedByFibers(workers: Int) throws {
            let counts = try onWorkers(workers) {
                let mutex = FiberMutex(0), lock = FiberRWLock(0), array = [FiberMutex(0), FiberMutex(0)]
                try withFiberGroup { group in
                    for i in 0..<10 {
                        try group.spawn {
                            try mutex.withLock { $0 += 1 }
                            try lock.withWriteLock { $0 += 1 }
                            try array[i % 2].withLock { $0 += 1 }
                        }
                    }
                }
                return try [mutex.withLock { $0 }, lock.withReadLock { $0 }] + array.map { try $0.withLock { $0 } }
            }
            #expect(counts == [10, 10, 5, 5])
        }

        @Test func value_staysUntilTheBodyHasEnded_whereTheLastReferenceGoesBefore() throws {
            try onWorkers(1) {
                var mutex: FiberMutex? = FiberMutex([1, 2, 3])
                let sum = try mutex?.withLock { value in
                    mutex = nil
                    Fiber.yield()
                    return value.reduce(0, +)
                }
                #expect(sum == 6 && mutex == nil)
            }
        }

        @Test func withLock_keepsTheValue_whileItsBodyWaits() throws {
            var sums: [Int] = []
            try onWorkers(1) {
                let local = LocalMutex([0, 0])
                let shared = FiberMutex([0, 0])
                func change(_ value: inout [Int]) {
                    let before = value[0]
                    Fiber.yield()
                    value[0] = before + 1
                }
                try withFiberGroup { group in
                    for _ in 0..<10 {
                        try group.spawnLocal { try local.withLock { change(&$0) } }
                        try group.spawnLocal { try shared.withLock { change(&$0) } }
                    }
                }
                sums = [try local.withLock { $0[0] }, try shared.withLock { $0[0] }]
            }
            #expect(sums == [10, 10])
        }

        @Test func withLockIfAvailable_isNil_whileSomebodyHasIt() throws {
            var results: [Int?] = []
            try onWorkers(1) {
                let local = LocalMutex(1)
                let shared = FiberMutex(2)
                results.append(local.withLockIfAvailable { $0 })
                results.append(shared.withLockIfAvailable { $0 })
                let holder = try Fiber.spawnLocal {
                    try local.withLock { _ in try shared.withLock { _ in try Fiber.sleep(for: long) } }
                }
                settle()
                results.append(local.withLockIfAvailable { $0 })
                results.append(shared.withLockIfAvailable { $0 })
                holder.cancel()
                _ = try? holder.join()
                results.append(local.withLockIfAvailable { $0 })
            }
            #expect(results == [1, 2, nil, nil, 1])
        }

        @Test func mutex_ownsItsValue_alsoOneThatCannotBeCopied() throws {
            struct Owner: ~Copyable {
                let ends: Box<Int>
                var number = 0
                deinit { ends.value += 1 }
            }
            let ends = Box(0)
            var number = 0
            try onWorkers(1) {
                let local = LocalMutex(Owner(ends: ends))
                let shared = FiberMutex(Owner(ends: ends))
                try local.withLock { $0.number += 1 }
                try shared.withLock { $0.number += 2 }
                number = try local.withLock { $0.number } + shared.withLock { $0.number }
            }
            #expect(number == 3)
            #expect(ends.value == 2)
        }

        @Test func withLock_givesTheMutexBack_whenItsBodyThrows() throws {
            var errors: [Int] = []
            var isFree = false
            try onWorkers(1) {
                let local = LocalMutex(1)
                let shared = FiberMutex(1)
                errors.append(numbers(failure { try local.withLock { _ in throw TestError(number: 1) } })?[0] ?? -1)
                errors.append(numbers(failure { try shared.withLock { _ in throw TestError(number: 2) } })?[0] ?? -1)
                do throws(TestError) { try shared.withLockIfAvailable { _ throws(TestError) in throw TestError(number: 3) } } catch {
                    errors.append(error.number)
                }
                isFree = local.withLockIfAvailable { _ in true } == true && shared.withLockIfAvailable { _ in true } == true
            }
            #expect(errors == [1, 2, 3])
            #expect(isFree)
        }

        @Test(arguments: [false, true])
        func cancelledWaiter_leaves_andThoseBehindItGoOnInOrder(shared: Bool) throws {
            var order: [Int] = []
            var fates: [Fate] = []
            var isClean = false
            try onWorkers(1) {
                let lock = makeLock(shared: shared)
                try lock.lock()
                let waiting = try (0..<5).map { i in
                    try Fiber.spawnLocal {
                        try lock.lock()
                        order.append(i)
                        lock.unlock()
                    }
                }
                settle()
                waiting[0].cancel()
                waiting[3].cancel()
                // Before the cancelled have gone on.
                lock.unlock()
                for fiber in waiting { fates.append(fate { try fiber.join() }) }
                isClean = lock.hasNoWaiters() && lock.tryLock()
                fates.append(fate { try withTimeout(.milliseconds(1)) { try Fiber.spawnLocal { try lock.lock() }.join() } })
                lock.unlock()
            }
            #expect(order == [1, 2, 4])
            #expect(fates == [.cancelled, .returned, .returned, .cancelled, .returned, .timedOut(.milliseconds(1))])
            #expect(isClean)
        }

        @Test(arguments: [false, true])
        func lock_isRefused_inAFiberThatIsCancelledOrOutOfTime(shared: Bool) throws {
            var fates: [Fate] = []
            var isFree = false
            try onWorkers(1) {
                let lock = makeLock(shared: shared)
                let fiber = try Fiber.spawnLocal { try lock.lock() }
                fiber.cancel()
                fates.append(fate { try fiber.join() })
                fates.append(fate { try withTimeout(.zero) { try lock.lock() } })
                fates.append(
                    fate {
                        try withTimeout(.milliseconds(1)) {
                            try lock.lock()
                            defer { lock.unlock() }
                            try Fiber.sleep(for: long)
                        }
                    })
                isFree = lock.tryLock()
                lock.unlock()
            }
            #expect(fates == [.cancelled, .timedOut(.zero), .timedOut(.milliseconds(1))])
            #expect(isFree)
        }

        @Test(arguments: Crowd.all)
        func counter_isRight_whenManyCount(crowd: Crowd) throws {
            let rounds = scaled(5_000, sanitized: 500)
            let count = SharedCount()
            try crowd.run(seed: 1) { _, random in
                for _ in 0..<rounds { try count.mutex.withLock { $0 += 1 } }
            }
            let total = try count.mutex.withLock { $0 }
            let isClean = count.mutex.hasNoWaiters()
            #expect(total == rounds * crowd.members)
            #expect(isClean)
        }

        /// Fibers of one worker that hold it while they wait.
        @Test func localCounter_isRight_whenFibersWaitWithTheMutex() throws {
            let rounds = scaled(1_000, sanitized: 200)
            var total = 0
            try onWorkers(1) {
                let mutex = LocalMutex(0)
                try withFiberGroup { group in
                    for i in 0..<10 {
                        try group.spawnLocal {
                            var random = SeededGenerator(seed: UInt64(i))
                            for _ in 0..<rounds {
                                try mutex.withLock { value in
                                    let before = value
                                    dawdle(&random)
                                    value = before + 1
                                }
                            }
                        }
                    }
                }
                total = try mutex.withLock { $0 }
            }
            #expect(total == rounds * 10)
        }

        /// Deadlines and cancellations compete with hand-overs; whoever got the mutex counts.
        @Test(arguments: Crowd.all)
        func mutex_isNeitherLostNorHeldTwice_whenWaitsAreCancelled(crowd: Crowd) throws {
            let rounds = scaled(1_500, sanitized: 200) * timesLonger
            let (successes, inside, clashes) = (Counter(), Counter(), Counter())
            let count = SharedCount()
            try crowd.run(seed: 7) { _, random in
                for _ in 0..<rounds {
                    var generator = random
                    let has = tryUnderADeadline(&random) {
                        try count.mutex.withLock { value in
                            inside.add()
                            if inside.value != 1 { clashes.add() }
                            value += 1
                            successes.add()
                            dawdle(&generator)
                            inside.add(-1)
                        }
                    }
                    if !has { dawdle(&random) }
                }
            }
            let total = count.mutex.withLockIfAvailable { $0 }
            let isClean = count.mutex.hasNoWaiters()
            #expect(total == successes.value)
            #expect(clashes.value == 0)
            #expect(isClean)
        }

        /// Fibers that are cancelled from other workers at any moment.
        @Test(arguments: [1, 2, 4])
        func mutex_isFree_afterItsFibersWereCancelled(workers: Int) throws {
            let rounds = scaled(100, sanitized: 20)
            var isClean = true
            for round in 0..<rounds {
                let count = SharedCount()
                try onWorkers(workers) {
                    var random = SeededGenerator(seed: UInt64(round))
                    let fibers = try (0..<8).map { i in
                        try Fiber.spawn(on: i % workers) {
                            var random = SeededGenerator(seed: UInt64(round * 8 + i))
                            while true { try count.mutex.withLock { _ in dawdle(&random) } }
                        }
                    }
                    for fiber in fibers {
                        dawdle(&random)
                        fiber.cancel()
                    }
                    for fiber in fibers { _ = try? fiber.join() }
                }
                let isFree = count.mutex.withLockIfAvailable { _ in true } ?? false
                isClean = isClean && isFree && count.mutex.hasNoWaiters()
            }
            #expect(isClean)
        }

        @Test(arguments: [false, true])
        func neighbours_goOn_whileAFiberNeverHasToWaitForTheMutex(shared: Bool) throws {
            let limit = 50_000_000
            var (rounds, turns) = (0, 0)
            try onWorkers(1) {
                let lock = makeLock(shared: shared)
                try Fiber.spawnLocal { while turns < 10 { turns += 1; Fiber.yield() } }
                while turns < 10 && rounds < limit {
                    try lock.lock()
                    lock.unlock()
                    rounds += 1
                }
            }
            #expect(rounds < limit)
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"), arguments: [false, true])
        func waiting_allocatesNothing(shared: Bool) throws {
            var count = -1
            try onWorkers(1) {
                let lock = makeLock(shared: shared)
                var running = true
                for _ in 0..<9 {
                    try Fiber.spawnLocal {
                        while running {
                            try lock.lock()
                            Fiber.yield()
                            lock.unlock()
                        }
                    }
                }
                func take(_ times: Int) throws {
                    for _ in 0..<times {
                        try lock.lock()
                        lock.unlock()
                    }
                }
                try take(10)
                count = try allocations { try take(1_000) }
                running = false
            }
            #expect(count == 0)
        }

        #if compiler(>=6.2)
            @Test func lockingTwice_stopsAndNamesTheFiber() async {
                let local = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            let mutex = LocalMutex<Void>()
                            try Fiber.spawnLocal(name: "greedy") {
                                try mutex.lock()
                                try mutex.lock()
                            }.join()
                        }
                    }
                }
                expectMessage(local, "fiber #2 \"greedy\" locks a mutex that it holds already")
                let shared = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            let count = SharedCount()
                            try Fiber.spawnLocal(name: "greedy") {
                                try count.mutex.withLock { _ in try count.mutex.withLock { _ in } }
                            }.join()
                        }
                    }
                }
                expectMessage(shared, "fiber #2 \"greedy\" locks a mutex that it holds already")
            }

            @Test func lockingTwice_stopsAThread_too() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let mutex = FiberMutex<Void>()
                        try mutex.lock()
                        try mutex.lock()
                    }
                }
                expectMessage(result, " outside the runtime locks a mutex that it holds already")
            }

            @Test func unlockingAnothersMutex_stopsAndNamesBoth() async {
                let local = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            let mutex = LocalMutex<Void>()
                            try Fiber.spawnLocal(name: "holder") {
                                try mutex.lock()
                                try Fiber.sleep(for: .seconds(100))
                            }
                            Fiber.yield()
                            mutex.unlock()
                        }
                    }
                }
                expectMessage(local, "unlocks a mutex that fiber #2 \"holder\" holds: only the holder unlocks it")
                let shared = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 2)) {
                            let lock = SharedLock()
                            let isHeld = FiberEvent()
                            try Fiber.spawn(name: "holder", on: 1) {
                                try lock.lock()
                                isHeld.signal()
                                try Fiber.sleep(for: .seconds(100))
                            }
                            try isHeld.wait()
                            onThread { lock.unlock() }
                        }
                    }
                }
                expectMessage(shared, " outside the runtime unlocks a mutex that fiber #2 \"holder\" holds")
            }

            @Test func unlocking_stops_whenNobodyHoldsTheMutex() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    FiberMutex<Void>().unlock()
                }
                expectMessage(result, "unlocks a mutex that nobody holds: unlock() belongs to a lock() before it")
            }

            @Test func localMutex_stops_onAThreadWithoutFibers() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try LocalMutex<Void>().lock()
                    }
                }
                expectMessage(result, "use the one without Local")
            }
        #endif
    }
}

/// A number that is counted under a mutex.
final class SharedCount: Sendable {
    let mutex = FiberMutex(0)
}
