// SPDX-License-Identifier: Apache-2.0

// Fibers that compute for long between their turns: how many turns they have before the worker looks at its sockets.

import CFiber
import FiberNet
import Fibers
import SystemPackage
import Testing

#if compiler(>=6.2)
    extension NetTests {
        struct ComputingFibersTests {
            /// Turns are counted, not time: each computes for four times the interval at which the worker looks at the world.
            @Test func reader_waitsForAboutOneRound_whileFibersComputeBetweenTheirTurns() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for count in [4, 16] {
                            let most = try mostTurnsToWait(among: count)
                            // A look after the turn in which the byte comes, then the round of those that are ready.
                            #expect(most <= count + 4, "\(most) turns of \(count) fibers")
                        }
                    }
                }
            }
        }
    }

    /// How many turns of computing fibers went by at most between the moment at which a byte was sent and the turn of the fiber that reads it.
    private func mostTurnsToWait(among count: Int) throws -> Int {
        try FiberRuntime.run(.init(workers: 1)) {
            let (ours, theirs) = try Connection.pair()
            let fd = try theirs.withFileDescriptor(\.rawValue)
            var (turns, isOver, most): ([Int64], Bool, Int) = ([], false, 0)
            for _ in 0..<count {
                try Fiber.spawnLocal {
                    while !isOver {
                        let begun = cfiber_now()
                        turns.append(begun)
                        while cfiber_now() < begun + 2_000_000 {}
                        Fiber.yield()
                    }
                }
            }
            // The first tick goes by.
            for _ in 0..<3 { Fiber.yield() }
            for _ in 0..<3 {
                let sent = Box<Int64>(0)
                let thread = Thread {
                    sent.value = cfiber_now()
                    var byte: UInt8 = 1
                    _ = cfiber_send(fd, &byte, 1)
                }
                _ = try ours.readExactly(1)
                // Nobody has a turn meanwhile.
                thread.join()
                most = max(most, turns.filter { $0 >= sent.value }.count)
            }
            isOver = true
            ours.close()
            theirs.close()
            return most
        }
    }
#endif
