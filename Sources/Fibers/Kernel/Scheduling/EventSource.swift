// SPDX-License-Identifier: Apache-2.0

// What a worker needs from outside: events, a way to be woken while it waits for them, and time. The reactor implements it; the kernel knows no more of the reactor than this.

/// Where a worker's events come from. Owner worker only, except for its waker.
package protocol EventSource: AnyObject {
    /// Ends the blocking of `poll`. It may outlive the source: a sender on another thread may still hold it.
    var waker: any Waker { get }
    /// A clock of the source's own, for simulated time; nil for the clocks of the system.
    var clock: (any WorkerClock)? { get }
    /// Handles the events that have happened. If there are none, blocks until there is one, until the waker is used, or for `timeout` nanoseconds; without limit where that is
    /// negative.
    func poll(timeout: Int64)
    /// Ends all that is still open. No fiber of the worker runs any more.
    func stop()
}

/// Wakes a worker that blocks in `poll`.
package protocol Waker: AnyObject, Sendable {
    /// Makes the present `poll` return, or the next one. Any thread.
    func wake()
}

/// Time for a worker. Owner worker only.
package protocol WorkerClock: AnyObject {
    /// Monotonic nanoseconds, which deadlines are compared with.
    func now() -> Int64
    /// The same time for callers that have an instant of the continuous clock.
    func instant() -> ContinuousClock.Instant
    /// In units of the CPU's time counter: decides when a busy worker polls, and so which fiber runs next.
    func counter() -> UInt64
}
