// SPDX-License-Identifier: Apache-2.0

// The workers of a runtime, their shared state, and how they end together.
//
// Invariants:
//   * `activity` counts the workers that have fibers, and the messages that must arrive: messages that bring a fiber, and messages that no
//     fiber waits for and that may hold the last reference to its result. Only a fiber or such a message can create a fiber. So once the
//     count is zero it stays zero, and the runtime is over;
//   * a worker removes itself from the count when it finds, at its root, that it has no fiber. With the first fiber that arrives it takes
//     over the count of the message that brought it. So spawning and ending fibers on the same worker touch no shared memory;
//   * workers and their memory exist until `activity` is zero. Any thread that holds a fiber of the runtime may access them.

import CFiber
import Synchronization

final class WorkerSet: @unchecked Sendable {
    let settings: WorkerSettings
    /// State that the layers above the kernel keep for these workers.
    let attachments: Attachments
    /// Indexed by worker number. Complete before the first fiber runs, and not changed afterwards.
    private(set) var all: [Worker] = []
    private var inboxes: [Inbox] = []
    /// Starts at 1: the calling thread's worker has `main`.
    private let activity = Atomic<Int>(1)
    /// The index at which the next search for the least loaded worker starts.
    private let turn = Atomic<Int>(0)

    /// Whether a worker may spin for some microseconds when it expects something from another: true if there are several workers, and a CPU
    /// for each.
    private(set) var maySpin = false

    init(_ settings: WorkerSettings, _ attachments: Attachments) {
        self.settings = settings
        self.attachments = attachments
    }

    func complete(_ workers: [Worker], cpus: Int) {
        all = workers
        maySpin = workers.count > 1 && workers.count <= cpus
        inboxes = workers.map { $0.pointee.inbox }
        Holders.noteStart(of: self, inboxes)
    }

    /// Called when all threads have ended. Objects owned by abandoned fibers may refer to the runtime indefinitely, so it must not keep
    /// file descriptors open for them.
    func dissolve() {
        Holders.noteEnd(of: self)
        all = []
        inboxes = []
    }

    var haveEnded: Bool { activity.load(ordering: .sequentiallyConsistent) == 0 }

    /// Called when a worker has run out of fibers, or when a counted message has arrived.
    func noteEnd() {
        guard activity.subtract(1, ordering: .sequentiallyConsistent).newValue == 0 else { return }
        for inbox in inboxes { inbox.push(Message { _, _ in }) }
    }

    /// Sends a counted message: the runtime does not end before it has arrived.
    func send(_ message: Message, to worker: Worker) {
        activity.add(1, ordering: .sequentiallyConsistent)
        message.isAwaited = true
        worker.pointee.inbox.push(message)
    }

    /// Called when a counted message has arrived. It may have created a fiber.
    func noteArrival(at worker: Worker) {
        if worker.live > 0 && !worker.pointee.ending.isActive { worker.pointee.ending.isActive = true } else { noteEnd() }
    }

    /// Adds a worker that has no fiber and is about to create one to the count. False if the runtime is over.
    func activate(_ worker: Worker) -> Bool {
        var count = activity.load(ordering: .relaxed)
        while count > 0 {
            let (done, now) = activity.compareExchange(expected: count, desired: count + 1, ordering: .sequentiallyConsistent)
            if done {
                worker.pointee.ending.isActive = true
                return true
            }
            count = now
        }
        return false
    }

    /// The worker with the fewest fibers: of all workers if there are few, else of the caller's and two chosen at random (M. Mitzenmacher,
    /// "The power of two choices in randomized load balancing", 1996).
    ///
    /// The random numbers come from the caller's own generator: the system's would cost a system call each, as much as the rest of a spawn.
    func leastLoaded(from caller: Worker) -> Worker {
        let count = all.count
        if count == 1 { return caller }
        var best = caller
        var least = caller.load
        func consider(_ worker: Worker) {
            let load = worker.load
            // On a tie, prefer a worker other than the caller's, which is busy right now.
            if load < least || (load == least && best == caller && worker != caller) { (best, least) = (worker, load) }
        }
        if count <= Self.fewWorkers {
            let first = turn.add(1, ordering: .relaxed).newValue
            for step in 0..<count { consider(all[((first &+ step) & Int.max) % count]) }
        } else {
            for _ in 0..<2 { consider(all[Int(caller.pointee.numbers.randomNumber(below: UInt32(count)))]) }
        }
        return best
    }

    /// The largest number of workers for which all are examined.
    private static var fewWorkers: Int { 8 }

    func contains(_ worker: Worker) -> Bool { all.contains(worker) }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Fibers that are here or in transit to this worker. Any thread of the runtime.
    fileprivate var load: Int { live &+ pointee.load.arriving.load(ordering: .relaxed) }

    /// State that the layers above the kernel keep, once per runtime.
    package var attachments: Attachments { pointee.workers.attachments }
}
