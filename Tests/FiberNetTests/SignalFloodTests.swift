// SPDX-License-Identifier: Apache-2.0

// What signals do to each other: one pending signal of each kind for each subscriber, and the order among kinds. In processes of their own.

import CFiber
import FiberNet
import Fibers
import Glibc
import Testing

#if compiler(>=6.2)
    extension NetTests {
        struct SignalFloodTests {
            @Test func terminate_arrives_behindAFloodThatNobodyReads() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.user1, .child, .terminate)
                            // Far more than any socket's buffer holds.
                            for _ in 0..<2_000 {
                                raise(SIGUSR1)
                                raise(SIGCHLD)
                            }
                            raise(SIGTERM)
                            expect(try [signals.next(), signals.next(), signals.next()] == [.user1, .child, .terminate])
                            try expectNothing(signals)
                        }
                    }
                }
            }

            @Test func terminate_arrives_whenManyChildrenEndBeforeTheWorkerReads() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.child, .terminate)
                            var ended = 0
                            for _ in 0..<scaled(400, sanitized: 50) {
                                _ = try startChild("true")
                                // The thread waits, and no fiber runs.
                                var status: Int32 = 0
                                while waitpid(-1, &status, 0) < 0 && errno == EINTR {}
                                ended += 1
                            }
                            raise(SIGTERM)
                            expect(try [signals.next(), signals.next()] == [.child, .terminate])
                            try expectNothing(signals)
                        }
                    }
                }
            }

            @Test func signals_comeInTheOrderOfTheirFirstArrival_eachOnce() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.user1, .user2, .hangup)
                            for number in [SIGUSR2, SIGUSR1, SIGUSR2, SIGHUP, SIGUSR1] { raise(number) }
                            expect(try signals.next() == .user2)
                            // Taken, so it is a new one now, and the last.
                            raise(SIGUSR2)
                            expect(try [signals.next(), signals.next(), signals.next()] == [.user1, .hangup, .user2])
                            try expectNothing(signals)
                        }
                    }
                }
            }

            @Test func everyKind_arrives_whenAllComeAtOnce() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let faults = [SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS]
                            let kinds = (Array(1...31) + Array(34...64)).filter { !faults.contains($0) }
                            let subscribers = try kinds.map { try Signals.of(Signal($0)) }
                            let all = try Signals.of(.user1, .user2)
                            for number in kinds.reversed() { for _ in 0..<10 { raise(number) } }
                            for (signals, number) in zip(subscribers, kinds) {
                                expect(try signals.next() == Signal(number))
                                try expectNothing(signals)
                            }
                            expect(try [all.next(), all.next()] == [.user2, .user1])
                        }
                    }
                }
            }

            @Test func fibersInLine_haveOneSignalEach_whenTheyComeTogether() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.user1, .user2, .hangup)
                            for _ in 0..<100 {
                                let waiters = try (0..<3).map { _ in try Fiber.spawnLocal { try signals.next() } }
                                letOthersRun()
                                // One wake-up for all three.
                                for number in [SIGHUP, SIGUSR1, SIGUSR2] { raise(number) }
                                expect(try waiters.map { try $0.join() } == [.hangup, .user1, .user2])
                            }
                        }
                    }
                }
            }

            @Test func noKind_isLost_whenSeveralThreadsHandleSignalsAtOnce() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let kinds = [SIGUSR1, SIGUSR2, SIGHUP, SIGINT]
                            let rounds = scaled(20_000, sanitized: 1_000)
                            let signals = try Signals.of(.user1, .user2, .hangup, .interrupt)
                            let taken = kinds.map { _ in SharedCounter() }
                            // Each thread handles its own kind, and sends the next one when the last has been taken.
                            let threads = (0..<kinds.count).map { i in
                                let (number, count) = (kinds[i], taken[i])
                                return Thread {
                                    for round in 0..<rounds {
                                        raise(number)
                                        while count.value == round { sched_yield() }
                                    }
                                }
                            }
                            for _ in 0..<rounds * kinds.count { taken[try kinds.firstIndex(of: signals.next().number)!].add() }
                            for thread in threads { thread.join() }
                            for i in kinds.indices { expect(taken[i].value == rounds, "\(kinds[i]): \(taken[i].value)") }
                            try expectNothing(signals)
                        }
                    }
                }
            }
        }
    }

    /// Expects that no signal is pending: a fiber that asks for one parks.
    private func expectNothing(_ signals: Signals, sourceLocation: SourceLocation = #_sourceLocation) throws {
        let waiter = try Fiber.spawnLocal { try signals.next() }
        letOthersRun()
        expect(!waiter.fiber.isFinished, "there is one more", sourceLocation: sourceLocation)
        waiter.cancel()
        _ = try? waiter.join()
    }
#endif
