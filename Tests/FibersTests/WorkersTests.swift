// SPDX-License-Identifier: Apache-2.0

// Several workers: where fibers run, join and cancel across them, groups that span them, and how they end together.

import CFaults
import CFiber
import Fibers
import Glibc
import Synchronization
import Testing

/// A number that fibers of several workers change.
final class Counter: Sendable {
    private let number = Atomic<Int>(0)
    var value: Int { number.load(ordering: .acquiring) }
    func add(_ amount: Int = 1) { number.add(amount, ordering: .acquiringAndReleasing) }
}

/// A thread that has been joined is in the kernel's books for a moment longer.
func waitForThreads(_ count: Int) -> Bool {
    // A thread that was joined is counted until the system has taken it apart, which takes as long as others keep the processors busy.
    for _ in 0..<100_000 {
        // Fewer, if one was there for a moment longer when they were counted first.
        if Process.threads <= count { return true }
        usleep(100)
    }
    return false
}

func onWorkers<Value>(_ count: Int, _ main: () throws -> Value) throws -> Value {
    try runQuietly(.init(workers: count), main)
}

extension KernelTests {
    @Suite struct WorkersTests {
        @Test(arguments: [1, 2, 4])
        func spawn_runsOnTheWorkerThatIsNamed_andStaysThere(_ count: Int) throws {
            var places: [[Int?]] = []
            var threads = Set<pid_t>()
            try onWorkers(count) {
                let handles = try (0..<count).map { index in
                    try Fiber.spawn(on: index) {
                        let before = FiberRuntime.currentWorker
                        let thread = cfaults_thread_id()
                        Fiber.yield()
                        try Fiber.sleep(for: .microseconds(100))
                        return ([before, FiberRuntime.currentWorker], thread)
                    }
                }
                for handle in handles {
                    let (place, thread) = try handle.join()
                    places.append(place)
                    threads.insert(thread)
                }
                threads.insert(cfaults_thread_id())
            }
            #expect(places == (0..<count).map { [$0, $0] })
            #expect(threads.count == count)
        }

        @Test(arguments: [2, 4, 12])
        func spawn_spreadsFibersEvenly_whenNoWorkerIsNamed(_ count: Int) throws {
            let fibers = 100 * count
            let stop = Counter()
            let counts = try onWorkers(count) {
                let handles = try (0..<fibers).map { _ in
                    try Fiber.spawn { () -> Int in
                        while stop.value == 0 { try Fiber.sleep(for: .milliseconds(1)) }
                        return FiberRuntime.currentWorker ?? -1
                    }
                }
                stop.add()
                var counts = [Int](repeating: 0, count: count)
                for handle in handles { counts[try handle.join()] += 1 }
                return counts
            }
            #expect(counts.reduce(0, +) == fibers)
            #expect(counts.allSatisfy { (50...150).contains($0) }, "\(counts)")
        }

        @Test(arguments: [2, 4])
        func join_returnsOrThrows_acrossWorkers(_ count: Int) throws {
            var values: [String] = []
            var errors: [TestError] = []
            try onWorkers(count) {
                for i in 0..<scaled(500, sanitized: 100) {
                    let value = try Fiber.spawn(on: i % count) { "\(i)" }
                    let failing = try Fiber.spawn(on: (i + 1) % count) { throw TestError(number: i) }
                    // Joined from a third place.
                    let relay = try Fiber.spawn(on: (i + 2) % count) { try value.join() }
                    values.append(try relay.join())
                    do { try failing.join() } catch let error as TestError { errors.append(error) }
                    if try value.join() != "\(i)" { values.append("a second join differs") }
                }
            }
            #expect(values == (0..<values.count).map { "\($0)" })
            #expect(errors.map(\.number) == Array(0..<values.count))
        }

        @Test(arguments: [2, 4])
        func spawnLocal_onAnotherWorker_canBeJoinedAndCancelled_fromHere(_ count: Int) throws {
            var outcomes: [String] = []
            try onWorkers(count) {
                let inner = try Fiber.spawn(on: 1) {
                    (try Fiber.spawnLocal { 7 }, try Fiber.spawnLocal { try Fiber.sleep(for: .seconds(1_000)) })
                }
                let (seven, sleeper) = try inner.join()
                outcomes.append("\(try seven.join())")
                sleeper.cancel()
                outcomes.append("\(failure { try sleeper.join() } is CancellationError)")
                outcomes.append("\(sleeper.fiber.isFinished)")
                sleeper.cancel()
            }
            #expect(outcomes == ["7", "true", "true"])
        }

