// SPDX-License-Identifier: Apache-2.0

// Waiters: what can wait, the one claim that ends a wait, and the one way in which a claimed waiter is resumed.
//
//     claim word     number of the wait │ kind │ 1      parked: the epoch of this wait
//                                 epoch + 1             claimed: even
//                    number of the next │  0   │ 0      running, or ready
//
// Invariants:
//   * a claim word is odd exactly while its owner waits and no claimant has come. No odd value comes back, so a `Waiter`, which is (claim word, epoch), stands for one wait;
//   * a wait ends by exactly one claim, which moves the word from the epoch to the epoch + 1. Any other claimant finds another value and does nothing;
//   * the claimant resumes the waiter, or takes the wait back. Until then it alone may write the waiter's outcome, and the link by which a fiber is in the inbox. After `resume` it may
//     touch nothing of the waiter;
//   * a wait that other threads may end is claimed by one compare-and-swap, also by timers and cancellations on the fiber's own worker. A wait that only the fiber's own worker may end is
//     claimed by a load, a comparison and a store;
//   * whoever claims must know that the claim word is still there. The owner worker knows it of its fibers. Other threads find waiters only in wait queues that the waiter leaves before
//     its waiting call returns: those of a `WaitPoint`, with its lock held, and a `WaitCell`, while the cell is busy.
// Each function says on which threads it may be called.

import CFiber
import Synchronization

/// Where a wait is claimed: the first word of a fiber's record, or of the `ThreadPark` in the frame of a plain thread.
typealias ClaimWord = UnsafeMutablePointer<UInt64>

extension ClaimWord {
    /// For all accesses while other threads may come.
    @inline(__always)
    fileprivate var atomic: UnsafeMutablePointer<Atomic<UInt64>> {
        UnsafeMutableRawPointer(self).assumingMemoryBound(to: Atomic<UInt64>.self)
    }
}

/// A fiber or a thread in one of its waits. Worthless, and harmless, once that wait is over; the claim word must still be there.
package struct Waiter: BitwiseCopyable {
    /// What waits. The three low bits of an epoch, so that a waiter tells how it is claimed and resumed.
    package enum Kind: UInt64 {
        /// A fiber that only its own worker resumes.
        case localFiber = 1
        /// A fiber that any thread may resume: through the inbox of its worker.
        case sharedFiber = 3
        /// A plain thread: it sleeps on a futex in its frame.
        case thread = 5
        // 7 is free, for what is resumed in a fourth way, such as a task of Swift's concurrency.
    }

    fileprivate static var kindBits: UInt64 { 7 }

    let word: ClaimWord
    let epoch: UInt64

    @inline(__always)
    fileprivate init(_ word: ClaimWord, epoch: UInt64) {
        self.word = word
        self.epoch = epoch
    }

    /// The present wait of the owner of a claim word; one that can never be claimed if it does not wait.
    @inline(__always)
    init(presentOf word: ClaimWord) { self.init(word, epoch: word.atomic.pointee.load(ordering: .relaxed)) }

    /// The present park of a fiber.
    @inline(__always)
    package init(_ fiber: FiberPointer) { self.init(presentOf: fiber.claimWord) }

    /// One that can never be claimed.
    static var none: Waiter { Waiter(ClaimWord(bitPattern: 64).unsafelyUnwrapped, epoch: 0) }

    /// The fiber that waits. Not of a thread.
    @inline(__always)
    package var fiber: FiberPointer { FiberPointer(claimWord: word) }

    @inline(__always)
    func isOf(_ kind: Kind) -> Bool { epoch & Self.kindBits == kind.rawValue }

    /// True while the wait has not been claimed. Any thread.
    var isUnclaimed: Bool { epoch & 1 == 1 && word.atomic.pointee.load(ordering: .relaxed) == epoch }

    // Beginning.

    /// Begins a wait of a fiber: the caller's, on its worker. From here on it can be claimed.
    @inline(__always)
    static func begin(_ fiber: FiberPointer, as kind: Kind) -> Waiter {
        // Other threads find the waiter only once it is in a wait queue.
        let word = fiber.claimWord
        let epoch = nextNumber(after: word.pointee) &+ kind.rawValue
        word.pointee = epoch
        return Waiter(word, epoch: epoch)
    }

    @inline(__always)
    fileprivate static func nextNumber(after value: UInt64) -> UInt64 { (value | kindBits) &+ 1 }

    // Claiming and resuming.

    /// Ends the park of a fiber unless something else has ended it. True for exactly one claimant of each park. The fiber's worker only; `unpark` and `WaitPoint.resume` let the fiber go on.
    @inline(__always)
    func claim() -> Bool {
        if _fastPath(isOf(.localFiber)) {
            guard word.pointee == epoch else { return false }
            word.pointee = epoch &+ 1
            return true
        }
        return claimAmongThreads()
    }

    @inline(never)
    private func claimAmongThreads() -> Bool {
        guard claimShared() else { return false }
        // The fiber need not come through the inbox first.
        fiber.noteArrival()
        return true
    }

    /// As `claim`, of a wait that threads compete for. Any thread; `resume` lets the waiter go on.
    @inline(__always)
    func claimShared() -> Bool {
        epoch & 1 == 1
            && word.atomic.pointee.compareExchange(expected: epoch, desired: epoch &+ 1, ordering: .acquiringAndReleasing).exchanged
    }

    /// Resumes a waiter that the caller has claimed by `claimShared`. Any thread. Nothing of the waiter may be touched afterwards: it may have gone on and ended.
    @inline(__always)
    func resume(_ outcome: Outcome) {
        if _fastPath(!isOf(.thread)) { return deliver(fiber, outcome) }
        ThreadParkPointer(word).resume(outcome)
    }
}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    /// Of a new record.
    func beginEpochs(at base: UInt64) { claimWord.pointee = base }

    /// True while the fiber is parked and that park has not been claimed. Owner worker only.
    var isParked: Bool { claimWord.atomic.pointee.load(ordering: .relaxed) & 1 == 1 }

    /// True while the fiber is on its way from the thread that has claimed its park to its worker. Owner worker only.
    var isOnItsWay: Bool { claimWord.atomic.pointee.load(ordering: .relaxed) & Waiter.kindBits == Waiter.Kind.sharedFiber.rawValue &+ 1 }

    /// A shared park was claimed, and the fiber is on its worker.
    @inline(__always)
    func noteArrival() {
        // Another thread that has come too late may be looking.
        let word = claimWord.atomic
        word.pointee.store(Waiter.nextNumber(after: word.pointee.load(ordering: .relaxed)), ordering: .relaxed)
    }
}

