// SPDX-License-Identifier: Apache-2.0

// Fibers that compute for long between their turns: how many turns they have before the worker looks at timers and messages.

import CFiber
import Fibers
import Testing

extension KernelTests {
    @Suite struct TickTests {
        @Test func tickLength_isWhatFitsIntoTheInterval_andGrowsByTwiceAtMost() {
            func next(_ used: Int32, _ elapsed: UInt64) -> Int32 { Tick.length(after: used, taking: elapsed, of: 1_000) }
            // Fibers that only yield: from the first, short tick up to the longest.
            #expect([4, 8, 16, 32, 64].map { next($0, 1) } == [8, 16, 32, 64, 64])
            // As many as half the interval holds twice, and fewer where it took longer.
            #expect([500, 501, 800, 1_000, 2_000, 64_000].map { next(32, $0) } == [64, 63, 40, 32, 16, 1])
            // One turn is longer than the interval, by however much.
            #expect([1_000, 1_001, 10_000, 1_000_000_000_000].map { next(1, $0) } == [1, 1, 1, 1])
            // Cut short before its first turn was over.
            #expect(next(0, 1) == 2 && next(0, 5_000) == 1)
            // A tick that has gone over by one.
            #expect(next(65, 600) == 64)
        }

        #if compiler(>=6.2)
            /// Turns are counted, not time: each computes for four times the interval at which the worker looks at the world.
            @Test func timersEventsAndMessages_waitForAboutOneRound_whileFibersComputeBetweenTheirTurns() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for count in [4, 16] {
                            let most = try mostTurnsToWait(among: count)
                            // Nothing is known of them in the first tick, which therefore is short.
                            #expect(most.first <= count + 8, "\(most)")
                            // A look after the turn in which it is due, then the round of those that are ready.
                            #expect(most.timer <= count + 4, "\(most)")
                            #expect(most.event <= count + 4, "\(most)")
                            // The root has its turn as well, and then the fiber for which it has a message.
                            #expect(most.message <= 2 * count + 6, "\(most)")
                        }
                    }
                }
            }

            @Test func fibersThatStartNow_runBeforeOthers_whileTicksAreShort() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        // A tree whose nodes compute for longer than a tick: walked depth first all the same.
                        let walk = try FiberRuntime.run(.init(workers: 1)) {
                            var (walk, other): ([Int], Int) = ([], 0)
                            func visit(_ node: Int) throws {
                                compute(for: .milliseconds(1))
                                walk.append(node)
                                if node < 8 {
                                    for child in [2 * node, 2 * node + 1] { try Fiber.spawnLocal(startingNow: true) { try visit(child) } }
                                }
                            }
                            try Fiber.spawnLocal { while walk.count < 15 { other += 1; Fiber.yield() } }
                            try visit(1)
                            #expect(other <= 1)
                            return walk
                        }
                        #expect(walk == [1, 2, 4, 8, 9, 5, 10, 11, 3, 6, 12, 13, 7, 14, 15])
                    }
                }
            }
        #endif
    }
}

/// When the turns of fibers that compute have begun, in nanoseconds of the clock, from the start.
private final class Turns {
    private(set) var beginnings: [Int64] = []
    var isOver = false

    func compute() {
        beginnings.append(cfiber_now())
        let end = cfiber_now() + 2_000_000
        while cfiber_now() < end {}
    }

    /// How many turns have begun since a moment.
    func begun(since moment: Int64) -> Int { beginnings.count - (beginnings.lastIndex { $0 < moment } ?? -1) - 1 }
}

/// How many turns of computing fibers went by at most between the moment at which something was due and the turn of the fiber that waited for it.
private func mostTurnsToWait(among count: Int) throws -> (first: Int, timer: Int, event: Int, message: Int) {
    try FiberRuntime.run(.init(workers: 2)) {
        let turns = Turns()
        var most = (first: 0, timer: 0, event: 0, message: 0)
        for _ in 0..<count {
            try Fiber.spawnLocal {
                while !turns.isOver {
                    turns.compute()
                    Fiber.yield()
                }
            }
        }
        let due = cfiber_now() + 1_000_000
        try Fiber.sleep(for: .milliseconds(1))
        most.first = turns.begun(since: due)
        for _ in 0..<3 {
            let due = cfiber_now() + 3_000_000
            try Fiber.sleep(for: .milliseconds(3))
            most.timer = max(most.timer, turns.begun(since: due))

            let event = FiberEvent()
            let sent = Box<Int64>(0)
            let thread = Thread {
                sent.value = cfiber_now()
                event.signal()
            }
            try event.wait()
            most.event = max(most.event, turns.begun(since: sent.value))
            thread.join()

            let sleeper = try Fiber.spawnLocal {
                try? Fiber.sleep(for: .seconds(1_000))
                return cfiber_now()
            }
            // Asleep before it is cancelled.
            Fiber.yield()
            let fiber = sleeper.fiber
            try Fiber.spawn(on: 1) {
                sent.value = cfiber_now()
                fiber.cancel()
            }
            let woken = try sleeper.join()
            most.message = max(most.message, turns.begun(since: sent.value) - turns.begun(since: woken))
        }
        turns.isOver = true
        return most
    }
}
