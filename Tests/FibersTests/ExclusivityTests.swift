// SPDX-License-Identifier: Apache-2.0

// Swift's dynamic exclusivity checks, which know threads and not fibers.
//
// What is expected: exclusivity is checked per fiber. A fiber that parks inside an access takes that access along, so other fibers neither pay for
// it nor trip over it, even on the same property; two accesses of one fiber to the same property still end the program.

import CFaults
import CFiber
import Fibers
import Testing

extension KernelTests {
    @Suite struct ExclusivityTests {
        @Test func accessList_isFound_inThisBuild() throws {
            // When this fails, a switch calls libswiftCore each time: still right, but three times as slow. See exclusivity.c.
            #expect(try FiberRuntime.run { cfiber_knows_access_list() } != 0)
        }

        @Test func access_isListed_whileItIsOpen() throws {
            // The instrument of the tests below, checked outside any runtime.
            let tally = Tally()
            let countAt = address(of: &tally.count), otherAt = address(of: &tally.other)
            var seen: [[UnsafeRawPointer]] = [openAccesses()]
            change(&tally.count) { _ in
                seen.append(openAccesses())
                change(&tally.other) { _ in seen.append(openAccesses()) }
                seen.append(openAccesses())
            }
            seen.append(openAccesses())
            #expect(seen == [[], [countAt], [otherAt, countAt], [countAt], []])
        }

        @Test func access_costsNoMore_whenTenThousandFibersAreParkedInsideAccesses() throws {
            let fibers = scaled(10_000, sanitized: 2_000)
            let accesses = 2_000
            /// Processor time of the fastest of many rounds: interruptions only ever add.
            func measure() -> Int64 {
                let tally = Tally()
                var best = Int64.max
                for _ in 0..<50 {
                    let start = cfaults_thread_time()
                    for _ in 0..<accesses { change(&tally.count) { $0 &+= 1 } }
                    best = min(best, cfaults_thread_time() - start)
                }
                precondition(tally.count == 50 * accesses)
                return best
            }
            var alone = Int64.max
            var among = Int64.max
            var parked = 0
            try FiberRuntime.run {
                let worker = Worker.current!
                // In turn, so that what else the machine does meets both.
                for _ in 0..<4 {
                    alone = min(alone, measure())
                    parked = 0
                    let tallies = (0..<fibers).map { _ in Tally() }
                    var waiters: [Waiter] = []
                    for tally in tallies {
                        try Fiber.spawnLocal {
                            change(&tally.count) { _ in
                                parked += 1
                                waiters.append(worker.beginPark())
                                _ = worker.park(.other)
                            }
                        }
                    }
                    _ = yield { parked == fibers }
                    among = min(among, measure())
                    for waiter in waiters { _ = worker.unpark(waiter, .ready) }
                    _ = yield { worker.live == 1 }
                }
            }
            #expect(parked == fibers)
            #expect(Double(among) <= Double(alone) * 1.5, "\(alone) ns alone, \(among) ns among \(fibers) for \(accesses) accesses")
        }

        @Test func accesses_stayWithTheirFibers_whenTheListCannotBeSeen() throws {
            var seen: [Int] = []
            try FiberRuntime.run {
                cfiber_distrust_access_list()
                // Several times: on fresh stacks and on stacks in a later life.
                for _ in 0..<3 {
                    let tally = Tally()
                    let handles = try (0..<4).map { _ in
                        try Fiber.spawnLocal {
                            change(&tally.count) { value in
                                Fiber.yield()
                                seen.append(openAccesses().count)
                                value += 1
                            }
                            Fiber.yield()
                            seen.append(openAccesses().count)
                        }
                    }
                    for handle in handles { try handle.join() }
                    seen.append(openAccesses().count)
                }
            }
            #expect(seen.count == 27)
            #expect(seen.filter { $0 == 1 }.count == 12)
            #expect(seen.filter { $0 == 0 }.count == 15)
        }

        @Test func twoFibers_mayParkInsideAccessesToTheSameProperty() throws {
            let tally = Tally()
            var inside = 0
            var most = 0
            try FiberRuntime.run {
                for _ in 0..<10 {
                    try Fiber.spawnLocal {
                        change(&tally.count) { _ in
                            inside += 1
                            most = max(most, inside)
                            Fiber.yield()
                            inside -= 1
                        }
                    }
                }
            }
            #expect(most == 10)
            #expect(openAccesses() == [])
        }

