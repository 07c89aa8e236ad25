// SPDX-License-Identifier: Apache-2.0

// An event wakes a fiber from any thread. Its whole state is the word of a `WaitCell`: empty, a signal that no wait has consumed, or the
// waiting fiber. A signal that comes while another signaller is busy with the fiber sets a bit beside the busy state.

import Synchronization

/// A signal from any thread to one fiber. A callback of a library, a separate thread or a fiber of another worker uses it to wake the
/// fiber.
///
/// ```swift
/// let done = FiberEvent()
/// startTransfer(onCompletion: { done.signal() })      // on whatever thread
/// try done.wait()
/// ```
///
/// The event keeps a signal until a fiber waits; several signals before that count as one. Only one fiber may wait at a time. The event is
/// for threads: between fibers of one worker, a plain variable with a group or a handle is faster.
public final class FiberEvent: Sendable {
    private let cell = WaitCell()
    private static var signalled: UInt { WaitCell.ownersBit }

    public init() {}

    /// Wakes the waiting fiber, or the next one that waits. Never blocks, takes no lock, and may be called on any thread, also outside a
    /// runtime. Not safe in a handler of an operating system signal.
    public func signal() {
        // No read first: that would fetch the cache line twice from another processor, once to read the word and once to write it.
        var state = WaitCell.empty
        while true {
            // Exchanges the word even if a signal is pending, so that the consuming fiber sees all earlier writes of the caller.
            let next = WaitCell.holdsWaiter(state) ? WaitCell.busy : state | Self.signalled
            let (done, now) = cell.state.compareExchange(expected: state, desired: next, ordering: .acquiringAndReleasing)
            if done { break }
            state = now
        }
        // If something else has ended the wait, the cell keeps the signal.
        if WaitCell.holdsWaiter(state) { _ = cell.resume(state, .ready, orLeave: Self.signalled) }
    }

    /// Waits for a signal and consumes it.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then no signal is lost; ``ResourceError``.
    /// - Note: parks
    public func wait() throws {
        let worker = Worker.here("FiberEvent.wait()")
        try worker.refuseIfCancelled()
        repeat {
            // If another worker is about to signal, spinning is cheaper than parking the fiber and sending it back through the inbox.
            if takeUncounted()
                || (worker.maySpin && worker.spin(until: { cell.state.load(ordering: .relaxed) == Self.signalled }) && takeUncounted())
            {
                return worker.chargeOperation()
            }
            if _slowPath(cell.state.load(ordering: .relaxed) > Self.signalled) {
                if let other = cell.removeEndedWaiter() { stopForTwoWaiters(other) }
            }
            // Otherwise a signal has come in between; `take` may have consumed it.
        } while !worker.beginPark(in: cell, ifStill: WaitCell.empty)
        try worker.check(worker.park(in: cell, .event))
    }

    @inline(never)
    private func stopForTwoWaiters(_ other: Holder) -> Never {
        misuse(
            "two fibers wait for one FiberEvent: \(Holders.describeCaller()), while \(Holders.describe(other)) waits already: give each its own, or let one wait and pass it on"
        )
    }

    /// Consumes a pending signal; returns whether there was one. Any thread. Never waits. A loop over it in a fiber lets other fibers run
    /// from time to time.
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
            // Also consumes a signal that came while a signaller is busy with the fiber.
            guard !WaitCell.holdsWaiter(now), now & Self.signalled != 0 else { return false }
            state = now
        }
    }
}
