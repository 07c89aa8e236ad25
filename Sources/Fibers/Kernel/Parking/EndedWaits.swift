// SPDX-License-Identifier: Apache-2.0

// What a call does in a fiber that is cancelled, and what it throws when its park has ended otherwise than well. Owner worker only.

import Glibc

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// For calls that need not park. Throws in a cancelled fiber, after others have run, so that a loop that ignores it starves nobody.
    func refuseIfCancelled() throws { if isRefused { throw running.cancellation } }

    /// Whether the running fiber is cancelled; then it has let others run.
    var isRefused: Bool {
        guard isCancelled else { return false }
        yield()
        return true
    }

    /// Throws what a park that did not end well says.
    package func check(_ outcome: Outcome) throws {
        switch outcome {
        case .ready, .closed, .timedOut: return
        case .cancelled: throw running.cancellation
        case .noTimer: throw ResourceError.memory(ENOMEM, "growing the timer queue", bytes: 16 * 2 * pointee.timers.count)
        }
    }
}
