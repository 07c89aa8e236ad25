/// A fiber that was spawned, and the way to what it returns.
///
/// Keep it, put it into an array, copy it, or drop it: a dropped handle leaves the fiber running.
public struct FiberHandle<Value> {
    @usableFromInline let core: FiberCore

    @inlinable
    init(core: FiberCore) { self.core = core }

    public var fiber: Fiber { Fiber(core: core) }

    /// Waits until the fiber has ended and returns what its body returned, or throws what it threw. May be called any number of times, by several fibers.
    ///
    /// Joining cancels nothing. A fiber must not join itself.
    /// - Note: parks
    @inlinable
    public func join() throws -> Value {
        if !core.isFinished { waitForEnd(core) }
        return try core.result(Value.self)
    }

}

/// Parks the caller until the life of a core is over.
@usableFromInline
func waitForEnd(_ core: FiberCore) {
    let worker = Worker.here("FiberHandle.join()")
    guard let record = core.record else { return }
    require(record != worker.running, "a fiber called join() on its own handle, which would never return: join it from another fiber")
    require(record.pointee.worker == worker, "join() was called on another worker's fiber: join it on the thread that runs it")
    _ = worker.park(in: record.joiners, .join(core.id))
}
