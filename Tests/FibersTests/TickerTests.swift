// SPDX-License-Identifier: Apache-2.0

// A ticker's beats: never early, never adrift, each counted once.

import CFiber
import Fibers
import Testing

extension KernelTests {
    @Suite struct TickerTests {
        /// One beat as it was taken, and when: before and after the call, in nanoseconds.
        private struct Beat {
            var tick: Ticker.Tick
            var asked: Int64
            var taken: Int64
        }

        /// Takes beats, with a pause before each; returns them with the latest and the earliest moment at which the ticker may have started.
        private static func take(
            _ count: Int, every interval: Duration, _ pause: (Int) throws -> Void
        ) throws -> (beats: [Beat], start: ClosedRange<Int64>) {
            var beats: [Beat] = []
            var start: ClosedRange<Int64> = 0...0
            try runQuietly {
                let before = cfiber_now()
                let ticker = Ticker(every: interval)
                start = before...cfiber_now()
                for i in 0..<count {
                    try pause(i)
                    let asked = cfiber_now()
                    let tick = try ticker.next()
                    beats.append(Beat(tick: tick, asked: asked, taken: cfiber_now()))
                }
            }
            return (beats, start)
        }

        /// That each beat is the latest that was due, or the next one when none was, not earlier than it is due, and that none is lost or made up for.
        private static func check(_ beats: [Beat], _ start: ClosedRange<Int64>, _ interval: Int64, _ comment: Comment? = nil) {
            var last = 0
            for beat in beats {
                let tick = beat.tick
                #expect(tick.number == last + tick.missed + 1, comment)
                #expect(tick.missed >= 0, comment)
                // Not before its time …
                #expect(beat.taken >= start.lowerBound + Int64(tick.number) * interval, comment)
                // … and not another than the latest that was due when it was asked for, however late those before were.
                #expect(Int64(tick.number) >= (beat.asked - start.upperBound) / interval, comment)
                last = tick.number
            }
        }

        @Test(arguments: [Duration.microseconds(100), .milliseconds(1), .microseconds(1_234)])
        func beats_doNotDrift_whenTheyAreTakenInTime(_ interval: Duration) throws {
            let (beats, start) = try Self.take(15, every: interval) { _ in }
            Self.check(beats, start, Deadline.after(interval, from: 0))
        }

        @Test(arguments: [1, 2, 3])
        func beats_doNotDrift_andTheMissedAddUp_whenTheWorkTakesLong(_ seed: UInt64) throws {
            var random = SeededGenerator(seed: seed)
            let interval: Int64 = 200_000
            let (beats, start) = try Self.take(40, every: .nanoseconds(interval)) { _ in
                switch random.next() & 3 {
                case 0: break
                case 1: try Fiber.sleep(for: .microseconds(Int64.random(in: 0...900, using: &random)))
                default: compute(for: .microseconds(Int64.random(in: 0...900, using: &random)))
                }
            }
            Self.check(beats, start, interval, "seed \(seed)")
            #expect(beats.contains { $0.tick.missed > 0 })
        }

        @Test func next_returnsTheLatest_whenBeatsWentByUntaken() throws {
            let (beats, start) = try Self.take(3, every: .milliseconds(1)) { i in if i == 1 { compute(for: .milliseconds(6)) } }
            Self.check(beats, start, 1_000_000)
            // At least five and a half intervals after the first.
            #expect(beats[1].tick.missed >= 4)
        }

        @Test func next_letsTheOthersRunOnce_whenABeatIsDue() throws {
            var trace: [String] = []
            try runQuietly {
                let ticker = Ticker(every: .nanoseconds(1))
                try Fiber.spawnLocal {
                    trace.append("other")
                    Fiber.yield()
                    trace.append("other again")
                }
                compute(for: .microseconds(1))
                _ = try ticker.next()
                trace.append("beat")
            }
            #expect(trace == ["other", "beat", "other again"])
        }

        @Test func beats_goOn_whenTheIntervalIsANanosecond() throws {
            let (beats, start) = try Self.take(2_000, every: .nanoseconds(1)) { _ in }
            Self.check(beats, start, 1)
        }

