// SPDX-License-Identifier: Apache-2.0

// Time for a runtime in a test: it stands still while a fiber can run and jumps to the next deadline when all wait. So a program of hours takes microseconds, and
// everything in it happens at an instant that can be foretold to the nanosecond.
//
// It is the worker's only thread that calls in here.

import Fibers
import TestBackends

final class VirtualTime: @unchecked Sendable {
    private(set) var now: Int64
    private var polls = 0
    /// Called when all fibers wait and none for a time, on the worker's own stack: something must make a fiber ready.
    private let onDeadlock: () -> Void
    /// Called, with a reason, when the runtime does what can only be a mistake; it is then ended by force, and leaves behind the fibers that it has.
    private let onNonsense: (String) -> Void

    /// More than any program needs.
    private static var longestWait: Int64 { 1 << 58 }
    private static var mostPolls: Int { 10_000 }
    /// For `FiberRuntime.Configuration`: a wait that ends only then is found to be nonsense before.
    static var shutdownLimit: Duration { .nanoseconds(longestWait * 2) }

    init(from start: Int64, onDeadlock: @escaping () -> Void, onNonsense: @escaping (String) -> Void) {
        now = start
        self.onDeadlock = onDeadlock
        self.onNonsense = onNonsense
    }

    var makeBackend: @Sendable (Int) -> any Backend {
        { [self] _ in SimulatedBackend(clock: { self.now }, wait: { self.poll(timeout: $0) }) }
    }

    private func poll(timeout: Int64) {
        polls += 1
        if timeout < 0 { return onDeadlock() }
        if polls == Self.mostPolls { end("the worker polls again and again") }
        if timeout > Self.longestWait { end("after a shutdown fibers wait, and nothing will wake them") }
        now += timeout
    }

    private func end(_ reason: String) {
        onNonsense(reason)
        FiberRuntime.shutDown(within: .zero)
    }
}
