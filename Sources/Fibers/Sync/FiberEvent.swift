// SPDX-License-Identifier: Apache-2.0

// The way to wake a fiber from anywhere. All of its state is the word of a `WaitCell`: empty, a signal that no wait has taken yet, or the fiber that waits. A signal that comes while another
// one is busy with the fiber is noted beside that.

import Synchronization

/// A signal from any thread to one fiber: what a callback of a library, a thread of its own, or a fiber of another worker uses to say "go on".
///
/// ```swift
/// let done = FiberEvent()
/// startTransfer(onCompletion: { done.signal() })      // on whatever thread
/// try done.wait()
/// ```
///
/// A signal is kept until somebody waits; several signals before that are one. One fiber waits at a time. Between fibers of one worker nothing is faster than a
/// plain variable and a group or a handle; this is for threads.
public final class FiberEvent: Sendable {
    private let cell = WaitCell()
    private static var signalled: UInt { WaitCell.ownersBit }

    public init() {}

    /// Lets the fiber go on that waits or the next one that does. Never blocks, takes no lock, and may be called on any thread, also outside a runtime; not in a handler of an operating
    /// system's signal.
    public func signal() {
        // Without a look first, which would fetch the word twice from another processor: once to read it, once to write it.
        var state = WaitCell.empty
        while true {
            // Also where a signal is there already: what the caller did before this call is seen by whoever takes that.
            let next = WaitCell.holdsWaiter(state) ? WaitCell.busy : state | Self.signalled
            let (done, now) = cell.state.compareExchange(expected: state, desired: next, ordering: .acquiringAndReleasing)
            if done { break }
            state = now
        }
        // Where something else has ended the wait, the signal is kept.
        if WaitCell.holdsWaiter(state) { _ = cell.resume(state, .ready, orLeave: Self.signalled) }
    }

    /// Waits for a signal, and takes it.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then no signal is lost; ``ResourceError``.
    /// - Note: parks
    public func wait() throws {
        let worker = Worker.here("FiberEvent.wait()")
        try worker.refuseIfCancelled()
        repeat {
            // Where another worker is about to signal, the fiber stays: to park it and to send it home takes longer than to wait.
            if takeUncounted()
                || (worker.maySpin && worker.spin(until: { cell.state.load(ordering: .relaxed) == Self.signalled }) && takeUncounted())
            {
                return worker.chargeOperation()
            }
            if _slowPath(cell.state.load(ordering: .relaxed) > Self.signalled) {
                if let other = cell.removeEndedWaiter() { stopForTwoWaiters(other) }
            }
            // Else a signal has come in between, which another taker may have had.
        } while !worker.beginPark(in: cell, ifStill: WaitCell.empty)
        try worker.check(worker.park(in: cell, .event))
    }

    @inline(never)
    private func stopForTwoWaiters(_ other: Holder) -> Never {
        misuse(
            "two fibers wait for one FiberEvent: \(Holders.describeCaller()), while \(Holders.describe(other)) waits already: give each its own, or let one wait and pass it on"
        )
    }

    /// True when there was a signal, which is taken. Any thread. Does not wait; a loop over it in a fiber lets others run now and then.
    public func take() -> Bool {
        Worker.current?.countTry()
        return takeUncounted()
    }

    private func takeUncounted() -> Bool {
        var state = Self.signalled
        while true {
            let (done, now) = cell.state.compareExchange(
                expected: state, desired: state & ~Self.signalled, ordering: .acquiringAndReleasing)
            if done { return true }
            // Also one that has come while another is busy with the fiber.
            guard !WaitCell.holdsWaiter(now), now & Self.signalled != 0 else { return false }
            state = now
        }
    }
}
