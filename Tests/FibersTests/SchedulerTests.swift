// SPDX-License-Identifier: Apache-2.0

// Who runs when: round robin, fairness towards timers, and fibers that are started or park in unusual places.

import Fibers
import Testing

extension KernelTests {
    @Suite struct SchedulerTests {
        @Test(arguments: [1, 2, 3, 7, 63, 64, 65, 200])
        func fibers_takeTurnsInOrder_whenAllYield(_ count: Int) throws {
            let rounds = 20
            var trace: [Int] = []
            try FiberRuntime.run {
                for i in 0..<count {
                    try Fiber.spawnLocal {
                        for _ in 0..<rounds {
                            trace.append(i)
                            Fiber.yield()
                        }
                    }
                }
            }
            #expect(trace == (0..<rounds).flatMap { _ in 0..<count })
        }

        @Test func spawnedFiber_runsAfterThoseThatAreReady() throws {
            var trace: [String] = []
            try FiberRuntime.run {
                try Fiber.spawnLocal {
                    trace.append("a")
                    try Fiber.spawnLocal { trace.append("child of a") }
                    trace.append("a goes on")
                }
                try Fiber.spawnLocal { trace.append("b") }
                trace.append("main")
            }
            #expect(trace == ["main", "a", "a goes on", "b", "child of a"])
        }

        @Test func fiberThatStartsNow_runsBeforeOthers_andItsSpawnerAfterIt() throws {
            var log: [String] = []
            try FiberRuntime.run {
                let other = try Fiber.spawnLocal { log.append("other") }
                try Fiber.spawnLocal(startingNow: true) {
                    log.append("child")
                    try Fiber.spawnLocal(startingNow: true) {
                        log.append("grandchild")
                        Fiber.yield()
                        log.append("grandchild again")
                    }
                    log.append("child again")
                }
                log.append("spawner")
                try other.join()
                #expect(yield { log.count == 6 })
            }
            #expect(log == ["child", "grandchild", "child again", "spawner", "other", "grandchild again"])
        }

        /// With each number of switches before, since every so many of them a tick ends.
        @Test(arguments: 0..<4)
        func others_haveTheirTurn_whileFibersStartNowForEver(switches: Int) throws {
            var (turns, depth) = (0, 0)
            func descend(_ level: Int) throws {
                depth = max(depth, level)
                if level < 20 { return _ = try Fiber.spawnLocal(startingNow: true) { try descend(level + 1) } }
                // All those above have been put before the others.
                while turns < 10 { try Fiber.spawnLocal(startingNow: true) {} }
            }
            try FiberRuntime.run {
                for _ in 0..<switches { try Fiber.spawnLocal {}.join() }
                let other = try Fiber.spawnLocal { while turns < 10 { turns += 1; Fiber.yield() } }
                while turns < 5 { try Fiber.spawnLocal(startingNow: true) {} }
                try descend(0)
                try other.join()
            }
            #expect(depth == 20)
        }

        @Test func sleeper_wakes_whenAnotherFiberYieldsForEver() throws {
            var woke = false
            var seen = false
            try FiberRuntime.run {
                try Fiber.spawnLocal {
                    try Fiber.sleep(for: .milliseconds(1))
                    woke = true
                }
                seen = yield { woke }
            }
            #expect(seen)
        }

        @Test func sleeper_wakes_whenOthersWakeOneAnotherForEver() throws {
            // A ring in which each fiber ends by starting the next: the ready queue is never empty, and nobody ever yields.
            var woke = false
            var generations = 0
            func beget() throws {
                generations += 1
                if !woke && generations < 10_000_000 { try Fiber.spawnLocal { try beget() } }
            }
            try FiberRuntime.run {
                try Fiber.spawnLocal {
                    try Fiber.sleep(for: .milliseconds(1))
                    woke = true
                }
                try beget()
            }
            #expect(woke && generations > 1 && generations < 10_000_000)
        }

        @Test func yield_returnsAtOnce_whenNoOtherFiberIsReady() throws {
            var count = 0
            try FiberRuntime.run {
                for _ in 0..<1_000 {
                    Fiber.yield()
                    count += 1
                }
            }
            #expect(count == 1_000)
        }

