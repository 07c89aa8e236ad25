// SPDX-License-Identifier: Apache-2.0

// The event source of a worker: events, a way to wake the worker while it waits for them, and time. The reactor implements it; this is all
// that the kernel knows of the reactor.

/// The source of a worker's events. Owner worker only, except for the waker.
package protocol EventSource: AnyObject {
    /// Makes a blocking `poll` return. It may outlive the source, since a sender on another thread may still hold it.
    var waker: any Waker { get }
    /// The source's own clock, for simulated time; nil for the system clocks.
    var clock: (any WorkerClock)? { get }
    /// Handles pending events. If there are none, blocks until an event occurs, the waker is used, or `timeout` nanoseconds have passed; a
    /// negative timeout means no limit.
    func poll(timeout: Int64)
    /// Closes everything that is still open. No fiber of the worker runs any more.
    func stop()
}

/// Wakes a worker that blocks in `poll`.
package protocol Waker: AnyObject, Sendable {
    /// Makes the current `poll` return, or the next one. Any thread.
    func wake()
}

/// Time for a worker. Owner worker only.
package protocol WorkerClock: AnyObject {
    /// Monotonic nanoseconds, the time base of deadlines.
    func now() -> Int64
    /// The same time as an instant of the continuous clock.
    func instant() -> ContinuousClock.Instant
    /// In units of the CPU's time counter. Decides when a busy worker polls, and so which fiber runs next.
    func counter() -> UInt64
}
