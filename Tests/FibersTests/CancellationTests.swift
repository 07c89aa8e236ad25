// SPDX-License-Identifier: Apache-2.0

// Cancellation: what ends a wait early, at which moments, and what the fiber and its joiners see of it.

import CFaults
import CFiber
import Fibers
import Glibc
import Synchronization
import Testing

extension KernelTests {
    @Suite struct CancellationTests {
        @Test func sleep_throwsTheTimeoutError_whenTheScopeAroundItEnds() throws {
            try FiberRuntime.run {
                let error = #expect(throws: TimeoutError.self) {
                    try withTimeout(.milliseconds(5)) { try Fiber.sleep(for: .seconds(100)) }
                }
                #expect(error?.limit == .milliseconds(5))
                #expect(error?.operation == "sleep")
                #expect(!Fiber.isCancelled)
                try Fiber.sleep(for: .milliseconds(1))
            }
        }

        @Test func innerScope_passesTheOuterOneOn_whenThatFires() throws {
            try FiberRuntime.run {
                var inner: (any Error)?
                let error = #expect(throws: TimeoutError.self) {
                    try withTimeout(.milliseconds(5)) {
                        do {
                            try withTimeout(.seconds(100)) { try Fiber.sleep(for: .seconds(100)) }
                        } catch {
                            inner = error
                            throw error
                        }
                    }
                }
                #expect(error?.limit == .milliseconds(5))
                #expect(inner is CancellationError)
            }
        }

        @Test func group_endsByTheFirstError_withItsSiblingsCancelled() throws {
            try FiberRuntime.run {
                var cancelled = 0
                #expect(throws: TestError(number: 7)) {
                    try withFiberGroup { group in
                        for _ in 0..<10 {
                            try group.spawnLocal {
                                do { try Fiber.sleep(for: .seconds(100)) } catch {
                                    cancelled += 1
                                    throw error
                                }
                            }
                        }
                        try group.spawnLocal { throw TestError(number: 7) }
                    }
                }
                #expect(cancelled == 10)
            }
        }

        @Test func run_returnsAndNamesThem_whenFibersIgnoreTheShutdown() throws {
            let warnings = Box<[String]>([])
            var configuration = FiberRuntime.Configuration()
            configuration.onWarning = { warnings.value.append($0) }
            let handle = try leavingFibersBehind {
                try FiberRuntime.run(configuration) {
                    let handle = try Fiber.spawnLocal(name: "stubborn") { while true { try? Fiber.sleep(for: .seconds(1)) } }
                    FiberRuntime.shutDown(within: .milliseconds(20))
                    return handle
                }
            }
            #expect(warnings.value.count == 1)
            #expect(warnings.value.first?.contains("\"stubborn\"") == true, "\(warnings.value)")
            #expect(handle.fiber.isFinished)
        }

        // What is cancelled, and when.

        @Test(arguments: Wait.allCases)
        func wait_throwsNowAndAgain_whenItsFiberIsCancelled(_ wait: Wait) throws {
            var before: [Fate] = []
            var fates: [Fate] = []
            var joined: Fate?
            var wasFinished = true
            try runQuietly {
                let handle = try Fiber.spawnLocal {
                    for _ in 0..<2 { fates.append(fate { try wait() }) }
                    try wait()
                }
                letTheOthersPark()
                before = fates
                handle.cancel()
                wasFinished = handle.fiber.isFinished
                joined = fate { try handle.join() }
            }
            #expect(before.isEmpty)
            #expect(!wasFinished)
            #expect(fates == [.cancelled, .cancelled])
            #expect(joined == .cancelled)
        }

        @Test(arguments: Wait.allCases)
        func wait_throwsTheTimeoutError_whenTheScopeAroundItEnds(_ wait: Wait) throws {
            var inside: (any Error)?
            var outside: (any Error)?
            var after = Fate.cancelled
            try runQuietly {
                do {
                    try withTimeout(.milliseconds(20)) {
                        do { try wait() } catch {
                            inside = error
                            throw error
                        }
                    }
                } catch { outside = error }
                after = fate { try Fiber.sleep(for: .nanoseconds(1)) }
            }
            #expect(inside.map { Fate(of: $0) } == .timedOut(.milliseconds(20)))
            #expect(outside.map { Fate(of: $0) } == .timedOut(.milliseconds(20)))
            let operation = (outside as? TimeoutError)?.operation ?? ""
            #expect(wait == .join ? operation.hasPrefix(wait.operation) : operation == wait.operation)
            #expect(after == .returned)
        }

        @Test(arguments: Wait.allCases)
        func fiber_runsUpToItsFirstWait_whenItIsCancelledBefore(_ wait: Wait) throws {
            var trace: [String] = []
            var fates: [Fate] = []
            try runQuietly {
                let handle = try Fiber.spawnLocal {
                    trace.append("begun")
                    defer { trace.append("cleaned up") }
                    fates.append(fate { try wait() })
                    try wait()
                    trace.append("waited")
                }
                handle.cancel()
                trace.append("cancelled")
                fates.append(fate { try handle.join() })
            }
            #expect(trace == ["cancelled", "begun", "cleaned up"])
            #expect(fates == [.cancelled, .cancelled])
        }

        @Test(arguments: Wait.allCases)
        func wait_letsTheOthersRun_whenItsFiberIsCancelled(_ wait: Wait) throws {
            // A loop that ignores its cancellation must starve nobody.
            let rounds = 50
            var turns = 0
            var least = Int.max
            var fates = Set<Fate>()
            try runQuietly {
                var done = false
                try Fiber.spawnLocal {
                    while !done {
                        turns += 1
                        Fiber.yield()
                    }
                }
                try Fiber.spawnLocal {
                    Fiber.current!.cancel()
                    for _ in 0..<rounds {
                        let before = turns
                        fates.insert(fate { try wait() })
                        least = min(least, turns - before)
                    }
                    done = true
                }.join()
            }
            #expect(least >= 1)
            #expect(fates == [.cancelled])
        }

        @Test func timersAndThreads_getTheirTurn_whenACancelledFiberWaitsInALoop() throws {
            let mailbox = Mailbox()
            let done = Atomic<Bool>(false)
            let thread = Thread {
                while !done.load(ordering: .acquiring) {
                    if let waiter = mailbox.take() { _ = waiter.unparkFromAnyThread(.ready) } else { sched_yield() }
                }
            }
            var slept = 0
            var woken = 0
            try runQuietly {
                let worker = Worker.current!
                let stubborn = try Fiber.spawnLocal { while slept < 5 || woken < 5 { try? Fiber.sleep(for: .seconds(1)) } }
                stubborn.cancel()
                try Fiber.spawnLocal {
                    for _ in 0..<5 {
                        let waiter = worker.beginSharedPark()
                        mailbox.offer(waiter)
                        _ = worker.park(in: waiter, .other)
                        woken += 1
                    }
                }
                for _ in 0..<5 {
                    try Fiber.sleep(for: .milliseconds(1))
                    slept += 1
                }
                try stubborn.join()
            }
            done.store(true, ordering: .releasing)
            thread.join()
            #expect(slept == 5 && woken == 5)
        }

        @Test func wait_endsWell_whenItWasOverBeforeTheCancellation() throws {
            // The fiber has been woken and has not run yet: it keeps what it waited for, and hears of the cancellation at its next wait.
            var outcomes: [Outcome] = []
            var fates: [Fate] = []
            var unparked: [Bool] = []
            try runQuietly {
                let worker = Worker.current!
                var waiter: Waiter?
                let handle = try Fiber.spawnLocal {
                    for _ in 0..<2 {
                        waiter = worker.beginPark()
                        outcomes.append(worker.park(.other))
                    }
                    fates.append(fate { try Fiber.sleep(for: .zero) })
                }
                Fiber.yield()
                unparked.append(worker.unpark(waiter!, .ready))
                handle.cancel()
                unparked.append(worker.unpark(waiter!, .closed))
                try handle.join()
            }
            #expect(unparked == [true, false])
            #expect(outcomes == [.ready, .cancelled])
            #expect(fates == [.cancelled])
        }

        @Test(arguments: [Wait.sleep, .ticker, .parkUntil])
        func timedWait_endsWell_whenItsTimeWasOverBeforeTheCancellation(_ wait: Wait) throws {
            var fates: [Fate] = []
            try runQuietly {
                let worker = Worker.current!
                let handle = try Fiber.spawnLocal {
                    let ticker = Ticker(every: .milliseconds(1))
                    fates.append(
                        fate {
                            switch wait {
                            case .sleep: try Fiber.sleep(for: .milliseconds(1))
                            case .ticker: _ = try ticker.next()
                            default:
                                _ = worker.beginPark()
                                try worker.check(worker.park(.other, until: Deadline.after(.milliseconds(1))))
                            }
                        })
                    fates.append(fate { try wait() })
                }
                Fiber.yield()
                compute(for: .milliseconds(2))
                expireTimers()
                fates.append(.threw("cancelled now"))
                handle.cancel()
                try handle.join()
            }
            #expect(fates == [.threw("cancelled now"), .returned, .cancelled])
        }

        @Test func join_returnsTheResult_whenTheFiberHadEndedBeforeTheJoinerWasCancelled() throws {
            var result: Int?
            var fates: [Fate] = []
            try runQuietly {
                let worker = Worker.current!
                var waiter: Waiter?
                let target = try Fiber.spawnLocal {
                    waiter = worker.beginPark()
                    _ = worker.park(.other)
                    return 5
                }
                let joiner = try Fiber.spawnLocal {
                    fates.append(fate { result = try target.join() })
                    // There is nothing to wait for any more.
                    fates.append(fate { _ = try target.join() })
                    fates.append(fate { try Fiber.sleep(for: .zero) })
                }
                letTheOthersPark()
                _ = worker.unpark(waiter!, .ready)
                // Its turn comes once: it ends, and the joiner is ready.
                Fiber.yield()
                fates.append(target.fiber.isFinished ? .returned : .threw("not ended"))
                joiner.cancel()
                try joiner.join()
            }
            #expect(result == 5)
            #expect(fates == [.returned, .returned, .returned, .cancelled])
        }

        @Test func next_returnsTheResult_whenTheChildHadEndedBeforeTheOwnerWasCancelled() throws {
            var results: [Int?] = []
            var fates: [Fate] = []
            try runQuietly {
                let worker = Worker.current!
                var waiter: Waiter?
                let owner = try Fiber.spawnLocal {
                    try withFiberGroup(of: Int.self) { group in
                        try group.spawnLocal {
                            waiter = worker.beginPark()
                            _ = worker.park(.other)
                            return 5
                        }
                        results.append(try group.next())
                        fates.append(fate { _ = try group.next() })
                    }
                }
                letTheOthersPark()
                _ = worker.unpark(waiter!, .ready)
                Fiber.yield()
                owner.cancel()
                fates.append(fate { try owner.join() })
            }
            #expect(results == [5])
            #expect(fates == [.cancelled, .returned])
        }

        @Test func cancel_doesNothing_whenTheFiberHasEnded() throws {
            var joined: [Int] = []
            var handle: FiberHandle<Int>?
            try runQuietly {
                handle = try Fiber.spawnLocal { 7 }
                joined.append(try handle!.join())
                handle!.cancel()
                handle!.fiber.cancel()
                joined.append(try handle!.join())
            }
            // Its runtime has ended, too.
            handle?.cancel()
            joined.append(try #require(try handle?.join()))
            #expect(joined == [7, 7, 7])
        }

        @Test func cancel_leavesTheNextFiberAlone_whenThatHasTheStack() throws {
            var records: [FiberPointer] = []
            var observed: [Bool] = []
            var outcome: Outcome?
            try runQuietly {
                let worker = Worker.current!
                let first = try Fiber.spawnLocal { records.append(worker.running) }
                try first.join()
                var waiter: Waiter?
                let second = try Fiber.spawnLocal {
                    records.append(worker.running)
                    waiter = worker.beginPark()
                    outcome = worker.park(.other)
                    observed.append(Fiber.isCancelled)
                }
                first.cancel()
                Fiber.yield()
                first.cancel()
                first.fiber.cancel()
                letTheOthersPark()
                observed.append(second.fiber.isFinished)
                _ = worker.unpark(waiter!, .ready)
                try second.join()
            }
            try #require(records.count == 2)
            #expect(records[0] == records[1])
            #expect(observed == [false, false])
            #expect(outcome == .ready)
        }

        @Test func nextFiber_isNotCancelled_whenTheOneBeforeItOnTheStackWas() throws {
            var records = Set<FiberPointer>()
            var fates: [Fate] = []
            var observed: [Bool] = []
            try runQuietly {
                for i in 0..<6 {
                    let handle = try Fiber.spawnLocal {
                        records.insert(Worker.current!.running)
                        observed.append(Fiber.isCancelled)
                        switch i {
                        case 0: try Wait.sleep()
                        case 2: try withTimeout(.zero) { try Wait.sleep() }
                        // Ends cancelled, and has not waited.
                        case 4: Fiber.current!.cancel()
                        default: try Fiber.sleep(for: .nanoseconds(1))
                        }
                    }
                    Fiber.yield()
                    if i == 0 { handle.cancel() }
                    fates.append(fate { try handle.join() })
                }
            }
            #expect(records.count == 1)
            #expect(observed == [Bool](repeating: false, count: 6))
            #expect(fates == [.cancelled, .returned, .timedOut(.zero), .returned, .returned, .returned])
        }

        @Test func fiber_isCancelledAtOnce_whenItCancelsItself() throws {
            var observed: [Bool] = []
            var fates: [Fate] = []
            try runQuietly {
                let handle = try Fiber.spawnLocal {
                    observed.append(Fiber.isCancelled)
                    Fiber.current!.cancel()
                    observed.append(Fiber.isCancelled)
                    fates.append(fate { try Fiber.checkCancellation() })
                    // It goes on until it wants to wait.
                    Fiber.yield()
                    try Fiber.sleep(for: long)
                }
                fates.append(fate { try handle.join() })
                observed.append(Fiber.isCancelled)
            }
            #expect(observed == [false, true, false])
            #expect(fates == [.cancelled, .cancelled])
        }

        @Test func cancellation_staysWithItsFiber_whenThatHasSpawnedOthersAndIsJoined() throws {
            var fates: [Fate] = []
            var observed: [Bool] = []
            try runQuietly {
                var grandchild: FiberHandle<Void>?
                let child = try Fiber.spawnLocal {
                    grandchild = try Fiber.spawnLocal {
                        try Fiber.sleep(for: .milliseconds(2))
                        observed.append(Fiber.isCancelled)
                    }
                    try Fiber.sleep(for: long)
                }
                letTheOthersPark()
                child.cancel()
                fates.append(fate { try child.join() })
                // The joiner has caught an error, and is not cancelled.
                observed.append(Fiber.isCancelled)
                fates.append(fate { try grandchild!.join() })
            }
            #expect(fates == [.cancelled, .returned])
            #expect(observed == [false, false])
        }

        @Test func spawn_inheritsNeitherDeadlineNorCancellation_whenItIsNotInAGroup() throws {
            var fates: [Fate] = []
            try runQuietly {
                let handle = try withTimeout(.milliseconds(1)) {
                    let handle = try Fiber.spawnLocal { fates.append(fate { try Fiber.sleep(for: .milliseconds(4)) }) }
                    fates.append(fate { try Fiber.sleep(for: long) })
                    return handle
                }
                try handle.join()
                let canceller = try Fiber.spawnLocal {
                    Fiber.current!.cancel()
                    return try Fiber.spawnLocal { fates.append(fate { try Fiber.sleep(for: .milliseconds(1)) }) }
                }
                try canceller.join().join()
            }
            #expect(fates == [.timedOut(.milliseconds(1)), .returned, .returned])
        }

        // What the fiber does then.

        @Test(arguments: Wait.allCases)
        func defers_runInOrder_whenTheErrorOfAWaitUnwindsTheFiber(_ wait: Wait) throws {
            var trace: [String] = []
            try runQuietly {
                let handle = try Fiber.spawnLocal {
                    defer { trace.append("outermost") }
                    defer {
                        withCancellationShield {
                            trace.append(Fiber.isCancelled ? "cancelled" : "shielded")
                            let cleanup = fate { try Fiber.sleep(for: .milliseconds(1)) }
                            trace.append("\(cleanup)")
                            // A deadline of its own ends what a shield protects.
                            trace.append("\(fate { try withTimeout(.milliseconds(1)) { try wait() } })")
                        }
                        trace.append(Fiber.isCancelled ? "cancelled" : "not cancelled")
                    }
                    try wait()
                    trace.append("waited")
                }
                letTheOthersPark()
                handle.cancel()
                try? handle.join()
            }
            #expect(trace == ["shielded", "returned", "\(Fate.timedOut(.milliseconds(1)))", "cancelled", "outermost"])
        }

        @Test func shield_holdsACancellationBack_untilItEnds() throws {
            var fates: [Fate] = []
            var observed: [Bool] = []
            var waiter: Waiter?
            try runQuietly {
                let worker = Worker.current!
                let handle = try Fiber.spawnLocal {
                    try withCancellationShield {
                        waiter = worker.beginPark()
                        fates.append(worker.park(.other) == .ready ? .returned : .threw("ended early"))
                        observed.append(Fiber.isCancelled)
                        fates.append(fate { try Fiber.checkCancellation() })
                        try Fiber.sleep(for: .milliseconds(1))
                    }
                    observed.append(Fiber.isCancelled)
                    try Fiber.sleep(for: .zero)
                }
                Fiber.yield()
                handle.cancel()
                letTheOthersPark()
                observed.append(worker.unpark(waiter!, .ready))
                fates.append(fate { try handle.join() })
            }
            #expect(observed == [true, false, true])
            #expect(fates == [.returned, .returned, .cancelled])
        }

        @Test func timeout_throwsTheCancellationError_whenTheFiberWasCancelledFirst() throws {
            var fates: [Fate] = []
            try runQuietly {
                let handle = try Fiber.spawnLocal {
                    Fiber.current!.cancel()
                    fates.append(fate { try withTimeout(.zero) { try Fiber.sleep(for: long) } })
                    fates.append(fate { try withTimeout(long) { try Fiber.sleep(for: long) } })
                }
                try handle.join()
                // The deadline passes and nobody has noticed when the fiber is cancelled: the cancellation came first.
                try Fiber.spawnLocal {
                    fates.append(
                        fate {
                            try withTimeout(.microseconds(1)) {
                                compute(for: .microseconds(10))
                                Fiber.current!.cancel()
                                try Fiber.sleep(for: long)
                            }
                        })
                }.join()
            }
            #expect(fates == [.cancelled, .cancelled, .cancelled])
        }

        @Test func timeout_throwsItsOwnError_whenTheFiberIsCancelledAfterwards() throws {
            var fates: [Fate] = []
            try runQuietly {
                try Fiber.spawnLocal {
                    fates.append(
                        fate {
                            try withTimeout(.microseconds(1)) {
                                compute(for: .microseconds(10))
                                fates.append(Fiber.isCancelled ? .cancelled : .returned)
                                Fiber.current!.cancel()
                                do { try Fiber.sleep(for: long) } catch {
                                    fates.append(Fate(of: error))
                                    throw error
                                }
                            }
                        })
                    fates.append(fate { try Fiber.sleep(for: .zero) })
                }.join()
            }
            #expect(fates == [.cancelled, .timedOut(.microseconds(1)), .timedOut(.microseconds(1)), .cancelled])
        }

        @Test func error_isThrownAsItIs_whenTheBodyThrowsAnotherAfterItsScopeHasEnded() throws {
            var fates: [Fate] = []
            var other: TestError?
            try runQuietly {
                do {
                    try withTimeout(.milliseconds(1)) {
                        fates.append(fate { try Fiber.sleep(for: long) })
                        throw TestError(number: 5)
                    }
                } catch let error as TestError { other = error }
                // A cancellation error of somebody else is not the scope's doing.
                let victim = try Fiber.spawnLocal { try Fiber.sleep(for: long) }
                victim.cancel()
                fates.append(fate { try withTimeout(long) { try victim.join() } })
            }
            #expect(other == TestError(number: 5))
            #expect(fates == [.timedOut(.milliseconds(1)), .cancelled])
        }

        @Test func handler_hears_whenACancelledFiberThrowsAnErrorOfItsOwn() throws {
            let heard = Box<[String]>([])
            try FiberRuntime.run(.init(onUnhandledError: { heard.value.append("\($0.error)") })) {
                let quiet = try Fiber.spawnLocal { try Fiber.sleep(for: long) }
                let loud = try Fiber.spawnLocal {
                    try? Fiber.sleep(for: long)
                    throw TestError(number: 3)
                }
                // Not cancelled, and yet it ends with such an error: a failure like any other.
                try Fiber.spawnLocal { throw CancellationError() }
                Fiber.yield()
                quiet.cancel()
                loud.cancel()
            }
            #expect(heard.value == ["CancellationError()", "\(TestError(number: 3))"])
        }

        // Without waiting.

        @Test func computation_learnsByTheClock_thatItsTimeIsOver() throws {
            var rounds = (0, 0)
            var fates: [Fate] = []
            var result = 0
            try runQuietly {
                result = try withTimeout(.milliseconds(2)) {
                    while !Fiber.isCancelled { rounds.0 += 1 }
                    return 5
                }
                fates.append(
                    fate {
                        try withTimeout(.milliseconds(2)) {
                            while true {
                                try Fiber.checkCancellation()
                                rounds.1 += 1
                            }
                        }
                    })
                fates.append(fate { try Fiber.checkCancellation() })
            }
            #expect(rounds.0 > 0 && rounds.1 > 0)
            #expect(result == 5)
            #expect(fates == [.timedOut(.milliseconds(2)), .returned])
        }

        @Test func computation_learnsThatItIsCancelled_whenItLetsOthersRun() throws {
            var turns = 0
            var fates: [Fate] = []
            try runQuietly {
                let computing = try Fiber.spawnLocal {
                    while true {
                        turns += 1
                        // This alone lets nobody run.
                        try Fiber.checkCancellation()
                        Fiber.yield()
                    }
                }
                for _ in 0..<3 { Fiber.yield() }
                computing.cancel()
                fates.append(fate { try computing.join() })
            }
            #expect(turns == 4)
            #expect(fates == [.cancelled])
        }

        @Test func checkCancellation_letsNobodyRun() throws {
            var others = 0
            var seen: [Int] = []
            try runQuietly {
                let other = try Fiber.spawnLocal { others += 1 }
                try Fiber.checkCancellation()
                _ = fate { try withTimeout(.zero) { try Fiber.checkCancellation() } }
                seen.append(others)
                try other.join()
                seen.append(others)
            }
            #expect(seen == [0, 1])
        }

        @Test func isCancelled_isFalse_outsideFibers() { #expect(!Fiber.isCancelled) }

        // Other threads.

        @Test(arguments: [false, true])
        func oneSideWins_whenAThreadRacesTheCancellation(_ isCancelledBefore: Bool) throws {
            let rounds = scaled(2_000, sanitized: 500)
            let mailbox = Mailbox()
            let stop = Atomic<Bool>(false)
            let claims = Atomic<Int>(0)
            let won = Box(0)
            let thread = Thread {
                var random = SeededGenerator(seed: 11)
                while !stop.load(ordering: .acquiring) {
                    guard let waiter = mailbox.take() else {
                        sched_yield()
                        continue
                    }
                    for i in 0..<Int.random(in: 0...300, using: &random) { _ = opaque(i) }
                    if waiter.unparkFromAnyThread(.ready) { won.value += 1 }
                    claims.add(1, ordering: .acquiringAndReleasing)
                }
            }
            var counts: [Outcome: Int] = [:]
            try runQuietly {
                let worker = Worker.current!
                var random = SeededGenerator(seed: 12)
                for i in 1...rounds {
                    let handle = try Fiber.spawnLocal {
                        let waiter = worker.beginSharedPark()
                        mailbox.offer(waiter)
                        let outcome = worker.park(in: waiter, .other)
                        counts[outcome, default: 0] += 1
                        // The thread may still be on its way to claim it.
                        while claims.load(ordering: .acquiring) < i {
                            Fiber.yield()
                            sched_yield()
                        }
                    }
                    if !isCancelledBefore { Fiber.yield() }
                    for i in 0..<Int.random(in: 0...600, using: &random) { _ = opaque(i) }
                    handle.cancel()
                    try? handle.join()
                }
            }
            stop.store(true, ordering: .releasing)
            thread.join()
            #expect((counts[.ready] ?? 0) + (counts[.cancelled] ?? 0) == rounds)
            #expect(counts[.ready] ?? 0 == won.value)
        }

        #if compiler(>=6.2)
            @Test func cancel_stopsAndSaysWhatToDo_whenAnotherThreadCallsIt() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let box = Box<FiberHandle<Void>?>(nil)
                        try FiberRuntime.run {
                            box.value = try Fiber.spawnLocal { try Fiber.sleep(for: .seconds(60)) }
                            onThread { box.value?.cancel() }
                        }
                    }
                }
                expectMessage(result, "cancel() was called outside a fiber: cancel it in a fiber of its runtime")
            }

            @Test func checkCancellation_stopsAndSaysWhatToDo_outsideARuntime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try Fiber.checkCancellation()
                    }
                }
                expectMessage(result, "Fiber.checkCancellation() was called outside a fiber: wrap the program in FiberRuntime.run")
            }
        #endif
    }
}
