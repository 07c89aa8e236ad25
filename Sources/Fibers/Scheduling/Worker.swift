// A worker: the thread that runs fibers, its ready queue, stacks, timers and driver.
//
// Invariants:
//   * a fiber of this worker is in exactly one place: running, in the ready queue, parked with a waiter somewhere, or in the inbox;
//   * the root, the thread's own stack, runs only when no fiber is ready;
//   * a tick is at most `tickLength` switches; after each the worker looks at the inbox, and when half a millisecond has passed also at timers and
//     driver, without blocking. So neither I/O nor computation that yields starves the other.
//
// The state lies behind a pointer and is changed field by field: a class property or an `inout self` would be an access that stays open across a
// switch, and the compiler may assume that nobody else changes what is under access. For the same reason nothing here is `mutating`.
// Owner worker only.

import CFiber
import Glibc

package typealias Worker = UnsafeMutablePointer<WorkerState>

package struct WorkerState: ~Copyable {
    var ready: ReadyQueue
    /// Switches left in this tick.
    var budget: Int32 = Worker.tickLength
    /// Successful I/O without a park left before the fiber must let others run.
    var ioBudget: Int32 = Worker.ioBudgetLength
    let inbox: Inbox
    var timers = TimerQueue()
    package let driver: Driver
    var pool: StackPool
    /// Fibers alive: spawned and not ended.
    package var live = 0
    /// What the time counter showed after the last look at the driver.
    var lastPoll: UInt64 = 0
    var nextID: UInt64 = 1
    var epochBase: UInt64 = 0
    let runtime: FiberRuntime
    /// The thread's own stack as a record like any other.
    let root: FiberPointer
    package var statistics = WorkerStatistics()
    var overflowState: UnsafeMutableRawPointer?
    /// Set once the runtime shuts down: all fibers are cancelled, and those not ended by then are abandoned.
    var abandonAt = Int64.max
}

