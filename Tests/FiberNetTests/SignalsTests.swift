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

            @Test func next_returnsSignals_inTheOrderInWhichTheyCame() async {
                await #expect(processExitsWith: .success) {
                    try withSignals {
                        let signals = try Signals.of(.user1, .user2, .hangup)
                        let sent = [SIGUSR1, SIGUSR2, SIGUSR1, SIGHUP, SIGUSR2, SIGUSR2, SIGUSR1]
                        // `raise` returns after the handler, so none merges with the next.
                        for number in sent { raise(number) }
                        expect(try sent.map { _ in try signals.next().number } == sent)
                    }
                }
            }

            @Test func noSignal_isLost_inABurst() async {
                await #expect(processExitsWith: .success) {
                    try withSignals {
                        let signals = try Signals.of(.user1)
                        for _ in 0..<5 {
                            for _ in 0..<150 { raise(SIGUSR1) }
                            for _ in 0..<150 { expect(try signals.next() == .user1) }
                        }
                    }
                }
            }

            @Test func sleepingWorker_isWoken_whenAnotherThreadSendsTheSignal() async {
                await #expect(processExitsWith: .success) {
                    try withSignals {
                        let signals = try Signals.of(.terminate)
                        let thread = Thread { kill(getpid(), SIGTERM) }
                        expect(try signals.next() == .terminate)
                        thread.join()
                    }
                }
            }

            @Test func everySubscriber_getsWhatItAskedFor() async {
                await #expect(processExitsWith: .success) {
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

            @Test func dispositions_return_withTheLastSubscriber() async {
                await #expect(processExitsWith: .success) {
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

            @Test func signal_doesWhatItDid_afterTheLastSubscriber() async {
                await #expect(processExitsWith: .signal(SIGUSR1)) {
                    try withSignals { try Signals.of(.user1).close() }
                    raise(SIGUSR1)
                }
            }

            @Test func next_throwsClosed_afterClose() async {
                await #expect(processExitsWith: .success) {
                    try withSignals {
                        let signals = try Signals.of(.user1)
                        raise(SIGUSR1)
                        signals.close()
                        expect(.closed) { _ = try signals.next() }
                    }
                }
            }

            @Test func of_throws_whenTheSignalCannotBeCaught() async {
                await #expect(processExitsWith: .success) {
                    let before = openSockets
                    try withSignals {
                        let error = expect(.system) { _ = try Signals.of(.user1, Signal(SIGKILL)) }
                        expect(error?.errno == .invalidArgument)
                        expect(disposition(SIGUSR1) == 0, "the other signal was given back")
                    }
                    expect(openSockets == before)
                }
            }

            @Test func of_stopsTheProgram_whenThereIsNoSuchSignal() async {
                await #expect(processExitsWith: .failure) { try withSignals { _ = try Signals.of(Signal(65)) } }
                await #expect(processExitsWith: .failure) { try withSignals { _ = try Signals.of(Signal(0)) } }
            }

            @Test func of_throwsResources_whenThereAreTooManySubscribers() async {
                await #expect(processExitsWith: .success) {
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

            @Test func subscribers_canComeAndGo_whileSignalsRain() async {
                await #expect(processExitsWith: .success) {
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
                    }
                    expect(openSockets == before, "\(openSockets) and not \(before)")
                }
            }

            @Test func child_isReported() async {
                await #expect(processExitsWith: .success) {
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

            // What must survive.

            @Test func aSignalEveryMillisecond_disturbsNothing() async {
                await #expect(processExitsWith: .success) {
                    // A handler that lets system calls be interrupted.
                    var action = sigaction()
                    action.__sigaction_handler.sa_handler = { _ in }
                    sigaction(SIGALRM, &action, nil)
                    var alarm = sigset_t()
                    sigaddset(&alarm, SIGALRM)
                    pthread_sigmask(SIG_UNBLOCK, &alarm, nil)
                    var interval = itimerval(it_interval: timeval(tv_sec: 0, tv_usec: 1_000), it_value: timeval(tv_sec: 0, tv_usec: 1_000))
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
                            expect(.timedOut) { _ = try quiet.read(upTo: 1, timeout: .milliseconds(50)) }
                            expect(clock.now - start >= .milliseconds(50))
                            other.close()
                        }
                        expect(same(received, sent))
                    }
                }
            }
        }
    }

    /// A runtime on a thread that may take signals: those of the test library block them all.
    private func withSignals(_ body: () throws -> Void) throws {
        var all = sigset_t()
        sigfillset(&all)
        pthread_sigmask(SIG_UNBLOCK, &all, nil)
        try inRuntime(seconds: 15, body)
    }

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
