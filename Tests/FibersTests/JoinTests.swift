// SPDX-License-Identifier: Apache-2.0

// Waiting for the end of a fiber and getting what it returned.

import CFiber
import Fibers
import Testing

extension KernelTests {
    @Suite struct JoinTests {
        @Test func join_returnsTheResult_whenTheFiberEndsLater() throws {
            let value = try FiberRuntime.run {
                try Fiber.spawnLocal {
                    try Fiber.sleep(for: .milliseconds(1))
                    return "late"
                }.join()
            }
            #expect(value == "late")
        }

        @Test func join_returnsTheResult_whenTheFiberHasEnded() throws {
            var wasFinished = false
            let value = try FiberRuntime.run {
                let handle = try Fiber.spawnLocal { "early" }
                Fiber.yield()
                wasFinished = handle.fiber.isFinished
                return try handle.join()
            }
            #expect(wasFinished)
            #expect(value == "early")
        }

        @Test func join_returnsTheSameObject_toEachOfManyWaiters() throws {
            final class Thing {}
            var things: [Thing] = []
            try FiberRuntime.run {
                let handle = try Fiber.spawnLocal {
                    for _ in 0..<5 { Fiber.yield() }
                    return Thing()
                }
                for _ in 0..<50 { try Fiber.spawnLocal { things.append(try handle.join()) } }
            }
            #expect(things.count == 50)
            #expect(Set(things.map { ObjectIdentifier($0) }).count == 1)
        }

        @Test func joiners_goOnInTheOrderTheyCame_whenTheFiberEnds() throws {
            var order: [Int] = []
            try FiberRuntime.run {
                let handle = try Fiber.spawnLocal { for _ in 0..<3 { Fiber.yield() } }
                for i in 0..<20 {
                    try Fiber.spawnLocal {
                        try handle.join()
                        order.append(i)
                    }
                }
            }
            #expect(order == Array(0..<20))
        }

        @Test func join_throwsTheError_everyTimeItIsCalled() throws {
            var caught: [TestError] = []
            let heard = Box(0)
            try FiberRuntime.run(.init(onUnhandledError: { _ in heard.value += 1 })) {
                let handle = try Fiber.spawnLocal { () -> Int in throw TestError(number: 3) }
                for _ in 0..<5 {
                    try Fiber.spawnLocal {
                        do { _ = try handle.join() } catch let error as TestError { caught.append(error) }
                    }
                }
                do { _ = try handle.join() } catch let error as TestError { caught.append(error) }
                do { _ = try handle.join() } catch let error as TestError { caught.append(error) }
            }
            #expect(caught == [TestError](repeating: TestError(number: 3), count: 7))
            #expect(heard.value == 0)
        }

        @Test func join_returns_whenTheRuntimeOfTheFiberHasEnded() throws {
            var handle: FiberHandle<Int>?
            try FiberRuntime.run { handle = try Fiber.spawnLocal { 11 } }
            #expect(try handle?.join() == 11)
            #expect(handle?.fiber.isFinished == true)
        }

        @Test func join_waitsForItsOwnFiber_whenTheStackIsUsedAgain() throws {
            // The second fiber runs on the first one's stack; a handle of the first must not wait for the second.
            var order: [String] = []
            try FiberRuntime.run {
                let first = try Fiber.spawnLocal { order.append("first") }
                Fiber.yield()
                try Fiber.spawnLocal {
                    for _ in 0..<10 { Fiber.yield() }
                    order.append("second")
                }
                try first.join()
                order.append("joined")
            }
            #expect(order == ["first", "joined", "second"])
        }

        @Test func fibers_joinEachOther_inAChainOfAThousand() throws {
            let sum = try FiberRuntime.run {
                var last = try Fiber.spawnLocal { 1 }
                for _ in 1..<1_000 {
                    let before = last
                    last = try Fiber.spawnLocal { try before.join() + 1 }
                }
                return try last.join()
            }
            #expect(sum == 1_000)
        }

        #if compiler(>=6.2)
            @Test func join_stopsAndSaysWhatToDo_whenAFiberJoinsItself() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            var handle: FiberHandle<Void>?
                            handle = try Fiber.spawnLocal { try handle?.join() }
                        }
                    }
                }
                expectMessage(result, "join it from another fiber")
            }

            @Test func join_stopsAndSaysWhatToDo_whenCalledOutsideARuntime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        // The only way to have the handle of an unfinished fiber out there is another thread.
                        let box = Box<FiberHandle<Void>?>(nil)
                        try FiberRuntime.run {
                            box.value = try Fiber.spawnLocal { try Fiber.sleep(for: .seconds(60)) }
                            onThread { try? box.value?.join() }
                        }
                    }
                }
                expectMessage(result, "FiberHandle.join() was called outside a fiber, on thread ")
            }
        #endif
    }

    #if compiler(>=6.2)
        /// Calls that need a fiber, made without one.
        @Suite struct OutsideTests {
            @Test func yield_stopsAndSaysWhatToDo_outsideARuntime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) { Fiber.yield() }
                expectMessage(result, "Fiber.yield() was called outside a fiber: wrap the program in FiberRuntime.run")
            }

            @Test func sleep_stopsAndSaysWhatToDo_outsideARuntime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try Fiber.sleep(for: .seconds(1))
                    }
                }
                expectMessage(result, "Fiber.sleep(for:) was called outside a fiber: wrap the program in FiberRuntime.run")
            }

            @Test func spawnLocal_stopsAndSaysWhatToDo_outsideARuntime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try Fiber.spawnLocal {}
                    }
                }
                expectMessage(result, "Fiber.spawnLocal was called outside a fiber: wrap the program in FiberRuntime.run")
            }

            @Test func call_saysThatItsThreadIsNoFiber_whereARuntimeRuns() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 1)) {
                            let fiber = Box(try Fiber.spawnLocal { try Fiber.sleep(for: long) })
                            onThread {
                                cfiber_name_thread("stranger")
                                try? fiber.value.join()
                            }
                        }
                    }
                }
                expectMessage(result, "FiberHandle.join() was called outside a fiber, on thread ")
                expectMessage(result, " \"stranger\", while a FiberRuntime runs on other threads: only its fibers can make this call")
                expectMessage(
                    result, "let the thread talk to that by what works anywhere: makeChannel, makeOneShot, FiberEvent, FiberMutex")
            }

            @Test func call_saysThatATaskIsNoFiber_whereARuntimeRuns() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    let isRunning = FiberEvent()
                    let thread = Thread {
                        reportingErrors {
                            try FiberRuntime.run(.init(workers: 1)) {
                                isRunning.signal()
                                try Fiber.sleep(for: long)
                            }
                        }
                    }
                    while !isRunning.take() { await Task.yield() }
                    reportingErrors { try withTimeout(.seconds(1)) {} }
                    thread.join()
                }
                expectMessage(
                    result,
                    "withTimeout was called outside a fiber, in a task of Swift concurrency, while a FiberRuntime runs on other threads")
            }

            /// What stands in the message of a program that has no runtime is no use once one has been there.
            @Test func call_asksForARuntime_whenTheLastOneHasEnded() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {}
                        try withTimeout(.seconds(1)) {}
                    }
                }
                expectMessage(result, "withTimeout was called outside a fiber: wrap the program in FiberRuntime.run")
            }
        }
    #endif
}