/// Counters of one worker, for tests and diagnostics.
package struct WorkerStatistics: BitwiseCopyable, Sendable {
    package var spawned = 0
    package var polls = 0
    package var sleeps = 0
    package var staleEvents = 0
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    static var tickLength: Int32 { 64 }
    static var ioBudgetLength: Int32 { 32 }

    /// The worker of the calling thread.
    @inline(__always)
    package static var current: Worker? { cfiber_worker()?.assumingMemoryBound(to: WorkerState.self) }

    /// Monotonic nanoseconds, by the driver's clock.
    package var now: Int64 { pointee.driver.now() }

    /// Entries in the timer queue, for tests and diagnostics. Those of waits that ended early stay for a while.
    package var timerCount: Int { pointee.timers.count }

    /// The fiber on whose stack the thread runs, which may be the root.
    @inline(__always)
    package var running: FiberPointer { FiberPointer(context: cfiber_current().unsafelyUnwrapped) }

    // Switching.

    /// Lets every other ready fiber run before this one goes on.
    @inline(__always)
    func yield() {
        pointee.budget &-= 1
        if _slowPath(pointee.budget <= 0) { return yieldAtEndOfTick() }
        takeTurns()
    }

    // A call in the last place needs no registers saved before it, so the common way has none to save.
    @inline(never)
    private func yieldAtEndOfTick() {
        endTick()
        takeTurns()
    }

    @inline(__always)
    private func takeTurns() {
        guard let next = pointee.ready.popFirst() else { return }
        pointee.ready.append(running)
        cfiber_switch(next.context)
    }

    /// Leaves the running fiber for the next ready one, or for the root.
    @inline(__always)
    func switchAway() {
        endTickIfDue()
        let next = pointee.ready.popFirst() ?? pointee.root
        // A fiber that waited for the world has gone cold meanwhile: the one after the next is fetched while the next one works.
        pointee.ready.first?.prefetchFrames()
        // The end of the tick may have found what the fiber was about to wait for.
        if next != running { cfiber_switch(next.context) }
    }

    @inline(__always)
    func endTickIfDue() {
        pointee.budget &-= 1
        if _slowPath(pointee.budget <= 0) { endTick() }
    }

    @inline(never)
    private func endTick() {
        pointee.budget = Self.tickLength
        collectInbox()
        if cfiber_counter() &- pointee.lastPoll >= cfiber_counter_interval() {
            poll(timeout: 0)
            // The fiber stays as it is, with all that it owns, and never goes on. One whose life is over only has to say so.
            if _slowPath(pointee.abandonAt != .max && isOverdue), running.pointee.context.id != 0 { cfiber_switch(pointee.root.context) }
        }
    }

    /// Counts an operation that succeeded without parking; now and then lets the others run, so that one busy socket starves nobody.
    @inline(__always)
    package func chargeOperation() {
        pointee.ioBudget &-= 1
        if _slowPath(pointee.ioBudget <= 0) {
            pointee.ioBudget = Self.ioBudgetLength
            // A deadline must come to a fiber that never has to wait, too.
            _ = isCancelled
            yield()
        }
    }

    // The root.

    /// Runs fibers until none is alive, or until those that are alive are abandoned.
    func runUntilDone() {
        while pointee.live > 0 {
            if _slowPath(pointee.abandonAt != .max && isOverdue) { return abandonFibers() }
            collectInbox()
            if let next = pointee.ready.popFirst() {
                cfiber_switch(next.context)
            } else {
                sleep()
            }
        }
    }

    private func sleep() {
        pointee.pool.trim(now: now)
        let now = self.now
        var wake = Int64.max
        if let deadline = pointee.timers.earliest(after: now) { wake = deadline }
        wake = Swift.min(wake, pointee.abandonAt)
        if let trim = pointee.pool.nextTrim { wake = Swift.min(wake, trim) }
        guard pointee.inbox.beginSleep() else { return }
        pointee.statistics.sleeps &+= 1
        poll(timeout: wake == .max ? -1 : Swift.max(0, wake &- now))
        pointee.inbox.endSleep()
    }

    /// Looks at timers and driver; blocks for at most `timeout` nanoseconds (negative: without end) when nothing has happened before.
    private func poll(timeout: Int64) {
        pointee.statistics.polls &+= 1
        pointee.driver.poll(timeout: timeout)
        if !pointee.timers.isEmpty { expireTimers(now: now) }
        pointee.lastPoll = cfiber_counter()
    }

    private func expireTimers(now: Int64) {
        while let fiber = pointee.timers.popExpired(now: now) {
            // Not later than the deadline of the call itself: then it is the scope's.
            if fiber.pointee.scope.pointee.effective <= fiber.pointee.wakeAt {
                cancelExpired(fiber)
            } else {
                _ = unpark(Waiter(fiber), .timedOut)
            }
        }
    }

    // Shutting down.

    /// Cancels all fibers, the newest first, and those that are spawned from now on; gives them until `deadline` to end. A second call may shorten the time.
    func shutDown(until deadline: Int64) {
        // A limit without end is a shutdown, too: what is spawned from now on is cancelled.
        pointee.abandonAt = Swift.min(pointee.abandonAt, deadline, .max - 1)
        let fibers = liveFibers.reversed()
        // Children of groups by way of their groups, so that these know; then those whose groups are shielded.
        for fiber in fibers where fiber.base.pointee.outer == nil { cancel(fiber.base) }
        for fiber in fibers { cancel(fiber.base) }
    }

    private var isOverdue: Bool { now >= pointee.abandonAt }

    /// In the order in which they were spawned.
    private var liveFibers: [FiberPointer] {
        var fibers: [FiberPointer] = []
        pointee.pool.forEachLive { fibers.append($0) }
        return fibers.sorted { $0.pointee.context.id < $1.pointee.context.id }
    }

    /// Names the fibers that did not end in time. They will never run again; what they own stays in memory, since Swift cannot unwind their stacks.
    private func abandonFibers() {
        let fibers = liveFibers
        let names = fibers.prefix(20).map { fiber in
            "fiber #\(fiber.pointee.context.id)\(fiber.name.map { " \"\($0)\"" } ?? "") (\(fiber.reason))"
        }
        let rest = fibers.count > names.count ? ", and \(fibers.count - names.count) more" : ""
        warn(
            "the runtime ends without \(names.joined(separator: ", "))\(rest): cancelled and not ended in time. They may ignore their cancellation, or wait in withCancellationShield without a deadline."
        )
        for fiber in fibers {
            guard let core = fiber.pointee.core, core.record != nil else { continue }
            // A handle must not look for the record any more, and `join` has an answer.
            core.object = UndeliveredError(CancellationError(), of: core)
            core.record = nil
        }
    }

    private func collectInbox() {
        if pointee.inbox.isEmpty { return }
        pointee.inbox.drain { pointee.ready.append($0) }
    }

    @inline(__always)
    func makeReady(_ fiber: FiberPointer) {
        pointee.ready.append(fiber)
    }

    package func warn(_ message: String) {
        pointee.runtime.configuration.onWarning(message)
    }

    /// Tells the runtime's handler of an error of the running fiber that nobody else will hear of.
    package func reportUnhandled(_ error: any Error) {
        let id = running.pointee.context.id
        pointee.runtime.configuration.onUnhandledError(UnhandledFiberError(fiberID: id, fiberName: running.name, error: error))
    }

    // Lives.

    /// Starts a life on a pooled stack; its first turn comes after the fibers that are ready now. The caller puts the body where the result says, before it
    /// does anything else.
    @inline(__always)
    func start(name: String?, _ runner: @escaping FiberBodyRunner) throws(ResourceError) -> (FiberCore, UnsafeMutableRawPointer) {
        guard pointee.ready.reserve(pointee.live &+ 1) else {
            throw .memory(ENOMEM, "growing the ready queue", bytes: pointee.live * 2 * MemoryLayout<FiberPointer>.stride)
        }
        let fiber = try pointee.pool.take(for: self)
        let id = pointee.nextID
        pointee.nextID = id &+ 1
        fiber.pointee.context.id = id
        if let name { fiber.setName(name) }
        fiber.renewCore()
        let core = fiber.core.unsafelyUnwrapped.takeUnretainedValue()
        core.id = id
        core.record = fiber
        fiber.pointee.runner = runner
        if let locals = running.pointee.locals { fiber.pointee.locals = locals }
        pointee.live &+= 1
        pointee.ready.append(fiber)
        if _slowPath(pointee.abandonAt != .max) { cancel(fiber.base) }
        return (core, fiber.body)
    }

    /// Epochs of a record that is made anew start where no earlier record's have been: 2^31 parks apart, which lasts for 2^32 records.
    func nextEpochBase() -> UInt64 {
        pointee.epochBase &+= 1 << 32
        return pointee.epochBase
    }
}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    @inline(never)
    fileprivate func setName(_ name: String) {
        var name = name
        name.withUTF8 { $0.withMemoryRebound(to: CChar.self) { cfiber_set_name(context, $0.baseAddress, $0.count) } }
    }
}

