// SPDX-License-Identifier: Apache-2.0

// Hot paths allocate nothing. Allocations are counted by interposing malloc and its kin, on the worker's thread alone.

import CFaults
import Fibers
import Testing

/// Counts allocations between two moments of a run.
func allocations(_ body: () throws -> Void) rethrows -> Int {
    cfaults_allocations_begin()
    defer { _ = cfaults_allocations_end() }
    try body()
    return Int(cfaults_allocations_end())
}

extension KernelTests {
    @Suite(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"))
    struct AllocationTests {
        @Test func counter_counts_whatSwiftAllocates() {
            // The instrument itself.
            final class Thing {}
            var things: [Thing] = []
            things.reserveCapacity(100)
            #expect(allocations { for _ in 0..<100 { things.append(opaque(Thing())) } } >= 100)
            #expect(allocations {} == 0)
        }

        @Test func yield_allocatesNothing() throws {
            let rounds = 100_000
            var count = -1
            try FiberRuntime.run {
                var running = true
                for _ in 0..<9 { try Fiber.spawnLocal { while running { Fiber.yield() } } }
                Fiber.yield()
                count = allocations { for _ in 0..<rounds { Fiber.yield() } }
                running = false
            }
            #expect(count == 0)
        }

        @Test func sleep_allocatesNothing_onceTheTimerQueueHasGrown() throws {
            let rounds = 10_000
            var count = -1
            try FiberRuntime.run {
                var running = true
                for _ in 0..<9 { try Fiber.spawnLocal { while running { try Fiber.sleep(for: .nanoseconds(1)) } } }
                for _ in 0..<10 { try Fiber.sleep(for: .nanoseconds(1)) }
                count = try allocations { for _ in 0..<rounds { try Fiber.sleep(for: .nanoseconds(1)) } }
                running = false
            }
            #expect(count == 0)
        }

        @Test func parkAndUnpark_allocateNothing() throws {
            let rounds = 100_000
            var count = -1
            var turns = 0
            try FiberRuntime.run {
                let worker = Worker.current!
                var waiter: Waiter?
                try Fiber.spawnLocal {
                    while turns < rounds + 10 {
                        waiter = worker.beginPark()
                        _ = worker.park(.other)
                        turns += 1
                    }
                }
                Fiber.yield()
                func wake(_ times: Int) {
                    for _ in 0..<times {
                        _ = worker.unpark(waiter!, .ready)
                        Fiber.yield()
                    }
                }
                wake(10)
                count = allocations { wake(rounds) }
            }
            #expect(turns == rounds + 10)
            #expect(count == 0)
        }

        @Test func waitingInAList_allocatesNothing() throws {
            let rounds = 10_000
            var count = -1
            try FiberRuntime.run {
                let worker = Worker.current!
                let list = UnsafeMutablePointer<WaitList>.allocate(capacity: 1)
                list.initialize(to: WaitList())
                var running = true
                for _ in 0..<9 { try Fiber.spawnLocal { while running { _ = worker.park(in: list, .other) } } }
                Fiber.yield()
                count = allocations {
                    for _ in 0..<rounds {
                        worker.wakeAll(&list.pointee, .ready)
                        Fiber.yield()
                    }
                }
                running = false
                worker.wakeAll(&list.pointee, .ready)
                Fiber.yield()
                list.deallocate()
            }
            #expect(count == 0)
        }

        @Test func spawn_allocatesItsCellAndClosureOnly() throws {
            // One object for the fiber, one box for what the closure captures; the stack comes out of the pool.
            let rounds = 10_000
            var count = -1
            var sum = 0
            try FiberRuntime.run {
                try Fiber.spawnLocal {}.join()
                count = try allocations {
                    for i in 0..<rounds {
                        try Fiber.spawnLocal { sum += i }
                        Fiber.yield()
                    }
                }
            }
            #expect(sum == rounds * (rounds - 1) / 2)
            // Unoptimised code boxes more.
            #expect(count <= rounds * (isDebugBuild ? 4 : 2))
        }

        @Test func aMillionSwitches_ofHundredsOfFibers_allocateNothing() throws {
            var count = -1
            try FiberRuntime.run {
                var running = true
                for _ in 0..<999 { try Fiber.spawnLocal { while running { Fiber.yield() } } }
                Fiber.yield()
                count = allocations { for _ in 0..<1_000 { Fiber.yield() } }
                running = false
            }
            #expect(count == 0)
        }
    }
}
