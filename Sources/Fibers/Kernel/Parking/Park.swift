// SPDX-License-Identifier: Apache-2.0

// The kernel in two verbs. `park` is the only way in which a fiber stops running until something happens, `unpark` the only way in which its worker lets it go on. How a park is
// claimed, and how other threads resume a fiber, is in Waiter.swift.
//
// Invariants:
//   * `beginPark` comes before the waiter is put anywhere, `park` after, and nothing between them may run other fibers;
//   * whoever claims a park writes the outcome and makes the fiber ready, nobody else does.
//
// Owner worker only.

import CFiber

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Announces that the running fiber will park: from here on it can be claimed.
    @inline(__always)
    package func beginPark() -> Waiter { beginPark(as: .localFiber) }

    /// - Parameter kind: `sharedFiber` when other threads may end the park.
    @inline(__always)
    func beginPark(as kind: Waiter.Kind) -> Waiter {
        let fiber = running
        require(
            fiber != pointee.root,
            messageOutsideFibers(
                "a waiting call was made outside a fiber, on the worker's own stack", "make it in a fiber (Fiber.spawnLocal { … })"))
        return Waiter.begin(fiber, as: kind)
    }

    /// Parks the running fiber until its park is claimed, by whatever it waits for, at `deadline` (monotonic nanoseconds), or by a scope around it that is
    /// cancelled. A fiber that is cancelled already lets the others run once and comes back.
    @inline(__always)
    package func park(_ reason: WaitReason, until deadline: Int64 = .max) -> Outcome {
        let fiber = running
        fiber.reason = reason
        if _slowPath(fiber.pointee.attention != 0 || deadline != .max) { return parkWatched(fiber, deadline) }
        switchAway()
        return fiber.outcome
    }

    /// As `park`, for a fiber in a scope that has a deadline or was cancelled, or with a deadline of its own.
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

    /// Parks in a scope that nothing reaches from outside: for waits that must not end early since others rely on it.
    func parkShielded(in list: UnsafeMutablePointer<WaitList>, _ reason: WaitReason) {
        var shield = CancelScope(.shield, of: running)
        withLocalPointer(to: &shield) { shield in
            shield.enter()
            _ = park(in: list, reason)
            shield.leave()
        }
    }

    /// Claims a park of a fiber of this worker and makes the fiber ready. False when it was claimed before.
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
    /// The worker of the calling fiber; stops the program with a remedy outside one.
    @inline(__always)
    package static func here(_ call: StaticString) -> Worker {
        guard let worker = Worker.current else { stopOutsideFibers("\(call)") }
        return worker
    }
}
