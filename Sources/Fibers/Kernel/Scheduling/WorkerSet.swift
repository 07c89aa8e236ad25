// SPDX-License-Identifier: Apache-2.0

// The workers of a runtime, what they have in common, and how they end together.
//
// Invariants:
//   * `activity` counts the workers that have fibers and the messages that must arrive: those that bring a fiber, and those that nobody waits for and that may be the last to
//     have its result. A fiber is only ever made by another one or such a message, so once it is zero it stays zero, and the runtime is over;
//   * a worker takes itself out when it finds, at its root, that it has no fiber; it puts itself in with the first fiber that arrives, by the count of its message. So spawning
//     and ending on one's own worker touch nothing that is shared;
//   * workers and their memory are there until `activity` is zero; whoever holds a fiber of the runtime may look at them.

import CFiber
import Synchronization

final class WorkerSet: @unchecked Sendable {
    let settings: WorkerSettings
    /// What higher floors keep for these workers.
    let attachments: Attachments
    /// By index. Complete before the first fiber runs, and not changed from then on.
    private(set) var all: [Worker] = []
    private var inboxes: [Inbox] = []
    /// The calling thread's worker has `main`.
    private let activity = Atomic<Int>(1)
    /// Where to begin to look for the least loaded.
    private let turn = Atomic<Int>(0)

    /// Whether a worker may keep a CPU busy for some microseconds when it expects something from another: there are several, and a CPU for each.
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

    /// All threads have ended. What fibers that were left behind own may refer to the runtime for ever; it keeps no descriptors for them.
    func dissolve() {
        Holders.noteEnd(of: self)
        all = []
        inboxes = []
    }

    var haveEnded: Bool { activity.load(ordering: .sequentiallyConsistent) == 0 }

    /// A worker has run out of fibers, or a message that was counted has arrived.
    func noteEnd() {
        guard activity.subtract(1, ordering: .sequentiallyConsistent).newValue == 0 else { return }
        for inbox in inboxes { inbox.push(Message { _, _ in }) }
    }

    /// Sends a message before whose arrival the runtime must not end.
    func send(_ message: Message, to worker: Worker) {
        activity.add(1, ordering: .sequentiallyConsistent)
        message.isAwaited = true
        worker.pointee.inbox.push(message)
    }

    /// Such a message has arrived, and may have made a fiber.
    func noteArrival(at worker: Worker) {
        if worker.live > 0 && !worker.pointee.ending.isActive { worker.pointee.ending.isActive = true } else { noteEnd() }
    }

    /// Counts a worker in that has no fiber and is about to make one; false when the runtime is over.
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

    /// The worker with the fewest fibers: of all when they are few, else of two taken at random (M. Mitzenmacher, "The power of two choices in randomized load
    /// balancing", 1996), and the caller's.
    ///
    /// The random numbers are the caller's own: those of the system cost a system call each, which is as much as the rest of a spawn.
    func leastLoaded(from caller: Worker) -> Worker {
        let count = all.count
        if count == 1 { return caller }
        var best = caller
        var least = caller.load
        func consider(_ worker: Worker) {
            let load = worker.load
            // Of equals not the caller's, which is busy at this moment.
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

    /// Up to so many workers are all looked at.
    private static var fewWorkers: Int { 8 }

    func contains(_ worker: Worker) -> Bool { all.contains(worker) }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Fibers that are here or on their way. Any thread of the runtime.
    fileprivate var load: Int { live &+ pointee.load.arriving.load(ordering: .relaxed) }

    /// What higher floors keep once per runtime.
    package var attachments: Attachments { pointee.workers.attachments }
}
