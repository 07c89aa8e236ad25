// SPDX-License-Identifier: Apache-2.0

// Locks for readers and writers: readers together, writers alone, all in the order in which they came.

import CFaults
import Fibers
import Testing

extension KernelTests {
    @Suite struct RWLockTests {
        @Test(arguments: [false, true])
        func readersGoTogether_andWritersAlone(shared: Bool) throws {
            var (reading, mostReading, clashes) = (0, 0, 0)
            var value = 0
            try onWorkers(1) {
                let lock = makeReadWrite(shared: shared)
                try withFiberGroup { group in
                    for i in 0..<40 {
                        try group.spawnLocal {
                            if i % 10 == 9 {
                                try lock.write { value in
                                    if reading != 0 { clashes += 1 }
                                    let before = value
                                    Fiber.yield()
                                    if reading != 0 { clashes += 1 }
                                    value = before + 1
                                }
                            } else {
                                try lock.read { _ in
                                    reading += 1
                                    mostReading = max(mostReading, reading)
                                    Fiber.yield()
                                    reading -= 1
                                }
                            }
                        }
                    }
                }
                value = try lock.read { $0 }
            }
            #expect(clashes == 0)
            #expect(mostReading == 9)
            #expect(value == 4)
        }

        @Test(arguments: [false, true])
        func everybody_isServedInOrder_soThatNeitherReadersNorWritersStarve(shared: Bool) throws {
            var order: [String] = []
            var results: [Bool] = []
            try onWorkers(1) {
                let lock = makeReadWrite(shared: shared)
                let gate = Latch()
                let first = try Fiber.spawnLocal { try lock.read { _ in try gate.wait() } }
                settle()
                let waiting = try ["w1", "r2", "r3", "w4", "r5"].map { name in
                    try Fiber.spawnLocal {
                        if name.hasPrefix("w") {
                            try lock.write { _ in
                                order.append(name)
                                Fiber.yield()
                                order.append(name + "-")
                            }
                        } else {
                            try lock.read { _ in
                                order.append(name)
                                Fiber.yield()
                                order.append(name + "-")
                            }
                        }
                    }
                }
                settle()
                // Though nobody writes yet: there is one in line.
                results = [lock.tryRead(), lock.tryWrite()]
                gate.open()
                try first.join()
                for fiber in waiting { try fiber.join() }
                results += [lock.tryRead(), lock.tryWrite(), lock.hasNoWaiters()]
            }
            #expect(order == ["w1", "w1-", "r2", "r3", "r2-", "r3-", "w4", "w4-", "r5", "r5-"])
            #expect(results == [false, false, true, true, true])
        }

        @Test(arguments: [false, true])
        func cancelledWriter_letsTheReadersBehindItGoOn(shared: Bool) throws {
            var fates: [Fate] = []
            var isClean = false
            try onWorkers(1) {
                let lock = makeReadWrite(shared: shared)
                let gate = Latch()
                let first = try Fiber.spawnLocal { try lock.read { _ in try gate.wait() } }
                settle()
                let writer = try Fiber.spawnLocal { try lock.write { _ in } }
                let readers = try (0..<3).map { _ in try Fiber.spawnLocal { try lock.read { _ in } } }
                settle()
                writer.cancel()
                fates.append(fate { try writer.join() })
                for reader in readers { fates.append(fate { try reader.join() }) }
                gate.open()
                try first.join()
                fates.append(fate { try withTimeout(.milliseconds(1)) { try lock.write { _ in try Fiber.sleep(for: long) } } })
                isClean = lock.tryWrite() && lock.hasNoWaiters()
            }
            #expect(fates == [.cancelled, .returned, .returned, .returned, .timedOut(.milliseconds(1))])
            #expect(isClean)
        }

        @Test func errorsOfBodies_passThrough_andTheLockIsFree() throws {
            var errors: [Int] = []
            var isFree = false
            try onWorkers(1) {
                let lock = SharedReadWrite()
                errors.append(numbers(failure { try lock.read { _ in throw TestError(number: 1) } })?[0] ?? -1)
                errors.append(numbers(failure { try lock.write { _ in throw TestError(number: 2) } })?[0] ?? -1)
                isFree = lock.tryWrite()
            }
            #expect(errors == [1, 2])
            #expect(isFree)
        }

        /// The pair of numbers is equal whenever nobody writes.
        @Test(arguments: Crowd.all)
        func readersSeeWholeWrites_whenWaitsAreCancelled(crowd: Crowd) throws {
            let rounds = scaled(1_500, sanitized: 200) * timesLonger
            final class Pair: Sendable {
                let lock = FiberRWLock([0, 0])
            }
            let pair = Pair()
            let (writes, torn) = (Counter(), Counter())
            try crowd.run(seed: 11) { _, random in
                for _ in 0..<rounds {
                    var generator = random
                    if random.next() % 4 == 0 {
                        _ = tryUnderADeadline(&random) {
                            try pair.lock.withWriteLock { value in
                                value[0] += 1
                                dawdle(&generator)
                                value[1] += 1
                                writes.add()
                            }
                        }
                    } else {
                        _ = tryUnderADeadline(&random) {
                            try pair.lock.withReadLock { value in
                                let before = value
                                dawdle(&generator)
                                if before[0] != before[1] || value[0] != before[0] { torn.add() }
                            }
                        }
                    }
                }
            }
            let end = pair.lock.withWriteLockIfAvailable { $0 }
            let isClean = pair.lock.hasNoWaiters()
            #expect(end == [writes.value, writes.value])
            #expect(torn.value == 0)
            #expect(isClean)
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"), arguments: [false, true])
        func waiting_allocatesNothing(shared: Bool) throws {
            var count = -1
            try onWorkers(1) {
                let lock = makeReadWrite(shared: shared)
                var running = true
                for _ in 0..<9 { try Fiber.spawnLocal { while running { try lock.read { _ in Fiber.yield() } } } }
                func write(_ times: Int) throws { for _ in 0..<times { try lock.write { $0 += 1 } } }
                try write(10)
                count = try allocations { try write(1_000) }
                running = false
            }
            #expect(count == 0)
        }

        #if compiler(>=6.2)
            @Test func lockingInsideAWrite_stopsAndNamesTheFiber() async {
                let read = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            let lock = LocalRWLock(1)
                            try Fiber.spawnLocal(name: "writer") { try lock.withWriteLock { _ in try lock.withReadLock { _ in } } }.join()
                        }
                    }
                }
                expectMessage(read, "fiber #2 \"writer\" reads what it has locked to write already")
                let write = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            let lock = SharedReadWrite()
                            try Fiber.spawnLocal(name: "writer") { try lock.write { _ in try lock.write { _ in } } }.join()
                        }
                    }
                }
                expectMessage(write, "fiber #2 \"writer\" writes what it has locked to write already")
            }
        #endif
    }
}