        @Test(arguments: [2, 4])
        func cancel_endsAFiberOnAnotherWorker_whereverItIs(_ count: Int) throws {
            var ends: [Bool] = []
            try onWorkers(count) {
                for i in 0..<scaled(300, sanitized: 60) {
                    let handle = try Fiber.spawn(on: 1 + i % (count - 1)) {
                        for _ in 0..<i % 5 { Fiber.yield() }
                        try Fiber.sleep(for: .seconds(1_000))
                    }
                    for _ in 0..<i % 7 { Fiber.yield() }
                    handle.cancel()
                    ends.append(failure { try handle.join() } is CancellationError)
                }
            }
            #expect(ends.allSatisfy { $0 })
        }

        @Test func join_stopsToWait_whenTheCallerIsCancelled_andTheFiberGoesOn() throws {
            var results: [Bool] = []
            try onWorkers(2) {
                let go = FiberEvent()
                let slow = try Fiber.spawn(on: 1) {
                    try go.wait()
                    return 5
                }
                // Often, so that what joins leave behind would add up.
                for _ in 0..<50 {
                    results.append(failure { try withTimeout(.microseconds(200)) { _ = try slow.join() } } is TimeoutError)
                }
                let joiner = try Fiber.spawnLocal { try slow.join() }
                Fiber.yield()
                joiner.cancel()
                results.append(failure { _ = try joiner.join() } is CancellationError)
                go.signal()
                results.append(try slow.join() == 5)
            }
            #expect(results.count == 52 && results.allSatisfy { $0 })
        }

        @Test func run_returns_afterFibersOfAllWorkersHaveEnded() throws {
            for count in [2, 4] {
                let ended = Counter()
                try onWorkers(count) {
                    // A chain from worker to worker, which nobody joins.
                    @Sendable func hop(_ left: Int) throws {
                        ended.add()
                        if left > 0 { try Fiber.spawn(on: left % count) { try hop(left - 1) } }
                    }
                    for _ in 0..<10 { try Fiber.spawn { try hop(20) } }
                }
                #expect(ended.value == 210)
            }
        }

        @Test func fiberLocals_goAlong() throws {
            let local = FiberLocal<String>("none")
            let seen = try onWorkers(2) {
                try local.withValue("set") { try Fiber.spawn(on: 1) { local.value }.join() }
            }
            #expect(seen == "set")
        }

        @Test func unjoinedError_isReportedOnce() throws {
            let heard = Guarded<[String]>([])
            var configuration = FiberRuntime.Configuration(workers: 2)
            configuration.onUnhandledError = { error in heard.withLock { $0.append("\(error.error)") } }
            try FiberRuntime.run(configuration) { try Fiber.spawn(on: 1) { throw TestError(number: 3) } }
            #expect(heard.value == ["\(TestError(number: 3))"])
        }

        @Test func idleWorker_wakes_whenAFiberWithAnEarlierTimerComes() throws {
            // The worker sleeps until far in the future; what is sent there must not wait for that.
            let late = try onWorkers(2) {
                let sleeper = try Fiber.spawn(on: 1) { try Fiber.sleep(for: .seconds(1_000)) }
                try Fiber.sleep(for: .milliseconds(20))
                let began = cfiber_now()
                try Fiber.spawn(on: 1) { try Fiber.sleep(for: .milliseconds(1)) }.join()
                let took = cfiber_now() - began
                sleeper.cancel()
                return took
            }
            #expect(late >= 1_000_000 && late < 5_000_000_000)
        }

        // Ends.

        @Test(arguments: [2, 4])
        func shutDown_cancelsFibersOfAllWorkers(_ count: Int) throws {
            let cancelled = Counter()
            let main = failure {
                try onWorkers(count) {
                    for i in 0..<count * 5 {
                        try Fiber.spawn(on: i % count) {
                            do { try Fiber.sleep(for: .seconds(1_000)) } catch {
                                cancelled.add()
                                throw error
                            }
                        }
                    }
                    try Fiber.spawn(on: count - 1) { FiberRuntime.shutDown() }
                    try Fiber.sleep(for: .seconds(1_000))
                }
            }
            #expect(main is CancellationError)
            #expect(cancelled.value == count * 5)
        }

        @Test func run_cancelsFibersOfAllWorkers_whenMainThrows() throws {
            let error = failure {
                try onWorkers(3) {
                    for i in 0..<3 { try Fiber.spawn(on: i) { try Fiber.sleep(for: .seconds(1_000)) } }
                    throw TestError(number: 8)
                }
            }
            #expect(error as? TestError == TestError(number: 8))
        }

