// SPDX-License-Identifier: Apache-2.0

// The handlers of warnings and of unhandled errors: where they run, and that they may wait there.

import CFaults
import Fibers
import Testing

extension KernelTests {
    @Suite struct WarningTests {
        @Test func handler_runsInAFiberOfItsOwn_andHoldsUpNobody_whenItWaits() throws {
            let log = Box<[String]>([])
            let go = Box<FiberEvent?>(nil)
            var warner: UInt64?
            let configuration = FiberRuntime.Configuration(
                onWarning: { text in
                    log.value.append("\(text) in \(Fiber.current?.name ?? "none")")
                    log.value.append("\(Fiber.current?.id ?? 0)")
                    try? go.value?.wait()
                    log.value.append("end")
                })
            try FiberRuntime.run(configuration) {
                go.value = FiberEvent()
                warner = Fiber.current?.id
                Worker.current?.warn("low")
                log.value.append("warner goes on")
                #expect(yield { log.value.count == 3 })
                log.value.append("signal")
                go.value?.signal()
            }
            #expect([log.value.first, log.value.dropFirst().first] == ["warner goes on", "low in onWarning"])
            #expect(log.value.dropFirst(3) == ["signal", "end"])
            #expect(log.value.count > 2 && log.value[2] != "\(warner ?? 0)")
        }

        @Test func handler_mayTakeALockThatTheWarnerHolds() throws {
            let lock = FiberMutex()
            let log = Box<[String]>([])
            let configuration = FiberRuntime.Configuration(
                onWarning: { text in
                    do { try lock.withLock { _ in log.value.append(text) } } catch { log.value.append("\(error)") }
                })
            try FiberRuntime.run(configuration) {
                try lock.withLock { _ in
                    Worker.current?.warn("first")
                    Worker.current?.warn("second")
                    for _ in 0..<10 { Fiber.yield() }
                    log.value.append("unlocked")
                }
            }
            #expect(log.value == ["unlocked", "first", "second"])
        }

        @Test(arguments: ["a cancelled fiber", "a runtime that shuts down"])
        func handler_mayWait_whenTheWarningComesFrom(_ warner: String) throws {
            let log = Box<[String]>([])
            let configuration = FiberRuntime.Configuration(
                onWarning: { text in
                    do {
                        try Fiber.sleep(for: .microseconds(100))
                        log.value.append(text)
                    } catch { log.value.append("\(error)") }
                })
            _ = try? FiberRuntime.run(configuration) {
                if warner == "a cancelled fiber" { Fiber.current?.cancel() } else { FiberRuntime.shutDown() }
                Worker.current?.warn("low")
            }
            #expect(log.value == ["low"])
        }

        @Test func unhandledErrors_areTold_whenTheHandlerWaitsInACancelledFiber() throws {
            let log = Box<[String]>([])
            let configuration = FiberRuntime.Configuration(
                onUnhandledError: { error in
                    do {
                        try Fiber.sleep(for: .microseconds(100))
                        log.value.append("\(error.error)")
                    } catch { log.value.append("\(error)") }
                })
            try FiberRuntime.run(configuration) {
                // The last handle goes in a fiber that is cancelled.
                let owner = try Fiber.spawnLocal {
                    let handle = try Fiber.spawnLocal { throw TestError(number: 4) }
                    Fiber.yield()
                    Fiber.current?.cancel()
                    withExtendedLifetime(handle) {}
                }
                try owner.join()
            }
            #expect(log.value == ["\(TestError(number: 4))"])
        }

        /// They stand ready when they are left behind, and a handler that lets others run lets none of them.
        @Test func fibersLeftBehind_neverRunAgain_whenTheHandlerYields() throws {
            // They keep it for ever.
            let turns = leavingFibersBehind { Box(0) }
            let seen = Box<[Int]>([])
            let configuration = FiberRuntime.Configuration(
                onWarning: { _ in
                    let before = turns.value
                    for _ in 0..<1_000 { Fiber.yield() }
                    seen.value.append(turns.value - before)
                })
            try leavingFibersBehind {
                try FiberRuntime.run(configuration) {
                    for _ in 0..<3 {
                        try Fiber.spawnLocal(name: "stubborn") {
                            while true {
                                turns.value += 1
                                Fiber.yield()
                            }
                        }
                    }
                    FiberRuntime.shutDown(within: .milliseconds(2))
                }
            }
            #expect(seen.value == [0])
            #expect(turns.value > 0)
        }

        #if compiler(>=6.2)
            @Test func handler_isCalledDirectly_whenThereIsNoStackForIt() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        guard cfaults_available() != 0 else { return }
                        let log = Box<[String]>([])
                        let configuration = FiberRuntime.Configuration(
                            onWarning: { text in log.value.append("\(text) in \(Fiber.current?.name ?? "none")") })
                        do {
                            try FiberRuntime.run(configuration) {
                                // All stacks that are there are in use, and no more can be mapped.
                                var handles: [FiberHandle<Void>] = []
                                cfaults_arm(CFAULTS_MADVISE, 1, 12, 1)
                                while let handle = try? Fiber.spawnLocal({ try Fiber.sleep(for: .seconds(100)) }) { handles.append(handle) }
                                Worker.current?.warn("no stack")
                                cfaults_disarm()
                                log.value.append("warner goes on")
                                for handle in handles { handle.cancel() }
                            }
                        } catch { log.value.append("\(error)") }
                        #expect(log.value == ["no stack in main", "warner goes on"])
                    }
                }
            }

            @Test func waitInTheHandler_stopsAndNamesIt_whenFibersAreLeftBehind() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let configuration = FiberRuntime.Configuration(onWarning: { _ in try? Fiber.sleep(for: .seconds(1)) })
                        try? FiberRuntime.run(configuration) {
                            try Fiber.spawnLocal(name: "stubborn") { withCancellationShield { try? Fiber.sleep(for: .seconds(100)) } }
                            FiberRuntime.shutDown(within: .milliseconds(5))
                        }
                    }
                }
                expectMessage(
                    result,
                    "a waiting call was made outside a fiber, on the worker's own stack, in the onWarning handler: at the end of a runtime")
            }

            @Test func waitInTheHandler_stopsAndNamesIt_whenBlockingCallsAreLeftBehind() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let configuration = FiberRuntime.Configuration(
                            shutdownLimit: .milliseconds(5), onWarning: { _ in try? Fiber.sleep(for: .seconds(1)) })
                        let stop = Box(false)
                        try? FiberRuntime.run(configuration) {
                            let begun = FiberEvent()
                            let call = try Fiber.spawnLocal {
                                try withBlockingThread {
                                    begun.signal()
                                    while !opaque(stop).value {}
                                }
                            }
                            try begun.wait()
                            call.cancel()
                        }
                    }
                }
                expectMessage(result, "Fiber.sleep(for:) was called outside a fiber, in the onWarning handler: at the end of a runtime")
            }

            @Test func waitInTheHandlerOfErrors_stopsAndNamesIt_whenAThreadHasTheLastHandle() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let configuration = FiberRuntime.Configuration(onUnhandledError: { _ in try? Fiber.sleep(for: .seconds(1)) })
                        let handle = Box<FiberHandle<Void>?>(nil)
                        try? FiberRuntime.run(configuration) { handle.value = try Fiber.spawnLocal { throw TestError() } }
                        handle.value = nil
                    }
                }
                expectMessage(
                    result, "Fiber.sleep(for:) was called outside a fiber, in the onUnhandledError handler: at the end of a runtime")
            }
        #endif
    }
}
