// SPDX-License-Identifier: Apache-2.0

// Times beyond what the clock can show: they mean now, or never, and do not end the program.

import Fibers
import Testing

extension KernelTests {
    struct TimeLimitTests {
        /// More than 292 years, of which a 64-bit count of nanoseconds is short, and more than any `Instant` can be away from another.
        private static let extremes: [Duration] = [
            Duration(attoseconds: .max), Duration(attoseconds: .min), .seconds(Int64.max), .seconds(Int64.min), .nanoseconds(Int64.max),
            .nanoseconds(Int64.min), .zero,
        ]

        private static var longestAgo: ContinuousClock.Instant { .now.advanced(by: Duration(attoseconds: .min)) }
        private static var farthestAhead: ContinuousClock.Instant {
            .now.advanced(by: Duration(attoseconds: .max) - .seconds(1_000_000_000_000))
        }

        #if compiler(>=6.2)
            @Test func instants_areNowOrNever_howeverFarAway() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try FiberRuntime.run {
                            try Fiber.sleep(until: Self.longestAgo)
                            expectTimeout { try withDeadline(Self.longestAgo) { try Fiber.sleep(for: .seconds(100)) } }
                            try withDeadline(Self.farthestAhead) { try Fiber.sleep(for: .nanoseconds(1)) }
                            let sleeping = try Fiber.spawnLocal { try Fiber.sleep(until: Self.farthestAhead) }
                            Fiber.yield()
                            sleeping.cancel()
                            _ = try? sleeping.join()
                        }
                    }
                }
            }

            @Test func intervalsOfTheRuntime_areHeeded_whateverTheyAre() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for extreme in Self.extremes {
                            var configuration = FiberRuntime.Configuration()
                            configuration.trimInterval = extreme
                            configuration.blockingIdleLimit = extreme
                            configuration.shutdownLimit = extreme
                            try FiberRuntime.run(configuration) {
                                // More than stay warm in any case, so that the worker looks when to trim.
                                let fibers = try (0..<100).map { _ in try Fiber.spawnLocal { try Fiber.sleep(for: .nanoseconds(1)) } }
                                for fiber in fibers { try fiber.join() }
                                try Fiber.sleep(for: .milliseconds(1))
                                for _ in 0..<3 { try withBlockingThread {} }
                                try Fiber.sleep(for: .milliseconds(1))
                            }
                        }
                    }
                }
            }
        #endif
    }
}

private func expectTimeout(_ body: () throws -> Void) {
    do {
        try body()
        Issue.record("no time ran out")
    } catch is TimeoutError {} catch { Issue.record("\(error)") }
}
