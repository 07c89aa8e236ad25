// SPDX-License-Identifier: Apache-2.0

// Stacks: their size, their reuse, what they cost and what is given back.

import CFaults
import CFiber
import Fibers
import Glibc
import Testing

/// The calling fiber's stack: its lowest usable byte and the byte after its highest.
private func stackBounds() -> (low: UInt, high: UInt) {
    let fiber = Worker.current!.running
    return (UInt(bitPattern: fiber.pointee.stack_low), UInt(bitPattern: fiber))
}

/// Recurses until less than `margin` bytes of the stack are left, and returns how many bytes lay between the top and there.
@inline(never) @_optimize(none)
private func descend(leaving margin: UInt) -> UInt {
    var frame = (0, 0, 0, 0, 0, 0, 0, 0)
    let (low, high) = stackBounds()
    let here = withUnsafePointer(to: &frame) { UInt(bitPattern: $0) }
    if here < low + margin { return high - here }
    frame.0 = 1
    return descend(leaving: margin) + UInt(frame.1)
}

extension KernelTests {
    @Suite struct StackTests {
        @Test func stack_isUsedAgain_whenItsFiberHasEnded() throws {
            var stacks = Set<FiberPointer>()
            try FiberRuntime.run {
                for i in 0..<scaled(100_000, sanitized: 20_000) {
                    let handle = try Fiber.spawnLocal { _ = stacks.insert(Worker.current!.running) }
                    // Now and then a few at a time, so that the pool's list is more than one long.
                    if i % 7 != 0 { try handle.join() }
                }
            }
            #expect(stacks.count <= 8)
        }

        @Test(arguments: [128, 256, 512, 1_024])
        func stackSize_isWhatWasConfigured(_ kibibytes: Int) throws {
            let (promised, mark) = try FiberRuntime.run(.init(stackSize: kibibytes * 1024)) {
                try Fiber.spawnLocal { (Fiber.current!.stackSize, stackBounds().high - stackBounds().low) }.join()
            }
            // All but the guard, the record and less than a page that keeps tops apart.
            #expect(promised > (kibibytes - 64 - 4) * 1024 && promised < (kibibytes - 64) * 1024)
            #expect(promised == Int(mark))
        }

        @Test(.enabled(if: !isSanitized, "AddressSanitizer keeps locals elsewhere"), arguments: [128, 256, 512, 1_024])
        func fiber_mayUseNearlyAllOfItsStack(_ kibibytes: Int) throws {
            let depths = try FiberRuntime.run(.init(stackSize: kibibytes * 1024)) {
                // Neighbours recurse as well, each to the end of its own stack.
                let handles = try (0..<4).map { _ in
                    try Fiber.spawnLocal {
                        Fiber.yield()
                        let depth = descend(leaving: 4_096)
                        Fiber.yield()
                        return depth
                    }
                }
                return try handles.map { try $0.join() }
            }
            #expect(depths.allSatisfy { $0 > UInt(kibibytes - 64 - 12) * 1024 })
        }

        @Test(.enabled(if: !isSanitized, "AddressSanitizer keeps locals elsewhere"))
        func highWaterMark_growsWithTheDepth() throws {
            let (shallow, deep, after) = try FiberRuntime.run {
                let handle = try Fiber.spawnLocal {
                    let me = Fiber.current!
                    let shallow = me.stackHighWaterMark
                    let depth = descend(leaving: 64 * 1024)
                    return (shallow, me.stackHighWaterMark, Int(depth))
                }
                let marks = try handle.join()
                return (marks.0, marks, handle.fiber.stackHighWaterMark)
            }
            #expect(shallow > 0 && shallow <= 32 * 1024)
            #expect(deep.1 >= deep.2 && deep.1 <= deep.2 + 16 * 1024)
            #expect(after == 0)
        }

        @Test func tops_fallIntoDifferentCacheSets_whenStacksFollowOneAnother() throws {
            var tops: [UInt] = []
            try FiberRuntime.run {
                for _ in 0..<140 { try Fiber.spawnLocal { tops.append(UInt(bitPattern: Worker.current!.running)) } }
            }
            // 64 sets of 64-byte lines in a first-level cache. Slabs follow one another in any order, so only neighbours within one are compared.
            let sets = tops.map { $0 / 64 % 64 }
            #expect(Set(sets).count >= 10)
            let neighbours = zip(zip(tops, tops.dropFirst()), zip(sets, sets.dropFirst())).filter {
                $0.0.1 > $0.0.0 && $0.0.1 - $0.0.0 < 2 * 256 * 1024
            }
            #expect(neighbours.count >= 130)
            #expect(neighbours.allSatisfy { $0.1.0 != $0.1.1 })
        }

