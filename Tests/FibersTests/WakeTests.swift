// SPDX-License-Identifier: Apache-2.0

// Waking fibers from other threads, and the race for one park.

import CFaults
import CFiber
import Fibers
import Glibc
import Synchronization
import Testing

/// A place where a fiber leaves its waiter for other threads to take.
final class Mailbox: Sendable {
    private let isFull = Atomic<Bool>(false)
    private let slot = Box<WaitCell?>(nil)

    /// Owner fiber, between `beginPark` and `park`.
    func offer(_ waiter: WaitCell) {
        slot.value = waiter
        isFull.store(true, ordering: .releasing)
    }

    /// Takes the waiter out; nil when there is none. One taker at a time.
    func take() -> WaitCell? {
        guard isFull.load(ordering: .acquiring) else { return nil }
        let waiter = slot.value
        isFull.store(false, ordering: .releasing)
        return waiter
    }
}

private func spin(_ turns: Int) {
    for i in 0..<turns { _ = opaque(i) }
}

extension KernelTests {
    @Suite struct WakeTests {
        @Test func fiber_goesOnOnce_eachTimeAThreadWakesIt() throws {
            // Ping-pong with random delays on both sides, so that wake-ups hit the worker before it parks, while it looks and while it sleeps.
            let rounds = scaled(100_000, sanitized: 20_000)
            let mailbox = Mailbox()
            let woken = Box(0)
            let thread = Thread {
                var random = SeededGenerator(seed: 1)
                for _ in 0..<rounds {
                    var waiter = mailbox.take()
                    while waiter == nil {
                        sched_yield()
                        waiter = mailbox.take()
                    }
                    spin(Int.random(in: 0...7, using: &random) == 0 ? Int.random(in: 0...400, using: &random) : 0)
                    if waiter!.unparkFromAnyThread(.ready) { woken.value += 1 }
                }
            }
            var continued = 0
            var outcomes = Set<Outcome>()
            try FiberRuntime.run {
                var random = SeededGenerator(seed: 2)
                let worker = Worker.current!
                for _ in 0..<rounds {
                    let waiter = worker.beginSharedPark()
                    mailbox.offer(waiter)
                    spin(Int.random(in: 0...7, using: &random) == 0 ? Int.random(in: 0...400, using: &random) : 0)
                    outcomes.insert(worker.park(in: waiter, .other))
                    continued += 1
                }
            }
            thread.join()
            #expect(continued == rounds)
            #expect(woken.value == rounds)
            #expect(outcomes == [.ready])
        }

        @Test func fiber_goesOn_whenTheWorkerIsBusyWithOthers() throws {
            // The worker never sleeps here, so it must look at its inbox between the turns of the others.
            let rounds = scaled(2_000, sanitized: 200)
            let mailbox = Mailbox()
            let thread = Thread {
                for _ in 0..<rounds {
                    var waiter = mailbox.take()
                    while waiter == nil {
                        sched_yield()
                        waiter = mailbox.take()
                    }
                    _ = waiter!.unparkFromAnyThread(.ready)
                }
            }
            var continued = 0
            var slept = 0
            try FiberRuntime.run {
                let worker = Worker.current!
                var done = false
                for _ in 0..<3 { try Fiber.spawnLocal { while !done { Fiber.yield() } } }
                let before = worker.pointee.statistics.sleeps
                for _ in 0..<rounds {
                    let waiter = worker.beginSharedPark()
                    mailbox.offer(waiter)
                    _ = worker.park(in: waiter, .other)
                    continued += 1
                }
                slept = worker.pointee.statistics.sleeps - before
                done = true
            }
            thread.join()
            #expect(continued == rounds)
            #expect(slept == 0)
        }

        @Test func fiber_goesOn_whenTheWorkerSleeps() throws {
            // The thread waits until the worker is in its sleep, as the kernel sees it, before each wake-up.
            let rounds = scaled(200, sanitized: 50)
            let mailbox = Mailbox()
            let worker = Box(pid_t(0))
            let thread = Thread {
                for _ in 0..<rounds {
                    var waiter = mailbox.take()
                    while waiter == nil {
                        sched_yield()
                        waiter = mailbox.take()
                    }
                    while !(contents(of: "/proc/self/task/\(worker.value)/stat") ?? "").contains(") S ") { sched_yield() }
                    _ = waiter!.unparkFromAnyThread(.ready)
                }
            }
            var continued = 0
            var slept = 0
            worker.value = cfaults_thread_id()
            try FiberRuntime.run {
                let worker = Worker.current!
                for _ in 0..<rounds {
                    let waiter = worker.beginSharedPark()
                    mailbox.offer(waiter)
                    _ = worker.park(in: waiter, .other)
                    continued += 1
                }
                slept = worker.pointee.statistics.sleeps
            }
            thread.join()
            #expect(continued == rounds)
            #expect(slept >= rounds)
        }

