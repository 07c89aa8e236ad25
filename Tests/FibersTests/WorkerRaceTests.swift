// SPDX-License-Identifier: Apache-2.0

// Moments between workers: a handle that is faster than its fiber, results that are let go of by several at a time, blocking calls that come at once.

import CFiber
import Fibers
import Glibc
import Synchronization
import Testing

/// Counts where it is let go of.
private final class Trace: Sendable {
    private let (inFibers, elsewhere): (Counter, Counter)

    init(_ inFibers: Counter, _ elsewhere: Counter) {
        self.inFibers = inFibers
        self.elsewhere = elsewhere
    }

    deinit {
        // At the end of a life its fiber is nobody's any more, but it can still wait.
        let isInFiber = Worker.current.map { $0.running.id != 0 } ?? false
        (isInFiber ? inFibers : elsewhere).add()
    }
}

extension KernelTests {
    @Suite struct WorkerRaceTests {
        /// Fibers of a worker go on before it looks at its messages, so one of them may have the handle of a fiber that is still on its way to it.
        @Test func join_waits_whenTheFiberIsStillOnItsWay_toTheCallersWorker() throws {
            let rounds = scaled(2_000, sanitized: 200)
            let next = Guarded<FiberHandle<String>?>(nil)
            var values: [String] = []
            var early = 0
            try onWorkers(2) {
                let joiner = try Fiber.spawn(on: 1) {
                    var values: [String] = []
                    var early = 0
                    while values.count < rounds {
                        guard let handle = next.withLock({ $0.take() }) else {
                            Fiber.yield()
                            continue
                        }
                        if handle.fiber.name == nil && !handle.fiber.isFinished { early += 1 }
                        values.append(try handle.join())
                    }
                    return (values, early)
                }
                for i in 0..<rounds {
                    let handle = try Fiber.spawn(name: "late", on: 1) { "value \(i)" }
                    next.withLock { $0 = handle }
                    while next.value != nil { sched_yield() }
                }
                (values, early) = try joiner.join()
            }
            #expect(values == (0..<rounds).map { "value \($0)" })
            // Else this has tested nothing.
            #expect(early > 0)
        }

        @Test func cancel_isHeard_whenTheFiberIsStillOnItsWay_toTheCallersWorker() throws {
            let rounds = scaled(2_000, sanitized: 200)
            let next = Guarded<FiberHandle<Void>?>(nil)
            let cancelled = Counter()
            try onWorkers(2) {
                let canceller = try Fiber.spawn(on: 1) {
                    var left = rounds
                    while left > 0 {
                        guard let handle = next.withLock({ $0.take() }) else {
                            Fiber.yield()
                            continue
                        }
                        handle.cancel()
                        left -= 1
                    }
                }
                for _ in 0..<rounds {
                    let handle = try Fiber.spawn(on: 1) {
                        do { try Fiber.sleep(for: .seconds(1_000)) } catch {
                            cancelled.add()
                            throw error
                        }
                    }
                    next.withLock { $0 = handle }
                    while next.value != nil { sched_yield() }
                }
                try canceller.join()
            }
            #expect(cancelled.value == rounds)
        }

        @Test func results_areLetGoOfInFibers_whoeverIsTheLastToHaveThem() throws {
            let rounds = scaled(3_000, sanitized: 300)
            let (inFibers, elsewhere) = (Counter(), Counter())
            try onWorkers(3) {
                for i in 0..<rounds {
                    let handle = try Fiber.spawn(on: 1 + i % 2) { Trace(inFibers, elsewhere) }
                    switch i % 4 {
                    case 0: _ = try handle.join()
                    case 1:
                        _ = try? withTimeout(.microseconds(i % 50)) { _ = try handle.join() }
                        handle.cancel()
                    case 2:
                        while !handle.fiber.isFinished { Fiber.yield() }
                        // Its message comes when nobody has the handle any more.
                        handle.fiber.cancel()
                    default: handle.cancel()
                    }
                }
            }
            #expect(elsewhere.value == 0)
            #expect(inFibers.value == rounds)
        }

        /// A cancellation may be all that is on its way when the last fiber ends, and have the last reference to a result.
        @Test func results_areLetGoOfInFibers_whenTheRuntimeEndsMeanwhile() throws {
            let rounds = scaled(1_000, sanitized: 100)
            let (inFibers, elsewhere) = (Counter(), Counter())
            for i in 0..<rounds {
                try onWorkers(2) {
                    let handle = try Fiber.spawn(on: 1) { Trace(inFibers, elsewhere) }
                    for _ in 0..<i % 200 * 10 { _ = opaque(i) }
                    handle.cancel()
                }
            }
            #expect(elsewhere.value == 0)
            #expect(inFibers.value == rounds)
        }

        /// The sender may be slow to return from `spawn`, and must have nothing left then that was sent.
        @Test func captures_areLetGoOfByTheFiber_howeverSlowTheSenderIs() throws {
            final class Captured: Sendable {
                let home: Int
                let elsewhere: Counter
                init(_ home: Int, _ elsewhere: Counter) { (self.home, self.elsewhere) = (home, elsewhere) }
                deinit { if FiberRuntime.currentWorker != home { elsewhere.add() } }
            }
            let rounds = scaled(20_000, sanitized: 2_000)
            let (elsewhere, ends) = (Counter(), Counter())
            try onWorkers(3) {
                for i in 0..<rounds {
                    let home = 1 + i % 2
                    if i % 3 == 0 {
                        try Fiber.spawn(on: home) { [captured = Captured(home, elsewhere)] in
                            withExtendedLifetime(captured) {}
                            ends.add()
                        }
                    } else {
                        try withFiberGroup { group in
                            try group.spawn(on: home) { [captured = Captured(home, elsewhere)] in
                                withExtendedLifetime(captured) {}
                                ends.add()
                            }
                        }
                    }
                }
            }
            #expect(ends.value == rounds)
            #expect(elsewhere.value == 0)
        }

