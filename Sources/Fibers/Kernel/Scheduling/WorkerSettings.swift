// SPDX-License-Identifier: Apache-2.0

// What the workers of a set are set up with: plain values, and the handlers that hear what goes wrong. Never changed once the set is made, so any thread may read them.

/// What a program says of it in `FiberRuntime.Configuration`.
struct WorkerSettings: Sendable {
    /// Nil for what the environment says, or one per CPU.
    let workers: Int?
    let pinsWorkers: Bool
    let stackSize: Int
    let guards: StackGuards
    /// Nanoseconds for which stacks must not have been needed before their memory is given back.
    let trimInterval: Int64
    /// How long fibers may take to end once they are all cancelled.
    let shutdownLimit: Duration
    /// What the workers' random numbers are made of; nil for the time counter.
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
