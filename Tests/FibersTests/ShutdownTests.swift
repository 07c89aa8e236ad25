// SPDX-License-Identifier: Apache-2.0

// The end of a runtime whose fibers do not end by themselves: what they are told, how long they have, and what becomes of those that ignore it.

import CFaults
import CFiber
import Fibers
import Glibc
import Testing

extension KernelTests {
    @Suite struct ShutdownTests {
        /// Runs a runtime, which may leave fibers behind if the test says so, and returns what its main returned, or the error that it threw, and the warnings
        /// that were given.
        private static func run<Value>(
            limit: Duration = long, leavingFibers: Bool = false, _ main: () throws -> Value
        ) -> (value: Value?, error: (any Error)?, warnings: [String]) {
            let warnings = Box<[String]>([])
            let configuration = FiberRuntime.Configuration(shutdownLimit: limit, onWarning: { warnings.value.append($0) })
            func run() throws -> Value { try FiberRuntime.run(configuration, main) }
            do { return (try leavingFibers ? leavingFibersBehind(run) : run(), nil, warnings.value) } catch {
                return (nil, error, warnings.value)
            }
        }

        // Main throws.

        @Test func fibers_areCancelledNewestFirst_whenMainThrows() {
            var order: [Int] = []
            let (_, error, warnings) = Self.run {
                for i in 0..<10 {
                    try Fiber.spawnLocal {
                        defer { order.append(i) }
                        try Fiber.sleep(for: long)
                    }
                }
                letTheOthersPark()
                throw TestError(number: 1)
            }
            #expect(error as? TestError == TestError(number: 1))
            #expect(warnings.isEmpty)
            #expect(order == Array((0..<10).reversed()))
        }

        @Test func groups_endWithAllTheirChildren_whenMainThrows() {
            var order: [String] = []
            func tree(_ name: String, _ depth: Int) throws {
                defer { order.append(name) }
                try withFiberGroup { group in
                    for i in 0..<2 where depth > 0 { try group.spawnLocal { try tree("\(name)\(i)", depth - 1) } }
                    if depth == 0 { try Fiber.sleep(for: long) }
                }
            }
            let (_, error, warnings) = Self.run {
                try Fiber.spawnLocal { try tree("", 3) }
                letTheOthersPark()
                throw TestError(number: 2)
            }
            #expect(error as? TestError == TestError(number: 2))
            #expect(warnings.isEmpty)
            #expect(order.count == 15)
            for (index, name) in order.enumerated() where !name.isEmpty {
                #expect(order.firstIndex(of: String(name.dropLast()))! > index)
            }
        }

        @Test(arguments: Wait.allCases)
        func wait_ends_whenMainThrows(_ wait: Wait) {
            var fates: [Fate] = []
            var cleanups: [Fate] = []
            let (_, error, warnings) = Self.run {
                for isRunning in [true, false] {
                    try Fiber.spawnLocal {
                        defer { withCancellationShield { cleanups.append(fate { try Fiber.sleep(for: .milliseconds(1)) }) } }
                        do { try wait() } catch {
                            fates.append(Fate(of: error))
                            throw error
                        }
                    }
                    // The second one has not run yet when main throws.
                    if isRunning { letTheOthersPark() }
                }
                throw TestError(number: 3)
            }
            #expect(error as? TestError == TestError(number: 3))
            #expect(fates == [.cancelled, .cancelled])
            #expect(cleanups == [.returned, .returned])
            #expect(warnings.isEmpty)
        }

        @Test func errorOfMain_isThrown_whenOthersFailWhileTheyAreCancelled() {
            let heard = Box<[String]>([])
            var configuration = FiberRuntime.Configuration()
            configuration.onUnhandledError = { heard.value.append("\($0.error)") }
            let ending = fate {
                try FiberRuntime.run(configuration) {
                    try Fiber.spawnLocal {
                        defer { withCancellationShield { _ = try? Fiber.sleep(for: .milliseconds(1)) } }
                        try? Fiber.sleep(for: long)
                        throw TestError(number: 4)
                    }
                    Fiber.yield()
                    throw TestError(number: 5)
                }
            }
            #expect(ending == .threw("\(TestError(number: 5))"))
            #expect(heard.value == ["\(TestError(number: 4))"])
        }

