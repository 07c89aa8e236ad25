// SPDX-License-Identifier: Apache-2.0

/// A handle to a spawned fiber, which gives access to its result.
///
/// It may be sent to other workers of the runtime if the fiber's result is `Sendable`; its calls work in any fiber there.
///
/// It may be kept, put into an array, copied or dropped. Dropping it detaches the fiber, which runs to its end; an error that it then
/// throws goes to ``FiberRuntime/Configuration/onUnhandledError``.
public struct FiberHandle<Value> {
    @usableFromInline let core: FiberCore

    @inlinable
    init(core: FiberCore) { self.core = core }

    public var fiber: Fiber { Fiber(core: core) }

    /// Waits until the fiber has ended and returns the result of its body, or throws its error. May be called any number of times, by
    /// several fibers.
    ///
    /// Joining cancels nothing: when the caller is cancelled it stops waiting, and the joined fiber continues. A fiber must not join
    /// itself.
    ///
    /// - Throws: what the body threw; `CancellationError` when the fiber was cancelled and ended because of that, or when the caller is
    ///   cancelled before the fiber has ended (``Fiber/isCancelled`` is true then); ``TimeoutError``.
    /// - Note: parks
    @inlinable
    public func join() throws -> Value {
        if !core.isFinished { try waitForEnd(core) }
        return try core.result(Value.self)
    }

    /// Cancels the fiber; see ``Fiber/cancel()``.
    public func cancel() { fiber.cancel() }
}

extension FiberHandle: Sendable where Value: Sendable {}

/// Parks the caller until the fiber of a core has ended.
@usableFromInline
func waitForEnd(_ core: FiberCore) throws {
    let worker = Worker.here("FiberHandle.join()")
    if core.home != worker || core.isOnItsWay { return try worker.joinRemote(core) }
    guard let record = core.record else { return }
    require(record != worker.running, "a fiber called join() on its own handle, which would never return: join it from another fiber")
    try worker.refuseIfCancelled()
    try worker.check(worker.park(in: record.joiners, .join(core.id)))
}
