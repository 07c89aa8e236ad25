// SPDX-License-Identifier: Apache-2.0

// What several threads may read at the same time, and what ThreadSanitizer must not take for a race.

import CFaults
import Fibers
import Glibc
import Testing

extension KernelTests {
    @Suite struct SharedReadTests {
        /// Results that a core holds itself, which is where a race of two readers would be.
        @Test(arguments: [2, 4])
        func join_returnsTheResult_whenFibersOfSeveralWorkersJoinAtOnce(_ count: Int) throws {
            var sums: [Int] = []
            try onWorkers(count) {
                for round in 0..<50 {
                    let handle = try Fiber.spawn(on: 0) {
                        Fiber.yield()
                        return round
                    }
                    let joiners = try (0..<count).map { try Fiber.spawn(on: $0) { try handle.join() + handle.join() } }
                    sums.append(try joiners.reduce(0) { try $0 + $1.join() })
                }
            }
            #expect(sums == (0..<50).map { $0 * 2 * count })
        }

        @Test(arguments: [2, 4])
        func oneShot_tellsWhetherItIsClosed_whenFibersOfSeveralWorkersAsk(_ count: Int) throws {
            var open = 0
            var closed = 0
            try onWorkers(count) {
                for isDropped in [false, true] {
                    let sender: OneShotSender<Int>
                    var receiver: OneShotReceiver<Int>?
                    (sender, receiver) = makeOneShot(of: Int.self)
                    if isDropped { receiver = nil }
                    let askers = try (0..<count).map { try Fiber.spawn(on: $0) { (0..<50).allSatisfy { _ in sender.isClosed } } }
                    let answers = try askers.map { try $0.join() }
                    if isDropped { closed += answers.filter { $0 }.count } else { open += answers.filter { !$0 }.count }
                    _ = sender.send(1)
                    _ = try receiver?.receive()
                }
            }
            #expect(open == count)
            #expect(closed == count)
        }

        #if compiler(>=6.2)
            // In a process of its own: ThreadSanitizer, when a check of its own fails, ends the process.
            @Test func fibersThatNeverRan_areLeftBehind_whenOthersHaveEndedBefore() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for round in 0..<10 {
                            // What ThreadSanitizer keeps of these is used again for the others.
                            try FiberRuntime.run(.init(workers: 1 + round % 4)) {
                                for _ in 0..<300 { try Fiber.spawn { for _ in 0..<20 { Fiber.yield() } } }
                            }
                            let warnings = Box(0)
                            let error = failure {
                                try leavingFibersBehind {
                                    try FiberRuntime.run(.init(workers: 1, shutdownLimit: .zero, onWarning: { _ in warnings.value += 1 })) {
                                        for _ in 0..<200 {
                                            // Those of the first tick take so long that the rest have no turn.
                                            try Fiber.spawnLocal {
                                                compute(for: .microseconds(20))
                                                Fiber.yield()
                                            }
                                        }
                                        throw TestError()
                                    }
                                }
                            }
                            #expect(error is TestError)
                            #expect(warnings.value == 1)
                        }
                    }
                }
            }
        #endif
    }
}