        @Test func otherFibers_runOn_whenMainReturns() {
            var slept = false
            let (value, _, warnings) = Self.run {
                try Fiber.spawnLocal {
                    try Fiber.sleep(for: .milliseconds(2))
                    slept = true
                }
                return 5
            }
            #expect(slept)
            #expect(value == 5)
            #expect(warnings.isEmpty)
        }

        // shutDown(within:)

        @Test func shutDown_returnsAtOnce_andCancelsTheCallerToo() {
            var trace: [String] = []
            let (value, _, warnings) = Self.run {
                try Fiber.spawnLocal {
                    do { try Fiber.sleep(for: long) } catch { trace.append("other") }
                }
                Fiber.yield()
                FiberRuntime.shutDown()
                trace.append("returned, \(Fiber.isCancelled)")
                trace.append("\(fate { try Fiber.sleep(for: long) })")
                return 6
            }
            #expect(trace == ["returned, true", "other", "\(Fate.cancelled)"])
            #expect(value == 6)
            #expect(warnings.isEmpty)
        }

        @Test func shutDown_mayBeCalledByAnyFiber() {
            let (_, error, warnings) = Self.run {
                try Fiber.spawnLocal {
                    try Fiber.sleep(for: .milliseconds(1))
                    FiberRuntime.shutDown()
                }
                try Fiber.spawnLocal { try Fiber.sleep(for: long) }
                try Fiber.sleep(for: long)
            }
            #expect(error is CancellationError)
            #expect(warnings.isEmpty)
        }

        /// How a fiber takes its cancellation.
        enum Conduct: CaseIterable, Sendable, CustomTestStringConvertible {
            case endsAtOnce, cleansUp, cleansUpForLong, hasNotRun, hasEnded, computesAndLooks
            case keepsSleeping, keepsParking, keepsYielding, keepsJoining, shieldsItself, groupOfStubborn

            var testDescription: String { "\(self)" }

            var isStubborn: Bool {
                switch self {
                case .endsAtOnce, .cleansUp, .cleansUpForLong, .hasNotRun, .hasEnded, .computesAndLooks: false
                case .keepsSleeping, .keepsParking, .keepsYielding, .keepsJoining, .shieldsItself, .groupOfStubborn: true
                }
            }

            /// Fibers that are left of it.
            var leaves: Int { self == .groupOfStubborn ? 3 : self == .keepsJoining ? 2 : isStubborn ? 1 : 0 }

            /// The body of such a fiber. It owns nothing: what fibers own that are left behind is never freed.
            func run() throws {
                let worker = Worker.current!
                switch self {
                case .endsAtOnce, .hasNotRun: try Fiber.sleep(for: long)
                case .hasEnded: return
                case .cleansUp, .cleansUpForLong:
                    let needed = Duration.milliseconds(self == .cleansUp ? 1 : 15)
                    defer { withCancellationShield { _ = try? Fiber.sleep(for: needed) } }
                    try Fiber.sleep(for: long)
                case .computesAndLooks:
                    while true {
                        try Fiber.checkCancellation()
                        Fiber.yield()
                    }
                case .keepsSleeping: while true { try? Fiber.sleep(for: long) }
                case .keepsParking:
                    while true {
                        _ = worker.beginPark()
                        _ = worker.park(.other)
                    }
                case .keepsYielding: while true { Fiber.yield() }
                case .keepsJoining:
                    let other = try Fiber.spawnLocal { while true { Fiber.yield() } }
                    while true { try? other.join() }
                case .shieldsItself: try withCancellationShield { try Fiber.sleep(for: long) }
                case .groupOfStubborn:
                    try withFiberGroup { group in
                        for _ in 0..<2 { try group.spawnLocal { while true { try? Fiber.sleep(for: long) } } }
                    }
                }
            }
        }