/// One life of a fiber: runs its body, wakes those who wait for its end, puts its stack into the pool and says who comes next.
///
/// When this returns, nothing on the stack owns anything: the frame below stays parked until the stack's next life, or is unmapped.
let runLife: @convention(c) (UnsafeMutablePointer<cfiber_context>?) -> UnsafeMutablePointer<cfiber_context>? = { context in
    let fiber = FiberPointer(context: context.unsafelyUnwrapped)
    let worker = fiber.pointee.worker
    runBody(fiber, worker)
    worker.endTickIfDue()
    worker.pointee.live &-= 1
    worker.pointee.pool.put(fiber)
    return (worker.pointee.ready.popFirst() ?? worker.pointee.root).context
}

@inline(__always)
private func runBody(_ fiber: FiberPointer, _ worker: Worker) {
    let holdsResult = fiber.core.unsafelyUnwrapped._withUnsafeGuaranteedRef { core in
        fiber.pointee.runner(core, fiber.body)
        if _slowPath(fiber.pointee.locals != nil) { letGo(of: &fiber.pointee.locals) }
        core.record = nil
        return core.object != nil
    }
    if !fiber.pointee.joiners.isEmpty { worker.wakeAll(&fiber.pointee.joiners, .ready) }
    if _slowPath(fiber.pointee.attention != 0 || fiber.pointee.base.outer != nil) { fiber.endBase() }
    // Nobody can have the result any more but those with a handle, and it must not outlive them.
    if holdsResult { letGo(of: &fiber.pointee.core) }
    // Last, since what has just been let go of may have waited on its way: a handler of unhandled errors, a deinit.
    if _slowPath(fiber.pointee.timerIndex >= 0) { worker.pointee.timers.remove(fiber) }
    fiber.pointee.context.id = 0
    fiber.pointee.context.name.0 = 0
}

/// Empties a field of a record before what it held is released: an assignment releases first, and a deinit that looks at its own fiber would find itself.
@inline(never)
private func letGo<Object>(of field: UnsafeMutablePointer<Object?>) {
    let object = field.move()
    withExtendedLifetime(object) { field.initialize(to: nil) }
}
