// SPDX-License-Identifier: Apache-2.0

// Signals from threads to fibers, and from worker to worker.

import CFiber
import Fibers
import Glibc
import Synchronization
import Testing

extension KernelTests {
    @Suite struct EventTests {
        @Test func signal_isKept_untilSomebodyWaits_andSeveralAreOne() throws {
            var results: [Bool] = []
            let event = FiberEvent()
            event.signal()
            event.signal()
            try FiberRuntime.run {
                try event.wait()
                results.append(failure { try withTimeout(.milliseconds(1)) { try event.wait() } } is TimeoutError)
                results.append(event.take())
                event.signal()
                results.append(event.take())
            }
            #expect(results == [true, false, true])
        }

        @Test func wait_takesNoSignal_whenTheFiberIsCancelled() throws {
            var results: [Bool] = []
            try FiberRuntime.run {
                let event = FiberEvent()
                let waiting = try Fiber.spawnLocal { try event.wait() }
                Fiber.yield()
                waiting.cancel()
                event.signal()
                results.append(failure { try waiting.join() } is CancellationError)
                results.append(event.take())
                let late = try Fiber.spawnLocal { try event.wait() }
                late.cancel()
                event.signal()
                results.append(failure { try late.join() } is CancellationError)
                results.append(event.take())
            }
            #expect(results == [true, true, true, true])
        }

        /// Two sides that wake each other in turn, with delays at random, so that signals come before, while and after the other side parks, looks and sleeps.
        /// With more workers than processors none watches, so each signal ends a park.
        @Test(arguments: [1, 2, 12])
        func noSignalIsLost_whenSidesWakeEachOther(workers: Int) throws {
            let rounds = scaled(50_000, sanitized: 1_000) * timesLonger
            let (ping, pong) = (FiberEvent(), FiberEvent())
            let total = Counter()
            @Sendable func delay(_ random: inout SeededGenerator) {
                switch random.next() % 16 {
                case 0: for i in 0..<random.next() % 2_000 { _ = opaque(Int(i)) }
                case 1: sched_yield()
                default: break
                }
            }
            @Sendable func answer(_ receive: () throws -> Void) rethrows {
                var random = SeededGenerator(seed: 2)
                for _ in 0..<rounds {
                    try receive()
                    delay(&random)
                    total.add()
                    pong.signal()
                }
            }
            func ask() throws {
                var random = SeededGenerator(seed: 1)
                for _ in 0..<rounds {
                    ping.signal()
                    delay(&random)
                    try pong.wait()
                }
            }
            if workers > 1 {
                try FiberRuntime.run(.init(workers: workers)) {
                    let other = try Fiber.spawn(on: 1) { try answer { try ping.wait() } }
                    try ask()
                    try other.join()
                }
            } else {
                let thread = Thread { answer { while !ping.take() { sched_yield() } } }
                try FiberRuntime.run(.init(workers: 1)) { try ask() }
                thread.join()
            }
            #expect(total.value == rounds)
        }

        /// The one side hardly ever parks, since the other's signal comes while it watches.
        @Test func sleepersOfAWorker_wake_whileSignalsKeepItBusy() throws {
            let (ping, pong) = (FiberEvent(), FiberEvent())
            let limit = 30_000
            var (rounds, ticks) = (0, 0)
            try FiberRuntime.run(.init(workers: 2)) {
                let other = try Fiber.spawn(on: 1) { () throws -> Void in
                    while true {
                        try ping.wait()
                        for i in 0..<500 { _ = opaque(i) }
                        pong.signal()
                    }
                }
                let ticker = try Fiber.spawnLocal {
                    while ticks < 20 {
                        try Fiber.sleep(for: .milliseconds(1))
                        ticks += 1
                    }
                }
                while ticks < 20 && rounds < limit {
                    ping.signal()
                    try pong.wait()
                    rounds += 1
                }
                other.cancel()
                try ticker.join()
            }
            #expect(rounds < limit, "\(rounds) rounds")
        }

        /// Whoever takes a signal first has it; the fiber waits for the next.
        @Test(arguments: [1, 2])
        func wait_goesOn_whenAThreadTakesSignalsAway(workers: Int) throws {
            let rounds = scaled(20_000, sanitized: 2_000)
            let event = FiberEvent()
            let (sent, taken, isOver) = (Counter(), Counter(), Counter())
            let taker = Thread {
                while isOver.value == 0 { if event.take() { taken.add() } }
            }
            let sender = Thread {
                while isOver.value == 0 {
                    event.signal()
                    sent.add()
                }
            }
            try FiberRuntime.run(.init(workers: workers)) {
                for _ in 0..<rounds { try event.wait() }
            }
            isOver.add()
            taker.join()
            sender.join()
            #expect(taken.value + rounds <= sent.value)
        }

        /// A fiber that always finds a signal, and works long for each.
        @Test func neighbours_goOn_whileAFiberNeverHasToWait() throws {
            let event = FiberEvent()
            var (rounds, ticks) = (0, 0)
            try FiberRuntime.run {
                let ticker = try Fiber.spawnLocal {
                    while ticks < 5 {
                        try Fiber.sleep(for: .milliseconds(1))
                        ticks += 1
                    }
                }
                while ticks < 5 && rounds < 2_000 {
                    event.signal()
                    try event.wait()
                    let begun = cfiber_now()
                    while cfiber_now() - begun < 200_000 {}
                    rounds += 1
                }
                try ticker.join()
            }
            // It looks around after 32 of them.
            #expect(rounds < 1_000, "\(rounds) rounds")
        }

        /// Signals compete with deadlines; each is had by somebody.
        @Test func noSignalIsLost_whenWaitsTimeOut() throws {
            let rounds = scaled(4_000, sanitized: 200)
            let (event, answer) = (FiberEvent(), FiberEvent())
            let expired = Counter()
            var taken = 0
            try FiberRuntime.run(.init(workers: 2)) {
                let other = try Fiber.spawn(on: 1) {
                    var random = SeededGenerator(seed: 5)
                    for round in 0..<rounds {
                        if round % 16 == 0 { waitForNext(expired) }
                        for i in 0..<random.next() % 3_000 { _ = opaque(Int(i)) }
                        event.signal()
                        try answer.wait()
                    }
                }
                var random = SeededGenerator(seed: 6)
                for _ in 0..<rounds {
                    var isTaken = false
                    while !isTaken {
                        do {
                            try withTimeout(limit(&random)) { try event.wait() }
                            isTaken = true
                        } catch is TimeoutError { expired.add() }
                    }
                    taken += 1
                    answer.signal()
                }
                try other.join()
            }
            #expect(taken == rounds)
            #expect(expired.value >= rounds / 16)
        }
    }
}
