// SPDX-License-Identifier: Apache-2.0

// How a fiber begins and ends. Owner worker only.

import CFiber
import Glibc

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Starts a fiber on a pooled stack; it first runs after the fibers that are ready now. The caller must put the body at the returned
    /// address before it does anything else.
    @inline(__always)
    func start(name: String?, _ runner: @escaping FiberBodyRunner) throws(ResourceError) -> (FiberCore, UnsafeMutableRawPointer) {
        let fiber = try takeStack()
        fiber.renewCore(for: self)
        let core = fiber.core.unsafelyUnwrapped.takeUnretainedValue()
        core.id = pointee.numbers.takeID()
        begin(fiber, core, name: name, locals: running.locals, runner)
        return (core, fiber.body)
    }

    /// Runs a fiber that has just been started before all others, and resumes the caller right after it, unless other fibers are due.
    func runNow(_ fiber: FiberPointer) {
        require(running != pointee.root, "spawnLocal(startingNow: true) was called outside a fiber: leave startingNow out there")
        pointee.tick.left &-= 1
        // The end of a short tick is no reason to run other fibers first: while fibers compute for long, every tick is short.
        guard pointee.tick.left > 0 || !isFrontDue, pointee.ready.removeLast(fiber) else { return yield() }
        if _slowPath(pointee.tick.left <= 0) { endTick() }
        pointee.ready.prepend(running)
        cfiber_switch(fiber)
    }

    /// Starts a fiber whose core another worker has made.
    func start(
        _ core: FiberCore, name: String?, locals: FiberLocalNode?, _ runner: @escaping FiberBodyRunner
    ) throws(ResourceError)
        -> UnsafeMutableRawPointer
    {
        let fiber = try takeStack()
        fiber.coreField.pointee = core
        begin(fiber, core, name: name, locals: locals, runner)
        return fiber.body
    }

    @inline(__always)
    private func takeStack() throws(ResourceError) -> FiberPointer {
        // One more for the root.
        guard pointee.ready.reserve(live &+ 2) else {
            throw .memory(ENOMEM, "growing the ready queue", bytes: live * 2 * MemoryLayout<FiberPointer>.stride)
        }
        return try pointee.pool.take(for: self)
    }

    @inline(__always)
    private func begin(
        _ fiber: FiberPointer, _ core: FiberCore, name: String?, locals: FiberLocalNode?, _ runner: @escaping FiberBodyRunner
    ) {
        // The record counts as between fibers until the new one runs.
        fiber.pointee.life = UInt64(Holder(fiber: core.id)) | UInt64(CFIBER_BETWEEN_LIVES)
        if let name { fiber.setName(name) }
        core.record = fiber
        fiber.runner.pointee.run = runner
        if let locals { fiber.locals = locals }
        live &+= 1
        pointee.ready.append(fiber)
        if _slowPath(pointee.ending.abandonAt != .max) { cancel(fiber.base) }
    }
}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    @inline(never)
    fileprivate func setName(_ name: String) {
        var name = name
        name.withUTF8 { $0.withMemoryRebound(to: CChar.self) { cfiber_set_name(self, $0.baseAddress, $0.count) } }
    }
}

/// One fiber from its start to its end: runs the body, wakes the fibers that join it, returns the stack to the pool and returns the next
/// fiber to run.
///
/// When this returns, nothing on the stack owns anything: the frame below stays parked until the stack's next fiber starts, or is unmapped.
let runLife: @convention(c) (FiberPointer?) -> FiberPointer? = { fiber in
    let fiber = fiber.unsafelyUnwrapped
    let worker = fiber.worker
    runBody(fiber, worker)
    worker.endTickIfDue()
    worker.live &-= 1
    worker.pointee.pool.put(fiber)
    let next = worker.pointee.ready.popFirst() ?? worker.pointee.root
    if _slowPath(worker.pointee.ready.isLong) { worker.pointee.ready.first?.prefetchFrames() }
    return next
}

@inline(__always)
private func runBody(_ fiber: FiberPointer, _ worker: Worker) {
    // Not `withObject`: in unoptimised builds it would add two frames at the bottom of every fiber's stack, in every backtrace.
    let holdsResult = fiber.core.unsafelyUnwrapped._withUnsafeGuaranteedRef { core in
        fiber.runner.pointee.run(core, fiber.body)
        if _slowPath(fiber.pointee.locals != nil) { letGo(of: fiber.localsField) }
        core.record = nil
        return core.object != nil || core.remote != nil
    }
    if !fiber.joiners.pointee.isEmpty { worker.wakeAll(&fiber.joiners.pointee, .ready) }
    if _slowPath(holdsResult) { worker.endRemote(fiber) }
    if _slowPath(fiber.pointee.attention != 0 || fiber.pointee.is_child != 0) { fiber.endBase() }
    // From now on only handles can reach the result, and it must not outlive them.
    if holdsResult { letGo(of: fiber.coreField) }
    // Last, because the releases above may have parked: in a handler of unhandled errors, or a deinit.
    if _slowPath(fiber.pointee.timerIndex >= 0) { worker.pointee.timers.remove(fiber) }
    if _slowPath(fiber.pointee.openLocks != 0) { stopEndedWithLocks(fiber) }
    fiber.pointee.life = 0
    if _slowPath(fiber.pointee.is_named != 0) { cfiber_clear_name(fiber) }
}

/// Empties a field of a record before the old value is released. An assignment would release first, and a deinit that accesses its own
/// fiber would find the object being destroyed.
@inline(never)
private func letGo<Object>(of field: UnsafeMutablePointer<Object?>) {
    let object = field.move()
    withExtendedLifetime(object) { field.initialize(to: nil) }
}
