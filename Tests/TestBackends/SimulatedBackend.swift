// SPDX-License-Identifier: Apache-2.0

// A world of its own: a clock that stands still while a fiber can run and jumps when all wait, and stream sockets in memory. So a program of hours takes microseconds, what happens in it happens at an
// instant that can be foretold to the nanosecond, and the same seed gives the same order of everything.
//
// Invariants:
//   * a request completes at once, or when another call on the same worker makes its result; `poll` hands the result over;
//   * time passes in `poll` alone, and only when no result waits there;
//   * numbers of simulated sockets begin far above those of the system, which refuses them. Requests on descriptors of the system are refused here.
// Owner worker only, except for the waker.

import CFiber
package import Fibers
import Glibc

package final class SimulatedBackend: CompletionBackend, WorkerClock {
    private let bell: Bell
    private let network = SimulatedNetwork()
    private var completed: [(CompletionPointer, Int)] = []
    private var ticks: UInt64 = 0
    private let start = ContinuousClock.now
    private let startOfClock: Int64
    private let readClock: () -> Int64
    private let wait: (Int64) -> Void

    /// - Parameters:
    ///   - clock: monotonic nanoseconds.
    ///   - wait: lets so much time pass, negative for no limit, when nothing happens by itself. No fiber runs meanwhile; it may make some ready.
    package convenience init(clock: @escaping () -> Int64, wait: @escaping (Int64) -> Void) {
        self.init(Bell(), clock: clock, wait: wait)
    }

    /// With a clock of its own. Where nothing is to happen at any time it waits for another thread.
    package convenience init() {
        let (time, bell) = (Time(), Bell())
        self.init(bell, clock: { time.now }, wait: { if $0 < 0 { bell.wait() } else { time.now += $0 } })
    }

    private init(_ bell: Bell, clock: @escaping () -> Int64, wait: @escaping (Int64) -> Void) {
        self.bell = bell
        readClock = clock
        self.wait = wait
        startOfClock = clock()
        network.onResult = { [unowned self] in completed.append(($0, $1)) }
    }

    private final class Time {
        var now: Int64 = 1_000_000_000
    }

    package var waker: any Waker { bell }
    package var clock: (any WorkerClock)? { self }

    package func now() -> Int64 { readClock() }
    package func instant() -> ContinuousClock.Instant { start.advanced(by: .nanoseconds(readClock() - startOfClock)) }

    /// A hundred looks at it are more than half a millisecond of the real one: so a fiber that never waits lets the worker poll now and then, after the same number of steps each time.
    package func counter() -> UInt64 {
        ticks &+= cfiber_counter_interval() / 100
        return ticks
    }

    package func call(_ call: SystemCall) -> Int { network.call(call) ?? call.make() }

    /// At once: nothing else happens meanwhile, and it takes no time.
    package func callBlocking(_ name: String, for worker: Worker, _ body: @escaping () -> Void) throws {
        if worker.refusesOperation() { throw worker.running.cancellation }
        body()
    }

    package func submit(_ request: Submission, _ completion: CompletionPointer) -> Int? { network.submit(request, completion) }

    package func cancel(_ completion: CompletionPointer) { network.cancel(completion) }

    package func poll(timeout: Int64, for driver: Driver) {
        if completed.isEmpty && timeout != 0 && !bell.takeSignal() { wait(timeout) }
        let results = completed
        completed = []
        for (completion, result) in results { driver.complete(completion, result) }
    }

    package func drain(for driver: Driver) {
        network.cancelAll()
        let results = completed
        completed = []
        for (completion, result) in results { driver.complete(completion, result) }
    }

    package func stop() {}
}

/// Wakes the worker of a simulated world, from threads of the real one.
private final class Bell: Waker, @unchecked Sendable {
    private let lock = ThreadLock()
    private let change: ThreadCondition
    private var isSignalled = false

    init() { change = ThreadCondition(lock) }

    func wake() {
        lock.withLock {
            isSignalled = true
            change.broadcast()
        }
    }

    func takeSignal() -> Bool {
        lock.withLock {
            defer { isSignalled = false }
            return isSignalled
        }
    }

    func wait() {
        lock.withLock {
            while !isSignalled { change.wait(until: .max) }
            isSignalled = false
        }
    }
}
