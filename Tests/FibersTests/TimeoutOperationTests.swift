// SPDX-License-Identifier: Apache-2.0

// What a `TimeoutError` says was done when the time was over: what the deadline has interrupted, and not the clean-up afterwards.

import CFiber
import Fibers
import Testing

/// The error that leaves a scope of two milliseconds.
private func timeout(_ body: () throws -> Void) throws -> TimeoutError? {
    do { try withTimeout(.milliseconds(2), body) } catch let error as TimeoutError { return error }
    return nil
}

/// What programs do when they are told to stop.
private enum CleanUp: CaseIterable {
    case sleepInAShield, blockingCall, lock, group

    func run() {
        withCancellationShield {
            switch self {
            case .sleepInAShield: try? Fiber.sleep(for: .microseconds(100))
            case .blockingCall: _ = try? withBlockingThread { 1 }
            case .lock:
                let mutex = FiberMutex()
                try? mutex.lock()
                let other = try? Fiber.spawnLocal {
                    try mutex.lock()
                    mutex.unlock()
                }
                Fiber.yield()
                mutex.unlock()
                try? other?.join()
            case .group: _ = try? withFiberGroup { _ = try $0.spawnLocal { Fiber.yield() } }
            }
        }
    }
}

extension KernelTests {
    @Suite struct TimeoutOperationTests {
        @Test(arguments: CleanUp.allCases)
        private func operation_isWhatHung_whenACleanUpWaitsAfterwards(_ cleanUp: CleanUp) throws {
            let error = try runQuietly {
                try timeout {
                    defer { cleanUp.run() }
                    // In a scope further in, where the call throws a `CancellationError`, which says nothing of what it did.
                    try withTimeout(.seconds(100)) { try FiberEvent().wait() }
                }
            }
            #expect(error?.operation == "an event")
        }

        @Test func operation_isWhatHung_inErrorsOfLaterCallsToo() throws {
            var refused: (any Error)?
            let outside = try runQuietly {
                try timeout {
                    do { try FiberEvent().wait() } catch {
                        withCancellationShield { try? Fiber.sleep(for: .microseconds(100)) }
                        refused = failure { try Fiber.sleep(for: .seconds(1)) }
                        throw error
                    }
                }
            }
            #expect((refused as? TimeoutError)?.operation == "an event")
            #expect(outside?.operation == "an event")
        }

        @Test func operation_isThatOfTheScopeWhoseTimeWasOver_whenScopesNest() throws {
            var (inner, outer): (TimeoutError?, TimeoutError?)
            try runQuietly {
                outer = try timeout {
                    do { try withTimeout(.seconds(100)) { try FiberEvent().wait() } } catch {
                        withCancellationShield {
                            // A clean-up with a deadline of its own, which passes as well.
                            inner = try? timeout { try Fiber.sleep(for: .seconds(100)) }
                        }
                        throw error
                    }
                }
            }
            #expect(outer?.operation == "an event")
            #expect(inner?.operation == "sleep")
        }

        @Test func operation_saysThatTheFiberWasNotWaiting_whenItComputed() throws {
            let errors = try runQuietly {
                [
                    try timeout { while true { try Fiber.checkCancellation() } },
                    try timeout {
                        defer { CleanUp.sleepInAShield.run() }
                        // What it has waited for before is over.
                        try Fiber.sleep(for: .microseconds(10))
                        compute(for: .milliseconds(3))
                        try Fiber.checkCancellation()
                    },
                    try timeout {
                        compute(for: .milliseconds(3))
                        try FiberEvent().wait()
                    },
                ]
            }
            #expect(errors.map { $0?.operation } == ["running or ready", "running or ready", "running or ready"])
        }

        /// The child meets the deadline, and the group turns it into the scope's.
        @Test(arguments: [0, 1])
        func operation_isTheWaitForTheGroup_whenAChildMetTheDeadline(onWorker worker: Int) throws {
            let error = try onWorkers(2) {
                try timeout {
                    defer { CleanUp.sleepInAShield.run() }
                    try withFiberGroup { group in
                        try group.spawn(on: worker) {
                            defer { CleanUp.sleepInAShield.run() }
                            try FiberEvent().wait()
                        }
                    }
                }
            }
            #expect(error?.operation == "the fibers of a group")
        }

        @Test func operation_isWhatTheBodyWaitedFor_whenAChildNoticesTheDeadlineFirst() throws {
            let error = try runQuietly {
                try timeout {
                    defer { CleanUp.sleepInAShield.run() }
                    try withFiberGroup { group in
                        try group.spawnLocal { while true { try Fiber.checkCancellation(); Fiber.yield() } }
                        try FiberEvent().wait()
                    }
                }
            }
            #expect(error?.operation == "an event")
        }
    }
}