/// Hands a fiber whose shared park was claimed to its worker. Any thread.
@inline(__always)
private func deliver(_ fiber: FiberPointer, _ outcome: Outcome) {
    fiber.outcome = outcome
    let home = fiber.worker
    // From the push on the fiber may run and end, and its worker with it; but a worker of the same runtime keeps all inboxes.
    if let worker = Worker.current, worker.pointee.home == home.pointee.home {
        if worker == home { return home.receive(fiber) }
        home.pointee.lentInbox.withObject { $0.push(fiber) }
    } else {
        let inbox = home.pointee.inbox
        withExtendedLifetime(inbox) { inbox.push(fiber) }
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Makes a fiber ready whose shared park was claimed.
    func receive(_ fiber: FiberPointer) {
        fiber.noteArrival()
        pointee.ready.append(fiber)
    }
}

/// What a plain thread has in its frame while it waits, in place of a record.
struct ThreadPark: BitwiseCopyable {
    /// First, so that a pointer to it is one to the park.
    fileprivate var claimWord: UInt64 = 0
    fileprivate var wake: UInt32 = 0
    fileprivate var outcome = Outcome.ready
}

typealias ThreadParkPointer = UnsafeMutablePointer<ThreadPark>

extension UnsafeMutablePointer where Pointee == ThreadPark {
    fileprivate init(_ word: ClaimWord) { self = UnsafeMutableRawPointer(word).assumingMemoryBound(to: ThreadPark.self) }

    private var wakeWord: UnsafeMutablePointer<UInt32> {
        (UnsafeMutableRawPointer(self) + MemoryLayout<ThreadPark>.offset(of: \ThreadPark.wake).unsafelyUnwrapped)
            .assumingMemoryBound(to: UInt32.self)
    }
    private var hasWoken: UnsafeMutablePointer<Atomic<UInt32>> {
        UnsafeMutableRawPointer(wakeWord).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// Begins the one wait of this park. From here on it can be claimed.
    func begin() -> Waiter {
        let word = UnsafeMutableRawPointer(self).assumingMemoryBound(to: UInt64.self)
        word.pointee = Waiter.Kind.thread.rawValue
        return Waiter(presentOf: word)
    }

    /// Blocks the calling thread, whose park this is, until the wait is claimed.
    @inline(never)
    func block(_ waiter: Waiter, until deadline: Int64) -> Outcome {
        var deadline = deadline
        while hasWoken.pointee.load(ordering: .acquiring) == 0 {
            if cfiber_futex_wait(wakeWord, 0, deadline) == -ETIMEDOUT {
                if waiter.claimShared() { return .timedOut }
                // Another claimant was faster, and is about to wake the thread.
                deadline = .max
            }
        }
        return pointee.outcome
    }

    fileprivate func resume(_ outcome: Outcome) {
        pointee.outcome = outcome
        let wakeWord = wakeWord
        hasWoken.pointee.store(1, ordering: .releasing)
        // The thread may have gone on already, and its frame with it.
        cfiber_futex_wake(wakeWord)
    }
}
