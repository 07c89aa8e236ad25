// Sleeping fibers. The timer queue is tested through them: every deadline and every order of insertion and removal goes through a sleep.

import CFiber
import Fibers
import Testing

extension KernelTests {
    @Suite struct SleepTests {
        @Test(arguments: [1, 999, 50_000, 1_000_000, 7_654_321])
        func sleep_endsNoEarlierThanAsked(_ nanoseconds: Int64) throws {
            var shortest = Int64.max
            try FiberRuntime.run {
                for _ in 0..<5 {
                    let start = cfiber_now()
                    try Fiber.sleep(for: .nanoseconds(nanoseconds))
                    shortest = min(shortest, cfiber_now() - start)
                }
            }
            #expect(shortest >= nanoseconds)
        }

        @Test func sleep_endsNoEarlierThanAsked_whenAFractionOfANanosecondIsAsked() throws {
            let deadline = Duration(secondsComponent: 0, attosecondsComponent: 1_000_500_000_000_000)
            let start = cfiber_now()
            try FiberRuntime.run { try Fiber.sleep(for: deadline) }
            #expect(cfiber_now() - start >= 1_000_501)
        }

        @Test(arguments: [1, 2, 3])
        func sleepers_wakeInTheOrderOfTheirDeadlines_whenTheseAreRandom(_ seed: UInt64) throws {
            var random = SeededGenerator(seed: seed)
            let count = 500
            let delays = (1...Int64(count)).map { $0 * 10_000 }.shuffled(using: &random)
            var order: [Int64] = []
            var early = 0
            // All must sleep before the first deadline; on a machine that holds us up that long it is tried again with more time.
            var ahead: Int64 = 10_000_000
            var allSlept = false
            while !allSlept {
                order = []
                try FiberRuntime.run {
                    let start = cfiber_now() + ahead
                    for delay in delays {
                        try Fiber.spawnLocal {
                            let worker = Worker.current!
                            _ = worker.beginPark()
                            _ = worker.park(.sleep, until: start + delay)
                            if cfiber_now() < start + delay { early += 1 }
                            order.append(delay)
                        }
                    }
                    Fiber.yield()
                    allSlept = cfiber_now() < start
                }
                ahead *= 2
            }
            #expect(early == 0)
            #expect(order == delays.sorted())
        }

        @Test func sleepers_allWake_whenTimersComeAndGoInAnyOrder() throws {
            // Parks with deadlines that are taken out of the middle of the queue by a wake-up, against a model of who must be waiting.
            var random = SeededGenerator(seed: 4)
            let count = 400
            var outcomes = [Outcome?](repeating: nil, count: count)
            var expected = [Outcome](repeating: .timedOut, count: count)
            try FiberRuntime.run {
                let worker = Worker.current!
                var waiters: [Waiter?] = Array(repeating: nil, count: count)
                for i in 0..<count {
                    let delay = Int64.random(in: 40_000_000...60_000_000, using: &random)
                    try Fiber.spawnLocal {
                        waiters[i] = worker.beginPark()
                        outcomes[i] = worker.park(.other, until: cfiber_now() + delay)
                    }
                }
                Fiber.yield()
                for i in (0..<count).shuffled(using: &random).prefix(count / 2) {
                    if worker.unpark(waiters[i]!, .ready) { expected[i] = .ready }
                    if i % 10 == 0 { Fiber.yield() }
                }
            }
            #expect(outcomes == expected)
            #expect(expected.count { $0 == .ready } > 0)
        }

        @Test(arguments: [
            Duration.zero, .nanoseconds(-1), .seconds(-5), .seconds(Int64.min), Duration(secondsComponent: .min, attosecondsComponent: 0),
        ])
        func sleep_letsTheOthersRunOnce_whenItIsZeroOrNegative(_ duration: Duration) throws {
            var trace: [String] = []
            try FiberRuntime.run {
                try Fiber.spawnLocal {
                    trace.append("other")
                    Fiber.yield()
                    trace.append("other again")
                }
                trace.append("before")
                try Fiber.sleep(for: duration)
                trace.append("after")
            }
            #expect(trace == ["before", "other", "after", "other again"])
        }

        @Test(arguments: [
            Duration.seconds(Int64.max), .seconds(Int64.max / 1_000_000_000), .seconds(300 * 365 * 86_400), .nanoseconds(Int64.max),
        ])
        func sleep_parksForEver_whenTheDurationIsHuge(_ duration: Duration) throws {
            // The runtime waits for all fibers, so this one is woken through the kernel in the end.
            var record: FiberPointer?
            var returned = false
            try FiberRuntime.run {
                let sleeper = try Fiber.spawnLocal {
                    record = Worker.current!.running
                    try Fiber.sleep(for: duration)
                    returned = true
                }
                _ = yield { record != nil }
                try Fiber.sleep(for: .milliseconds(3))
                #expect(!returned)
                let worker = Worker.current!
                #expect(worker.unpark(Waiter(record!), .timedOut))
                try sleeper.join()
            }
            #expect(returned)
        }
    }
}
