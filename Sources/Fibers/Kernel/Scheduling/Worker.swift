// SPDX-License-Identifier: Apache-2.0

// A worker: the thread that runs fibers, with its ready queue, stacks, timers and event source.
//
// Invariants:
//   * a fiber of this worker is in exactly one state: running, in the ready queue, parked with a waiter, or in the inbox;
//   * only the root, on the thread's own stack, sleeps (Root.swift), and the worker checks its inbox, timers and event source only between
//     ticks (Tick.swift). So neither I/O nor computation that yields starves the other.
//
// The state lies behind a pointer and is changed field by field. A class property or an `inout self` would be an access that stays open
// across a switch, and the compiler may assume that no other code changes memory under access. For the same reason no function that may
// switch is `mutating`: related fields form a struct of their own, whose `mutating` functions call nothing of a worker.
// Owner worker only.

import CFiber
import Synchronization

package typealias Worker = UnsafeMutablePointer<WorkerState>

package struct WorkerState: ~Copyable {
    // Fields that each switch touches come first.
    var ready: ReadyQueue
    var tick = Tick()
    var budget = CallBudget()
    /// Also read by other threads, which find the worker through one of its fibers. Not in the mailbox: reading it there would be an access
    /// to all the fields that the owner changes.
    let inbox: Inbox
    /// The same inbox, borrowed, for callers that need not retain it: reference counting would be two more writes to memory that the owner
    /// reads.
    let lentInbox: Unmanaged<Inbox>
    var mailbox = Mailbox()
    var timers = TimerQueue()
    let events: any EventSource
    /// The same event source, borrowed, for frequent calls: reference counting would cost two atomic operations.
    unowned(unsafe) let lentEvents: any EventSource
    /// The event source's own clock; nil for the system clock.
    let clock: (any WorkerClock)?
    var pool: StackPool
    /// Also read by other workers.
    let load = WorkerLoad()
    var ending = Ending()
    var spinning = Spinning()
    package var foresight: Foresight
    var numbers: NumberSource
    let workers: WorkerSet
    /// The address of the set of workers.
    let home: UnsafeRawPointer
    /// The worker's index in the runtime. The thread that called `run` is 0.
    package let index: Int
    /// Unique in the process.
    let number: UInt64
    /// The record of the thread's own stack.
    let root: FiberPointer
    package var statistics = WorkerStatistics()
    var overflowState: UnsafeMutableRawPointer?
}

/// The number of fibers of a worker.
struct WorkerLoad: ~Copyable {
    /// Live fibers: spawned and not ended.
    let live = Atomic<Int>(0)
    /// Fibers sent here by other workers and not started yet.
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

    /// Live fibers: spawned and not ended. A plain load and store of the atomic, because only the owner changes it.
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

    // Out of line: otherwise each yield would first save the registers that an inlined call of the clock needs.
    @inline(never)
    private func nowOfClock() -> Int64 { pointee.clock.unsafelyUnwrapped.now() }

    @inline(never)
    private func counterOfClock() -> UInt64 { pointee.clock.unsafelyUnwrapped.counter() }

    /// The same time as `now`, on the continuous clock.
    package var instant: ContinuousClock.Instant { pointee.clock?.instant() ?? .now }

    /// Entries in the timer queue, for tests and diagnostics. Entries of waits that ended early stay for a while.
    package var timerCount: Int { pointee.timers.count }

    /// The fiber on whose stack the thread runs; possibly the root.
    @inline(__always)
    package var running: FiberPointer { cfiber_current().unsafelyUnwrapped }

    // Switching.

    /// Runs every other ready fiber before this one resumes.
    @inline(__always)
    func yield() {
        pointee.tick.left &-= 1
        if _slowPath(pointee.tick.left <= 0) { return yieldAtEndOfTick() }
        takeTurns()
    }

    // Tail calls need no registers saved before them, so the fast path saves none.
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

    /// No other fiber is known to be ready. Polls if that is due, because a fiber that yields only now and then may compute for long in
    /// between.
    @inline(never)
    private func takeTurnsWithTheWorld() {
        guard isPollDue && !pointee.ending.isAbandoned else { return }
        endTick()
        guard let next = pointee.ready.popFirst() else { return }
        pointee.ready.append(running)
        cfiber_switch(next)
    }

    /// Switches from the running fiber to the next ready one, or to the root.
    @inline(__always)
    func switchAway() {
        endTickIfDue()
        let next = pointee.ready.popFirst() ?? pointee.root
        // A fiber that has waited for events has left the cache in the meantime. So the fiber after the next is prefetched while the next
        // one runs.
        if let second = pointee.ready.first {
            second.prefetchFrames()
        } else if _slowPath(live > Foresight.fibersInCache) {
            foresee(next)
        }
        // The end of the tick may have made the running fiber ready again.
        if next != running { cfiber_switch(next) }
    }

    @inline(__always)
    func makeReady(_ fiber: FiberPointer) {
        pointee.ready.append(fiber)
    }

    /// Never the number of another worker, unlike the address, which a worker of a later runtime may reuse.
    package var number: UInt64 { pointee.number }

    /// For messages: the running fiber, and its worker.
    package func describeCaller() -> String { "\(Holders.describeCaller()) on worker \(pointee.index)" }
}
