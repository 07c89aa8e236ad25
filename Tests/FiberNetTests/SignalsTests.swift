// SPDX-License-Identifier: Apache-2.0

// Signals as values. In processes of their own: what a signal does belongs to the whole process.

import CFiber
import FiberNet
import Fibers
import Glibc
import Synchronization
import SystemPackage
import Testing

#if compiler(>=6.2)
    extension NetTests {
        struct SignalsTests {
            @Test func next_returnsTheSignal_whenItComes() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.user1, .user2)
                            let waiter = try Fiber.spawnLocal { try signals.next() }
                            letOthersRun()
                            expect(!waiter.fiber.isFinished)
                            expect(kill(getpid(), SIGUSR1) == 0)
                            expect(try waiter.join() == .user1)
                        }
                    }
                }
            }

            @Test func sleepingWorker_isWoken_whenAnotherThreadSendsTheSignal() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.terminate)
                            let thread = Thread { kill(getpid(), SIGTERM) }
                            expect(try signals.next() == .terminate)
                            thread.join()
                        }
                    }
                }
            }

            @Test func everySubscriber_getsWhatItAskedFor() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let both = try Signals.of(.user1, .user2)
                            let first = try Signals.of(.user1)
                            let second = try Signals.of(.user2)
                            raise(SIGUSR1)
                            raise(SIGUSR2)
                            expect(try [both.next(), both.next(), first.next(), second.next()] == [.user1, .user2, .user1, .user2])
                            // None has more than that.
                            for signals in [both, first, second] {
                                let waiter = try Fiber.spawnLocal { failure { _ = try signals.next() } }
                                letOthersRun()
                                expect(!waiter.fiber.isFinished)
                                signals.close()
                                expect(try waiter.join()?.code == .closed)
                            }
                        }
                    }
                }
            }

            @Test func dispositions_return_withTheLastSubscriber() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        signal(SIGUSR1, SIG_IGN)
                        let before = disposition(SIGUSR1)
                        try withSignals {
                            let first = try Signals.of(.user1)
                            let second = try Signals.of(.user1, .user2)
                            let ours = disposition(SIGUSR1)
                            expect(ours != before)
                            first.close()
                            expect(disposition(SIGUSR1) == ours)
                            raise(SIGUSR1)
                            expect(try second.next() == .user1)
                            second.close()
                            second.close()
                            expect(disposition(SIGUSR1) == before)
                            // Ignored, as it was.
                            raise(SIGUSR1)
                            // And when the last one is not closed but goes away.
                            do { _ = try Signals.of(.user1) }
                            expect(disposition(SIGUSR1) == before)
                        }
                        expect(disposition(SIGUSR2) == 0)
                    }
                }
            }

            @Test func signal_doesWhatItDid_afterTheLastSubscriber() async {
                await #expect(processExitsWith: .signal(SIGUSR1)) {
                    reportingErrors {
                        try withSignals { try Signals.of(.user1).close() }
                        raise(SIGUSR1)
                    }
                }
            }

            @Test func next_throwsClosed_afterClose() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.user1)
                            raise(SIGUSR1)
                            signals.close()
                            expect(.closed) { _ = try signals.next() }
                        }
                    }
                }
            }

            @Test func of_throws_whenTheSignalCannotBeCaught() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let before = openSockets
                        try withSignals {
                            let error = expect(.system) { _ = try Signals.of(.user1, Signal(SIGKILL)) }
                            expect(error?.errno == .invalidArgument)
                            expect(disposition(SIGUSR1) == 0, "the other signal was given back")
                        }
                        expect(openSockets == before)
                    }
                }
            }

            @Test func of_stopsTheProgram_whenThereIsNoSuchSignal() async {
                let beyond = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try withSignals { _ = try Signals.of(Signal(65)) }
                    }
                }
                expectMessage(beyond, "there is no signal 65: signals are numbered 1 to 64")
                let zero = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try withSignals { _ = try Signals.of(Signal(0)) }
                    }
                }
                expectMessage(zero, "there is no signal 0")
            }

            @Test func of_throwsResources_whenThereAreTooManySubscribers() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let before = openSockets
                        try withSignals {
                            var all = try (0..<64).map { _ in try Signals.of(.user1) }
                            expect(.resources) { _ = try Signals.of(.user1) }
                            all.removeLast()
                            all.append(try Signals.of(.user1))
                            raise(SIGUSR1)
                            for signals in all { expect(try signals.next() == .user1) }
                        }
                        expect(openSockets == before)
                    }
                }
            }

            @Test func subscribers_canComeAndGo_whileSignalsRain() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let before = openSockets
                        // The signal must always have somebody, or it would end the process.
                        try withSignals {
                            let always = try Signals.of(.user1)
                            let stopped = Flag()
                            let thread = Thread { while !stopped.isSet { kill(getpid(), SIGUSR1) } }
                            for _ in 0..<scaled(500, sanitized: 100) {
                                let signals = try Signals.of(.user1, .user2)
                                let signal = try signals.next()
                                expect(signal == .user1, "\(signal)")
                                signals.close()
                            }
                            stopped.set()
                            thread.join()
                            expect(try always.next() == .user1)
                            // One may still be on its way to a thread that waits for a CPU. To ignore it drops it; else it would come when nobody has it any more.
                            _ = Glibc.signal(SIGUSR1, SIG_IGN)
                        }
                        expect(openSockets == before, "\(openSockets) and not \(before)")
                    }
                }
            }

            @Test func child_isReported() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.child)
                            var pid = pid_t()
                            let arguments: [UnsafeMutablePointer<CChar>?] = [strdup("true"), nil]
                            defer { free(arguments[0]) }
                            expect(posix_spawnp(&pid, "true", nil, nil, arguments, environ) == 0)
                            expect(try signals.next() == .child)
                            var status: Int32 = 0
                            expect(waitpid(pid, &status, WNOHANG) == pid && status == 0)
                        }
                    }
                }
            }

            @Test func manyChildren_areAllReaped_whenTheyEndAtOnce() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.child)
                            let count = scaled(200, sanitized: 40)
                            var alive: Set<pid_t> = []
                            for _ in 0..<count { alive.insert(try startChild("true")) }
                            // Signals that come together are one, so each stands for any number of children.
                            var reaped = 0
                            while !alive.isEmpty {
                                expect(try withTimeout(.seconds(10)) { try signals.next() } == .child)
                                var status: Int32 = 0
                                while case let pid = waitpid(-1, &status, WNOHANG), pid > 0 {
                                    expect(status == 0 && alive.remove(pid) != nil, "child \(pid), status \(status)")
                                    reaped += 1
                                }
                            }
                            expect(reaped == count)
                            expect(waitpid(-1, nil, WNOHANG) == -1 && errno == ECHILD, "a zombie is left")
                        }
                    }
                }
            }

            @Test func endSignals_reachEverySubscriber_andTheHandlersBeforeComeBack() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let kinds: [(Int32, Signal)] = [(SIGTERM, .terminate), (SIGINT, .interrupt), (SIGHUP, .hangup)]
                        var mask = sigset_t()
                        sigaddset(&mask, SIGUSR2)
                        for (number, _) in kinds {
                            var action = sigaction()
                            action.__sigaction_handler.sa_handler = { _ in earlierHandlerCalls.add(1, ordering: .relaxed) }
                            action.sa_mask = mask
                            action.sa_flags = SA_NODEFER
                            sigaction(number, &action, nil)
                        }
                        let before = kinds.map { disposition($0.0) }
                        try withSignals {
                            let subscribers = try (0..<5).map { _ in try Signals.of(.terminate, .interrupt, .hangup) }
                            let waiters = try subscribers.map { signals in
                                try Fiber.spawnLocal { try kinds.map { _ in try signals.next() } }
                            }
                            letOthersRun()
                            let main = pthread_self()
                            for (number, _) in kinds {
                                // From this thread, and from another one that waits for nothing.
                                if number == SIGINT { Thread { kill(getpid(), SIGINT) }.join() } else { pthread_kill(main, number) }
                                letOthersRun()
                            }
                            for waiter in waiters {
                                let signals = try waiter.join()
                                // A signal for the process may be delivered to any thread, late.
                                expect(Set(signals) == Set(kinds.map(\.1)), "\(signals)")
                            }
                            expect(earlierHandlerCalls.load(ordering: .relaxed) == 0)
                            subscribers.forEach { $0.close() }
                            expect(kinds.map { disposition($0.0) } == before)
                            for (number, _) in kinds {
                                var action = sigaction()
                                sigaction(number, nil, &action)
                                expect(action.sa_flags & SA_NODEFER != 0 && sigismember(&action.sa_mask, SIGUSR2) == 1, "flags and mask")
                                raise(number)
                            }
                            expect(earlierHandlerCalls.load(ordering: .relaxed) == kinds.count)
                        }
                    }
                }
            }

            // Cancellation.

            @Test func next_isEnded_andTheSignalsBehindItAreNotLost() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.user1, .user2)
                            for ending in Ending.allCases {
                                let error = try end(ending) { _ = try signals.next() }
                                expect(error != nil)
                                raise(SIGUSR1)
                                raise(SIGUSR2)
                                expect(try [signals.next(), signals.next()] == [.user1, .user2])
                                // With another fiber before it in line, and one behind.
                                let first = try Fiber.spawnLocal { try signals.next() }
                                letOthersRun()
                                var third: FiberHandle<Signal>?
                                try end(
                                    ending,
                                    meanwhile: {
                                        third = try Fiber.spawnLocal { try signals.next() }
                                        letOthersRun()
                                    }
                                ) { _ = try signals.next() }
                                raise(SIGUSR2)
                                raise(SIGUSR1)
                                expect(try first.join() == .user2)
                                expect(try third?.join() == .user1)
                            }
                        }
                    }
                }
            }

            @Test func next_refuses_andLeavesTheSignal_whenItsFiberIsCancelled() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.user1)
                            for known in Known.allCases {
                                raise(SIGUSR1)
                                var error: Failure?
                                try known.run { error = failure { _ = try signals.next() } }
                                expect(
                                    error?.code == (known == .deadline ? .timedOut : .cancelled), "\(known): \(String(describing: error))")
                                expect(try signals.next() == .user1)
                            }
                        }
                    }
                }
            }

            @Test func signal_isHadOnce_whenItComesAtTheMomentOfTheCancellation() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withSignals {
                            let signals = try Signals.of(.user1, .user2)
                            let rounds = scaled(2_000, sanitized: 300)
                            var (had, ended) = (0, 0)
                            for i in 0..<rounds {
                                let wanted: Signal = i % 3 == 0 ? .user2 : .user1
                                let waiter = try Fiber.spawnLocal { try signals.next() }
                                if i % 5 != 0 { Fiber.yield() }
                                if i % 2 == 0 { waiter.cancel() }
                                raise(wanted.number)
                                // Now and then the event is seen before.
                                if i % 7 == 0 { try Fiber.sleep(for: .nanoseconds(1)) }
                                waiter.cancel()
                                do {
                                    expect(try waiter.join() == wanted)
                                    had += 1
                                } catch {
                                    expect(error is CancellationError, "\(error)")
                                    expect(try signals.next() == wanted)
                                    ended += 1
                                }
                            }
                            expect(had > 0 && ended > 0, "\(had) had, \(ended) ended")
                            // None is left.
                            expect(thrown { try withTimeout(.milliseconds(1)) { _ = try signals.next() } } is TimeoutError)
                        }
                    }
                }
            }

            // What must survive.

            @Test func aSignalEveryMillisecond_disturbsNothing() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        // A handler that lets system calls be interrupted.
                        var action = sigaction()
                        action.__sigaction_handler.sa_handler = { _ in }
                        sigaction(SIGALRM, &action, nil)
                        var alarm = sigset_t()
                        sigaddset(&alarm, SIGALRM)
                        pthread_sigmask(SIG_UNBLOCK, &alarm, nil)
                        var interval = itimerval(
                            it_interval: timeval(tv_sec: 0, tv_usec: 1_000), it_value: timeval(tv_sec: 0, tv_usec: 1_000))
                        setitimer(__itimer_which_t(ITIMER_REAL.rawValue), &interval, nil)
                        defer {
                            interval = itimerval()
                            setitimer(__itimer_which_t(ITIMER_REAL.rawValue), &interval, nil)
                        }
                        for transport in Transport.all {
                            let sent = pattern(scaled(3_000_000, sanitized: 500_000))
                            var received: [UInt8] = []
                            try withNet(transport) { net in
                                let (client, server) = try net.narrowPair()
                                try Fiber.spawnLocal {
                                    try client.writeAll(sent)
                                    client.close()
                                }
                                received = try server.readToEnd()
                                // None is early either.
                                let (quiet, other) = try net.pair()
                                let clock = ContinuousClock()
                                let start = clock.now
                                expect(.timedOut) { _ = try withTimeout(.milliseconds(50)) { try quiet.read(upTo: 1) } }
                                expect(clock.now - start >= .milliseconds(50))
                                other.close()
                            }
                            expect(same(received, sent))
                        }
                    }
                }
            }
        }
    }

    private let earlierHandlerCalls = Atomic<Int>(0)

    private final class Flag: Sendable {
        private let value = Atomic<Bool>(false)
        var isSet: Bool { value.load(ordering: .relaxed) }
        func set() { value.store(true, ordering: .relaxed) }
    }

    /// The handler of a signal, 0 for the default.
    private func disposition(_ number: Int32) -> UInt {
        var action = sigaction()
        sigaction(number, nil, &action)
        return unsafeBitCast(action.__sigaction_handler, to: UInt.self)
    }
#endif
