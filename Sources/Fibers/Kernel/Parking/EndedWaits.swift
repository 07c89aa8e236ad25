// SPDX-License-Identifier: Apache-2.0

// Errors of waiting calls: refusing a call by a cancelled fiber, and turning the outcome of a failed park into an error. Owner worker only.

import Glibc

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// For calls that may not need to park. Throws in a cancelled fiber, after a yield, so that a loop that ignores the error starves no
    /// other fiber.
    func refuseIfCancelled() throws { if isRefused { throw running.cancellation } }

    /// Whether the running fiber is cancelled. If so, it has yielded.
    var isRefused: Bool {
        guard isCancelled else { return false }
        yield()
        return true
    }

    /// Throws the error that corresponds to the outcome of a failed park.
    package func check(_ outcome: Outcome) throws {
        switch outcome {
        case .ready, .closed, .timedOut: return
        case .cancelled: throw running.cancellation
        case .noTimer: throw ResourceError.memory(ENOMEM, "growing the timer queue", bytes: 16 * 2 * pointee.timers.count)
        }
    }
}
