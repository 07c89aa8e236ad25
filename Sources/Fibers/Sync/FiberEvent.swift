// The way to wake a fiber from anywhere. The state is in the waiter's word: nothing, a signal that nobody has had yet, or the fiber that waits.

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
    private let waiter = SharedWaiter()
    private static var idle: UInt { 0 }
    private static var signalled: UInt { 1 }

    public init() {}

    /// Lets the fiber go on that waits or the next one that does. Never blocks, takes no lock, and may be called on any thread, also outside a runtime; not in a handler of an operating
    /// system's signal.
    public func signal() {
        // Without a look first, which would fetch the word twice from another processor: once to read it, once to write it.
        var state = Self.idle
        while true {
            // Also where a signal is there already: what the caller did before this call is seen by whoever has it.
            let next = state == Self.idle ? Self.signalled : state == Self.signalled ? Self.signalled : Self.idle
            let (done, now) = waiter.state.compareExchange(expected: state, desired: next, ordering: .acquiringAndReleasing)
            if done { break }
            state = now
        }
        if let fiber = FiberPointer(bitPattern: state > Self.signalled ? state : 0) { deliver(fiber, .ready) }
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
                || (worker.maySpin && worker.spin(until: { waiter.state.load(ordering: .relaxed) == Self.signalled }) && takeUncounted())
            {
                return worker.chargeOperation()
            }
            require(
                waiter.state.load(ordering: .relaxed) <= Self.signalled,
                "two fibers wait for one FiberEvent: give each its own, or let one wait and pass it on")
            // Else a signal has come in between, which somebody else may have taken again.
        } while !worker.beginPark(sharing: waiter, ifStill: Self.idle)
        try worker.check(worker.park(.event))
    }

    /// True when there was a signal, which is taken. Any thread. Does not wait; a loop over it in a fiber lets others run now and then.
    public func take() -> Bool {
        Worker.current?.countTry()
        return takeUncounted()
    }

    private func takeUncounted() -> Bool {
        waiter.state.compareExchange(expected: Self.signalled, desired: Self.idle, ordering: .acquiringAndReleasing).exchanged
    }
}