        /// What such a fiber returns belongs to its worker, though a `Fiber` that names it is anybody's.
        @Test func resultOfALocalFiber_isLetGoOfOnItsWorker_whenAnotherHasTheLastOfIt() throws {
            final class Local {
                let worker: Int?
                let ends: Guarded<[Bool]>
                init(_ ends: Guarded<[Bool]>) { (worker, self.ends) = (FiberRuntime.currentWorker, ends) }
                deinit {
                    // Not by `Fiber.current`: at the end of the fiber whose result this is there is none any more.
                    let isInFiber = Worker.current.map { $0.running.id != 0 } ?? false
                    let isAtHome = FiberRuntime.currentWorker == worker && isInFiber
                    ends.withLock { $0.append(isAtHome) }
                }
            }
            let rounds = scaled(500, sanitized: 50)
            let ends = Guarded<[Bool]>([])
            try onWorkers(3) {
                for i in 0..<rounds {
                    try Fiber.spawn(on: 1 + i % 2) {
                        let fiber = try Fiber.spawnLocal { Local(ends) }.fiber
                        try Fiber.spawn(on: i % 2 * 2) {
                            while !fiber.isFinished { Fiber.yield() }
                            for _ in 0..<i % 5 { Fiber.yield() }
                            withExtendedLifetime(fiber) {}
                        }
                    }
                }
            }
            #expect(ends.value.count == rounds)
            #expect(ends.value.allSatisfy { $0 })
        }

        /// Two calls that wait for one another: neither may wait in line behind the other for the one thread that is idle.
        @Test func blockingCalls_eachHaveAThread_whenWorkersMakeThemAtOnce() throws {
            let rounds = scaled(300, sanitized: 30)
            let met = Counter()
            for _ in 0..<rounds {
                try onWorkers(3) {
                    let (ready, arrived) = (Counter(), Counter())
                    try withBlockingThread {}
                    while FiberRuntime.blockingStatistics.idle == 0 { Fiber.yield() }
                    let calls = try (1...2).map { worker in
                        try Fiber.spawn(on: worker) {
                            ready.add()
                            while ready.value < 2 {}
                            return try withBlockingThread {
                                arrived.add()
                                let begun = time(nil)
                                while arrived.value < 2 && time(nil) < begun + 20 { sched_yield() }
                                return arrived.value == 2
                            }
                        }
                    }
                    for call in calls where try call.join() { met.add() }
                }
            }
            #expect(met.value == rounds * 2)
        }

        @Test func blockingCall_letsGoOfWhatItHasCaptured_whileThePoolIsFree() throws {
            /// Waits for another blocking call, which cannot come while the pool is locked.
            final class Captured: Sendable {
                private let isGoing: FiberEvent
                private let (otherCall, met): (Counter, Counter)
                init(_ isGoing: FiberEvent, _ otherCall: Counter, _ met: Counter) {
                    self.isGoing = isGoing
                    (self.otherCall, self.met) = (otherCall, met)
                }
                deinit {
                    isGoing.signal()
                    let begun = time(nil)
                    while otherCall.value == 0 && time(nil) < begun + 20 { sched_yield() }
                    met.add(otherCall.value)
                }
            }
            let (isGoing, otherCall, met) = (FiberEvent(), Counter(), Counter())
            try FiberRuntime.run {
                let (hasStarted, mayEnd) = (FiberEvent(), Counter())
                let call = try Fiber.spawnLocal {
                    let captured = Captured(isGoing, otherCall, met)
                    try withBlockingThread {
                        hasStarted.signal()
                        while mayEnd.value == 0 { sched_yield() }
                        withExtendedLifetime(captured) {}
                    }
                }
                try hasStarted.wait()
                // From here on only the thread has what it captured.
                call.cancel()
                _ = try? call.join()
                mayEnd.add()
                try isGoing.wait()
                try withBlockingThread { otherCall.add() }
            }
            #expect(met.value == 1)
        }

        #if compiler(>=6.2)
            @Test(.enabled(if: !isSanitized, "sanitizers need the address space themselves"))
            func refusedFibers_areLetGoOfInFibers_whenAnotherWorkerHasNoStackForThem() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let (inFibers, elsewhere, begun, unhandled) = (Counter(), Counter(), Counter(), Counter())
                        var configuration = FiberRuntime.Configuration(workers: 2)
                        // As its documentation says, it may wait.
                        configuration.onUnhandledError = { _ in
                            try? Fiber.sleep(for: .milliseconds(1))
                            unhandled.add()
                        }
                        try FiberRuntime.run(configuration) {
                            try Fiber.spawn(on: 1) {}.join()
                            try limitAddressSpace(to: rlim_t(Process.status("VmSize") + 64 << 20))
                            for _ in 0..<600 {
                                try Fiber.spawn(on: 1) { [trace = Trace(inFibers, elsewhere)] in
                                    begun.add()
                                    try? Fiber.sleep(for: .seconds(1_000))
                                    withExtendedLifetime(trace) {}
                                }
                            }
                            try Fiber.sleep(for: .milliseconds(1))
                            while begun.value < 200 { Fiber.yield() }
                            FiberRuntime.shutDown()
                        }
                        #expect(unhandled.value + begun.value == 600 && unhandled.value >= 300, "\(unhandled.value), \(begun.value)")
                        #expect(inFibers.value == 600 && elsewhere.value == 0, "\(inFibers.value), \(elsewhere.value)")
                    }
                }
            }
        #endif
    }
}
