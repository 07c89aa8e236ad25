// SPDX-License-Identifier: Apache-2.0

// The end of a life: whatever runs in it, a deinit or the handler of errors, may wait, and leaves nothing behind for the next life on the stack.

import Fibers
import Testing

extension KernelTests {
    @Suite struct LifeEndTests {
        @Test func handlerOfErrors_mayWaitUnderADeadline_andLeavesNoTimer() throws {
            let calls = Box(0)
            var configuration = trimmingSoon
            configuration.onUnhandledError = { _ in
                // Ends before its deadline, which stays in the queue of timers.
                try? withTimeout(.milliseconds(450)) { try Fiber.spawnLocal { Fiber.yield() }.join() }
                calls.value += 1
            }
            try FiberRuntime.run(configuration) {
                for _ in 0..<200 { try Fiber.spawnLocal { throw TestError() } }
                try sleepInSteps()
            }
            #expect(calls.value == 200)
        }

        @Test func deinitOfAResult_mayWaitUnderADeadline_andLeavesNoTimer() throws {
            final class Result {
                let calls: Box<Int>
                init(_ calls: Box<Int>) { self.calls = calls }
                deinit {
                    try? withTimeout(.milliseconds(450)) { try Fiber.spawnLocal { Fiber.yield() }.join() }
                    calls.value += 1
                }
            }
            let calls = Box(0)
            try FiberRuntime.run(trimmingSoon) {
                for _ in 0..<200 { try Fiber.spawnLocal { Result(calls) } }
                try sleepInSteps()
            }
            #expect(calls.value == 200)
        }

        @Test func valueOfAFiberLocal_isReleasedBeforeTheLifeEnds_whenItsDeinitWaits() throws {
            final class Value: Sendable {
                let ends: Box<Int>
                init(_ ends: Box<Int>) { self.ends = ends }
                deinit {
                    try? Fiber.sleep(for: .milliseconds(2))
                    ends.value += 1
                }
            }
            let ends = Box(0)
            var seen: [Int] = []
            try FiberRuntime.run {
                let local = FiberLocal<Value?>(nil)
                let handle = try local.withValue(Value(ends)) {
                    try Fiber.spawnLocal { local.value?.ends.value }
                }
                seen.append(ends.value)
                seen.append(try handle.join() ?? -1)
                seen.append(ends.value)
            }
            #expect(seen == [0, 0, 1])
        }
    }
}

/// Until surplus stacks have been given back, which takes 200 ms with `trimmingSoon`, and deadlines of 450 ms have come. In steps, since an idle worker drops the deadlines that nobody
/// wants any more, up to the first that somebody wants.
private func sleepInSteps() throws {
    for _ in 0..<7 { try Fiber.sleep(for: .milliseconds(100)) }
}
