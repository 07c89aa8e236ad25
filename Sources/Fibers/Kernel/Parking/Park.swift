// The kernel in two verbs. `park` is the only way in which a fiber stops running until something happens, `unpark` the only way in which it goes on.
//
// Invariants:
//   * `parking` counts: even while running or claimed, odd while parked and unclaimed. `Waiter` remembers the odd value;
//   * a park ends by exactly one claim, which moves that odd value to the next even one; every other claimant finds another value and does nothing;
//   * whoever claims writes the outcome and makes the fiber ready, nobody else does;
//   * `beginPark` comes before the waiter is put anywhere, `park` after, and nothing between them may run other fibers.
//
// Owner worker only, without atomic operations. A park that other threads may end, too, is claimed in one place more: see SharedWaiter.swift.

import CFiber

/// A fiber in one of its parks. Worthless, and harmless, once that park is over; the record must still be mapped.
package struct Waiter: BitwiseCopyable {
    package let fiber: FiberPointer
    let epoch: UInt64

    /// The present park of a fiber.
    @inline(__always)
    package init(_ fiber: FiberPointer) {
        self.fiber = fiber
        epoch = fiber.pointee.parking
    }

    /// Of a thread, which has no parks: its epoch is never one.
    init(thread: ()) {
        fiber = FiberPointer(bitPattern: 64).unsafelyUnwrapped
        epoch = 0
    }

    /// Ends the park unless somebody else did. True for exactly one claimant of each park.
    @inline(__always)
    func claim() -> Bool {
        guard fiber.pointee.parking == epoch, epoch & 1 == 1 else { return false }
        // The fiber does not run now, so what it waits for is there.
        if _slowPath(fiber.pointee.isShared) {
            guard fiber.claimShared() else { return false }
            fiber.endShared()
        }
        fiber.pointee.parking = epoch &+ 1
        return true
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Announces that the running fiber will park: from here on it can be claimed.
    @inline(__always)
    package func beginPark() -> Waiter {
        let fiber = running
        require(
            fiber != pointee.root,
            messageOutsideFibers(
                "a waiting call was made outside a fiber, on the worker's own stack", "make it in a fiber (Fiber.spawnLocal { … })"))
        fiber.pointee.parking = (fiber.pointee.parking &+ 1) | 1
        return Waiter(fiber)
    }

    /// Parks the running fiber until its park is claimed, by whatever it waits for, at `deadline` (monotonic nanoseconds), or by a scope around it that is
    /// cancelled. A fiber that is cancelled already lets the others run once and comes back.
    @inline(__always)
    package func park(_ reason: WaitReason, until deadline: Int64 = .max) -> Outcome {
        let fiber = running
        fiber.reason = reason
        if _slowPath(fiber.pointee.attention != 0 || deadline != .max) { return parkWatched(fiber, deadline) }
        switchAway()
        return fiber.pointee.outcome
    }

    /// As `park`, for a fiber in a scope that has a deadline or was cancelled, or with a deadline of its own.
    @inline(never)
    private func parkWatched(_ fiber: FiberPointer, _ deadline: Int64) -> Outcome {
        if fiber.pointee.attention & Attention.cancelled != 0 {
            _ = unpark(Waiter(fiber), .cancelled)
        } else if !pointee.timers.arm(fiber, Swift.min(deadline, fiber.pointee.scope.pointee.effective)) {
            _ = unpark(Waiter(fiber), .noTimer)
        }
        switchAway()
        fiber.pointee.wakeAt = .max
        return fiber.pointee.outcome
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

    /// Ends a park on this worker and makes the fiber ready. False when it was claimed before.
    @inline(__always)
    package func unpark(_ waiter: Waiter, _ outcome: Outcome) -> Bool {
        guard waiter.claim() else { return false }
        waiter.fiber.pointee.outcome = outcome
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
