// SPDX-License-Identifier: Apache-2.0

// Many fibers that join one of another worker, and give up.

import CFaults
import Fibers
import Testing

/// Has many fibers join one of another worker until all of them give up; the processor time that this took the other worker, in nanoseconds for each.
private func costOfGivingUp(_ count: Int) throws -> Double {
    try onWorkers(2) {
        let go = FiberEvent()
        let target = try Fiber.spawn(on: 1) { try go.wait() }
        func time() throws -> Int64 { try Fiber.spawn(on: 1) { cfaults_thread_time() }.join() }
        let joiners = try (0..<count).map { _ in try Fiber.spawnLocal { try target.join() } }
        // From here on all of them stand in the list, or are on their way to it.
        Fiber.yield()
        let before = try time()
        for joiner in joiners { joiner.cancel() }
        for joiner in joiners { try? joiner.join() }
        // Messages come in order: by the end of this one all have left.
        let after = try time()
        go.signal()
        try target.join()
        return Double(after - before) / Double(count)
    }
}

extension KernelTests {
    @Suite struct RemoteJoinTests {
        @Test func givingUp_costsTheOtherWorkerNoMore_whenManyJoin() throws {
            // Processor time of the one thread, not time that passes. Where each leaves by a search, sixteen times as many take sixteen times as long each.
            var ratios: [Double] = []
            while ratios.count < 3 && !(ratios.last.map { $0 < 4 } ?? false) {
                let few = try costOfGivingUp(500)
                let many = try costOfGivingUp(scaled(8_000, sanitized: 4_000))
                ratios.append(many / few)
            }
            #expect(ratios.contains { $0 < 4 }, "each of many costs so many times as much: \(ratios)")
        }

        @Test func joinersThatStay_goOnInTheOrderTheyCame_whenOthersBetweenThemGiveUp() throws {
            var order: [Int] = []
            var refused = 0
            try onWorkers(2) {
                let go = FiberEvent()
                let target = try Fiber.spawn(on: 1) {
                    try go.wait()
                    return 7
                }
                let joiners = try (0..<60).map { number in
                    try Fiber.spawnLocal {
                        if try target.join() == 7 { order.append(number) }
                    }
                }
                Fiber.yield()
                // The first, the last, and some in between.
                for number in [59, 0] + stride(from: 1, to: 59, by: 3) {
                    joiners[number].cancel()
                    if failure(of: { try joiners[number].join() }) is CancellationError { refused += 1 }
                }
                go.signal()
                for joiner in joiners { try? joiner.join() }
            }
            let stayed = (1..<59).filter { ($0 - 1) % 3 != 0 }
            #expect(order == stayed)
            #expect(refused == 60 - stayed.count)
        }

        @Test func joiner_givesUpOnce_whenTheFiberEndsInTheSameMoment() throws {
            var outcomes: [Bool] = []
            try onWorkers(2) {
                for i in 0..<scaled(300, sanitized: 60) {
                    let target = try Fiber.spawn(on: 1) { for _ in 0..<i % 7 { Fiber.yield() } }
                    let joiners = try (0..<4).map { _ in try Fiber.spawnLocal { try target.join() } }
                    for _ in 0..<i % 5 { Fiber.yield() }
                    for joiner in joiners.dropFirst() { joiner.cancel() }
                    try joiners[0].join()
                    for joiner in joiners.dropFirst() {
                        let error = failure { try joiner.join() }
                        outcomes.append(error == nil || error is CancellationError)
                    }
                }
            }
            #expect(outcomes.allSatisfy { $0 } && !outcomes.isEmpty)
        }
    }
}