        @Test func run_returnsAndNamesThem_whenFibersOfAnotherWorkerIgnoreTheShutdown() throws {
            let warnings = Guarded<[String]>([])
            let release = FiberEvent()
            var configuration = FiberRuntime.Configuration(workers: 2)
            configuration.onWarning = { text in warnings.withLock { $0.append(text) } }
            cfaults_leaks_begin()
            defer { cfaults_leaks_end() }
            try FiberRuntime.run(configuration) {
                let begun = FiberEvent()
                try Fiber.spawn(name: "stubborn", on: 1) {
                    begun.signal()
                    withCancellationShield { try? release.wait() }
                }
                try begun.wait()
                FiberRuntime.shutDown(within: .milliseconds(20))
            }
            #expect(warnings.value.count == 1)
            #expect(warnings.value.first?.contains("\"stubborn\" (an event)") == true, "\(warnings.value)")
            // The stack is gone, and a signal that comes now touches none of it.
            release.signal()
        }

        #if compiler(>=6.2)
            @Test func runtimes_leaveNothing_whenTheyComeAndGo() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var before = (0, 0)
                        for round in 0..<scaled(2_000, sanitized: 100) {
                            if round == 20 { before = (Process.descriptors, Process.threads) }
                            try FiberRuntime.run(.init(workers: 1 + round % 4)) {
                                if round % 3 == 0 { try Fiber.spawn { Fiber.yield() } }
                            }
                        }
                        #expect(Process.descriptors == before.0)
                        #expect(waitForThreads(before.1))
                    }
                }
            }

            @Test func run_throws_whenAWorkerCannotStart() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var limit = rlimit()
                        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                        let before = Process.descriptors
                        limit.rlim_cur = rlim_t(before + 12)
                        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                        let threads = Process.threads
                        var refused: ResourceError?
                        do { try FiberRuntime.run(.init(workers: 64)) {} } catch { refused = error as? ResourceError }
                        #expect(refused?.resource == .descriptors)
                        #expect(Process.descriptors == before)
                        #expect(waitForThreads(threads))
                        try FiberRuntime.run(.init(workers: 2)) { try Fiber.spawn(on: 1) {}.join() }
                    }
                }
            }

            @Test func pinnedWorkers_runOnCPUsOfTheirOwn_andTheCallerIsSetFree() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var cpus = cfiber_cpus()
                        _ = cfiber_allowed_cpus(&cpus)
                        let count = Int(cpus.count)
                        let counts = try FiberRuntime.run(.init(workers: count, pinsWorkers: true)) {
                            try (0..<count).map { index in
                                try Fiber.spawn(on: index) {
                                    var mine = cfiber_cpus()
                                    _ = cfiber_allowed_cpus(&mine)
                                    return (mine.count, withUnsafeBytes(of: mine.set) { Array($0) })
                                }
                            }.map { try $0.join() }
                        }
                        #expect(counts.allSatisfy { $0.0 == 1 })
                        #expect(Set(counts.map(\.1)).count == count)
                        _ = cfiber_allowed_cpus(&cpus)
                        #expect(Int(cpus.count) == count)
                    }
                }
            }

            @Test func blockingThreads_mayUseAllCPUs_whenWorkersAreBound() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var cpus = cfiber_cpus()
                        _ = cfiber_allowed_cpus(&cpus)
                        let counts = try FiberRuntime.run(.init(workers: 2, pinsWorkers: true)) {
                            try (0..<2).map { index in
                                try Fiber.spawn(on: index) {
                                    try withBlockingThread {
                                        var mine = cfiber_cpus()
                                        _ = cfiber_allowed_cpus(&mine)
                                        return mine.count
                                    }
                                }
                            }.map { try $0.join() }
                        }
                        #expect(counts == [cpus.count, cpus.count])
                    }
                }
            }

            @Test func spawn_stopsAndSaysWhatToDo_whenThereIsNoSuchWorker() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 2)) { _ = try Fiber.spawn(on: 2) {} }
                    }
                }
                expectMessage(result, "there is no worker 2: the runtime has 2, numbered from 0")
            }

            @Test func wait_stopsAndSaysWhatToDo_whenTwoFibersWaitForOneEvent() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let event = FiberEvent()
                        try FiberRuntime.run {
                            try Fiber.spawnLocal(name: "first") { try event.wait() }
                            let second = try Fiber.spawnLocal(name: "second") { try event.wait() }
                            try second.join()
                        }
                    }
                }
                expectMessage(
                    result,
                    "two fibers wait for one FiberEvent: fiber #3 \"second\", while fiber #2 \"first\" waits already: give each its own")
            }
        #endif
    }
}