        @Test(arguments: Conduct.allCases, [Fate.returned, .threw("\(TestError(number: 7))"), .cancelled])
        func run_endsWithOrWithoutThem_howeverFibersTakeIt(_ conduct: Conduct, _ endOfMain: Fate) throws {
            let start = cfiber_now()
            var handle: FiberHandle<Void>?
            let (value, error, warnings) = Self.run(limit: conduct.isStubborn ? .milliseconds(10) : long, leavingFibers: conduct.isStubborn)
            {
                if conduct != .hasNotRun {
                    handle = try Fiber.spawnLocal(name: "it") { try conduct.run() }
                    letTheOthersPark()
                }
                switch endOfMain {
                case .returned: FiberRuntime.shutDown()
                case .cancelled:
                    FiberRuntime.shutDown()
                    try Fiber.sleep(for: long)
                default: break
                }
                if conduct == .hasNotRun { handle = try Fiber.spawnLocal(name: "it") { try conduct.run() } }
                if endOfMain != .returned { throw TestError(number: 7) }
                return 8
            }
            #expect(Duration.nanoseconds(cfiber_now() - start) < long / 2)
            #expect(value == (endOfMain == .returned ? 8 : nil))
            #expect(error.map { Fate(of: $0) } == (endOfMain == .returned ? nil : endOfMain))
            #expect(warnings.count == (conduct.isStubborn ? 1 : 0))
            let fibers = (warnings.first ?? "").occurrences(of: "fiber #") - (warnings.first ?? "").occurrences(of: "join fiber #")
            #expect(fibers == conduct.leaves)
            // Where main ended by its cancellation, it had no chance to spawn.
            if handle == nil {
                #expect(conduct == .hasNotRun && endOfMain == .cancelled)
            } else {
                #expect(handle?.fiber.isFinished == true)
            }
        }

        @Test func warning_namesThoseThatAreLeft_andWhatTheyWaitFor() throws {
            // The number of main; the others count on from there.
            var first: UInt64 = 0
            let (value, _, warnings) = Self.run(leavingFibers: true) {
                let worker = Worker.current!
                first = Fiber.current!.id
                try Fiber.spawnLocal(name: "gentle") { try Fiber.sleep(for: long) }
                try Fiber.spawnLocal(name: "sleeper") { try withCancellationShield { try Fiber.sleep(for: long) } }
                let target = try Fiber.spawnLocal(name: "parker") {
                    while true {
                        _ = worker.beginPark()
                        _ = worker.park(.other)
                    }
                }
                try Fiber.spawnLocal { try withCancellationShield { try target.join() } }
                try Fiber.spawnLocal(name: "owner") {
                    try withFiberGroup { group in
                        try group.spawnLocal(name: "child") { try withCancellationShield { try Fiber.sleep(for: long) } }
                    }
                }
                letTheOthersPark()
                FiberRuntime.shutDown(within: .milliseconds(10))
                return 1
            }
            #expect(value == 1)
            try #require(warnings.count == 1)
            #expect(!warnings[0].contains("gentle") && !warnings[0].contains("main"))
            for named in [
                "fiber #\(first + 2) \"sleeper\" (sleep)", "fiber #\(first + 3) \"parker\" (other)",
                "fiber #\(first + 4) (join fiber #\(first + 3))", "fiber #\(first + 5) \"owner\" (the fibers of a group)",
                "fiber #\(first + 6) \"child\" (sleep)",
            ] {
                #expect(warnings[0].contains(named), "\(warnings[0])")
            }
        }

        @Test func warning_saysHowManyMore_whenVeryManyAreLeft() throws {
            let (_, _, warnings) = Self.run(leavingFibers: true) {
                for i in 0..<45 { try Fiber.spawnLocal(name: "s\(i)") { try withCancellationShield { try Fiber.sleep(for: long) } } }
                letTheOthersPark()
                FiberRuntime.shutDown(within: .milliseconds(1))
            }
            try #require(warnings.count == 1)
            #expect(warnings[0].occurrences(of: "fiber #") == 20)
            #expect(warnings[0].contains("and 25 more"))
        }