        @Test func nonSendableValues_moveThroughFibers_unchanged() throws {
            final class Node {
                var items: [Int] = []
            }
            let shared = Node()
            let returned = try FiberRuntime.run {
                let a = try Fiber.spawnLocal {
                    for i in 0..<5 {
                        shared.items.append(i)
                        Fiber.yield()
                    }
                    return shared
                }
                let b = try Fiber.spawnLocal {
                    for i in 10..<15 {
                        shared.items.append(i)
                        Fiber.yield()
                    }
                }
                try b.join()
                return try a.join()
            }
            #expect(returned === shared)
            #expect(shared.items == [0, 10, 1, 11, 2, 12, 3, 13, 4, 14])
        }

        @Test func moveOnlyValue_livesAsLongAsItsFiber_whenCaptured() throws {
            struct Resource: ~Copyable {
                let number: Int
                let ended: Box<[Int]>
                deinit { ended.value.append(number) }
            }
            let ended = Box<[Int]>([])
            var seen: [Int] = []
            try FiberRuntime.run {
                let resource = Resource(number: 5, ended: ended)
                try Fiber.spawnLocal {
                    Fiber.yield()
                    seen = [resource.number] + ended.value
                }
            }
            #expect(seen == [5])
            #expect(ended.value == [5])
        }
    }

    /// A deinit is ordinary code on whatever stack drops the last reference.
    @Suite struct DeinitTests {
        /// Does something when it goes.
        private final class Farewell {
            let act: () -> Void
            init(_ act: @escaping () -> Void) { self.act = act }
            deinit { act() }
        }

        /// What a deinit may do, and must have done when the runtime ends.
        private static let acts: [(String, @Sendable (Box<Int>) throws -> Void)] = [
            (
                "spawn",
                { done in
                    try Fiber.spawnLocal {
                        Fiber.yield()
                        done.value += 1
                    }
                }
            ),
            (
                "yield",
                { done in
                    for _ in 0..<3 { Fiber.yield() }
                    done.value += 1
                }
            ),
            (
                "sleep",
                { done in
                    try Fiber.sleep(for: .milliseconds(1))
                    done.value += 1
                }
            ),
            ("join", { done in done.value += try Fiber.spawnLocal { 1 }.join() }),
        ]

        private static func check(_ start: (_ act: @escaping () -> Void) throws -> Void) throws {
            for (name, act) in acts {
                let done = Box(0)
                var neighbour = 0
                try FiberRuntime.run {
                    try start { try? act(done) }
                    try Fiber.spawnLocal {
                        for _ in 0..<10 {
                            neighbour += 1
                            Fiber.yield()
                        }
                    }
                }
                #expect(done.value == 1, "\(name)")
                #expect(neighbour == 10, "\(name)")
            }
        }

        @Test func deinit_mayStartAndPark_whenItRunsInTheBody() throws {
            try Self.check { act in
                try Fiber.spawnLocal {
                    var object: Farewell? = Farewell(act)
                    _ = opaque(object)
                    object = nil
                }
            }
        }

        @Test func deinit_mayStartAndPark_whenACapturedObjectGoesAtTheEnd() throws {
            try Self.check { act in
                let object = Farewell(act)
                try Fiber.spawnLocal { withExtendedLifetime(object) {} }
            }
        }

        @Test func deinit_mayStartAndPark_whenTheResultThatNobodyWantsGoes() throws {
            try Self.check { act in try Fiber.spawnLocal { Farewell(act) } }
        }

        @Test func deinit_mayStartAndPark_whenTheHandleGoesLast() throws {
            try Self.check { act in
                let handle = try Fiber.spawnLocal { Farewell(act) }
                _ = yield { handle.fiber.isFinished }
            }
        }

        @Test func deinit_mayStartAndPark_whenTheErrorThatNobodyWantsGoes() throws {
            struct Carrier: Error {
                let farewell: Box<Farewell>
            }
            for (name, act) in Self.acts {
                let done = Box(0)
                try FiberRuntime.run(.init(onUnhandledError: { _ in })) {
                    _ = try Fiber.spawnLocal { throw Carrier(farewell: Box(Farewell { try? act(done) })) }
                }
                #expect(done.value == 1, "\(name)")
            }
        }

        @Test func deinit_seesAWholeFiberOrNone_whenItAsksForTheCurrentOne() throws {
            // After its body a fiber is not the current one any more, or still is; a half-destroyed one it must never be.
            var names: [String?] = []
            try FiberRuntime.run {
                for _ in 0..<100 {
                    try Fiber.spawnLocal(name: "dropped") {
                        Farewell {
                            let me = Fiber.current
                            Fiber.yield()
                            names.append(me?.name)
                        }
                    }
                }
            }
            #expect(names.count == 100)
            #expect(names.allSatisfy { $0 == nil || $0 == "dropped" })
        }
    }
}
