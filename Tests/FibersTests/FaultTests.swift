// SPDX-License-Identifier: Apache-2.0

// The N-th call of each kind fails, for each N: every run either works or throws a `ResourceError`; nothing leaks, and the next run
// works.

import CFaults
import Fibers
import Glibc
import Testing

/// A kind of call, and what the kernel may answer to it.
private struct Fault: Sendable {
    let call: cfaults_call
    let name: String
    let errors: [Int32]
    /// Whether all later calls may fail as well; not where the program rightly tries again for ever.
    var mayPersist = true

    static let all = [
        Fault(call: CFAULTS_MMAP, name: "mmap", errors: [ENOMEM, EAGAIN]),
        Fault(call: CFAULTS_MADVISE, name: "madvise", errors: [ENOMEM, EINVAL]),
        Fault(call: CFAULTS_MADVISE, name: "madvise, interrupted", errors: [EINTR, EAGAIN], mayPersist: false),
        Fault(call: CFAULTS_MPROTECT, name: "mprotect", errors: [ENOMEM, EACCES]),
        Fault(call: CFAULTS_MINCORE, name: "mincore", errors: [ENOMEM, ENOSYS]),
        Fault(call: CFAULTS_REALLOCARRAY, name: "reallocarray", errors: [ENOMEM]),
        Fault(call: CFAULTS_EPOLL_CREATE, name: "epoll_create1", errors: [EMFILE, ENFILE, ENOMEM]),
        Fault(call: CFAULTS_EPOLL_CTL, name: "epoll_ctl", errors: [ENOMEM, ENOSPC]),
        Fault(call: CFAULTS_EPOLL_WAIT, name: "epoll_pwait2", errors: [ENOSYS, EINTR]),
        Fault(call: CFAULTS_EVENTFD, name: "eventfd", errors: [EMFILE, ENFILE, ENOMEM]),
        Fault(call: CFAULTS_SIGALTSTACK, name: "sigaltstack", errors: [ENOMEM, EPERM]),
        Fault(call: CFAULTS_OPEN, name: "open", errors: [EMFILE, ENOENT]),
    ]
}

private enum Ending: Equatable {
    case worked
    case refused(ResourceError)
    case wrong(String)
}

/// A runtime that uses everything of the kernel: 40 fibers at a time (three slabs), timers, joins, waits with a deadline, a pool that is trimmed.
private func scenario(_ guards: FiberRuntime.Configuration.Guards) -> Ending {
    let unhandled = Box<[any Error]>([])
    do {
        let sum = try FiberRuntime.run(.init(guards: guards, onUnhandledError: { unhandled.value.append($0.error) })) {
            let handles = try (0..<40).map { i in
                try Fiber.spawnLocal {
                    Fiber.yield()
                    try Fiber.sleep(for: .microseconds(20 * i))
                    let worker = Worker.current!
                    let list = UnsafeMutablePointer<WaitList>.allocate(capacity: 1)
                    list.initialize(to: WaitList())
                    defer { list.deallocate() }
                    let outcome = worker.park(in: list, .other, until: 1)
                    if outcome == .noTimer { throw ResourceError(.memory, errno: ENOMEM, operation: "parking", remedy: "") }
                    return outcome == .timedOut ? i : -1_000_000
                }
            }
            return try handles.reduce(0) { try $0 + $1.join() }
        }
        guard sum == 780 else { return .wrong("the sum is \(sum)") }
    } catch let error as ResourceError {
        if let other = unhandled.value.first(where: { !($0 is ResourceError) }) { return .wrong("\(other)") }
        return .refused(error)
    } catch { return .wrong("\(error)") }
    return unhandled.value.isEmpty ? .worked : .wrong("\(unhandled.value[0])")
}