        @Test func oneThreadWins_whenFourRaceForOnePark() throws {
            // Rounds are counted by the fiber; the threads race for the park of the round they see.
            let rounds = scaled(4_000, sanitized: 1_000)
            let round = Atomic<Int>(0)
            let arrived = Atomic<Int>(0)
            let slot = Box<WaitCell?>(nil)
            let wins = (0..<4).map { _ in Box(0) }
            var continued = 0
            try withRacers(4) { racer in
                var seen = 0
                var random = SeededGenerator(seed: UInt64(racer))
                while true {
                    var now = round.load(ordering: .acquiring)
                    while now == seen {
                        sched_yield()
                        now = round.load(ordering: .acquiring)
                    }
                    if now < 0 { return }
                    seen = now
                    let waiter = slot.value!
                    spin(Int.random(in: 0...30, using: &random))
                    if waiter.unparkFromAnyThread(.ready) { wins[racer].value += 1 }
                    arrived.add(1, ordering: .acquiringAndReleasing)
                }
            } while: {
                try FiberRuntime.run {
                    let worker = Worker.current!
                    for i in 1...rounds {
                        let waiter = worker.beginSharedPark()
                        slot.value = waiter
                        arrived.store(0, ordering: .relaxed)
                        round.store(i, ordering: .releasing)
                        _ = worker.park(in: waiter, .other)
                        continued += 1
                        // The slower ones are still on their way to claim it.
                        while arrived.load(ordering: .acquiring) < 4 { sched_yield() }
                    }
                    round.store(-1, ordering: .releasing)
                }
            }
            #expect(continued == rounds)
            #expect(wins.reduce(0) { $0 + $1.value } == rounds)
        }

        @Test func oneSideWins_whenAThreadRacesTheDeadline() throws {
            let rounds = scaled(5_000, sanitized: 500)
            let mailbox = Mailbox()
            let stop = Atomic<Bool>(false)
            let won = Box(0)
            let claims = Atomic<Int>(0)
            let thread = Thread {
                var random = SeededGenerator(seed: 3)
                while !stop.load(ordering: .acquiring) {
                    guard let waiter = mailbox.take() else {
                        sched_yield()
                        continue
                    }
                    spin(Int.random(in: 0...300, using: &random))
                    if waiter.unparkFromAnyThread(.ready) { won.value += 1 }
                    claims.add(1, ordering: .acquiringAndReleasing)
                }
            }
            var counts: [Outcome: Int] = [:]
            try FiberRuntime.run {
                let worker = Worker.current!
                for i in 1...rounds {
                    let waiter = worker.beginSharedPark()
                    mailbox.offer(waiter)
                    counts[worker.park(in: waiter, .other, until: cfiber_now() + 3_000), default: 0] += 1
                    while claims.load(ordering: .acquiring) < i { Fiber.yield() }
                }
            }
            stop.store(true, ordering: .releasing)
            thread.join()
            #expect((counts[.ready] ?? 0) + (counts[.timedOut] ?? 0) == rounds)
            #expect(counts[.ready] ?? 0 == won.value)
        }

        @Test func waiter_claimsNothing_whenItsParkIsOver() throws {
            var results: [Bool] = []
            try FiberRuntime.run {
                let worker = Worker.current!
                var waiter: Waiter?
                var turns = 0
                let other = try Fiber.spawnLocal {
                    waiter = worker.beginPark()
                    _ = worker.park(.other)
                    turns += 1
                    // A second park, which the waiter of the first must not end.
                    let second = worker.beginPark()
                    results.append(worker.unpark(waiter!, .ready))
                    results.append(worker.unpark(second, .ready))
                    _ = worker.park(.other)
                    turns += 1
                }
                Fiber.yield()
                results.append(worker.unpark(waiter!, .ready))
                results.append(worker.unpark(waiter!, .ready))
                try other.join()
                // Another life on the same stack.
                var next: Waiter?
                try Fiber.spawnLocal {
                    next = worker.beginPark()
                    _ = worker.park(.other)
                }
                Fiber.yield()
                results.append(worker.unpark(waiter!, .ready))
                results.append(worker.unpark(next!, .ready))
                results.append(turns == 2)
            }
            #expect(results == [true, false, false, true, false, true, true])
        }

        @Test func sharedWaiter_claimsNothing_whenItsParkIsOver_orItsRuntime() throws {
            var results: [Bool] = []
            var kept: [WaitCell] = []
            for byThread in [false, true] {
                try FiberRuntime.run {
                    let worker = Worker.current!
                    var waiter: WaitCell?
                    let other = try Fiber.spawnLocal {
                        waiter = worker.beginSharedPark()
                        _ = worker.park(in: waiter!, .other)
                        let second = worker.beginSharedPark()
                        results.append(waiter!.unparkFromAnyThread(.ready))
                        results.append(second.unparkFromAnyThread(.ready))
                        _ = worker.park(in: second, .other)
                    }
                    Fiber.yield()
                    if byThread { results.append(waiter!.unparkFromAnyThread(.ready)) } else { other.cancel() }
                    results.append(waiter!.unparkFromAnyThread(.ready))
                    try other.join()
                    kept.append(waiter!)
                }
            }
            for waiter in kept { results.append(waiter.unparkFromAnyThread(.ready)) }
            #expect(results == [false, false, true, true, false, false, true, false, false])
        }
    }
}

/// Runs `body` on so many threads until `during` has returned and they have noticed.
private func withRacers(_ count: Int, _ body: @Sendable @escaping (Int) -> Void, while during: () throws -> Void) throws {
    let threads = (0..<count).map { i in Thread { body(i) } }
    defer { for thread in threads { thread.join() } }
    try during()
}
