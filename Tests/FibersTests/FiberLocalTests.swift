// SPDX-License-Identifier: Apache-2.0

// Values of fiber-locals: who sees which, and how long they live.

import CFaults
import Fibers
import Synchronization
import Testing

extension KernelTests {
    @Suite struct FiberLocalTests {
        private static let number = FiberLocal(-1)
        private static let text = FiberLocal("-")

        @Test func value_isTheDefault_whenNoneWasSet() throws {
            #expect(Self.number.value == -1)
            #expect(Self.number.defaultValue == -1)
            var seen: [Int] = []
            try runQuietly {
                seen.append(Self.number.value)
                try Fiber.spawnLocal { seen.append(Self.number.value) }.join()
            }
            #expect(seen == [-1, -1])
        }

        @Test func value_isTheInnermost_whenSettingsNest() throws {
            var seen: [String] = []
            func note() { seen.append("\(Self.number.value)\(Self.text.value)") }
            try runQuietly {
                note()
                Self.number.withValue(1) {
                    note()
                    Self.text.withValue("a") {
                        note()
                        Self.number.withValue(2) {
                            note()
                            Fiber.yield()
                            Self.text.withValue("b", note)
                            note()
                        }
                        note()
                    }
                    note()
                }
                note()
            }
            #expect(seen == ["-1-", "1-", "1a", "2a", "2b", "2a", "1a", "1-", "-1-"])
        }

        @Test func withValue_returnsAndThrows_whatItsBodyDoes() throws {
            var thrown: TestError?
            var value = 0
            var seen: [Int] = []
            try runQuietly {
                value = Self.number.withValue(1) { Self.number.value + 1 }
                // The error keeps its type.
                do throws(TestError) {
                    try Self.number.withValue(2) { () throws(TestError) in throw TestError(number: Self.number.value) }
                } catch { thrown = error }
                seen.append(Self.number.value)
                Self.number.withValue(3) {
                    _ = fate { try Self.number.withValue(4) { throw TestError() } }
                    seen.append(Self.number.value)
                }
            }
            #expect(value == 2)
            #expect(thrown == TestError(number: 2))
            #expect(seen == [-1, 3])
        }

        @Test func value_isRestored_whenACancellationUnwindsTheFiber() throws {
            var seen: [Int] = []
            try runQuietly {
                let handle = try Fiber.spawnLocal {
                    defer { seen.append(Self.number.value) }
                    try Self.number.withValue(1) {
                        defer { seen.append(Self.number.value) }
                        try Self.number.withValue(2) {
                            defer { seen.append(Self.number.value) }
                            try Fiber.sleep(for: long)
                        }
                    }
                }
                Fiber.yield()
                handle.cancel()
                try? handle.join()
            }
            #expect(seen == [2, 1, -1])
        }

        // Inheritance.

        @Test func child_hasTheValuesOfItsSpawn_forEver() throws {
            var seen: [String] = []
            try runQuietly {
                var children: [FiberHandle<Void>] = []
                func child(_ name: String) throws {
                    children.append(
                        try Fiber.spawnLocal {
                            for _ in 0..<3 {
                                seen.append("\(name): \(Self.number.value)\(Self.text.value)")
                                Fiber.yield()
                            }
                            // And so have those that it spawns.
                            try Fiber.spawnLocal { seen.append("\(name)'s: \(Self.number.value)\(Self.text.value)") }
                        })
                }
                try Self.number.withValue(1) {
                    try child("first")
                    try Self.text.withValue("a") { try Self.number.withValue(2) { try child("second") } }
                }
                // The settings have ended before any of them has run.
                try child("third")
                for child in children { try child.join() }
            }
            let expected = ["first": "1-", "second": "2a", "third": "-1-"]
            #expect(seen.count == 12)
            for (name, values) in expected {
                #expect(seen.count { $0 == "\(name): \(values)" } == 3)
                #expect(seen.count { $0 == "\(name)'s: \(values)" } == 1)
            }
        }

        @Test func parentAndChild_doNotSeeWhatTheOtherSetsLater() throws {
            var seen: [String] = []
            try runQuietly {
                try Self.number.withValue(1) {
                    let child = try Fiber.spawnLocal {
                        for i in 0..<3 {
                            seen.append("child \(Self.number.value)")
                            Self.number.withValue(10 + i) {
                                Fiber.yield()
                                seen.append("child \(Self.number.value)")
                            }
                            Fiber.yield()
                        }
                    }
                    for i in 0..<6 {
                        Self.number.withValue(20 + i) {
                            Fiber.yield()
                            seen.append("parent \(Self.number.value)")
                        }
                    }
                    try child.join()
                    seen.append("parent \(Self.number.value)")
                }
            }
            #expect(seen.filter { $0.hasPrefix("child") } == [1, 10, 1, 11, 1, 12].map { "child \($0)" })
            #expect(seen.filter { $0.hasPrefix("parent") } == (20..<26).map { "parent \($0)" } + ["parent 1"])
        }

