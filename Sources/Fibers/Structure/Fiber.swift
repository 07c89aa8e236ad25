// SPDX-License-Identifier: Apache-2.0

import CFiber

/// A fiber: a piece of straight-line code with a stack of its own, which parks when it waits and lets its thread go on with others.
///
/// Fibers run on the worker that first ran them, for ever, and never at the same time as another fiber of that worker: between two calls that park
/// nothing else changes what the fibers of one worker share. A fiber that computes for long without parking holds up the others; call
/// ``yield()`` now and then.
public struct Fiber: Hashable, Identifiable, Sendable, CustomStringConvertible {
    let core: FiberCore

    /// Unique in the process and never used again, not by a later runtime either.
    public var id: UInt64 { core.id }

    /// The name given when it was spawned, as long as it runs: at most 39 bytes of UTF-8, longer names are cut. Known on its own worker, nil elsewhere.
    public var name: String? { record?.name }

    /// Valid on its own worker, until the end of its life.
    private var record: FiberPointer? { core.home == Worker.current ? core.record : nil }

    /// True once its body has returned or thrown. Any thread. A loop that waits for it lets other fibers run now and then; ``FiberHandle/join()`` waits without one.
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

    /// The fiber that calls, nil outside fibers.
    public static var current: Fiber? {
        guard let worker = Worker.current, let core = worker.running.core else { return nil }
        return Fiber(core: core.takeUnretainedValue())
    }

    /// Lets every other fiber that is ready run before this one goes on. A few nanoseconds when none is.
    ///
    /// While fibers compute for long between their yields, a timer, a socket or a message that is due waits for about one round of those that are ready.
    public static func yield() {
        let worker = Worker.here("Fiber.yield()")
        // A wait sets a timer, and operations that need not wait look at the deadline now and then, when their common budget is spent. In a fiber that yields
        // between them it may always be others who spend the last of it.
        if _slowPath(worker.running.pointee.attention & Attention.deadline != 0) { return worker.yieldUnderADeadline() }
        worker.yield()
    }

    /// Parks the calling fiber for a time on the monotonic clock, which does not run while the machine is suspended.
    ///
    /// It wakes at the first moment at or after the deadline at which the worker is free; never before. Zero or less lets the other fibers run
    /// once, like ``yield()``.
    ///
    /// - Parameter duration: how long, with nanosecond resolution.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled; ``ResourceError`` when there is no memory for the timer.
    /// - Note: parks
    public static func sleep(for duration: Duration) throws {
        let worker = Worker.here("Fiber.sleep(for:)")
        try worker.sleep(until: duration > .zero ? Deadline.after(duration) : 0)
    }

    /// Parks the calling fiber until an instant. How far that is away is found out when it is called: time that the machine then spends suspended comes on top.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled; ``ResourceError`` when there is no memory for the timer.
    /// - Note: parks
    public static func sleep(until instant: ContinuousClock.Instant) throws {
        try sleep(for: Deadline.distance(to: instant))
    }

    /// Starts a fiber on the caller's worker. It runs after the fibers that are ready now, and goes on until its body ends, whether or not the handle is kept.
    ///
    /// The body may capture anything: it runs on the same thread as the caller.
    ///
    /// - Parameters:
    ///   - name: for messages and dumps; at most 39 bytes of UTF-8 are kept.
    ///   - startingNow: the fiber runs at once, and the caller goes on when it parks or ends, before those that are ready. So a tree of fibers is walked depth first, and as many stacks are in
    ///     use as it is deep. The caller parks, unless there is an error.
    ///   - body: what to do. What it returns or throws is had by ``FiberHandle/join()``. An error that nobody joins goes to
    ///     ``FiberRuntime/Configuration/onUnhandledError``.
    /// - Throws: ``ResourceError`` when there is no stack to be had: memory, mappings or address space have run out. No fiber was started then.
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

    /// Starts a fiber on the worker of the runtime that has the fewest, or on the one that is named; otherwise as ``spawnLocal(name:startingNow:_:)``.
    ///
    /// Once started it stays where it is. The body goes to another thread, so what it captures must be safe there; it inherits the caller's fiber-local values.
    ///
    /// - Parameters:
    ///   - name: for messages and dumps; at most 39 bytes of UTF-8 are kept.
    ///   - worker: from 0 to ``FiberRuntime/workerCount`` - 1; nil for the least loaded.
    ///   - body: what to do.
    /// - Throws: ``ResourceError`` when the caller's own worker was chosen and has no stack for it. If another has none, ``FiberHandle/join()`` throws that.
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

    /// Cancels the fiber: what it waits for ends now, and whatever else it would wait for later ends at once, by an error. Its children in groups are cancelled,
    /// too; fibers that it has spawned otherwise are not.
    ///
    /// A fiber of another worker of the runtime is cancelled when that worker looks at its messages, which is soon.
    ///
    /// It returns immediately; ``FiberHandle/join()`` waits for the end. A fiber that has not run yet does run, up to its first call that may park, so that it can
    /// clean up what it was given. Cancelling is for ever and happens once: doing it again, or after the end, does nothing. A fiber may cancel itself.
    public func cancel() {
        if core.isFinished { return }
        guard let worker = Worker.current else {
            misuse("cancel() was called outside a fiber: cancel it in a fiber of its runtime, which other threads can wake by a FiberEvent")
        }
        worker.cancel(core)
    }

    /// True when the calling fiber is cancelled, by ``cancel()`` or by a scope around this call whose deadline has passed; false inside
    /// ``withCancellationShield(_:)`` and outside fibers. It lets nobody else run, not even in a loop: who cancels on the same worker needs a ``yield()`` there.
    public static var isCancelled: Bool { Worker.current?.isCancelled ?? false }

    /// Throws if the calling fiber is cancelled: for long computations, which have nothing to wait for. It lets nobody else run; ``yield()`` does.
    /// - Throws: `CancellationError` or ``TimeoutError``.
    public static func checkCancellation() throws {
        let worker = Worker.here("Fiber.checkCancellation()")
        if worker.isCancelled { throw worker.running.cancellation }
    }

    // Stacks, for diagnostics.

    /// How deep the stack of a running fiber has ever been, in bytes from its top, to the page; 0 once it has finished, and on other workers.
    ///
    /// It counts the pages that are in memory, which may be those of an earlier fiber on the same stack.
    /// - Complexity: a system call.
    public var stackHighWaterMark: Int {
        record.map { StackPool.highWaterMark($0) } ?? 0
    }

    /// The bytes of stack that a fiber of this runtime can use; 0 once it has finished, and on other workers.
    public var stackSize: Int { record?.pointee.stack_size ?? 0 }
}