        @Test func interval_countsUpwards_whenItHasAFractionOfANanosecond() throws {
            let interval = Duration(secondsComponent: 0, attosecondsComponent: 100_000_500_000_000)
            let (beats, start) = try Self.take(5, every: interval) { _ in }
            Self.check(beats, start, 100_001)
        }

        @Test func beat_isNotTaken_whenTheWaitForItIsCancelled() throws {
            var fates: [Fate] = []
            var ticks: [Ticker.Tick] = []
            try runQuietly {
                let ticker = Ticker(every: .milliseconds(30))
                for _ in 0..<3 {
                    for _ in 0..<3 { fates.append(fate { try withTimeout(.microseconds(200)) { ticks.append(try ticker.next()) } }) }
                    ticks.append(try ticker.next())
                }
            }
            // In time each is the next one; a machine that holds us up makes us miss some, and counts them.
            var last = 0
            for tick in ticks {
                #expect(tick.number == last + 1 + tick.missed)
                last = tick.number
            }
            #expect(ticks.count == 3 + fates.count { $0 == .returned })
            #expect(Set(fates).subtracting([.returned]) == [.timedOut(.microseconds(200))])
        }

        @Test func beat_isNotTaken_whenItIsDueInACancelledFiber() throws {
            var fates: [Fate] = []
            var ticks: [Ticker.Tick] = []
            try runQuietly {
                let handle = try Fiber.spawnLocal {
                    let ticker = Ticker(every: .milliseconds(1))
                    compute(for: .milliseconds(3))
                    Fiber.current!.cancel()
                    for _ in 0..<2 { fates.append(fate { _ = try ticker.next() }) }
                    try withCancellationShield { ticks.append(try ticker.next()) }
                    fates.append(fate { _ = try ticker.next() })
                }
                try handle.join()
            }
            #expect(fates == [.cancelled, .cancelled, .cancelled])
            try #require(ticks.count == 1)
            #expect(ticks[0].number >= 3)
            #expect(ticks[0].missed == ticks[0].number - 1)
        }

        @Test(arguments: [Duration.seconds(Int64.max), .seconds(300 * 365 * 86_400), .nanoseconds(Int64.max), .seconds(250 * 365 * 86_400)])
        func next_waitsForALongTime_whenTheIntervalIsHuge(_ interval: Duration) throws {
            var fates: [Fate] = []
            try runQuietly {
                let ticker = Ticker(every: interval)
                for _ in 0..<2 { fates.append(fate { try withTimeout(.milliseconds(1)) { _ = try ticker.next() } }) }
            }
            #expect(fates == [.timedOut(.milliseconds(1)), .timedOut(.milliseconds(1))])
        }

        @Test func tickers_beatOnTheirOwn_whenSeveralFibersHaveOneEach() throws {
            var counts = [Int](repeating: 0, count: 4)
            var wrong = 0
            try runQuietly {
                for i in 0..<4 {
                    try Fiber.spawnLocal {
                        let interval = Int64(100_000 * (i + 1))
                        let start = cfiber_now()
                        let ticker = Ticker(every: .nanoseconds(interval))
                        while counts[i] < 20 {
                            let tick = try ticker.next()
                            if cfiber_now() < start + Int64(tick.number) * interval { wrong += 1 }
                            counts[i] += 1 + tick.missed
                            if counts[i] != tick.number { wrong += 1 }
                        }
                    }
                }
            }
            #expect(wrong == 0)
            #expect(counts.allSatisfy { $0 >= 20 })
        }

        #if compiler(>=6.2)
            @Test func ticker_stopsAndSaysWhatToDo_whenItsIntervalIsNotPositive() async {
                let zero = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run { _ = Ticker(every: .zero) }
                    }
                }
                let negative = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run { _ = Ticker(every: .seconds(-1)) }
                    }
                }
                for result in [zero, negative] { expectMessage(result, "Ticker(every:) takes at least a nanosecond") }
            }

            @Test func ticker_stopsAndSaysWhatToDo_outsideARuntime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    _ = Ticker(every: .seconds(1))
                }
                expectMessage(result, "Ticker was called outside a fiber: wrap the program in FiberRuntime.run")
            }
        #endif
    }
}
