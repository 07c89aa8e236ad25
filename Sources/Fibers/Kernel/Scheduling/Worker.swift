// SPDX-License-Identifier: Apache-2.0

// A worker: the thread that runs fibers, its ready queue, stacks, timers and event source.
//
// Invariants:
//   * a fiber of this worker is in exactly one place: running, in the ready queue, parked with a waiter somewhere, or in the inbox;
//   * only the root, the thread's own stack, sleeps (Root.swift), and only between ticks the worker looks at the world (Tick.swift). So neither I/O nor computation that yields starves the
//     other.
//
// The state lies behind a pointer and is changed field by field: a class property or an `inout self` would be an access that stays open across a
// switch, and the compiler may assume that nobody else changes what is under access. For the same reason nothing that may switch is `mutating`: what belongs together lies in a struct of its own, whose
// `mutating` functions call nothing of a worker.
// Owner worker only.

import CFiber
import Synchronization

package typealias Worker = UnsafeMutablePointer<WorkerState>

package struct WorkerState: ~Copyable {
    // What each switch touches comes first.
    var ready: ReadyQueue
    var tick = Tick()
    var budget = CallBudget()
    /// For other threads, too, which find the worker by one of its fibers. Not in the mailbox, where reading it would be an access to all that the owner changes there.
    let inbox: Inbox
    /// The same, for those who need not keep it: counting references would be two more writes to memory that the owner looks at.
    let lentInbox: Unmanaged<Inbox>
    var mailbox = Mailbox()
    var timers = TimerQueue()
    let events: any EventSource
    /// The same, for what is done often: counting references would be two atomic operations.
    unowned(unsafe) let lentEvents: any EventSource
    /// The event source's own clock; nil for the system's.
    let clock: (any WorkerClock)?
    var pool: StackPool
    /// Other workers look at it, too.
    let load = WorkerLoad()
    var ending = Ending()
    var spinning = Spinning()
    package var foresight: Foresight
    var numbers: NumberSource
    let workers: WorkerSet
    /// The set of workers by its address.
    let home: UnsafeRawPointer
    /// Its place among the runtime's workers. The thread that called `run` is 0.
    package let index: Int
    /// Unique in the process.
    let number: UInt64
    /// The thread's own stack as a record like any other.
    let root: FiberPointer
    package var statistics = WorkerStatistics()
    var overflowState: UnsafeMutableRawPointer?
}

/// How many fibers a worker has.
struct WorkerLoad: ~Copyable {
    /// Alive: spawned and not ended.
    let live = Atomic<Int>(0)
    /// Sent here by other workers and not started yet.
    let arriving = Atomic<Int>(0)
}

/// Counters of one worker, for tests and diagnostics.
package struct WorkerStatistics: BitwiseCopyable, Sendable {
    package var polls = 0
    package var sleeps = 0
    package var staleEvents = 0
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// The worker of the calling thread.
    @inline(__always)
    package static var current: Worker? { cfiber_worker()?.assumingMemoryBound(to: WorkerState.self) }

    /// Fibers alive: spawned and not ended. An atomic's plain load and store: only the owner changes it.
    package var live: Int {
        @inline(__always) get { pointee.load.live.load(ordering: .relaxed) }
        @inline(__always) nonmutating set { pointee.load.live.store(newValue, ordering: .relaxed) }
    }

    /// Monotonic nanoseconds.
    package var now: Int64 {
        @inline(__always) get { _fastPath(pointee.clock == nil) ? cfiber_now() : nowOfClock() }
    }

    /// The CPU's time counter, unless the event source has a clock of its own.
    var counter: UInt64 {
        @inline(__always) get { _fastPath(pointee.clock == nil) ? cfiber_counter() : counterOfClock() }
    }

    // Out of line: what an inlined call of the clock keeps in registers, each yield would save first.
    @inline(never)
    private func nowOfClock() -> Int64 { pointee.clock.unsafelyUnwrapped.now() }

    @inline(never)
    private func counterOfClock() -> UInt64 { pointee.clock.unsafelyUnwrapped.counter() }

    /// The same time as `now`, on the continuous clock.
    package var instant: ContinuousClock.Instant { pointee.clock?.instant() ?? .now }

    /// Entries in the timer queue, for tests and diagnostics. Those of waits that ended early stay for a while.
    package var timerCount: Int { pointee.timers.count }

    /// The fiber on whose stack the thread runs, which may be the root.
    @inline(__always)
    package var running: FiberPointer { cfiber_current().unsafelyUnwrapped }

    // Switching.

    /// Lets every other ready fiber run before this one goes on.
    @inline(__always)
    func yield() {
        pointee.tick.left &-= 1
        if _slowPath(pointee.tick.left <= 0) { return yieldAtEndOfTick() }
        takeTurns()
    }

    // A call in the last place needs no registers saved before it, so the common way has none to save.
    @inline(never)
    func yieldUnderADeadline() {
        _ = isCancelled
        yield()
    }

    @inline(never)
    private func yieldAtEndOfTick() {
        if pointee.ending.isAbandoned { return }
        endTick()
        takeTurns()
    }

    @inline(__always)
    private func takeTurns() {
        if _slowPath(pointee.ready.isAtBatch) { return takeTurnsWithABatch() }
        guard let next = pointee.ready.takeFirst() else { return takeTurnsWithTheWorld() }
        pointee.ready.append(running)
        cfiber_switch(next)
    }

    @inline(never)
    private func takeTurnsWithABatch() {
        guard let next = pointee.ready.popFirst() else { return takeTurnsWithTheWorld() }
        pointee.ready.append(running)
        cfiber_switch(next)
    }

    /// Nobody else is ready, as far as is known: a fiber that yields now and then may compute for long in between.
    @inline(never)
    private func takeTurnsWithTheWorld() {
        guard isPollDue && !pointee.ending.isAbandoned else { return }
        endTick()
        guard let next = pointee.ready.popFirst() else { return }
        pointee.ready.append(running)
        cfiber_switch(next)
    }

    /// Leaves the running fiber for the next ready one, or for the root.
    @inline(__always)
    func switchAway() {
        endTickIfDue()
        let next = pointee.ready.popFirst() ?? pointee.root
        // A fiber that waited for the world has gone cold meanwhile: the one after the next is fetched while the next one works.
        if let second = pointee.ready.first {
            second.prefetchFrames()
        } else if _slowPath(live > Foresight.fibersInCache) {
            foresee(next)
        }
        // The end of the tick may have found what the fiber was about to wait for.
        if next != running { cfiber_switch(next) }
    }

    @inline(__always)
    func makeReady(_ fiber: FiberPointer) {
        pointee.ready.append(fiber)
    }

    /// Unlike its address, which a worker of a later runtime may have, never that of another worker.
    package var number: UInt64 { pointee.number }

    /// For messages: the running fiber, and where it runs.
    package func describeCaller() -> String { "\(Holders.describeCaller()) on worker \(pointee.index)" }
}