        @Test func stacks_doNotOverlap_whenManyFibersAreAlive() throws {
            var bounds: [(low: UInt, high: UInt)] = []
            try FiberRuntime.run {
                for _ in 0..<2_000 {
                    try Fiber.spawnLocal {
                        bounds.append(stackBounds())
                        Fiber.yield()
                    }
                }
            }
            bounds.sort { $0.low < $1.low }
            #expect(bounds.count == 2_000)
            // At least a guard of 64 KiB lies between one stack and the next.
            #expect(zip(bounds, bounds.dropFirst()).allSatisfy { $0.high + 64 * 1024 <= $1.low })
        }

        @Test func severalSlots_areGivenBack_eachForItself_whenTheKernelCannotDoAllAtOnce() throws {
            let (page, count) = (Int(getpagesize()), 100)
            var memory: UnsafeMutableRawPointer?
            #expect(cfiber_map(2 * page * count, &memory) == 0)
            let base = try #require(memory)
            defer { _ = cfiber_unmap(base, 2 * page * count) }
            var slots: [UnsafeMutableRawPointer?] = (0..<count).map { base + 2 * page * $0 }
            func giveBack() -> Int32 {
                memset(base, 1, 2 * page * count)
                return cfiber_give_back_several(&slots, count, page, page)
            }
            func isAsExpected(_ i: Int) -> Bool {
                let slot = base + 2 * page * i
                return slot.load(as: UInt8.self) == 1 && slot.load(fromByteOffset: page, as: UInt8.self) == 0
            }
            #expect(giveBack() == 0)
            #expect((0..<count).allSatisfy(isAsExpected))
            // No address of anything: the call for several refuses all of its batch or ends in the middle.
            slots[70] = base + 1
            #expect(giveBack() == -EINVAL)
            #expect((0..<count).allSatisfy { $0 == 70 || isAsExpected($0) })
        }

        #if compiler(>=6.2)
            @Test(.enabled(if: !isSanitized, "sanitizers keep memory of their own"))
            func memory_isGivenBack_whenAWorkerIsIdleAfterManyFibers() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try FiberRuntime.run(trimmingSoon) {
                            // Once in small, so that what is allocated for good is there.
                            try parkMany(100)
                            let before = Process.residentBytes
                            try parkMany(5_000)
                            let most = Process.residentBytes - before
                            // A touched page each, but for those that were there.
                            #expect(most >= 4_800 * 4096, "\(most) bytes")
                            // The worker trims when it has nothing else to do, some stacks at a time.
                            var turns = 0
                            while Process.residentBytes - before > 2 << 20, turns < 200 {
                                try Fiber.sleep(for: .milliseconds(20))
                                turns += 1
                            }
                            #expect(Process.residentBytes - before <= 2 << 20)
                            // And the stacks are good for new fibers.
                            try parkMany(5_000)
                        }
                    }
                }
            }

            @Test(.enabled(if: !isSanitized, "sanitizers keep memory of their own"))
            func deepPages_areGivenBack_whenAWorkerIsIdle() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var configuration = trimmingSoon
                        configuration.stackSize = 1 << 20
                        try FiberRuntime.run(configuration) {
                            let before = Process.residentBytes
                            var handles = try (0..<20).map { _ in
                                try Fiber.spawnLocal {
                                    Fiber.yield()
                                    _ = descend(leaving: 64 * 1024)
                                }
                            }
                            for handle in handles { try handle.join() }
                            handles = []
                            #expect(Process.residentBytes - before >= 15 << 20)
                            var turns = 0
                            while Process.residentBytes - before > 2 << 20, turns < 200 {
                                try Fiber.sleep(for: .milliseconds(20))
                                turns += 1
                            }
                            #expect(Process.residentBytes - before <= 2 << 20)
                        }
                    }
                }
            }

            @Test(.enabled(if: !isSanitized, "sanitizers keep memory of their own"))
            func memory_staysFlat_whenManyFibersComeAndGo() async {
                // Ten million, where that takes no time.
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try FiberRuntime.run {
                            func use(_ count: Int) throws {
                                for i in 0..<count {
                                    let handle = try Fiber.spawnLocal { i }
                                    if i % 16 == 0 { _ = try handle.join() }
                                }
                            }
                            try use(10_000)
                            let before = Process.residentBytes
                            try use(isDebugBuild ? 200_000 : 10_000_000)
                            #expect(Process.residentBytes - before < 1 << 20)
                        }
                    }
                }
            }
        #endif
    }
}

/// So many fibers at once, each of which has parked.
func parkMany(_ count: Int) throws {
    let worker = Worker.current!
    var waiters: [Waiter] = []
    waiters.reserveCapacity(count)
    for _ in 0..<count {
        try Fiber.spawnLocal {
            waiters.append(worker.beginPark())
            _ = worker.park(.other)
        }
    }
    guard yield(until: { waiters.count == count }) else { throw TestError(number: waiters.count) }
    for waiter in waiters { _ = worker.unpark(waiter, .ready) }
    _ = yield { worker.live == 1 }
}
