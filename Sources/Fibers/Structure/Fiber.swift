// SPDX-License-Identifier: Apache-2.0

import CFiber

/// A fiber: straight-line code with a stack of its own. A fiber that waits parks, and its thread continues with other fibers.
///
/// A fiber always runs on the worker that first ran it, and never at the same time as another fiber of that worker: between two calls that
/// park, nothing else changes the data that the fibers of one worker share. A fiber that computes for long without parking blocks the
/// others; call ``yield()`` now and then.
public struct Fiber: Hashable, Identifiable, Sendable, CustomStringConvertible {
    let core: FiberCore

    /// Unique in the process and never reused, not even by a later runtime.
    public var id: UInt64 { core.id }

    /// The name that the fiber was spawned with, until it ends: at most 39 bytes of UTF-8, longer names are cut. Known on its own worker,
    /// nil elsewhere.
    public var name: String? { record?.name }

    /// Valid on its own worker, until the end of the fiber's lifetime.
    private var record: FiberPointer? { core.home == Worker.current ? core.record : nil }

    /// True once the body has returned or thrown. Any thread. A loop that polls it lets other fibers run now and then;
    /// ``FiberHandle/join()`` waits without a loop.
    public var isFinished: Bool {
        if core.isFinished { return true }
        Worker.current?.countTry()
        return false
    }

    public static func == (a: Fiber, b: Fiber) -> Bool { a.core === b.core }
    public func hash(into hasher: inout Hasher) { hasher.combine(ObjectIdentifier(core)) }

    public var description: String {
        let quoted = name.map { " \"\($0)\"" } ?? ""
        return "fiber #\(id)\(quoted)"
    }

    /// The calling fiber, nil outside fibers.
    public static var current: Fiber? {
        guard let worker = Worker.current, let core = worker.running.core else { return nil }
        return Fiber(core: core.takeUnretainedValue())
    }

    /// Lets every other fiber that is ready run before the caller continues. Takes a few nanoseconds when no other fiber is ready.
    ///
    /// While fibers compute for long between their yields, a timer, socket or message that is due waits for about one round of the ready
    /// fibers.
    public static func yield() {
        let worker = Worker.here("Fiber.yield()")
        // A wait sets a timer, and operations that need not wait check the deadline now and then, when the worker's shared budget is spent.
        // If a fiber yields between them, other fibers may always be the ones that spend the last of the budget.
        if _slowPath(worker.running.pointee.attention & Attention.deadline != 0) { return worker.yieldUnderADeadline() }
        worker.yield()
    }

    /// Parks the calling fiber for a time on the monotonic clock, which does not run while the machine is suspended.
    ///
    /// The fiber wakes at the first moment at or after the deadline at which the worker is free; never before. Zero or less lets the other
    /// fibers run once, like ``yield()``.
    ///
    /// - Parameter duration: how long, with nanosecond resolution.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled; ``ResourceError`` when there is no memory for the
    ///   timer.
    /// - Note: parks
    public static func sleep(for duration: Duration) throws {
        let worker = Worker.here("Fiber.sleep(for:)")
        try worker.sleep(until: duration > .zero ? Deadline.after(duration) : 0)
    }

    /// Parks the calling fiber until an instant. The distance to the instant is computed at the call: time that the machine then spends
    /// suspended is added to it.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled; ``ResourceError`` when there is no memory for the
    ///   timer.
    /// - Note: parks
    public static func sleep(until instant: ContinuousClock.Instant) throws {
        try sleep(for: Deadline.distance(to: instant))
    }

    /// Starts a fiber on the caller's worker. It runs after the fibers that are ready now, until its body ends, whether or not the handle
    /// is kept.
    ///
    /// The body may capture anything: it runs on the same thread as the caller.
    ///
    /// - Parameters:
    ///   - name: for messages and dumps; at most 39 bytes of UTF-8 are kept.
    ///   - startingNow: the fiber runs at once. The caller continues when it parks or ends, ahead of the ready fibers. So a tree of fibers
    ///     is walked depth first, with only as many stacks in use as the tree is deep. The caller parks, unless there is an error.
    ///   - body: what to do. ``FiberHandle/join()`` returns or throws the result. An error that is never joined goes to
    ///     ``FiberRuntime/Configuration/onUnhandledError``.
    /// - Throws: ``ResourceError`` when no stack is available: memory, mappings or address space have run out. No fiber was started then.
    @inlinable
    @discardableResult
    public static func spawnLocal<Value>(
        name: String? = nil, startingNow: Bool = false, _ body: @escaping () throws -> Value
    ) throws(ResourceError) -> FiberHandle<Value> {
        let (core, place) = try start(name: name) { FiberCore.run($0, $1, Value.self, staysHome: true) }
        place.initializeMemory(as: (() throws -> Value).self, to: body)
        if startingNow { runNow(core) }
        return FiberHandle(core: core)
    }

