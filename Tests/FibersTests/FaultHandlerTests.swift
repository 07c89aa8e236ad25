// SPDX-License-Identifier: Apache-2.0

// SIGSEGV handlers of others around ours: below it, as the kernel would call them, and installed over it. In processes of their own.

import CFiber
import Fibers
import Glibc
import Synchronization
import Testing

#if compiler(>=6.2)
    extension KernelTests {
        @Suite(.enabled(if: !isSanitized, "sanitizers have handlers of their own for faults"))
        struct FaultHandlerTests {
            // Below ours.

            @Test func handler_runsWithTheMaskThatItAskedFor_whenAFiberFaults() async {
                await #expect(processExitsWith: .exitCode(42)) {
                    reportingErrors {
                        handleFaults(flags: 0) { _ in
                            _exit(isBlocked(SIGSEGV) && isBlocked(SIGUSR2) && isBlocked(SIGHUP) && !isBlocked(SIGUSR1) ? 42 : 1)
                        }
                        try faultInAFiber()
                    }
                }
            }

            @Test func handler_mayFaultAgain_whenItAskedForThat() async {
                await #expect(processExitsWith: .exitCode(42)) {
                    reportingErrors {
                        handleFaults(flags: SA_NODEFER) { _ in
                            if isBlocked(SIGSEGV) || !isBlocked(SIGUSR2) { _exit(1) }
                            if calls.add(1, ordering: .relaxed).newValue == 2 { _exit(42) }
                            fault()
                        }
                        try faultInAFiber()
                    }
                }
            }

            @Test func handler_isCalledOnce_whenItIsForASingleUse() async {
                let result = await #expect(processExitsWith: .signal(SIGSEGV), observing: [\.standardErrorContent]) {
                    reportingErrors {
                        handleFaults(flags: CInt(bitPattern: UInt32(SA_RESETHAND))) { _ in say("called") }
                        try faultInAFiber()
                    }
                }
                expectCount(of: "called", 1, result)
            }

            @Test func sentFault_isIgnored_whenItWasBefore() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        signal(SIGSEGV, SIG_IGN)
                        try FiberRuntime.run {
                            let ours = handlerOfFaults()
                            for _ in 0..<3 {
                                raise(SIGSEGV)
                                expect(handlerOfFaults() == ours)
                            }
                        }
                        expect(handlerOfFaults() == 1, "SIG_IGN is back")
                    }
                }
            }

            @Test func handler_hearsWhoSentTheFault() async {
                await #expect(processExitsWith: .exitCode(42)) {
                    reportingErrors {
                        handleFaults(flags: 0) { info in _exit(info!.pointee.si_code == -6 /* SI_TKILL */ ? 42 : 1) }
                        try FiberRuntime.run { _ = raise(SIGSEGV) }
                    }
                }
            }

            // Over ours.

            @Test func overflow_isExplained_inTheNextRuntime_whenAHandlerHasReplacedOurs() async {
                let result = await #expect(processExitsWith: .exitCode(42), observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run { handleFaults(flags: SA_ONSTACK) { _ in _exit(42) } }
                        try overflow()
                    }
                }
                expectCount(of: "fiber stack overflow", 1, result)
            }

            @Test func overflow_isExplained_onAWorkerThatStartsLater_whenAHandlerHasReplacedOurs() async {
                let result = await #expect(processExitsWith: .exitCode(42), observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            handleFaults(flags: SA_ONSTACK) { _ in _exit(42) }
                            onThread { try? overflow() }
                        }
                    }
                }
                expectCount(of: "fiber stack overflow", 1, result)
            }

            @Test func overflow_isExplainedOnce_andGoesToEachHandlerOnce_whenOneOverOursPassesOn() async {
                let result = await #expect(processExitsWith: .signal(SIGSEGV), observing: [\.standardErrorContent]) {
                    reportingErrors {
                        handleFaults(flags: CInt(bitPattern: UInt32(SA_RESETHAND))) { _ in say("the first") }
                        try FiberRuntime.run { passFaultsOn() }
                        try FiberRuntime.run {}
                        try overflow()
                    }
                }
                expectCount(of: "fiber stack overflow", 1, result)
                // At the first fault by way of all of them; at the second the first one has been used.
                expectCount(of: "the first", 1, result)
                expectCount(of: "passed on", 2, result)
            }

            @Test func handler_isBackAfterEachRuntime_howeverOftenItReplacedOurs() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        handleFaults(flags: 0) { _ in }
                        let theirs = handlerOfFaults()
                        for _ in 0..<50 {
                            try FiberRuntime.run {
                                expect(handlerOfFaults() != theirs)
                                handleFaults(flags: 0) { _ in }
                            }
                            expect(handlerOfFaults() == theirs)
                            try FiberRuntime.run {}
                            expect(handlerOfFaults() == theirs)
                        }
                    }
                }
            }
        }
    }

    private let calls = Atomic<Int>(0)
    private typealias Body = @convention(c) (UnsafeMutablePointer<siginfo_t>?) -> Void
    nonisolated(unsafe) private var body: Body = { _ in }
    nonisolated(unsafe) private var found: (@convention(c) (Int32, UnsafeMutablePointer<siginfo_t>?, UnsafeMutableRawPointer?) -> Void)?

    /// Installs a handler with SIGUSR2 in its mask, on a thread that has SIGHUP blocked.
    private func handleFaults(flags: CInt, _ newBody: Body) {
        var mask = sigset_t()
        sigfillset(&mask)
        pthread_sigmask(SIG_UNBLOCK, &mask, nil)
        sigemptyset(&mask)
        sigaddset(&mask, SIGHUP)
        pthread_sigmask(SIG_BLOCK, &mask, nil)
        _ = calls.load(ordering: .relaxed)
        body = newBody
        var action = sigaction()
        sigaddset(&action.sa_mask, SIGUSR2)
        action.sa_flags = flags | SA_SIGINFO
        action.__sigaction_handler.sa_sigaction = { _, info, _ in body(info) }
        sigaction(SIGSEGV, &action, nil)
    }

    /// Installs a handler over the one that is there, which it calls.
    private func passFaultsOn() {
        var (action, before) = (sigaction(), sigaction())
        sigaction(SIGSEGV, nil, &before)
        found = before.__sigaction_handler.sa_sigaction
        action.sa_flags = SA_SIGINFO | SA_ONSTACK
        action.__sigaction_handler.sa_sigaction = { number, info, context in
            say("passed on")
            found?(number, info, context)
        }
        sigaction(SIGSEGV, &action, nil)
    }

    private func handlerOfFaults() -> UInt {
        var action = sigaction()
        sigaction(SIGSEGV, nil, &action)
        return unsafeBitCast(action.__sigaction_handler, to: UInt.self)
    }

    private func isBlocked(_ signal: Int32) -> Bool {
        var mask = sigset_t()
        pthread_sigmask(SIG_BLOCK, nil, &mask)
        return sigismember(&mask, signal) == 1
    }

    @inline(never)
    private func fault() { opaque(UnsafeMutablePointer<Int>(bitPattern: 16))!.pointee = 1 }

    private func faultInAFiber() throws { try FiberRuntime.run(.init(workers: 1)) { try Fiber.spawnLocal { fault() }.join() } }

    private func overflow() throws { try FiberRuntime.run(.init(workers: 1)) { _ = recurse(0) } }

    private func say(_ text: StaticString) { _ = write(STDERR_FILENO, text.utf8Start, text.utf8CodeUnitCount) }
#endif
