// SPDX-License-Identifier: Apache-2.0

// Subscribers beside handlers of other libraries, forked children, and the end of a runtime. In processes of their own.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import Synchronization
import Testing

#if compiler(>=6.2)
    extension NetTests {
        struct SignalHandlerTests {
            // Handlers that are installed over ours.

            @Test func close_leavesAHandler_thatWasInstalledMeanwhile() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.user1)
                            handle(SIGUSR1, by: .other)
                            signals.close()
                            raise(SIGUSR1)
                            expect(calls(.other) == 1)
                            // The same when another subscriber has come and gone over it.
                            try Signals.of(.user1).close()
                            raise(SIGUSR1)
                            expect(calls(.other) == 2)
                        }
                    }
                }
            }

            @Test func of_takesTheSignalAgain_whenAnotherHandlerHasReplacedOurs() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            handle(SIGUSR1, by: .earlier)
                            let first = try Signals.of(.user1)
                            handle(SIGUSR1, by: .other)
                            raise(SIGUSR1)
                            expect(calls(.other) == 1)
                            let second = try Signals.of(.user1)
                            raise(SIGUSR1)
                            expect(calls(.other) == 1)
                            expect(try [first.next(), second.next()] == [.user1, .user1])
                            second.close()
                            first.close()
                            raise(SIGUSR1)
                            expect(calls(.other) == 2 && calls(.earlier) == 0)
                        }
                    }
                }
            }

            @Test func signal_reachesTheHandlerBeforeUs_whenOneThatPassesOnWasInstalledOverOurs() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            handle(SIGUSR1, by: .earlier)
                            let signals = try Signals.of(.user1)
                            handle(SIGUSR1, by: .passingOn)
                            raise(SIGUSR1)
                            expect(try signals.next() == .user1)
                            expect(calls(.passingOn) == 1 && calls(.earlier) == 0)
                            signals.close()
                            for count in 2...4 {
                                raise(SIGUSR1)
                                expect(calls(.passingOn) == count && calls(.earlier) == count - 1, "\(count)")
                                // Subscribers over it do not make a circle of the two.
                                let more = try Signals.of(.user1)
                                raise(SIGUSR1)
                                expect(try more.next() == .user1)
                                more.close()
                            }
                        }
                    }
                }
            }

            @Test func signal_doesWhatItDid_whenOurHandlerIsPutBackAfterTheLastSubscriber() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            handle(SIGUSR1, by: .earlier)
                            let signals = try Signals.of(.user1)
                            let ours = handle(SIGUSR1, by: .other)
                            signals.close()
                            install(SIGUSR1, ours)
                            raise(SIGUSR1)
                            raise(SIGUSR1)
                            expect(calls(.earlier) == 2 && calls(.other) == 0, "\(calls(.earlier))")
                            // And when a subscriber comes first.
                            install(SIGUSR1, ours)
                            let next = try Signals.of(.user1)
                            raise(SIGUSR1)
                            expect(try next.next() == .user1)
                            next.close()
                            raise(SIGUSR1)
                            expect(calls(.earlier) == 3)
                        }
                    }
                }
            }

            // Subscribers that are left behind.

            @Test func terminate_endsTheProcess_whenItsSubscriberWasLeftBehindAtShutdown() async {
                await #expect(processExitsWith: .signal(SIGTERM)) {
                    reportingErrors {
                        leavingABehind(.terminate)
                        raise(SIGTERM)
                    }
                }
            }

            @Test func nextRuntime_hearsTheSignal_afterASubscriberWasLeftBehind() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        handle(SIGUSR1, by: .earlier)
                        for count in 1...70 {
                            // More than there can be subscribers at a time.
                            leavingABehind(.user1)
                            raise(SIGUSR1)
                            expect(calls(.earlier) == count)
                        }
                        try withSignals {
                            let signals = try Signals.of(.user1)
                            raise(SIGUSR1)
                            expect(try signals.next() == .user1)
                        }
                    }
                }
            }

            @Test func subscriberThatOutlivesItsRuntime_holdsNoSignal() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        handle(SIGUSR1, by: .earlier)
                        let kept = Box<Signals?>(nil)
                        try withSignals { kept.value = try Signals.of(.user1) }
                        raise(SIGUSR1)
                        expect(calls(.earlier) == 1)
                        try withSignals {
                            // Its end is not the end of one that has come since.
                            let signals = try Signals.of(.user1)
                            kept.value = nil
                            raise(SIGUSR1)
                            expect(try signals.next() == .user1)
                        }
                    }
                }
            }

            // Forked children.

            @Test func forkedChild_hasTheDispositionsFromBefore() async {
                await #expect(processExitsWith: .success) { reportingErrors { try forkAndRaise(raw: 0) } }
            }

            @Test func forkedChild_hasTheDispositionsFromBefore_whenTheCLibraryKnowsNothingOfIt() async {
                await #expect(processExitsWith: .success) { reportingErrors { try forkAndRaise(raw: 1) } }
            }

            @Test(.enabled(if: String(cString: cfiber_sanitizer()) != "thread", "ThreadSanitizer puts signals aside for ever after fork"))
            func forkedChild_thatSubscribes_writesNothingToItsParent() async {
                await #expect(processExitsWith: .success) { reportingErrors { try forkAndSubscribe(raw: 0) } }
            }

            @Test func forkedChild_thatSubscribes_writesNothingToItsParent_whenTheCLibraryKnowsNothingOfIt() async {
                await #expect(processExitsWith: .success) { reportingErrors { try forkAndSubscribe(raw: 1) } }
            }
        }
    }

    private func forkAndRaise(raw: Int32) throws {
        try withSignals {
            signal(SIGHUP, SIG_IGN)
            handle(SIGUSR1, by: .earlier)
            let signals = try Signals.of(.user1, .user2, .hangup)
            let child = cfaults_fork(raw)
            if child == 0 {
                raise(SIGUSR1)
                raise(SIGHUP)
                raise(SIGHUP)
                // The default, which ends it.
                if calls(.earlier) == 1 { raise(SIGUSR2) }
                _exit(1)
            }
            expect(try ending(of: child) == SIGUSR2)
            raise(SIGHUP)
            expect(try signals.next() == .hangup)
            expect(calls(.earlier) == 0)
        }
    }

    private func forkAndSubscribe(raw: Int32) throws {
        try withSignals {
            let signals = try Signals.of(.user1, .user2)
            let child = cfaults_fork(raw)
            if child == 0 {
                var fd: Int32 = -1
                guard cfiber_signals_subscribe(1 << UInt64(SIGUSR1 - 1), nil, &fd) >= 0 else { _exit(1) }
                raise(SIGUSR1)
                var query = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
                _exit(poll(&query, 1, 0) == 1 ? 0 : 2)
            }
            expect(try ending(of: child) == 0)
            raise(SIGUSR2)
            expect(try signals.next() == .user2)
        }
    }

    /// Runs a runtime that ends without a fiber that waits for a signal.
    private func leavingABehind(_ signal: Signal) {
        unblockSignals()
        var configuration = FiberRuntime.Configuration(workers: 1)
        configuration.onWarning = { _ in }
        cfaults_leaks_begin()
        defer { cfaults_leaks_end() }
        try? FiberRuntime.run(configuration) {
            let waiter = try Fiber.spawnLocal {
                let signals = try Signals.of(signal)
                _ = try withCancellationShield { try signals.next() }
            }
            letOthersRun()
            expect(!waiter.fiber.isFinished)
            FiberRuntime.shutDown(within: .zero)
        }
    }

    /// How a child has ended: 0, the signal that ended it, or minus its exit status.
    private func ending(of child: pid_t) throws -> Int32 {
        guard child > 0 else { throw TestError(text: "no child: error \(errno)") }
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 { guard errno == EINTR else { throw TestError(text: "waitpid: error \(errno)") } }
        return status & 0x7f != 0 ? status & 0x7f : -(status >> 8)
    }

    // Handlers of SIGUSR1.

    private enum Handler: Int { case earlier, other, passingOn }

    private let earlierCalls = Atomic<Int>(0)
    private let otherCalls = Atomic<Int>(0)
    private let passingOnCalls = Atomic<Int>(0)
    /// What `passingOn` has found.
    nonisolated(unsafe) private var found: (@convention(c) (Int32, UnsafeMutablePointer<siginfo_t>?, UnsafeMutableRawPointer?) -> Void)?

    private func calls(_ handler: Handler) -> Int {
        switch handler {
        case .earlier: earlierCalls.load(ordering: .relaxed)
        case .other: otherCalls.load(ordering: .relaxed)
        case .passingOn: passingOnCalls.load(ordering: .relaxed)
        }
    }

    /// Installs a handler, and returns what was there.
    @discardableResult
    private func handle(_ number: Int32, by handler: Handler) -> sigaction {
        _ = calls(handler)
        var action = sigaction()
        action.sa_flags = SA_SIGINFO
        switch handler {
        case .earlier: action.__sigaction_handler.sa_sigaction = { _, _, _ in earlierCalls.add(1, ordering: .relaxed) }
        case .other: action.__sigaction_handler.sa_sigaction = { _, _, _ in otherCalls.add(1, ordering: .relaxed) }
        case .passingOn:
            // Initialises it, which a handler cannot.
            found = nil
            action.__sigaction_handler.sa_sigaction = { number, info, context in
                passingOnCalls.add(1, ordering: .relaxed)
                found?(number, info, context)
            }
        }
        var before = sigaction()
        sigaction(number, &action, &before)
        if handler == .passingOn { found = before.__sigaction_handler.sa_sigaction }
        return before
    }

    private func install(_ number: Int32, _ action: sigaction) {
        var action = action
        sigaction(number, &action, nil)
    }
#endif
