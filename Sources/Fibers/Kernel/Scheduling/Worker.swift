// A worker: the thread that runs fibers, its ready queue, stacks, timers and driver.
//
// Invariants:
//   * a fiber of this worker is in exactly one place: running, in the ready queue, parked with a waiter somewhere, or in the inbox;
//   * the root, the thread's own stack, runs when no fiber is ready, and, as one of those that are ready, when there are messages from other workers;
//   * a tick is at most `longestTick` switches, and fewer where fibers compute for long between them; after each tick the worker looks at the inbox, and when half a
//     millisecond has passed also at timers and driver, without blocking. So neither I/O nor computation that yields starves the other.
//
// The state lies behind a pointer and is changed field by field: a class property or an `inout self` would be an access that stays open across a
// switch, and the compiler may assume that nobody else changes what is under access. For the same reason nothing here is `mutating`.
// Owner worker only.

import CFiber
import Synchronization

package typealias Worker = UnsafeMutablePointer<WorkerState>

package struct WorkerState: ~Copyable {
    var ready: ReadyQueue
    /// Switches left in this tick.
    var budget: Int32 = Worker.firstTick
    /// How many this tick began with.
    var tick: Int32 = Worker.firstTick
    /// What the time counter showed when this tick began.
    var tickBegan: UInt64 = 0
    /// Switches left until fibers that were put before all others go behind them.
    var frontBudget: Int32 = Worker.longestTick
    /// Successful I/O without a park left before the fiber must let others run.
    var ioBudget: Int32 = Worker.ioBudgetLength
    /// Calls on channels, locks and their like that did not wait, left before they count as one of these operations: they take a hundredth of the time.
    var callBudget: Int32 = Worker.callBudgetLength
    /// Whose calls were counted last.
    var caller: FiberPointer?
    let inbox: Inbox
    /// The same, for those who need not keep it: counting references would be two more writes to memory that the owner watches.
    let lentInbox: Unmanaged<Inbox>
    /// Messages that have arrived and wait for the root, of which the first `delivered` have been delivered and are gone.
    var messages: [Message?] = []
    var delivered = 0
    /// What shall be let go of in a fiber, and waits for a stack.
    var leftovers: [AnyObject] = []
    /// The root stands in the ready queue.
    var isRootQueued = false
    var timers = TimerQueue()
    let events: any EventSource
    /// The same, for what is done often: counting references would be two atomic operations.
    unowned(unsafe) let lentEvents: any EventSource
    /// The event source's own clock; nil for the system's.
    let clock: (any WorkerClock)?
    var pool: StackPool
    /// Fibers alive: spawned and not ended. Other workers look at it, too.
    let liveCount = Atomic<Int>(0)
    /// Fibers that other workers have sent here and that have not been started yet.
    let arriving = Atomic<Int>(0)
    /// Counted among the workers that have fibers.
    var isActive = false
    /// Its fibers were left behind, and none runs any more.
    var isAbandoned = false
    /// What it may spend on watching before it sleeps: to watch in vain costs many times what it earns to see something come.
    var watchCredit: Int32 = 0
    /// What it takes from being sent for by another worker to waking up, on average, by the time counter.
    var wakeLatency = Int64(cfiber_counter_interval() / 16)
    /// How many wakes that come soon after falling asleep it takes to make it watch again, and how many are missing.
    var wakesToWatch: (wanted: Int32, missing: Int32) = (1, 1)
    /// What the time counter showed after the last look at the driver.
    var lastPoll: UInt64 = 0
    /// The fibers' ids that are left of a block that is this worker's.
    var nextID: UInt64 = 0
    var endOfIDs: UInt64 = 0
    var epochBase: UInt64 = 0
    /// What the next random number is made of.
    var random: UInt64
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
    static var longestTick: Int32 { 64 }
    /// The length of the first tick, and of the first after a sleep, when nothing is known of the fibers that will run in it. Short, because fibers may compute for
    /// milliseconds each; most sleeps are followed by fewer switches than that, and then the tick costs nothing.
    static var firstTick: Int32 { 4 }
    static var ioBudgetLength: Int32 { 32 }
    static var callBudgetLength: Int32 { 32 }
    static var idsAtATime: UInt64 { 1024 }
    private static var mostWatchCredit: Int32 { 64 }
    private static var costOfVainWatch: Int32 { 16 }
    /// In nanoseconds: half of the interval at which a busy worker looks at driver and timers.
    private static var mostWatched: Int64 { 250_000 }
    private static var mostWakesToWatch: Int32 { 1024 }
    private static var messagesAtATime: Int32 { 64 }

    /// The worker of the calling thread.
    @inline(__always)
    package static var current: Worker? { cfiber_worker()?.assumingMemoryBound(to: WorkerState.self) }

    /// Fibers alive: spawned and not ended. An atomic's plain load and store: only the owner changes it.
    package var live: Int {
        @inline(__always) get { pointee.liveCount.load(ordering: .relaxed) }
        @inline(__always) nonmutating set { pointee.liveCount.store(newValue, ordering: .relaxed) }
    }

    /// Monotonic nanoseconds.
    package var now: Int64 {
        @inline(__always) get { _fastPath(pointee.clock == nil) ? cfiber_now() : pointee.clock.unsafelyUnwrapped.now() }
    }

    /// The CPU's time counter, unless the event source has a clock of its own.
    var counter: UInt64 {
        @inline(__always) get { _fastPath(pointee.clock == nil) ? cfiber_counter() : pointee.clock.unsafelyUnwrapped.counter() }
    }

    /// The same time as `now`, on the continuous clock.
    package var instant: ContinuousClock.Instant { pointee.clock?.instant() ?? .now }

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
    func yieldUnderADeadline() {
        _ = isCancelled
        yield()
    }

    @inline(never)
    private func yieldAtEndOfTick() {
        if pointee.isAbandoned { return }
        endTick()
        takeTurns()
    }

    @inline(__always)
    private func takeTurns() {
        guard let next = pointee.ready.popFirst() else { return takeTurnsWithTheWorld() }
        pointee.ready.append(running)
        cfiber_switch(next.context)
    }

    /// Nobody else is ready, as far as is known: a fiber that yields now and then may compute for long in between.
    @inline(never)
    private func takeTurnsWithTheWorld() {
        guard isPollDue && !pointee.isAbandoned else { return }
        endTick()
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

    /// The worker looks at the world between ticks. A counter of switches is all that a yield can afford (the time counter takes as long as several yields), so the length of a tick adapts
    /// to what the one before took.
    @inline(never)
    func endTick() {
        let used = pointee.tick &- pointee.budget
        let counter = counter
        pointee.tick = Self.tickLength(after: used, taking: counter &- pointee.tickBegan, of: cfiber_counter_interval())
        pointee.budget = pointee.tick
        pointee.tickBegan = counter
        pointee.frontBudget &-= used
        if pointee.frontBudget <= 0 {
            pointee.frontBudget = Self.longestTick
            pointee.ready.endFront()
        }
        collectInbox()
        // Messages are for the root, which takes its turn like a fiber.
        if _slowPath(hasMessages && !pointee.isRootQueued) {
            pointee.isRootQueued = true
            pointee.ready.append(pointee.root)
        }
        if isPollDue(at: counter) {
            poll(timeout: 0)
            // The fiber stays as it is, with all that it owns, and never goes on. One whose life is over only has to say so.
            if _slowPath(pointee.abandonAt != .max && isOverdue), running.id != 0 { cfiber_switch(pointee.root.context) }
        }
    }

    /// How many switches a tick may have so that it takes about as long as the interval at which the worker looks at timers and driver, judging by the tick before. It grows by twice at most.
    ///
    /// - Parameters:
    ///   - used: switches in the tick before.
    ///   - elapsed: how long that took, and `interval` how long it should take, by the time counter.
    package static func tickLength(after used: Int32, taking elapsed: UInt64, of interval: UInt64) -> Int32 {
        let used = Swift.max(1, used)
        // Most ticks take a thousandth of the interval: they pay no division.
        if _fastPath(elapsed <= interval / 2) { return Swift.min(used &* 2, longestTick) }
        return Int32(Swift.max(1, Swift.min(UInt64(used) &* interval / elapsed, UInt64(longestTick))))
    }

    /// Begins a tick of the longest length, for tests in which no tick may end.
    package func beginLongestTick() {
        pointee.tick = Self.longestTick
        pointee.budget = pointee.tick
        pointee.tickBegan = counter
    }

    /// True when the fibers that started now have run before all others for so long that the others are due at the end of this tick.
    var isFrontDue: Bool { pointee.frontBudget <= pointee.tick &- pointee.budget }

    /// Counts an operation that succeeded without parking; now and then lets the others run, so that one busy socket starves nobody.
    @inline(__always)
    package func chargeOperation() {
        pointee.ioBudget &-= 1
        if _slowPath(pointee.ioBudget <= 0) {
            pointee.ioBudget = Self.ioBudgetLength
            // A handler that the root calls, at the end of a runtime, makes way for nobody.
            if running == pointee.root { return }
            // A deadline must come to a fiber that never has to wait, too.
            _ = isCancelled
            if isPollDue { endTick() }
            yield()
        }
    }

    // The root.

    /// Runs fibers until the runtime has none any more, on any worker, but those that are abandoned.
    func runUntilDone() {
        let workers = pointee.workers
        pointee.tickBegan = counter
        while true {
            if _slowPath(pointee.abandonAt != .max && !pointee.isAbandoned && isOverdue) { abandonFibers() }
            collectInbox()
            deliverMessages()
            if !pointee.leftovers.isEmpty && pointee.pool.warmCount > 0 { releaseLeftovers() }
            if !pointee.isAbandoned, let next = pointee.ready.popFirst() {
                cfiber_switch(next.context)
                pointee.isRootQueued = false
                continue
            }
            if pointee.isActive && (live == 0 || pointee.isAbandoned) {
                pointee.isActive = false
                workers.noteEnd()
            }
            if workers.haveEnded { return }
            if hasMessages {
                if isPollDue { poll(timeout: 0) }
            } else {
                sleep()
            }
        }
    }

    @inline(__always)
    private var hasMessages: Bool { pointee.delivered < pointee.messages.count }

    /// Delivers some of the messages, in order; the others have to wait for fibers, timers and driver.
    private func deliverMessages() {
        var left = Self.messagesAtATime
        while hasMessages && left > 0 {
            let message = pointee.messages[pointee.delivered].take()
            pointee.delivered &+= 1
            left -= 1
            message.unsafelyUnwrapped.arrive(at: self)
        }
        if !hasMessages && pointee.delivered > 0 {
            pointee.delivered = 0
            pointee.messages.removeAll(keepingCapacity: pointee.messages.count <= 1024)
        } else if pointee.delivered >= 1024 && pointee.delivered * 2 >= pointee.messages.count {
            // They may come as fast as they go, for ever.
            pointee.messages.removeFirst(pointee.delivered)
            pointee.delivered = 0
        }
    }

    private func sleep() {
        if pointee.watchCredit > 0 {
            // What is watched may come again and again, so timers and driver have their turn before.
            if isPollDue {
                poll(timeout: 0)
                pointee.pool.trim(now: now)
                if !pointee.ready.isEmpty { return }
            }
            if !isTimerNear && watch() { return }
        }
        pointee.pool.trim(now: now)
        let now = self.now
        var wake = Int64.max
        if let deadline = pointee.timers.earliest(after: now) { wake = deadline }
        if !pointee.isAbandoned { wake = Swift.min(wake, pointee.abandonAt) }
        if let trim = pointee.pool.nextTrim { wake = Swift.min(wake, trim) }
        guard pointee.inbox.beginSleep() else {
            // Something may come again and again.
            if isPollDue { poll(timeout: 0) }
            return
        }
        pointee.statistics.sleeps &+= 1
        let begun = cfiber_counter()
        poll(timeout: wake == .max ? -1 : Swift.max(0, wake &- now))
        let sent = pointee.inbox.endSleep()
        pointee.tick = Swift.min(pointee.tick, Self.firstTick)
        pointee.budget = pointee.tick
        if pointee.workers.mayWatch && sent != 0 { noteWake(sent: sent, after: Int64(bitPattern: sent &- begun)) }
    }

    /// A timer would expire while the worker watches.
    private var isTimerNear: Bool {
        guard !pointee.timers.isEmpty else { return false }
        let now = self.now
        return pointee.timers.earliest(after: now).map { $0 < now &+ Self.mostWatched } ?? false
    }

    /// Another worker has sent for this one, and it has woken.
    @inline(never)
    private func noteWake(sent: UInt64, after time: Int64) {
        // Sent for before it fell asleep: that is an old word, which came late.
        guard time >= 0 else { return }
        let latency = Int64(Swift.min(cfiber_counter() &- sent, cfiber_counter_interval()))
        pointee.wakeLatency += (latency - pointee.wakeLatency) / 8
        guard time < watchLimit else { return }
        // To watch would have been enough.
        pointee.wakesToWatch.missing &-= 1
        if pointee.wakesToWatch.missing <= 0 {
            pointee.watchCredit = Self.mostWatchCredit / 2
            pointee.wakesToWatch.missing = pointee.wakesToWatch.wanted
        }
    }

    /// For how long to watch, by the time counter: somewhat longer than it takes to be woken, since the other side may have been sent for, too, and be about to wake. To wait
    /// as long as what is to be avoided would take costs at most twice the least (A. Karlin et al., "Competitive randomized algorithms for non-uniform problems", 1990).
    private var watchLimit: Int64 {
        let interval = Int64(cfiber_counter_interval())
        return Swift.min(Swift.max(pointee.wakeLatency * 3 / 2, interval / 32), interval / 2)
    }

    /// Watches the inbox, and what a fiber waits for, for as long as it takes to be woken, where something has come from other workers as fast as that lately: to sleep and to be
    /// woken takes longer, and costs both sides a system call. True when something has come.
    ///
    /// Where threads share a CPU, whoever watches keeps the other from doing what is watched for. So it pays only where nearly every time something comes: when too often nothing has, the worker does
    /// not watch any more until it has been woken as fast again, and twice as often each time.
    @inline(__always)
    func watch(every pause: Int = 1, for hasCome: () -> Bool = { false }) -> Bool {
        // What is there already says nothing of how long it would have been to wait.
        if hasCome() || !pointee.inbox.isEmpty { return true }
        let begun = cfiber_counter()
        let limit = UInt64(watchLimit)
        var left = pause
        repeat {
            for _ in 0..<16 {
                left -= 1
                if left == 0 { left = pause }
                if left == pause && hasCome() || !pointee.inbox.isEmpty {
                    pointee.watchCredit += 1
                    if pointee.watchCredit >= Self.mostWatchCredit {
                        pointee.watchCredit = Self.mostWatchCredit
                        pointee.wakesToWatch = (1, 1)
                    }
                    return true
                }
                cfiber_relax()
            }
        } while cfiber_counter() &- begun < limit
        pointee.watchCredit -= Self.costOfVainWatch
        if pointee.watchCredit <= 0 {
            pointee.watchCredit = 0
            let wanted = min(pointee.wakesToWatch.wanted &* 2, Self.mostWakesToWatch)
            pointee.wakesToWatch = (wanted, wanted)
        }
        return false
    }

    /// True when the running fiber may keep the worker busy with watching: nobody else is ready, and something has come from another worker soon lately.
    @inline(__always)
    var mayWatch: Bool { pointee.watchCredit > 0 && mayPause }

    /// True when nobody on this worker has anything to do, and the other workers have CPUs of their own.
    @inline(__always)
    var mayPause: Bool { pointee.ready.isEmpty && pointee.workers.mayWatch && !isPollDue }

    @inline(__always)
    private var isPollDue: Bool { isPollDue(at: counter) }

    @inline(__always)
    private func isPollDue(at counter: UInt64) -> Bool { counter &- pointee.lastPoll >= cfiber_counter_interval() }

    /// Looks at timers and driver; blocks for at most `timeout` nanoseconds (negative: without end) when nothing has happened before.
    private func poll(timeout: Int64) {
        pointee.statistics.polls &+= 1
        pointee.lentEvents.poll(timeout: timeout)
        if !pointee.timers.isEmpty { expireTimers(now: now) }
        pointee.lastPoll = counter
        // What the look took is no fiber's doing.
        pointee.tickBegan = pointee.lastPoll
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

    func collectInbox() {
        if pointee.inbox.isEmpty { return }
        pointee.inbox.drain(fiber: { receive($0) }, message: { pointee.messages.append($0) })
    }

    @inline(__always)
    func makeReady(_ fiber: FiberPointer) {
        pointee.ready.append(fiber)
    }

    /// Even enough to be fair by, without a system call.
    func randomNumber(below limit: UInt32) -> UInt32 { nextRandomNumber(&pointee.random, below: limit) }

    /// Unlike its address, which a worker of a later runtime may have, never that of another worker.
    package var number: UInt64 { pointee.number }

    /// For messages: the running fiber, and where it runs.
    package func describeCaller() -> String { "\(Holders.describeCaller()) on worker \(pointee.index)" }

    /// Tells the runtime's handler of a condition that the program should know: in a fiber of its own, where it may wait and holds up nobody, or, when there is none to be had, here.
    package func warn(_ message: String) {
        let workers = pointee.workers
        if !pointee.isAbandoned, pointee.isActive || workers.activate(self),
            let (_, place) = try? start(name: "onWarning", { FiberCore.run($0, $1, Void.self, staysHome: false) })
        {
            place.initializeMemory(as: (() throws -> Void).self, to: { workers.settings.warn(message) })
        } else {
            workers.settings.warn(message)
        }
    }

    /// Tells the runtime's handler of an error of the running fiber that nobody else will hear of.
    package func reportUnhandled(_ error: any Error) {
        pointee.workers.settings.report(UnhandledFiberError(fiberID: running.id, fiberName: running.name, error: error))
    }
}
