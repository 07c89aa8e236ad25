// SPDX-License-Identifier: Apache-2.0

// The settings of a set of workers: plain values, and the handlers for errors and warnings. They never change once the set exists, so any
// thread may read them.

/// The kernel's part of `FiberRuntime.Configuration`.
struct WorkerSettings: Sendable {
    /// Nil for the number in the environment, or else one per CPU.
    let workers: Int?
    let pinsWorkers: Bool
    let stackSize: Int
    let guards: StackGuards
    /// Nanoseconds for which a stack must be unused before its memory is returned.
    let trimInterval: Int64
    /// The time that fibers have to end after all of them have been cancelled.
    let shutdownLimit: Duration
    /// The seed of the workers' random numbers; nil for the time counter.
    let randomSeed: UInt64?
    /// Makes the event source of a worker, by its index.
    let makeEvents: @Sendable (_ worker: Worker, _ index: Int) throws(ResourceError) -> any EventSource
    let onUnhandledError: @Sendable (UnhandledFiberError) -> Void
    let onWarning: @Sendable (String) -> Void

    func warn(_ message: String) { callHandler("onWarning") { onWarning(message) } }

    func report(_ error: UnhandledFiberError) { callHandler("onUnhandledError") { onUnhandledError(error) } }
}

/// How stacks are guarded against overflow, as in `FiberRuntime.Configuration.Guards`.
enum StackGuards: Sendable {
    case automatic, pageTables, mprotect
}
