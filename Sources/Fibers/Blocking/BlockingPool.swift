// SPDX-License-Identifier: Apache-2.0

// Threads for calls that block. A fiber queues a job and parks; a thread runs the job and wakes the fiber.
//
// Invariants:
//   * all mutable state is read and written with `mutex` held;
//   * a job is queued, or running on one thread, or over. Its fiber waits in `waiter`, and removes the job from the queue when the wait
//     ends before the job has begun;
//   * there are at most `limit` threads. A thread is started when a job arrives, no thread is idle and the limit permits it. So a job waits
//     only while `limit` others run;
//   * at most half of these run detached jobs, whose callers may not need them to end; the rest is reserved for other jobs;
//   * a thread retains the pool, so that it may outlive its runtime, which happens when a job does not end. Every other thread is joined.
// Any thread, except `run` and `stop`, which are for the worker.

import CFiber
import Glibc

/// A snapshot of the pool.
public struct BlockingStatistics: Hashable, Sendable {
    /// All threads, idle ones included.
    public let threads: Int
    public let idle: Int
    /// Jobs that wait for a thread.
    public let queued: Int
    /// How long the oldest of them has waited.
    public let oldestWait: Duration
    /// Jobs that have ended since the runtime started.
    public let completed: Int
}

final class BlockingPool: @unchecked Sendable {
    private let mutex = ThreadLock()
    private let work: ThreadCondition
    private let ended: ThreadCondition
    private var queue = ObjectList<BlockingJob>()
    private var detached = ObjectList<BlockingJob>()
    private var runningDetached = 0
    private let detachedLimit: Int
    private var running: [ObjectIdentifier: BlockingJob] = [:]
    private var threads = 0
    private var idle = 0
    private var completed = 0
    private var isStopping = false
    /// Threads that have ended except for their last instructions, to be joined.
    private var finished: [pthread_t] = []
    /// Set when the runtime ends without waiting for the threads that still run.
    private var isAbandoned = false
    private let limit: Int
    private let idleLimit: Int64
    /// At each check, as many threads become surplus as were idle all the time since the previous one. An idle limit for each thread would
    /// not work: jobs that arrive one by one wake the threads in rotation, so that each is used now and then though one would suffice.
    private var nextLook: Int64 = 0
    private var leastIdle = 0
    private var surplus = 0

    /// The CPUs that the threads may run on, so that they do not inherit the binding of the worker that starts them.
    private let cpus: cfiber_cpus?

    /// - Parameters:
    ///   - idleLimit: the time in nanoseconds after which surplus threads end.
    ///   - cpus: the CPUs that the threads are bound to; nil for the binding of the worker that starts them.
    init(limit: Int, idleLimit: Int64, cpus: cfiber_cpus? = nil) {
        self.limit = limit
        self.cpus = cpus
        detachedLimit = max(1, limit / 2)
        self.idleLimit = max(0, idleLimit)
        work = ThreadCondition(mutex)
        ended = ThreadCondition(mutex)
    }

    var statistics: BlockingStatistics {
        mutex.withLock {
            let first = [queue.first, detached.first].compactMap { $0?.queuedAt }.min()
            return BlockingStatistics(
                threads: threads, idle: idle, queued: queue.count + detached.count,
                oldestWait: .nanoseconds(first.map { Self.now - $0 } ?? 0),
                completed: completed)
        }
    }

    /// Runs a job and parks the calling fiber until it is over. Throws when the fiber is cancelled: a queued job is then removed, a running
    /// one continues on its own.
    func run(_ job: BlockingJob, for worker: Worker) throws {
        try worker.refuseIfCancelled()
        worker.beginPark(in: job.waiter)
        if enqueue(job) { startThread() }
        let outcome = worker.park(in: job.waiter, .blocking)
        if outcome != .ready { _ = takeBack(job) } else if let refusal = job.refusal { throw refusal }
        try worker.check(outcome)
    }

    /// Runs a job that no fiber waits for.
    func start(_ job: BlockingJob) {
        if enqueue(job) { startThread() }
    }

    /// Removes a job from the queue; false when it is running or over.
    func takeBack(_ job: BlockingJob) -> Bool {
        mutex.withLock {
            guard job.links.isLinked else { return false }
            if job.isDetached { detached.remove(job) } else { queue.remove(job) }
            return true
        }
    }

    /// The time on the clock of the calling worker. Threads wait by the system's clock.
    private static var now: Int64 { Worker.current?.now ?? cfiber_now() }

    /// Returns true when the caller must start another thread, which is already counted.
    private func enqueue(_ job: BlockingJob) -> Bool {
        // In one critical section: a thread that is idle now may have ended, or have taken the job of another worker, by the time the job
        // is in the queue.
        mutex.withLock {
            job.queuedAt = Self.now
            if job.isDetached { detached.append(job) } else { queue.append(job) }
            // Where the limit on detached jobs is reached, one of the threads that run them will take this one.
            guard !job.isDetached || detached.count <= detachedLimit - runningDetached else { return false }
            let needsThread = idle < queue.count + mayRunDetached && threads < limit
            if needsThread { threads += 1 }
            work.signal()
            return needsThread
        }
    }

