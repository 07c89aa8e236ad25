// SPDX-License-Identifier: Apache-2.0

// Calls that block, on threads of their own.

import CFaults
import Fibers
import Glibc
import Synchronization
import Testing

extension KernelTests {
    @Suite struct BlockingTests {
        /// A gate for plain threads.
        final class Gate: Sendable {
            private let isOpen = Atomic<Bool>(false)
            let waiting = Atomic<Int>(0)
            func open() { isOpen.store(true, ordering: .releasing) }
            func wait() {
                waiting.add(1, ordering: .relaxed)
                while !isOpen.load(ordering: .acquiring) { usleep(200) }
                waiting.subtract(1, ordering: .relaxed)
            }
        }

        /// What several threads count.
        final class Counter: Sendable {
            private let count = Atomic<Int>(0)
            var value: Int { count.load(ordering: .acquiring) }
            func add() { count.add(1, ordering: .acquiringAndReleasing) }
        }

        final class Log: Sendable {
            let entries = Mutex<[Int]>([])
        }

        @Test func call_returnsItsResult_fromAnotherThread() throws {
            let here = pthread_self()
            let (value, thread) = try FiberRuntime.run { try withBlockingThread { ([1, 2, 3], pthread_self()) } }
            #expect(value == [1, 2, 3])
            #expect(thread != here)
        }

        @Test func call_throwsWhatItsBodyThrows() throws {
            #expect(throws: TestError(number: 3)) {
                try FiberRuntime.run { try withBlockingThread { throw TestError(number: 3) } }
            }
        }

        @Test func fibersGoOn_whileACallBlocks() throws {
            let gate = Gate()
            let turns = try FiberRuntime.run {
                let call = try Fiber.spawnLocal { try withBlockingThread { gate.wait() } }
                var turns = 0
                while gate.waiting.load(ordering: .relaxed) == 0 || turns < 1000 {
                    Fiber.yield()
                    turns += 1
                }
                gate.open()
                try call.join()
                return turns
            }
            #expect(turns >= 1000)
        }

        @Test func sleepingWorker_isWoken_whenACallEnds() throws {
            try FiberRuntime.run {
                for i in 0..<200 {
                    let value = try withBlockingThread { () -> Int in
                        usleep(50)
                        return i
                    }
                    if value != i { throw TestError(number: i) }
                }
            }
        }

        @Test(arguments: [1, 3])
        func threads_areNoMoreThanTheLimit_andCallsAreServedInOrder(limit: Int) throws {
            let gate = Gate()
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = limit
            let order = Log()
            let statistics = try FiberRuntime.run(configuration) {
                for _ in 0..<limit { try Fiber.spawnLocal { try withBlockingThread { gate.wait() } } }
                try sure { gate.waiting.load(ordering: .relaxed) == limit }
                for i in 0..<20 { try Fiber.spawnLocal { try withBlockingThread { order.entries.withLock { $0.append(i) } } } }
                Fiber.yield()
                let statistics = FiberRuntime.blockingStatistics
                gate.open()
                return statistics
            }
            #expect(statistics.threads == limit && statistics.idle == 0 && statistics.queued == 20 && statistics.completed == 0)
            #expect(statistics.oldestWait > .zero)
            // Several threads take them in order, too, but any of them may be held up before it has said so.
            let served = order.entries.withLock { $0 }
            #expect((limit == 1 ? served : served.sorted()) == Array(0..<20))
        }

        @Test(arguments: [false, true])
        func threads_end_whenFewerAreNeeded(forATrickleOfCalls isTrickling: Bool) throws {
            var configuration = FiberRuntime.Configuration(workers: 1, blockingThreads: 8)
            configuration.blockingIdleLimit = .milliseconds(60)
            let gate = Gate()
            let (most, turns) = try FiberRuntime.run(configuration) {
                let calls = try (0..<8).map { _ in try Fiber.spawnLocal { try withBlockingThread { gate.wait() } } }
                while gate.waiting.load(ordering: .relaxed) < 8 { Fiber.yield() }
                let most = FiberRuntime.blockingStatistics.threads
                gate.open()
                for call in calls { try call.join() }
                var turns = 0
                while FiberRuntime.blockingStatistics.threads > (isTrickling ? 2 : 0) && turns < 1_000 {
                    if isTrickling { try withBlockingThread {} }
                    try Fiber.sleep(for: .milliseconds(5))
                    turns += 1
                }
                return (most, turns)
            }
            #expect(most == 8)
            #expect(turns < 1_000)
        }

        @Test func idleThread_isUsedAgain() throws {
            let threads = try FiberRuntime.run {
                for _ in 0..<100 { try withBlockingThread {} }
                return FiberRuntime.blockingStatistics.threads
            }
            #expect(threads <= 2)
        }

        @Test func queuedCall_neverRuns_whenItsFiberIsCancelled() throws {
            let gate = Gate()
            let ran = Counter()
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = 1
            let (error, queued) = try FiberRuntime.run(configuration) {
                try Fiber.spawnLocal { try withBlockingThread { gate.wait() } }
                try sure { gate.waiting.load(ordering: .relaxed) == 1 }
                let call = try Fiber.spawnLocal { try withBlockingThread { ran.add() } }
                try sure { FiberRuntime.blockingStatistics.queued == 1 }
                call.cancel()
                var failure: (any Error)?
                do { try call.join() } catch { failure = error }
                let queued = FiberRuntime.blockingStatistics.queued
                gate.open()
                return (failure, queued)
            }
            #expect(error is CancellationError)
            #expect(queued == 0)
            #expect(ran.value == 0)
        }

