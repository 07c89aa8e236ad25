// SPDX-License-Identifier: Apache-2.0

// Lives: how a fiber begins and ends. Owner worker only.

import CFiber
import Glibc

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Starts a life on a pooled stack; its first turn comes after the fibers that are ready now. The caller puts the body where the result says, before it
    /// does anything else.
    @inline(__always)
    func start(name: String?, _ runner: @escaping FiberBodyRunner) throws(ResourceError) -> (FiberCore, UnsafeMutableRawPointer) {
        let fiber = try takeStack()
        fiber.renewCore(for: self)
        let core = fiber.core.unsafelyUnwrapped.takeUnretainedValue()
        core.id = pointee.numbers.takeID()
        begin(fiber, core, name: name, locals: running.locals, runner)
        return (core, fiber.body)
    }

    /// Lets a fiber that has just been started run before all others, and the calling one after it, unless it is time to let others run.
    func runNow(_ fiber: FiberPointer) {
        require(running != pointee.root, "spawnLocal(startingNow: true) was called outside a fiber: leave startingNow out there")
        pointee.tick.left &-= 1
        // The end of a short tick is no reason to let others run first: while fibers compute for long, each tick is short.
        guard pointee.tick.left > 0 || !isFrontDue, pointee.ready.removeLast(fiber) else { return yield() }
        if _slowPath(pointee.tick.left <= 0) { endTick() }
        pointee.ready.prepend(running)
        cfiber_switch(fiber)
    }

    /// Starts a life whose core another worker has made.
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
        // Until it runs, the stack is between lives.
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

/// One life of a fiber: runs its body, wakes those who wait for its end, puts its stack into the pool and says who comes next.
///
/// When this returns, nothing on the stack owns anything: the frame below stays parked until the stack's next life, or is unmapped.
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
    // Not by `withObject`: in unoptimised builds that is two frames more at the bottom of each fiber's stack, in every backtrace.
    let holdsResult = fiber.core.unsafelyUnwrapped._withUnsafeGuaranteedRef { core in
        fiber.runner.pointee.run(core, fiber.body)
        if _slowPath(fiber.pointee.locals != nil) { letGo(of: fiber.localsField) }
        core.record = nil
        return core.object != nil || core.remote != nil
    }
    if !fiber.joiners.pointee.isEmpty { worker.wakeAll(&fiber.joiners.pointee, .ready) }
    if _slowPath(holdsResult) { worker.endRemote(fiber) }
    if _slowPath(fiber.pointee.attention != 0 || fiber.pointee.is_child != 0) { fiber.endBase() }
    // Nobody can have the result any more but those with a handle, and it must not outlive them.
    if holdsResult { letGo(of: fiber.coreField) }
    // Last, since what has just been let go of may have waited on its way: a handler of unhandled errors, a deinit.
    if _slowPath(fiber.pointee.timerIndex >= 0) { worker.pointee.timers.remove(fiber) }
    if _slowPath(fiber.pointee.openLocks != 0) { stopEndedWithLocks(fiber) }
    fiber.pointee.life = 0
    if _slowPath(fiber.pointee.is_named != 0) { cfiber_clear_name(fiber) }
}

/// Empties a field of a record before what it held is released: an assignment releases first, and a deinit that looks at its own fiber would find itself.
@inline(never)
private func letGo<Object>(of field: UnsafeMutablePointer<Object?>) {
    let object = field.move()
    withExtendedLifetime(object) { field.initialize(to: nil) }
}