        @Test func childrenOfAGroup_haveTheValuesOfWhoeverSpawnsThem() throws {
            var seen: [String: Int] = [:]
            try runQuietly {
                try Self.number.withValue(1) {
                    try withFiberGroup { group in
                        try group.spawnLocal { seen["of the body"] = Self.number.value }
                        _ = try Self.number.withValue(2) { try group.spawnLocal { seen["of the body within"] = Self.number.value } }
                        try group.spawnDaemon {
                            seen["daemon"] = Self.number.value
                            _ = try Self.number.withValue(3) { try group.spawnLocal { seen["of a child"] = Self.number.value } }
                        }
                        try group.waitForAll()
                        Fiber.yield()
                    }
                }
                // Nobody's values, on stacks that others have used.
                for _ in 0..<5 { try Fiber.spawnLocal { seen["later", default: -1] += Self.number.value + 1 } }
            }
            #expect(seen == ["of the body": 1, "of the body within": 2, "daemon": 1, "of a child": 3, "later": -1])
        }

        @Test func fibers_haveValuesOfTheirOwn_whenThereAreThousands() throws {
            let count = scaled(5_000, sanitized: 500)
            var wrong = 0
            var ended = 0
            try runQuietly {
                for i in 0..<count {
                    try Fiber.spawnLocal {
                        func check(_ expected: Int) { if Self.number.value != expected { wrong += 1 } }
                        check(-1)
                        try Self.number.withValue(i) {
                            Fiber.yield()
                            check(i)
                            let child = try Fiber.spawnLocal {
                                check(i)
                                Self.number.withValue(-i) {
                                    Fiber.yield()
                                    check(-i)
                                }
                                check(i)
                            }
                            try Fiber.sleep(for: .microseconds(i % 7))
                            check(i)
                            try child.join()
                            check(i)
                        }
                        check(-1)
                        ended += 1
                    }
                }
            }
            #expect(wrong == 0)
            #expect(ended == count)
        }

        @Test func runtimes_haveValuesOfTheirOwn_whenTwoThreadsRunOneEach() throws {
            @Sendable func play(_ me: Int) -> Set<Int> {
                var seen = Set<Int>()
                try? FiberRuntime.run {
                    try Self.number.withValue(me) {
                        for _ in 0..<100 {
                            try Fiber.sleep(for: .microseconds(5))
                            seen.insert(Self.number.value)
                        }
                    }
                }
                return seen
            }
            let other = Box(Set<Int>())
            let thread = Thread { other.value = play(1) }
            let mine = play(2)
            thread.join()
            #expect(mine == [2])
            #expect(other.value == [1])
            #expect(Self.number.value == -1)
        }

        // Lives.

        /// Counts how many of it are there.
        private final class Counted: Sendable {
            static let count = Atomic<Int>(0)
            static var now: Int { count.load(ordering: .relaxed) }
            init() { Self.count.add(1, ordering: .relaxed) }
            deinit { Self.count.subtract(1, ordering: .relaxed) }
        }

        private static let counted = FiberLocal<Counted?>(nil)

        @Test func value_isFreed_whenTheLastFiberThatHasItEnds() throws {
            var counts: [Int] = []
            try runQuietly {
                var waiter: Waiter?
                var child: FiberHandle<Void>?
                Self.counted.withValue(Counted()) { counts.append(Counted.now) }
                counts.append(Counted.now)
                try Self.counted.withValue(Counted()) {
                    child = try Fiber.spawnLocal {
                        waiter = Worker.current!.beginPark()
                        _ = Worker.current!.park(.other)
                    }
                    Fiber.yield()
                }
                counts.append(Counted.now)
                _ = Worker.current!.unpark(waiter!, .ready)
                try child!.join()
                counts.append(Counted.now)
                // Cancelled before it has run, and by an error.
                let cancelled = try Self.counted.withValue(Counted()) { try Fiber.spawnLocal { try Fiber.sleep(for: long) } }
                cancelled.cancel()
                try? cancelled.join()
                counts.append(Counted.now)
                _ = fate { try Self.counted.withValue(Counted()) { throw TestError() } }
                counts.append(Counted.now)
            }
            #expect(counts == [1, 0, 1, 0, 0, 0])
        }

        @Test func values_areFreed_whenThousandsOfFibersCameAndWent() throws {
            try runQuietly {
                for _ in 0..<10 {
                    for _ in 0..<scaled(300, sanitized: 100) {
                        _ = try Self.counted.withValue(Counted()) {
                            try Fiber.spawnLocal {
                                try Self.counted.withValue(Counted()) {
                                    try Fiber.spawnLocal { Fiber.yield() }
                                    try Fiber.sleep(for: .microseconds(3))
                                }
                            }
                        }
                    }
                    Fiber.yield()
                }
            }
            #expect(Counted.now == 0)
        }