    /// How many of the queued detached jobs may begin.
    private var mayRunDetached: Int { min(detached.count, detachedLimit - runningDetached) }

    /// Takes the job that has waited longest among the jobs that may begin.
    private func takeNext() -> BlockingJob? {
        guard mayRunDetached > 0, let waiting = detached.first else { return queue.popFirst() }
        if let other = queue.first, other.queuedAt <= waiting.queuedAt { return queue.popFirst() }
        runningDetached += 1
        return detached.popFirst()
    }

    private func takeAll() -> [BlockingJob] {
        var jobs: [BlockingJob] = []
        while let job = queue.popFirst() ?? detached.popFirst() { jobs.append(job) }
        return jobs
    }

    /// Starts a thread that has been counted. When the system refuses it, jobs wait for the other threads, or are refused if there is no
    /// other thread.
    private func startThread() {
        joinFinished()
        var thread = pthread_t()
        let status = cfiber_start_thread(
            &thread, { pool in Unmanaged<BlockingPool>.fromOpaque(pool.unsafelyUnwrapped).takeRetainedValue().serve() },
            Unmanaged.passRetained(self).toOpaque())
        if status == 0 { return }
        Unmanaged.passUnretained(self).release()
        var refused: [BlockingJob] = []
        mutex.withLock {
            threads -= 1
            if threads == 0 { refused = takeAll() }
        }
        for job in refused { job.refuse(.threads(-status, "starting a thread for a blocking call")) }
    }

    /// The main loop of a thread.
    private func serve() {
        if var cpus { _ = cfiber_unpin(&cpus) }
        mutex.lock()
        defer { mutex.unlock() }
        while true {
            if let job = takeNext() {
                leastIdle = min(leastIdle, idle)
                running[ObjectIdentifier(job)] = job
                mutex.unlock()
                job.perform()
                mutex.lock()
                running[ObjectIdentifier(job)] = nil
                if job.isDetached { runningDetached -= 1 }
                completed += 1
                // With the mutex held: the fiber that resumes then finds the job counted, and the end of the runtime finds the thread idle.
                job.waiter.unparkFromAnyThread(.ready)
            } else if isStopping || isSurplus() {
                break
            } else {
                idle += 1
                work.wait(until: nextLook)
                idle -= 1
            }
        }
        threads -= 1
        if isAbandoned { pthread_detach(pthread_self()) } else { finished.append(pthread_self()) }
        if threads == 0 { ended.signal() }
    }

    /// Returns true for an idle thread that may end.
    private func isSurplus() -> Bool {
        let now = cfiber_now()
        if now >= nextLook {
            surplus = max(0, leastIdle)
            leastIdle = idle + 1
            nextLook = Deadline.after(nanoseconds: idleLimit, from: now)
        }
        guard surplus > 0 else { return false }
        surplus -= 1
        leastIdle -= 1
        return true
    }

    private func joinFinished() {
        let threads = mutex.withLock {
            defer { finished = [] }
            return finished
        }
        for thread in threads { pthread_join(thread, nil) }
    }

    /// Refuses the jobs that have not begun, ends idle threads, and waits for the others until a time in monotonic nanoseconds. Returns the
    /// names of the jobs that are still running. No fiber waits any more.
    func stop(until deadline: Int64) -> [String] {
        // The jobs' captures are released while the pool is not locked.
        let dropped = mutex.withLock {
            isStopping = true
            return takeAll()
        }
        // Fibers of another runtime may wait for a look-up that was begun in this one.
        for job in dropped { job.refuse(.threads(ECANCELED, "making a blocking call for a runtime that has ended")) }
        let left = mutex.withLock {
            work.broadcast()
            while threads > 0 && cfiber_now() < deadline { ended.wait(until: deadline) }
            isAbandoned = true
            return running.values.map(\.name).sorted()
        }
        joinFinished()
        return left
    }
}

/// One call that blocks.
final class BlockingJob: ListElement, @unchecked Sendable {
    let name: String
    /// Nil once it has run.
    private var body: (() -> Void)?
    /// Called with the reason why the body will never run, if no fiber waits for the job.
    private let refused: ((ResourceError) -> Void)?
    /// The job belongs to no single fiber.
    fileprivate let isDetached: Bool
    /// The reason why the job will not run. Set before the fiber is woken for it.
    fileprivate var refusal: ResourceError?
    fileprivate let waiter = WaitCell()
    fileprivate var queuedAt: Int64 = 0
    @exclusivity(unchecked) package var links = ListLinks<BlockingJob>()

    /// - Parameter refused: given for a detached job only.
    init(name: String, refused: ((ResourceError) -> Void)? = nil, _ body: @escaping () -> Void) {
        self.name = name
        self.refused = refused
        isDetached = refused != nil
        self.body = body
    }

    /// Also releases the job's captures while the pool is not locked.
    fileprivate func perform() {
        guard let body else { return }
        self.body = nil
        body()
    }

    fileprivate func refuse(_ error: ResourceError) {
        refusal = error
        waiter.unparkFromAnyThread(.ready)
        refused?(error)
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// The runtime's pool of threads for blocking calls, which is the first of its attachments.
    var blockingPool: BlockingPool { pointee.workers.attachments.first(as: BlockingPool.self) }
}
