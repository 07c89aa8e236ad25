// SPDX-License-Identifier: Apache-2.0

// The kernel in two verbs. A fiber stops running until an event only through `park`, and its own worker makes it ready again only through
// `unpark`. Waiter.swift describes how a park is claimed and how other threads resume a fiber.
//
// Invariants:
//   * `beginPark` comes before the waiter enters any queue, and `park` comes after. No other fiber may run in between;
//   * only the claimant of a park writes the outcome and makes the fiber ready.
//
// Owner worker only.

import CFiber

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Begins a park of the running fiber: from here on it can be claimed.
    @inline(__always)
    package func beginPark() -> Waiter { beginPark(as: .localFiber) }

    /// - Parameter kind: `sharedFiber` if other threads may end the park.
    @inline(__always)
    func beginPark(as kind: Waiter.Kind) -> Waiter {
        let fiber = running
        require(
            fiber != pointee.root,
            messageOutsideFibers(
                "a waiting call was made outside a fiber, on the worker's own stack", "make it in a fiber (Fiber.spawnLocal { … })"))
        return Waiter.begin(fiber, as: kind)
    }

    /// Parks the running fiber until its park is claimed: by the event that it waits for, at `deadline` (monotonic nanoseconds), or by the
    /// cancellation of a scope around it. A fiber that is already cancelled yields once and returns.
    @inline(__always)
    package func park(_ reason: WaitReason, until deadline: Int64 = .max) -> Outcome {
        let fiber = running
        fiber.reason = reason
        if _slowPath(fiber.pointee.attention != 0 || deadline != .max) { return parkWatched(fiber, deadline) }
        switchAway()
        return fiber.outcome
    }

    /// As `park`, for a fiber with a deadline of its own, or in a scope that has a deadline or was cancelled.
    @inline(never)
    private func parkWatched(_ fiber: FiberPointer, _ deadline: Int64) -> Outcome {
        if fiber.pointee.attention & Attention.cancelled != 0 {
            _ = unpark(Waiter(fiber), .cancelled)
        } else if !pointee.timers.arm(fiber, Swift.min(deadline, fiber.scope.pointee.effective)) {
            _ = unpark(Waiter(fiber), .noTimer)
        }
        switchAway()
        fiber.pointee.wakeAt = .max
        return fiber.outcome
    }

    /// Parks inside a shield, which no outer cancellation or deadline reaches: for waits that must not end early because other code depends
    /// on them.
    func parkShielded(in list: UnsafeMutablePointer<WaitList>, _ reason: WaitReason) {
        var shield = CancelScope(.shield, of: running)
        withLocalPointer(to: &shield) { shield in
            shield.enter()
            _ = park(in: list, reason)
            shield.leave()
        }
    }

    /// Claims the park of a fiber of this worker and makes the fiber ready. False if it was already claimed.
    @inline(__always)
    package func unpark(_ waiter: Waiter, _ outcome: Outcome) -> Bool {
        guard waiter.claim() else { return false }
        waiter.fiber.outcome = outcome
        makeReady(waiter.fiber)
        return true
    }

    /// Ends the parks of all waiters in a list, in order.
    @inline(__always)
    package func wakeAll(_ list: inout WaitList, _ outcome: Outcome) {
        while let node = list.popFirstOfAll() { _ = unpark(node.pointee.waiter, outcome) }
    }
}

extension Worker {
    /// The worker of the calling fiber. Outside a fiber it stops the program with a message that says what to do instead.
    @inline(__always)
    package static func here(_ call: StaticString) -> Worker {
        guard let worker = Worker.current else { stopOutsideFibers("\(call)") }
        return worker
    }
}
