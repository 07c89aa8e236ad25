// SPDX-License-Identifier: Apache-2.0

// What a switch must carry along: registers, stacks of any depth, the floating-point environment, errors on their way up.

import CFiber
import Fibers
import Glibc
import Testing

extension KernelTests {
    @Suite struct SwitchTests {
        /// Boost 1.74 leaves fpcr alone on aarch64, and `fiber_context.h` says so.
        static var keepsRounding: Bool {
            #if arch(arm64)
                String(cString: cfiber_backend()) == "assembly"
            #else
                true
            #endif
        }

        @Test(.enabled(if: keepsRounding, "Boost's aarch64 switch does not keep fpcr"))
        func roundingMode_staysWithItsFiber_whenFibersInterleave() throws {
            let modes = [FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO] as [Int32]
            // What rint makes of 2.5 and -2.5 in each mode.
            let expected: [[Double]] = [[2, -2], [3, -2], [2, -3], [2, -2]]
            var wrong: [String] = []
            try FiberRuntime.run {
                for (i, mode) in modes.enumerated() {
                    try Fiber.spawnLocal {
                        fesetround(mode)
                        for turn in 0..<100 {
                            Fiber.yield()
                            if turn == 50 { try Fiber.sleep(for: .microseconds(1)) }
                            let seen = [rint(opaque(2.5)), rint(opaque(-2.5))]
                            if fegetround() != mode || seen != expected[i] {
                                wrong.append("mode \(mode), turn \(turn): \(fegetround()), \(seen)")
                            }
                        }
                    }
                }
                for turn in 0..<200 {
                    Fiber.yield()
                    if fegetround() != modes[0] { wrong.append("main, turn \(turn): \(fegetround())") }
                }
            }
            #expect(wrong == [])
            #expect(fegetround() == modes[0])
        }

        @Test(.enabled(if: keepsRounding, "Boost's aarch64 switch does not keep fpcr"))
        func roundingMode_isTheDefault_whenAnEarlierFiberOnTheStackChangedIt() throws {
            var stacks: [FiberPointer] = []
            var mode: Int32 = -1
            try FiberRuntime.run {
                try Fiber.spawnLocal {
                    stacks.append(Worker.current!.running)
                    fesetround(FE_UPWARD as Int32)
                }.join()
                try Fiber.spawnLocal {
                    stacks.append(Worker.current!.running)
                    mode = fegetround()
                }.join()
            }
            try #require(stacks[0] == stacks[1], "the second fiber should have run on the stack of the first")
            #expect(mode == FE_TONEAREST as Int32)
        }

        @Test func error_reachesTheCatch_whenThrownThroughDeepFramesWithYieldsBetween() throws {
            var deferred = 0
            func descend(_ depth: Int) throws -> Int {
                defer {
                    deferred += 1
                    Fiber.yield()
                }
                Fiber.yield()
                if depth == 0 { throw TestError(number: 200) }
                return try descend(depth - 1) + depth
            }
            var caught: [Int] = []
            try FiberRuntime.run {
                for _ in 0..<3 {
                    try Fiber.spawnLocal {
                        do { _ = try descend(200) } catch let error as TestError { caught.append(error.number) }
                    }
                }
            }
            #expect(caught == [200, 200, 200])
            #expect(deferred == 3 * 201)
        }

        @Test func formattedDoubles_areRight_whenWrittenByVarargsInAFiber() throws {
            func text(_ values: [Double]) -> String {
                var buffer = [CChar](repeating: 0, count: 256)
                let count = withVaList(values) { vsnprintf(&buffer, buffer.count, "%.3f %.3f %.3f %.3f %.3f %.3f %.3f %.3f %.3f", $0) }
                return String(decoding: buffer.prefix(Int(count)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
            }
            let values = (1...9).map { Double($0) + 0.125 }
            var texts: [String] = []
            try FiberRuntime.run {
                for _ in 0..<20 {
                    try Fiber.spawnLocal {
                        texts.append(text(values))
                        Fiber.yield()
                        texts.append(text(values))
                    }
                }
            }
            #expect(Set(texts) == ["1.125 2.125 3.125 4.125 5.125 6.125 7.125 8.125 9.125"])
            #expect(texts.count == 40)
        }

        @Test func locals_keepTheirValues_whenManyFibersYieldAtEveryDepth() throws {
            // Integers, doubles and vectors that live across each yield, in a checksum that depends on every one of them.
            func descend(_ depth: Int, _ seed: UInt64, yields: Bool) -> UInt64 {
                let a = opaque(seed &* 3), b = opaque(seed ^ 0x55), c = opaque(seed &+ UInt64(depth))
                let d = opaque(Double(seed % 1000) + 0.5), e = opaque(Double(depth) * 0.25)
                let v = opaque(SIMD8<Float>(repeating: Float(depth)))
                if yields { Fiber.yield() }
                let below = depth == 0 ? 1 : descend(depth - 1, a &+ b, yields: yields)
                if yields { Fiber.yield() }
                return below &* 31 &+ a &+ b &+ c &+ UInt64(d * 4) &+ UInt64(e * 4) &+ UInt64(v.sum())
            }
            var random = SeededGenerator(seed: 1)
            let depths = (0..<1_000).map { _ in Int.random(in: 0...40, using: &random) }
            let expected = depths.enumerated().map { descend($1, UInt64($0), yields: false) }
            var found = [UInt64](repeating: 0, count: depths.count)
            try FiberRuntime.run {
                for (i, depth) in depths.enumerated() {
                    try Fiber.spawnLocal { found[i] = descend(depth, UInt64(i), yields: true) }
                }
            }
            #expect(found == expected)
        }

        #if compiler(>=6.2)
            @Test func fiber_goesOn_whenItsParkIsOverBeforeItHasLeft() async {
                // A fiber parks with a deadline so close that the look at the timers on the way out finds it passed, at changing depths: the
                // context that its last park saved is then not where it stands now.
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        func descend(_ depth: Int) throws -> Int {
                            if depth > 0 { return try descend(depth - 1) + 1 }
                            let end = cfiber_now() + 60_000
                            while cfiber_now() < end {}
                            try Fiber.sleep(for: .nanoseconds(1))
                            return 0
                        }
                        var sum = 0
                        try FiberRuntime.run {
                            for i in 0..<1_000 { sum += try descend(i * 7 % 41) }
                        }
                        #expect(sum == (0..<1_000).reduce(0) { $0 + $1 * 7 % 41 })
                    }
                }
            }
        #endif
    }
}