        @Test func values_areFreed_whenEachGenerationOfFibersSetsOneAndSpawnsTheNext() throws {
            // The list of settings grows with each generation, and is let go of at its end: on a fiber's stack, which is not deep enough to do so recursively.
            let generations = 20_000
            var seen = 0
            var most = 0
            func generation(_ number: Int) throws {
                if Self.number.value == number - 1 { seen += 1 }
                try Self.number.withValue(number) {
                    _ = try Self.counted.withValue(Counted()) {
                        if number < generations { try Fiber.spawnLocal { try generation(number + 1) } } else { most = Counted.now }
                    }
                }
            }
            try runQuietly { try Fiber.spawnLocal { try generation(0) } }
            #expect(seen == generations + 1)
            #expect(most == generations + 1)
            #expect(Counted.now == 0)
        }

        @Test func fiberLocal_isNotMistakenForAnother_thatHadItsAddress() throws {
            var wrong = 0
            var wasAlive = false
            var sameAddress = 0
            weak var first: FiberLocal<Int>?
            try runQuietly {
                var waiter: Waiter?
                var handle: FiberHandle<Void>?
                do {
                    let local = FiberLocal(1)
                    first = local
                    handle = try local.withValue(2) {
                        try Fiber.spawnLocal {
                            waiter = Worker.current!.beginPark()
                            _ = Worker.current!.park(.other)
                            // Nobody has the first one any more but the setting, and others are made and freed.
                            for i in 0..<1_000 { if FiberLocal(i).value != i { wrong += 1 } }
                        }
                    }
                    Fiber.yield()
                }
                wasAlive = first != nil
                _ = Worker.current!.unpark(waiter!, .ready)
                try handle!.join()
                // Settings that have ended leave nothing that the next one of that address could be taken for.
                var last: ObjectIdentifier?
                for i in 0..<100 {
                    let local = FiberLocal(i)
                    if last == ObjectIdentifier(local) { sameAddress += 1 }
                    last = ObjectIdentifier(local)
                    if local.value != i { wrong += 1 }
                    local.withValue(-1) { if local.value != -1 { wrong += 1 } }
                    if local.value != i { wrong += 1 }
                }
            }
            #expect(wasAlive)
            #expect(first == nil)
            #expect(wrong == 0)
            // Sanitizers give no address out again for a while.
            #expect(sameAddress > 0 || isSanitized)
        }

        /// Waits, spawns and looks at its own fiber-local while it is being destroyed.
        private final class Restless: Sendable {
            let trace: Box<[String]>
            init(_ trace: Box<[String]>) { self.trace = trace }
            static let local = FiberLocal<Restless?>(nil)

            deinit {
                let trace = trace
                trace.value.append(Self.local.value == nil ? "gone" : "there")
                Fiber.yield()
                trace.value.append("\(fate { try withTimeout(.microseconds(100)) { try Fiber.sleep(for: long) } })")
                _ = try? Fiber.spawnLocal { trace.value.append("spawned") }
            }
        }

        @Test func value_mayWaitAndSpawn_whenItIsFreedAtTheEndOfItsSetting() throws {
            let trace = Box<[String]>([])
            try runQuietly {
                Restless.local.withValue(Restless(trace)) { trace.value.append("set") }
                trace.value.append("restored")
            }
            #expect(trace.value == ["set", "gone", "\(Fate.timedOut(.microseconds(100)))", "restored", "spawned"])
        }

        @Test(arguments: [false, true])
        func value_mayWaitAndSpawn_whenItIsFreedAtTheEndOfItsFiber(_ isCancelled: Bool) throws {
            let trace = Box<[String]>([])
            try runQuietly {
                let handle = try Restless.local.withValue(Restless(trace)) {
                    try Fiber.spawnLocal { if isCancelled { try Fiber.sleep(for: long) } }
                }
                Fiber.yield()
                if isCancelled { handle.cancel() }
                _ = fate { try handle.join() }
            }
            // A cancelled fiber is that to its last act.
            #expect(trace.value == ["gone", isCancelled ? "\(Fate.cancelled)" : "\(Fate.timedOut(.microseconds(100)))", "spawned"])
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"))
        func lookingAndSwitching_allocateNothing() throws {
            var count = -1
            var sum = 0
            try runQuietly {
                var running = true
                try Self.number.withValue(1) {
                    for _ in 0..<5 { try Fiber.spawnLocal { while running { Fiber.yield() } } }
                    Fiber.yield()
                    count = allocations {
                        for _ in 0..<1_000 {
                            sum += Self.number.value
                            Fiber.yield()
                        }
                    }
                }
                running = false
            }
            #expect(count == 0)
            #expect(sum == 1_000)
        }

        #if compiler(>=6.2)
            @Test func withValue_stopsAndSaysWhatToDo_outsideARuntime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    FiberLocal(1).withValue(2) {}
                }
                expectMessage(result, "FiberLocal.withValue was called outside a fiber: wrap the program in FiberRuntime.run")
            }
        #endif
    }
}