        @Test func runningCall_isLeftToItself_whenADeadlinePasses() throws {
            let gate = Gate()
            let ended = Counter()
            let error = try FiberRuntime.run {
                var failure: (any Error)?
                do {
                    try withTimeout(.milliseconds(5)) {
                        try withBlockingThread {
                            gate.wait()
                            ended.add()
                        }
                    }
                } catch { failure = error }
                gate.open()
                return failure
            }
            #expect(error is TimeoutError)
            // The runtime has waited for it.
            #expect(ended.value == 1)
        }

        @Test func runtimeEnds_andNamesTheCall_whenItDoesNotEnd() throws {
            let gate = Gate()
            let warnings = Box<[String]>([])
            var configuration = FiberRuntime.Configuration()
            configuration.shutdownLimit = .milliseconds(20)
            configuration.onWarning = { warnings.value.append($0) }
            try FiberRuntime.run(configuration) {
                let call = try Fiber.spawnLocal { try withBlockingThread(name: "endless") { gate.wait() } }
                try sure { gate.waiting.load(ordering: .relaxed) == 1 }
                call.cancel()
            }
            gate.open()
            #expect(warnings.value.count == 1 && warnings.value[0].contains("endless"), "\(warnings.value)")
        }

        /// Fibers of another runtime may wait for what it would have brought.
        @Test func queuedCallOfNobody_isRefused_whenTheRuntimeEnds() throws {
            let gate = Gate()
            let (refused, ran) = (Counter(), Counter())
            let opener = Thread {
                while refused.value == 0 && ran.value == 0 { usleep(200) }
                gate.open()
            }
            try FiberRuntime.run(.init(blockingThreads: 1)) {
                _ = DetachedCall(name: "first", refused: { _ in refused.add() }) { gate.wait() }
                while gate.waiting.load(ordering: .relaxed) == 0 { Fiber.yield() }
                _ = DetachedCall(name: "second", refused: { _ in refused.add() }) { ran.add() }
            }
            opener.join()
            #expect(refused.value == 1 && ran.value == 0)
        }

        @Test func callsEndWell_orNeverBegin_whenTheRuntimeHasEndedWithoutTheirFibers() throws {
            let before = Process.threads
            let gate = Gate()
            let ran = Counter()
            let warnings = Box<[String]>([])
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = 1
            configuration.shutdownLimit = .milliseconds(5)
            configuration.onWarning = { warnings.value.append($0) }
            // What an abandoned fiber owns leaks.
            cfaults_leaks_begin()
            try FiberRuntime.run(configuration) {
                try Fiber.spawnLocal(name: "stubborn") { try withCancellationShield { try withBlockingThread { gate.wait() } } }
                try sure { gate.waiting.load(ordering: .relaxed) == 1 }
                try Fiber.spawnLocal(name: "in line") { try withCancellationShield { try withBlockingThread { ran.add() } } }
                try sure { FiberRuntime.blockingStatistics.queued == 1 }
                FiberRuntime.shutDown()
            }
            cfaults_leaks_end()
            #expect(warnings.value.count == 2 && warnings.value[0].contains("stubborn"), "\(warnings.value)")
            gate.open()
            // The thread finds neither the fiber nor its worker.
            while Process.threads > before { usleep(200) }
            #expect(ran.value == 0)
        }

        @Test func manyCalls_allEnd_whileManyAreCancelled() throws {
            let seed = UInt64.random(in: 0...(.max))
            print("seed \(seed)")
            let random = Box(SeededGenerator(seed: seed))
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = 4
            let ran = Counter()
            let (finished, cancelled) = try FiberRuntime.run(configuration) {
                var finished = 0
                var cancelled = 0
                try withFiberGroup(limit: 50) { group in
                    for _ in 0..<scaled(20_000, sanitized: 2_000) {
                        let call = try group.spawnLocal {
                            do {
                                try withBlockingThread { ran.add() }
                                finished += 1
                            } catch is CancellationError { cancelled += 1 }
                        }
                        if Int.random(in: 0..<3, using: &random.value) == 0 {
                            if Bool.random(using: &random.value) { Fiber.yield() }
                            call.cancel()
                        }
                    }
                }
                return (finished, cancelled)
            }
            #expect(finished + cancelled == scaled(20_000, sanitized: 2_000))
            #expect(cancelled > 0)
            // Who was cancelled may have run all the same.
            #expect((finished...finished + cancelled).contains(ran.value))
        }

        @Test func runtimes_leaveNoThreads_whenTheyEnd() throws {
            let before = Process.threads
            for _ in 0..<200 { try FiberRuntime.run { try withBlockingThread {} } }
            // One for each would be 200 more.
            #expect(waitForThreads(before))
        }
    }
}

/// Lets other fibers run until a condition holds.
private func sure(_ condition: () -> Bool) throws {
    if !yield(until: condition) { throw TestError(number: -1) }
}