        @Test(arguments: [[10, 100_000], [100_000, 10], [10, 10], [0, 100_000]])
        func earliestEnd_counts_whenShutDownIsCalledTwice(_ milliseconds: [Int]) {
            let start = cfiber_now()
            let (value, _, warnings) = Self.run(leavingFibers: true) {
                try Fiber.spawnLocal { try withCancellationShield { try Fiber.sleep(for: long) } }
                Fiber.yield()
                for limit in milliseconds { FiberRuntime.shutDown(within: .milliseconds(limit)) }
                return 3
            }
            #expect(value == 3)
            #expect(warnings.count == 1)
            #expect(Duration.nanoseconds(cfiber_now() - start) < long / 2)
        }

        @Test func fibers_haveTheTimeThatTheyAreGiven() {
            let start = cfiber_now()
            let (_, _, warnings) = Self.run(leavingFibers: true) {
                try Fiber.spawnLocal { try withCancellationShield { try Fiber.sleep(for: long) } }
                Fiber.yield()
                FiberRuntime.shutDown(within: .milliseconds(20))
            }
            #expect(cfiber_now() - start >= 20_000_000)
            #expect(warnings.count == 1)
        }

        @Test(arguments: 0..<70)
        func run_warnsOfNobody_whenTheTimeIsOverAsTheLastFiberEnds(_ turns: Int) {
            // One of the arguments has the worker look at its clock in the last turn of main, whose life is over by then.
            let (value, _, warnings) = Self.run {
                for _ in 0..<turns { Fiber.yield() }
                FiberRuntime.shutDown(within: .zero)
                compute(for: .milliseconds(2))
                return 4
            }
            #expect(value == 4)
            #expect(warnings.isEmpty)
        }

        // Spawned meanwhile.

        @Test(arguments: [long, .seconds(Int64.max), .seconds(300 * 365 * 86_400)])
        func fiber_isCancelledFromTheStart_whenItIsSpawnedDuringTheShutdown(_ limit: Duration) {
            var trace: [String] = []
            var fates: [Fate] = []
            func note(_ name: String) throws {
                trace.append(name)
                do { try Fiber.sleep(for: long) } catch {
                    fates.append(Fate(of: error))
                    throw error
                }
            }
            let (value, _, warnings) = Self.run {
                try Fiber.spawnLocal {
                    defer {
                        _ = try? Fiber.spawnLocal { try note("by a defer") }
                        withCancellationShield {
                            _ = try? Fiber.spawnLocal { try note("in a shield") }
                            // The group itself is not cancelled, being in a shield; its children are, and it says so.
                            fates.append(
                                fate {
                                    try withFiberGroup { group in
                                        try group.spawnLocal { try note("in a group in a shield") }
                                        try group.spawnDaemon { try note("daemon in a group in a shield") }
                                    }
                                })
                        }
                    }
                    try Fiber.sleep(for: long)
                }
                Fiber.yield()
                FiberRuntime.shutDown(within: limit)
                try Fiber.spawnLocal { try note("by main") }
                return 5
            }
            #expect(value == 5)
            #expect(warnings.isEmpty)
            #expect(trace.sorted() == ["by a defer", "by main", "daemon in a group in a shield", "in a group in a shield", "in a shield"])
            #expect(fates == [Fate](repeating: .cancelled, count: 6), "\(fates)")
        }

        @Test func generations_end_whenEachFiberSpawnsTheNextAsItIsCancelled() {
            var generations = 0
            func generation() throws {
                generations += 1
                defer { if generations < 500 { _ = try? Fiber.spawnLocal { try generation() } } }
                try Fiber.sleep(for: long)
            }
            let (_, _, warnings) = Self.run {
                try Fiber.spawnLocal { try generation() }
                Fiber.yield()
                FiberRuntime.shutDown()
            }
            #expect(generations == 500)
            #expect(warnings.isEmpty)
        }

        // Afterwards.

