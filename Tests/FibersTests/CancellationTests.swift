// Scopes: what ends a wait early, which scope it is, and what it throws.

import Fibers
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
            let handle = try FiberRuntime.run(configuration) {
                let handle = try Fiber.spawnLocal(name: "stubborn") { while true { try? Fiber.sleep(for: .seconds(1)) } }
                FiberRuntime.shutDown(within: .milliseconds(20))
                return handle
            }
            #expect(warnings.value.count == 1)
            #expect(warnings.value.first?.contains("\"stubborn\"") == true, "\(warnings.value)")
            #expect(handle.fiber.isFinished)
        }
    }
}
