// SPDX-License-Identifier: Apache-2.0

// Groups with children on several workers.

import Fibers
import Glibc
import Testing

extension KernelTests {
    @Suite struct WorkerGroupTests {
        @Test(arguments: [1, 2, 4])
        func group_returns_afterChildrenOnAllWorkersHaveEnded(_ count: Int) throws {
            let ended = Counter()
            var seen = 0
            var running = -1
            try onWorkers(count) {
                try withFiberGroup { group in
                    for i in 0..<100 {
                        try group.spawn(on: i % count) {
                            try Fiber.sleep(for: .microseconds(i * 10))
                            ended.add()
                        }
                    }
                    running = group.count
                }
                seen = ended.value
            }
            #expect(seen == 100)
            #expect(running == 100)
        }

        @Test(arguments: [2, 4])
        func results_comeInOrderOfCompletion_eachOnce(_ count: Int) throws {
            var results: [Int] = []
            try onWorkers(count) {
                try withFiberGroup(of: Int.self, limit: 7) { group in
                    for i in 0..<200 { try group.spawn { i } }
                    while let value = try group.next() { results.append(value) }
                }
            }
            #expect(results.sorted() == Array(0..<200))
        }

        @Test(arguments: [2, 4])
        func limit_bounds_childrenOnAllWorkers(_ count: Int) throws {
            let (running, most) = (Counter(), Guarded(0))
            try onWorkers(count) {
                try withFiberGroup(limit: 3) { group in
                    for _ in 0..<300 {
                        try group.spawn {
                            running.add()
                            most.withLock { $0 = max($0, running.value) }
                            Fiber.yield()
                            running.add(-1)
                        }
                    }
                }
            }
            #expect(most.value <= 3 && most.value >= 1)
        }

        @Test(arguments: [2, 4])
        func firstError_cancelsSiblingsOnAllWorkers_andIsThrown(_ count: Int) throws {
            var numbersThrown: [[Int]?] = []
            let cancelled = Counter()
            let rounds = scaled(100, sanitized: 20)
            try onWorkers(count) {
                for round in 0..<rounds {
                    let error = failure {
                        try withFiberGroup { group in
                            for i in 0..<6 {
                                try group.spawn(on: i % count) {
                                    do { try Fiber.sleep(for: .seconds(1_000)) } catch {
                                        cancelled.add()
                                        throw error
                                    }
                                }
                            }
                            try group.spawnLocal { try Fiber.sleep(for: .seconds(1_000)) }
                            try group.spawn(on: round % count) { throw TestError(number: round) }
                        }
                    }
                    numbersThrown.append(numbers(error))
                }
            }
            #expect(numbersThrown == (0..<rounds).map { [$0] })
            #expect(cancelled.value == rounds * 6)
        }

        @Test func groupsOnOtherWorkers_areCancelledFromTheTop_howeverDeep() throws {
            let (sleeping, cancelled) = (Counter(), Counter())
            let depth = 30
            let end = try onWorkers(3) {
                @Sendable func descend(_ level: Int) throws {
                    try withFiberGroup { group in
                        if level < depth { try group.spawn(on: level % 3) { try descend(level + 1) } }
                        sleeping.add()
                        do { try Fiber.sleep(for: .seconds(1_000)) } catch {
                            cancelled.add()
                            throw error
                        }
                    }
                }
                let top = try Fiber.spawnLocal { try descend(1) }
                while sleeping.value < depth { Fiber.yield() }
                top.cancel()
                return failure { try top.join() }
            }
            #expect(end is CancellationError)
            #expect(cancelled.value == depth)
        }

        @Test func deadline_endsTheGroup_whenOnlyAChildOnAnotherWorkerNoticesIt() throws {
            // The owner waits for its children alone, which cannot be cut short; the child is what the deadline meets.
            var limits: [Duration?] = []
            try onWorkers(2) {
                for _ in 0..<20 {
                    let error = failure {
                        try withTimeout(.milliseconds(2)) {
                            try withFiberGroup { group in _ = try group.spawn(on: 1) { try Fiber.sleep(for: .seconds(1_000)) } }
                        }
                    }
                    limits.append((error as? TimeoutError)?.limit)
                }
            }
            #expect(limits == Array(repeating: .milliseconds(2), count: 20))
        }

        @Test func childCancelledOnItsOwn_doesNotFailItsGroup() throws {
            var results: [Bool] = []
            try onWorkers(2) {
                try withFiberGroup { group in
                    let child = try group.spawn(on: 1) { try Fiber.sleep(for: .seconds(1_000)) }
                    child.cancel()
                    results.append(failure { try child.join() } is CancellationError)
                    try group.spawn(on: 1) {}.join()
                }
                results.append(true)
            }
            #expect(results == [true, true])
        }

        @Test func spawn_inACancelledGroup_throws_andChildrenOnTheirWayAreCancelled() throws {
            var results: [Bool] = []
            let finished = Counter()
            try onWorkers(2) {
                results.append(
                    failure {
                        try withFiberGroup { group in
                            try group.spawn(on: 1) {
                                try Fiber.sleep(for: .seconds(1_000))
                                finished.add()
                            }
                            group.cancel()
                            try group.spawn(on: 1) { finished.add() }
                        }
                    } is CancellationError)
            }
            #expect(results == [true])
            #expect(finished.value == 0)
        }
    }
}