        @Test func handles_areSafe_whenTheirFibersWereLeftBehind() throws {
            var handles: (FiberHandle<Int>, FiberHandle<String>, FiberHandle<[Int]>, FiberHandle<Void>)?
            let (_, _, warnings) = Self.run(leavingFibers: true) {
                handles = (
                    try Fiber.spawnLocal(name: "a") {
                        try withCancellationShield { try Fiber.sleep(for: long) }
                        return 1
                    },
                    try Fiber.spawnLocal(name: "b") {
                        try withCancellationShield { try Fiber.sleep(for: long) }
                        return "two"
                    },
                    try Fiber.spawnLocal(name: "c") {
                        try withCancellationShield { try Fiber.sleep(for: long) }
                        return [3]
                    },
                    try Fiber.spawnLocal(name: "d") { while true { Fiber.yield() } }
                )
                letTheOthersPark()
                FiberRuntime.shutDown(within: .milliseconds(1))
            }
            #expect(warnings.count == 1)
            let (a, b, c, d) = try #require(handles)
            for fiber in [a.fiber, b.fiber, c.fiber, d.fiber] {
                #expect(fiber.isFinished)
                #expect(fiber.name == nil)
                #expect(fiber.stackHighWaterMark == 0)
                fiber.cancel()
            }
            #expect([b.fiber.id, c.fiber.id, d.fiber.id] == [a.fiber.id + 1, a.fiber.id + 2, a.fiber.id + 3])
            #expect(fate { _ = try a.join() } == .cancelled)
            #expect(fate { _ = try b.join() } == .cancelled)
            #expect(fate { _ = try c.join() } == .cancelled)
            #expect(fate { try d.join() } == .cancelled)
            // From another runtime, too.
            #expect(try FiberRuntime.run { fate { _ = try b.join() } } == .cancelled)
        }

        @Test func runtime_works_afterOneThatLeftFibersBehind() throws {
            for _ in 0..<20 {
                let (_, _, warnings) = Self.run(leavingFibers: true) {
                    for _ in 0..<20 { try Fiber.spawnLocal { while true { try? Fiber.sleep(for: long) } } }
                    Fiber.yield()
                    FiberRuntime.shutDown(within: .microseconds(100))
                }
                #expect(warnings.count == 1)
                let (value, _, others) = Self.run {
                    let sleeper = try Fiber.spawnLocal {
                        try Fiber.sleep(for: .microseconds(100))
                        return Fiber.isCancelled
                    }
                    return try sleeper.join()
                }
                #expect(value == false)
                #expect(others.isEmpty)
            }
        }

        // Unwinding.

        /// Waits, spawns and looks around while it is being destroyed.
        private final class Guest {
            let note: (String) -> Void
            init(_ note: @escaping (String) -> Void) { self.note = note }

            deinit {
                let note = note
                note("cancelled: \(Fiber.isCancelled)")
                note("sleep: \(fate { try Fiber.sleep(for: long) })")
                withCancellationShield { note("shielded sleep: \(fate { try Fiber.sleep(for: .microseconds(100)) })") }
                let spawned = try? Fiber.spawnLocal { note("spawned") }
                Fiber.yield()
                note("join: \(fate { try spawned?.join() })")
            }
        }

        @Test(arguments: ["cancel", "timeout", "main throws", "shutDown"])
        func deinit_mayWaitAndSpawn_whileACancellationUnwindsTheStack(_ cause: String) {
            var notes: [String] = []
            var depthsLeft = 0
            func deep(_ depth: Int) throws {
                let guest = Guest { notes.append($0) }
                defer { depthsLeft += 1 }
                try withExtendedLifetime(guest) { if depth > 0 { try deep(depth - 1) } else { try Fiber.sleep(for: long) } }
            }
            let (_, _, warnings) = Self.run {
                let handle = try Fiber.spawnLocal {
                    if cause == "timeout" { try withTimeout(.milliseconds(1)) { try deep(2) } } else { try deep(2) }
                }
                letTheOthersPark()
                switch cause {
                case "cancel": handle.cancel()
                case "main throws": throw TestError()
                case "shutDown": FiberRuntime.shutDown()
                default: break
                }
                _ = fate { try handle.join() }
            }
            let sleep = cause == "timeout" ? Fate.timedOut(.milliseconds(1)) : .cancelled
            let once = ["cancelled: true", "sleep: \(sleep)", "shielded sleep: returned", "spawned", "join: returned"]
            #expect(notes == once + once + once)
            #expect(depthsLeft == 3)
            #expect(warnings.isEmpty)
        }