#if compiler(>=6.2)
    extension KernelTests {
        @Suite(.enabled(if: cfaults_available() != 0, "sanitizers interpose the same functions"))
        struct FaultTests {
            @Test func run_worksOrThrows_whenTheNthCallOfAnyKindFails() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for guards in [FiberRuntime.Configuration.Guards.automatic, .mprotect, .pageTables] {
                            for fault in Fault.all {
                                for error in fault.errors {
                                    for persists in fault.mayPersist ? [false, true] : [false] {
                                        try failEach(fault, error, persists, guards)
                                    }
                                }
                            }
                        }
                    }
                }
            }

            @Test func run_throws_whenWhatItCannotDoWithoutFails() async {
                await #expect(processExitsWith: .success) {
                    let expected: [(cfaults_call, Int32, ResourceError.Resource)] = [
                        (CFAULTS_MMAP, ENOMEM, .memory), (CFAULTS_EPOLL_CREATE, EMFILE, .descriptors),
                        (CFAULTS_EPOLL_CREATE, EPERM, .kernel), (CFAULTS_EPOLL_CTL, ENOMEM, .memory),
                        (CFAULTS_EVENTFD, ENFILE, .descriptors),
                        (CFAULTS_REALLOCARRAY, ENOMEM, .memory), (CFAULTS_SIGALTSTACK, ENOMEM, .memory),
                    ]
                    for (call, error, resource) in expected {
                        cfaults_arm(call, 1, error, 1)
                        let ending = scenario(.automatic)
                        cfaults_disarm()
                        guard case .refused(let thrown) = ending else {
                            Issue.record("call \(call.rawValue), error \(error): \(ending)")
                            continue
                        }
                        #expect(thrown.resource == resource && thrown.errno == error, "\(thrown)")
                    }
                }
            }

            @Test func guards_fallBack_whenTheKernelLacksPageTableMarkers() async {
                await #expect(processExitsWith: .success) {
                    cfaults_arm(CFAULTS_MADVISE, 1, EINVAL, 1)
                    #expect(scenario(.automatic) == .worked)
                    cfaults_disarm()
                    cfaults_arm(CFAULTS_MADVISE, 1, EINVAL, 1)
                    let ending = scenario(.pageTables)
                    cfaults_disarm()
                    guard case .refused(let thrown) = ending else {
                        Issue.record("\(ending)")
                        return
                    }
                    #expect(thrown.resource == .kernel)
                    #expect(thrown.remedy.contains("guards = .automatic"))
                }
            }

            @Test func sleep_isNotEarly_whenTheKernelWaitsInMillisecondsOnly() async {
                // Before Linux 5.11 there is no epoll_pwait2.
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        cfaults_arm(CFAULTS_EPOLL_WAIT, 1, ENOSYS, 1)
                        var early = 0
                        try FiberRuntime.run {
                            let clock = ContinuousClock()
                            for i in 0..<20 {
                                let wanted = Duration.microseconds(100 + i * 137)
                                let start = clock.now
                                try Fiber.sleep(for: wanted)
                                if clock.now - start < wanted { early += 1 }
                            }
                        }
                        #expect(cfaults_disarm() > 0)
                        #expect(early == 0)
                    }
                }
            }
        }
    }

    /// Fails call after call, one run each, until a run makes fewer calls.
    private func failEach(_ fault: Fault, _ error: Int32, _ persists: Bool, _ guards: FiberRuntime.Configuration.Guards) throws {
        let what = "\(fault.name), error \(error)\(persists ? " from then on" : ""), guards \(guards)"
        #expect(scenario(guards) == .worked, "before \(what)")
        let before = (Process.descriptors, Process.mappings)
        for n in 1...1_000 {
            cfaults_arm(fault.call, n, error, persists ? 1 : 0)
            let ending = scenario(guards)
            let made = cfaults_disarm()
            if case .wrong(let how) = ending { Issue.record("call \(n) of \(what): \(how)") }
            if made < n {
                #expect(ending == .worked, "\(what): untouched, and yet")
                break
            }
            #expect(scenario(guards) == .worked, "after call \(n) of \(what)")
        }
        #expect(Process.descriptors == before.0, "\(what)")
        #expect(abs(Process.mappings - before.1) < 10, "\(what)")
    }
#endif
