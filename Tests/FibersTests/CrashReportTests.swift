// SPDX-License-Identifier: Apache-2.0

// What Swift's crash reporter says of a crash inside a runtime, and whom timers and the reporter reach by a signal.

import CFaults
import CFiber
import Fibers
import Glibc
import Synchronization
import Testing

@inline(never) @_optimize(none)
private func crashHere() { UnsafeMutablePointer<Int>(bitPattern: 16)!.pointee = 1 }

/// An empty file without a name.
private func emptyFile() throws -> Int32 {
    let file = tmpfile().map { fileno($0) } ?? -1
    guard file >= 0 else { throw TestError(number: Int(errno)) }
    return file
}

/// Three workers and a thread for blocking calls, all of which must be in the report.
private func crash(_ place: String) throws {
    try FiberRuntime.run(.init(workers: 3)) {
        let isBlocked = FiberEvent()
        try Fiber.spawnLocal {
            try withBlockingThread {
                isBlocked.signal()
                sleep(1000)
            }
        }
        try isBlocked.wait()
        switch place {
        case "worker": try Fiber.spawn(on: 1) { crashHere() }.join()
        case "blocking thread": try withBlockingThread { crashHere() }
        case "bus error":
            // A page of a file that has none.
            let page = mmap(nil, 4096, PROT_READ, MAP_SHARED, try emptyFile(), 0)
            print(opaque(page!.load(as: Int.self)))
        default: crashHere()
        }
    }
}

#if compiler(>=6.2)
    extension KernelTests {
        struct CrashReportTests {
            @Test(
                .enabled(if: !isSanitized, "sanitizers report crashes themselves"),
                arguments: ["first worker", "worker", "blocking thread", "bus error"])
            func report_isWhole_whereverTheCrashHappens(place: String) throws {
                // Returns when nobody has the output open any more: a reporter that hangs would.
                let text = try runAgain("FIBERS_TESTS_CRASH='\(place)'", test: "crash_happens_whenAskedForByTheEnvironment")
                #expect(
                    text.contains("Program crashed: \(place == "bus error" ? "" : "Bad pointer dereference at 0x0000000000000010")"),
                    "\(text)")
                #expect(!text.contains("failed to suspend"), "\(text)")
                for part in ["\"fibers-1\"", "\"fibers-2\"", "Registers:", "Images "] {
                    #expect(text.contains(part), "\(part): \(text)")
                }
                let parts = try ["Registers:", "Images "].map { try #require(text.firstRange(of: $0)).lowerBound }
                #expect(parts == parts.sorted())
            }

            /// Not a test of its own: the other half of the one above.
            @Test(.enabled(if: getenv("FIBERS_TESTS_CRASH") != nil, "run by another test only"))
            func crash_happens_whenAskedForByTheEnvironment() throws { try crash(String(cString: getenv("FIBERS_TESTS_CRASH"))) }

            @Test func threadsOfARuntime_takeNoSignalsOfTheProcess_butThatOfProfilers() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 2)) {
                            let onWorker = try Fiber.spawn(on: 1) { blockedSignals() }.join()
                            let onThread = try withBlockingThread { blockedSignals() }
                            for blocked in [onWorker, onThread] {
                                for number in [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS, SIGPROF] {
                                    expect(!blocked.contains(number), "\(number)")
                                }
                                for number in [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCHLD, SIGALRM, SIGPIPE] {
                                    expect(blocked.contains(number), "\(number)")
                                }
                            }
                        }
                    }
                }
            }

            @Test func profilingSignals_reachAllThreads_andDisturbNothing() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        _ = reached.load(ordering: .relaxed)
                        var action = sigaction()
                        // Without SA_RESTART: system calls are interrupted.
                        action.__sigaction_handler.sa_handler = { _ in
                            let thread = cfaults_thread_id()
                            for i in 0..<4 where threads[i] == thread { reached.bitwiseOr(1 << i, ordering: .relaxed) }
                        }
                        sigaction(SIGPROF, &action, nil)
                        var profiled = sigset_t()
                        sigaddset(&profiled, SIGPROF)
                        pthread_sigmask(SIG_UNBLOCK, &profiled, nil)
                        // One thread for blocking calls, so that it is the one that is known.
                        try FiberRuntime.run(.init(workers: 3, blockingThreads: 1)) {
                            for worker in 0..<3 { threads[worker] = try Fiber.spawn(on: worker) { cfaults_thread_id() }.join() }
                            threads[3] = try withBlockingThread { cfaults_thread_id() }
                            let profiler = Thread {
                                while !profilerIsOver.load(ordering: .relaxed) {
                                    for i in 0..<4 { _ = cfaults_signal_thread(threads[i], SIGPROF) }
                                    usleep(200)
                                }
                            }
                            let fibers = try (0..<3).map { worker in
                                try Fiber.spawn(on: worker) { try waitInManyWays(rounds: scaled(100, sanitized: 20)) }
                            }
                            for fiber in fibers { try fiber.join() }
                            expect(yield { reached.load(ordering: .relaxed) == 0b1111 }, "\(reached.load(ordering: .relaxed))")
                            profilerIsOver.store(true, ordering: .relaxed)
                            profiler.join()
                        }
                    }
                }
            }
        }
    }

    private let reached = Atomic<Int>(0)
    private let profilerIsOver = Atomic<Bool>(false)
    /// Of three workers and for blocking calls.
    nonisolated(unsafe) private let threads = {
        let threads = UnsafeMutablePointer<pid_t>.allocate(capacity: 4)
        threads.initialize(repeating: 0, count: 4)
        return threads
    }()

    /// Sleeps, waits for other threads, and for time to run out: none of it ends early.
    private func waitInManyWays(rounds: Int) throws {
        let clock = ContinuousClock()
        for _ in 0..<rounds {
            let start = clock.now
            try Fiber.sleep(for: .milliseconds(1))
            expect(clock.now - start >= .milliseconds(1))
            expect(try withBlockingThread { usleep(10) } != 1)
            let event = FiberEvent()
            let thread = Thread { event.signal() }
            try event.wait()
            thread.join()
            var isOver = false
            do { try withTimeout(.microseconds(500)) { try event.wait() } } catch is TimeoutError { isOver = true }
            expect(isOver)
        }
    }

    private func blockedSignals() -> [Int32] {
        var mask = sigset_t()
        pthread_sigmask(SIG_BLOCK, nil, &mask)
        return (1...64).filter { sigismember(&mask, $0) == 1 }
    }
#endif
