import CFiber
import Glibc

/// A fiber: a piece of straight-line code with a stack of its own, which parks when it waits and lets its thread go on with others.
///
/// Fibers run on the worker that first ran them, for ever, and never at the same time as another fiber of that worker: between two calls that park
/// nothing else changes what the fibers of one worker share. A fiber that computes for long without parking holds up the others; call
/// ``yield()`` now and then.
public struct Fiber: Hashable, Identifiable, CustomStringConvertible {
    let core: FiberCore

    /// Unique within the runtime, never used again.
    public var id: UInt64 { core.id }

    /// The name given when it was spawned, as long as it runs: at most 39 bytes of UTF-8, longer names are cut.
    public var name: String? { core.record?.name }

    /// True once its body has returned or thrown.
    public var isFinished: Bool { core.record == nil }

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
    public static func yield() {
        Worker.here("Fiber.yield()").yield()
    }

    /// Parks the calling fiber for a time on the monotonic clock, which does not run while the machine is suspended.
    ///
    /// It wakes at the first moment at or after the deadline at which the worker is free; never before. Zero or less lets the other fibers run
    /// once, like ``yield()``.
    ///
    /// - Parameter duration: how long, with nanosecond resolution.
    /// - Throws: ``ResourceError`` when there is no memory for the timer.
    /// - Note: parks
    public static func sleep(for duration: Duration) throws {
        let worker = Worker.here("Fiber.sleep(for:)")
        guard duration > .zero else { return worker.yield() }
        _ = worker.beginPark()
        if worker.park(.sleep, until: Deadline.after(duration)) == .noTimer {
            throw ResourceError.memory(ENOMEM, "growing the timer queue", bytes: 16 * 2 * worker.pointee.timers.count)
        }
    }

    /// Starts a fiber on the caller's worker. It runs after the fibers that are ready now, and goes on until its body ends, whether or not the handle is kept.
    ///
    /// The body may capture anything: it runs on the same thread as the caller.
    ///
    /// - Parameters:
    ///   - name: for messages and dumps; at most 39 bytes of UTF-8 are kept.
    ///   - body: what to do. What it returns or throws is had by ``FiberHandle/join()``. An error that nobody joins goes to
    ///     ``FiberRuntime/Configuration/onUnhandledError``.
    /// - Throws: ``ResourceError`` when there is no stack to be had: memory, mappings or address space have run out. No fiber was started then.
    @inlinable
    @discardableResult
    public static func spawnLocal<Value>(
        name: String? = nil, _ body: @escaping () throws -> Value
    ) throws(ResourceError) -> FiberHandle<Value> {
        let (core, place) = try start(name: name) { FiberCore.run($0, $1, Value.self) }
        place.initializeMemory(as: (() throws -> Value).self, to: body)
        return FiberHandle(core: core)
    }

    @usableFromInline
    static func start(
        name: String?, _ runner: @escaping FiberBodyRunner
    ) throws(ResourceError) -> (FiberCore, UnsafeMutableRawPointer) {
        try Worker.here("Fiber.spawnLocal").start(name: name, runner)
    }

    // Stacks, for diagnostics.

    /// How deep the stack of a running fiber has ever been, in bytes from its top, to the page; 0 once it has finished.
    ///
    /// It counts the pages that are in memory, which may be those of an earlier fiber on the same stack.
    /// - Complexity: a system call.
    public var stackHighWaterMark: Int {
        guard let context = core.record?.context.pointee else { return 0 }
        return StackPool.highWaterMark(context)
    }

    /// The bytes of stack that a fiber of this runtime can use; 0 once it has finished.
    public var stackSize: Int { core.record?.context.pointee.stack_size ?? 0 }
}
