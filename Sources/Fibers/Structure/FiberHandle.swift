/// A fiber that was spawned, and the way to what it returns.
///
/// Keep it, put it into an array, copy it, or drop it: a dropped handle leaves the fiber running.
public struct FiberHandle<Value> {
    @usableFromInline let cell: FiberCell<Value>

    @inlinable
    init(cell: FiberCell<Value>) { self.cell = cell }

    public var fiber: Fiber { Fiber(core: cell) }

    /// Waits until the fiber has ended and returns what its body returned, or throws what it threw. May be called any number of times, by several fibers.
    ///
    /// Joining cancels nothing. A fiber must not join itself.
    /// - Note: parks
    @inlinable
    public func join() throws -> Value {
        if !cell.isFinished { waitForEnd(cell) }
        switch cell.state {
        case .success(let value): return value
        case .failure(let failure): throw failure.deliver()
        case .pending, .running: fatalError("a fiber that has ended has a result")
        }
    }

}

/// Parks the caller until the life of a core is over.
@usableFromInline
func waitForEnd(_ core: FiberCore) {
    let worker = Worker.require("FiberHandle.join()")
    guard let record = core.record else { return }
    precondition(record != worker.running, "a fiber called join() on its own handle, which would never return: join it from another fiber")
    while core.record != nil { _ = worker.park(in: record.joiners, .join(core.id)) }
}