    @usableFromInline
    static func runNow(_ core: FiberCore) {
        if let record = core.record { Worker.here("Fiber.spawnLocal").runNow(record) }
    }

    /// Starts a fiber on the worker with the fewest fibers, or on the given one; otherwise like ``spawnLocal(name:startingNow:_:)``.
    ///
    /// Once started the fiber stays on its worker. The body is sent to another thread, so its captures must be safe there; the fiber
    /// inherits the caller's fiber-local values.
    ///
    /// - Parameters:
    ///   - name: for messages and dumps; at most 39 bytes of UTF-8 are kept.
    ///   - worker: from 0 to ``FiberRuntime/workerCount`` - 1; nil for the least loaded.
    ///   - body: what to do.
    /// - Throws: ``ResourceError`` when the caller's own worker was chosen and has no stack for the fiber. If another worker has none,
    ///   ``FiberHandle/join()`` throws the error.
    @inlinable
    @discardableResult
    public static func spawn<Value: Sendable>(
        name: String? = nil, on worker: Int? = nil, _ body: sending @escaping () throws -> Value
    ) throws(ResourceError) -> FiberHandle<Value> {
        let core = try start(name: name, on: worker, { FiberCore.run($0, $1, Value.self, staysHome: false) }, SentBody(consume body))
        return FiberHandle(core: core)
    }

    @usableFromInline
    static func start(
        name: String?, on index: Int?, _ runner: @escaping FiberBodyRunner, _ body: any Departing
    ) throws(ResourceError) -> FiberCore {
        let worker = Worker.here("Fiber.spawn")
        let target = worker.target(index)
        if target == worker {
            let (core, memory) = try worker.start(name: name, runner)
            body.move(to: memory)
            return core
        }
        let core = worker.makeCore(on: target, RemoteLife())
        worker.send(core, Departure(name: name, locals: worker.running.locals), runner, body)
        return core
    }

    @usableFromInline
    static func start(
        name: String?, _ runner: @escaping FiberBodyRunner
    ) throws(ResourceError) -> (FiberCore, UnsafeMutableRawPointer) {
        try Worker.here("Fiber.spawnLocal").start(name: name, runner)
    }

    // Cancellation.

    /// Cancels the fiber: its current wait ends now, and every later wait ends at once, by an error. Its children in groups are cancelled,
    /// too; other fibers that it has spawned are not.
    ///
    /// A fiber of another worker of the runtime is cancelled when that worker next reads its messages, which is soon.
    ///
    /// The call returns immediately; ``FiberHandle/join()`` waits for the end. A fiber that has not run yet does run, up to its first call
    /// that may park, so that it can clean up the resources that it was given. Cancellation is permanent and happens once: cancelling
    /// again, or after the end, does nothing. A fiber may cancel itself.
    public func cancel() {
        if core.isFinished { return }
        guard let worker = Worker.current else {
            misuse("cancel() was called outside a fiber: cancel it in a fiber of its runtime, which other threads can wake by a FiberEvent")
        }
        worker.cancel(core)
    }

    /// True when the calling fiber is cancelled, by ``cancel()`` or by a scope around this call whose deadline has passed; false inside
    /// ``withCancellationShield(_:)`` and outside fibers. Reading it lets no other fiber run, even in a loop: to be cancelled by a fiber of
    /// the same worker, such a loop needs a ``yield()``.
    public static var isCancelled: Bool { Worker.current?.isCancelled ?? false }

    /// Throws if the calling fiber is cancelled: for long computations that never wait. It lets no other fiber run; ``yield()`` does.
    /// - Throws: `CancellationError` or ``TimeoutError``.
    public static func checkCancellation() throws {
        let worker = Worker.here("Fiber.checkCancellation()")
        if worker.isCancelled { throw worker.running.cancellation }
    }

    // Stacks, for diagnostics.

    /// The greatest depth that the stack of a running fiber has ever reached, in bytes from its top, to the page; 0 once the fiber has
    /// finished, and on other workers.
    ///
    /// It counts the pages that are in memory, which may be those of an earlier fiber on the same stack.
    /// - Complexity: a system call.
    public var stackHighWaterMark: Int {
        record.map { StackPool.highWaterMark($0) } ?? 0
    }

    /// The bytes of stack that a fiber of this runtime can use; 0 once the fiber has finished, and on other workers.
    public var stackSize: Int { record?.pointee.stack_size ?? 0 }
}