        #if compiler(>=6.2)
            @Test func run_stopsAndSaysWhy_whenMainIgnoresTheShutdown() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run(.init(onWarning: { _ in })) {
                            FiberRuntime.shutDown(within: .milliseconds(5))
                            while true { try? Fiber.sleep(for: .seconds(1)) }
                        }
                    }
                }
                expectMessage(
                    result, "FiberRuntime.run cannot return: the runtime was shut down, and main, which was cancelled, has not ended")
            }

            @Test func defaultWarning_isOneLineOnStandardError() async throws {
                let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try leavingFibersBehind {
                            try FiberRuntime.run {
                                try Fiber.spawnLocal(name: "two\nlines") { while true { Fiber.yield() } }
                                FiberRuntime.shutDown(within: .milliseconds(5))
                            }
                        }
                    }
                }
                let text = String(decoding: try #require(result).standardErrorContent, as: UTF8.self)
                #expect(text.contains("\"two lines\"") && text.occurrences(of: "\n") == 1)
            }

            @Test func shutDown_stopsAndSaysWhatToDo_outsideARuntime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) { FiberRuntime.shutDown() }
                expectMessage(result, "FiberRuntime.shutDown was called outside a fiber: wrap the program in FiberRuntime.run")
            }

            @Test func thousandShutdowns_leaveNothingBehind() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        cfaults_forget_thrown_errors()
                        /// One runtime with fibers of these kinds, at whatever they are after a few turns.
                        func shutDown(_ round: Int, _ conducts: [ShutdownTests.Conduct]) {
                            let warnings = Box(0)
                            let isStubborn = conducts.contains { $0.isStubborn }
                            let configuration = FiberRuntime.Configuration(
                                shutdownLimit: isStubborn ? .microseconds(300) : long, onWarning: { _ in warnings.value += 1 })
                            func run() throws {
                                try FiberRuntime.run(configuration) {
                                    for conduct in conducts { try Fiber.spawnLocal { try conduct.run() } }
                                    for _ in 0..<round % 5 { Fiber.yield() }
                                    if round % 2 == 0 { throw TestError() }
                                    FiberRuntime.shutDown()
                                }
                            }
                            _ = fate { try isStubborn ? leavingFibersBehind(run) : run() }
                            if !isStubborn && warnings.value > 0 { Issue.record("round \(round): a fiber was left behind") }
                        }
                        let all = ShutdownTests.Conduct.allCases.filter { $0 != .cleansUpForLong }
                        let gentle = all.filter { !$0.isStubborn }
                        let rounds = isSanitized ? 100 : 1_000
                        for i in 0..<100 { shutDown(i, i % 10 < 5 ? gentle : all) }
                        let before = (Process.descriptors, Process.mappings)
                        for i in 0..<rounds { shutDown(i, all) }
                        cfaults_forget_thrown_errors()
                        let heap = Int(cfaults_heap_bytes())
                        for i in 0..<rounds { shutDown(i, gentle) }
                        // Those that end in time leave nothing at all; others of this process allocate, too.
                        let grown = Int(cfaults_heap_bytes()) - heap
                        #expect(grown < 200_000, "\(grown) bytes")
                        #expect(Process.descriptors == before.0)
                        // Other threads' allocators may map an arena meanwhile; a leak would be thousands.
                        #expect(isSanitized || abs(Process.mappings - before.1) < 20)
                    }
                }
            }
        #endif
    }
}

extension String {
    /// How often another string occurs.
    fileprivate func occurrences(of other: String) -> Int {
        var count = 0
        var rest = self[...]
        while let range = rest.firstRange(of: other) {
            count += 1
            rest = rest[range.upperBound...]
        }
        return count
    }
}