        @Test func runtime_works_whenStartedInsideAnAccess() throws {
            let tally = Tally()
            let countAt = address(of: &tally.count)
            var inMain: [UnsafeRawPointer] = [countAt]
            var after: [UnsafeRawPointer] = []
            try change(&tally.count) { _ in
                inMain = try FiberRuntime.run {
                    try Fiber.spawnLocal { change(&tally.other) { _ in Fiber.yield() } }.join()
                    return openAccesses()
                }
                after = openAccesses()
            }
            #expect(inMain == [])
            #expect(after == [countAt])
            #expect(openAccesses() == [])
        }

        @Test func accesses_stayWithTheirFibers_whenTwoInterleaveInEveryOrder() throws {
            // Five turns each: outside, in the first access, in the second inside it, in the first again, outside again.
            var orders = 0
            try forEachInterleaving(of: 2, steps: 5) { order in
                orders += 1
                let wrong = try play(order, fibers: 2, depth: 2)
                #expect(wrong == [], "order \(order)")
            }
            #expect(orders == 252)
        }

        @Test func accesses_stayWithTheirFibers_whenThreeInterleaveInEveryOrder() throws {
            var orders = 0
            try forEachInterleaving(of: 3, steps: 3) { order in
                orders += 1
                // What sanitizers watch is the same in each.
                guard !isSanitized || orders % 8 == 0 else { return }
                let wrong = try play(order, fibers: 3, depth: 1)
                #expect(wrong == [], "order \(order)")
            }
            #expect(orders == 1_680)
        }

        #if compiler(>=6.2)
            @Test func program_stops_whenOneFiberOverlapsItsOwnAccess() async throws {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let tally = Tally()
                        try FiberRuntime.run {
                            // Another fiber parked in the same access must not hide the conflict.
                            try Fiber.spawnLocal { change(&tally.count) { _ in Fiber.yield() } }
                            Fiber.yield()
                            change(&tally.count) { _ in
                                Fiber.yield()
                                change(&tally.count) { $0 += 1 }
                            }
                        }
                    }
                }
                let text = String(decoding: try #require(result).standardErrorContent, as: UTF8.self)
                #expect(text.contains("Simultaneous accesses to"))
            }
        #endif
    }
}

/// The accesses in progress on this thread, innermost first.
private func openAccesses() -> [UnsafeRawPointer] {
    var addresses = [UnsafeRawPointer?](repeating: nil, count: 64)
    let count = cfaults_accesses(&addresses, addresses.count)
    return addresses.prefix(count).map { $0! }
}

/// Calls `body` with each order in which so many fibers can take so many turns each.
private func forEachInterleaving(of fibers: Int, steps: Int, _ body: ([Int]) throws -> Void) rethrows {
    var left = [Int](repeating: steps, count: fibers)
    var order: [Int] = []
    func extend() throws {
        if order.count == fibers * steps { return try body(order) }
        for i in 0..<fibers where left[i] > 0 {
            left[i] -= 1
            order.append(i)
            try extend()
            order.removeLast()
            left[i] += 1
        }
    }
    try extend()
}

/// Lets fibers enter and leave nested accesses in the given order of turns; returns where a fiber saw other accesses open than its own.
private func play(_ order: [Int], fibers: Int, depth: Int) throws -> [String] {
    var wrong: [String] = []
    try FiberRuntime.run {
        let worker = Worker.current!
        var waiters = [Waiter?](repeating: nil, count: fibers)
        for i in 0..<fibers {
            let tallies = (0..<depth).map { _ in Tally() }
            let addresses = tallies.map { address(of: &$0.count) }
            /// Waits for a turn, with the outermost `level` accesses open.
            func turn(_ level: Int) {
                waiters[i] = worker.beginPark()
                _ = worker.park(.other)
                let open = openAccesses()
                if open != addresses.prefix(level).reversed() { wrong.append("fiber \(i), level \(level): \(open.count) open") }
            }
            func descend(_ level: Int) {
                turn(level)
                if level < depth {
                    change(&tallies[level].count) { _ in descend(level + 1) }
                    turn(level)
                }
            }
            try Fiber.spawnLocal { descend(0) }
        }
        Fiber.yield()
        for i in order {
            if !worker.unpark(waiters[i]!, .ready) { wrong.append("fiber \(i) was not parked") }
            Fiber.yield()
            if openAccesses() != [] { wrong.append("main saw an access after a turn of \(i)") }
        }
    }
    return wrong
}
