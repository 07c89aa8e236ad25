// SPDX-License-Identifier: Apache-2.0

// Waiters: the kinds of waiter, the one claim that ends a wait, and the one way to resume a claimed waiter.
//
//     claim word     number of the wait │ kind │ 1      parked: the epoch of this wait
//                                 epoch + 1             claimed: even
//                    number of the next │  0   │ 0      running, or ready
//
// Invariants:
//   * a claim word is odd exactly while its owner waits and has not been claimed. No odd value ever repeats, so a `Waiter`, the pair (claim
//     word, epoch), identifies one wait;
//   * exactly one claim ends a wait, by moving the word from the epoch to epoch + 1. Any other claimant finds a different value and does
//     nothing;
//   * the claimant either resumes the waiter or takes the wait back. Until then only the claimant may write the waiter's outcome and the
//     link by which a fiber is in the inbox. After `resume` it must not touch the waiter at all;
//   * a wait that other threads may end is claimed by one compare-and-swap, even by timers and cancellations on the fiber's own worker. A
//     wait that only the fiber's own worker may end is claimed by a load, a comparison and a store;
//   * a claimant must know that the claim word is still valid. The owner worker knows it for its own fibers. Other threads find waiters
//     only in wait queues that the waiter leaves before its waiting call returns: those of a `WaitPoint`, with its lock held, and a
//     `WaitCell`, while the cell is busy.
// Each function states on which threads it may be called.

import CFiber
import Synchronization

/// The word on which a wait is claimed: the first word of a fiber's record, or of the `ThreadPark` in a plain thread's frame.
typealias ClaimWord = UnsafeMutablePointer<UInt64>

extension ClaimWord {
    /// Used for every access that may race with other threads.
    @inline(__always)
    fileprivate var atomic: UnsafeMutablePointer<Atomic<UInt64>> {
        UnsafeMutableRawPointer(self).assumingMemoryBound(to: Atomic<UInt64>.self)
    }
}

/// A fiber or a thread in one particular wait. Once that wait is over, claiming it fails and has no effect; the claim word must still be
/// valid.
package struct Waiter: BitwiseCopyable {
    /// The kind of waiter: the three low bits of an epoch, which say how the waiter is claimed and resumed.
    package enum Kind: UInt64 {
        /// A fiber that only its own worker resumes.
        case localFiber = 1
        /// A fiber that any thread may resume, through the inbox of its worker.
        case sharedFiber = 3
        /// A plain thread, which sleeps on a futex in its frame.
        case thread = 5
        // 7 is free for a fourth kind, such as a task of Swift concurrency.
    }

    fileprivate static var kindBits: UInt64 { 7 }

    let word: ClaimWord
    let epoch: UInt64

    @inline(__always)
    fileprivate init(_ word: ClaimWord, epoch: UInt64) {
        self.word = word
        self.epoch = epoch
    }

    /// The current wait of the claim word's owner. If the owner is not waiting, the result can never be claimed.
    @inline(__always)
    init(presentOf word: ClaimWord) { self.init(word, epoch: word.atomic.pointee.load(ordering: .relaxed)) }

    /// The current park of a fiber.
    @inline(__always)
    package init(_ fiber: FiberPointer) { self.init(presentOf: fiber.claimWord) }

    /// A waiter that can never be claimed.
    static var none: Waiter { Waiter(ClaimWord(bitPattern: 64).unsafelyUnwrapped, epoch: 0) }

    /// The waiting fiber. Not valid for a thread.
    @inline(__always)
    package var fiber: FiberPointer { FiberPointer(claimWord: word) }

    @inline(__always)
    func isOf(_ kind: Kind) -> Bool { epoch & Self.kindBits == kind.rawValue }

    /// True while the wait has not been claimed. Any thread.
    var isUnclaimed: Bool { epoch & 1 == 1 && word.atomic.pointee.load(ordering: .relaxed) == epoch }

    // Beginning.

    /// Begins a wait of the calling fiber, on its own worker. From here on it can be claimed.
    @inline(__always)
    static func begin(_ fiber: FiberPointer, as kind: Kind) -> Waiter {
        // A plain store is enough: other threads find the waiter only once it is in a wait queue.
        let word = fiber.claimWord
        let epoch = nextNumber(after: word.pointee) &+ kind.rawValue
        word.pointee = epoch
        return Waiter(word, epoch: epoch)
    }

    @inline(__always)
    fileprivate static func nextNumber(after value: UInt64) -> UInt64 { (value | kindBits) &+ 1 }

    // Claiming and resuming.

    /// Ends the park of a fiber unless something else has ended it. Returns true for exactly one claimant of each park. The fiber's worker
    /// only; `unpark` and `WaitPoint.resume` then make the fiber ready.
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
        // The claimant runs on the fiber's worker, so the fiber does not pass through the inbox.
        fiber.noteArrival()
        return true
    }

    /// As `claim`, for a wait that several threads may claim. Any thread; `resume` then resumes the waiter.
    @inline(__always)
    func claimShared() -> Bool {
        epoch & 1 == 1
            && word.atomic.pointee.compareExchange(expected: epoch, desired: epoch &+ 1, ordering: .acquiringAndReleasing).exchanged
    }

    /// Resumes a waiter that the caller has claimed by `claimShared`. Any thread. The caller must not touch the waiter afterwards: it may
    /// have resumed and ended.
    @inline(__always)
    func resume(_ outcome: Outcome) {
        if _fastPath(!isOf(.thread)) { return deliver(fiber, outcome) }
        ThreadParkPointer(word).resume(outcome)
    }
}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    /// Sets the first epoch of a new record.
    func beginEpochs(at base: UInt64) { claimWord.pointee = base }

    /// True while the fiber is parked and that park has not been claimed. Owner worker only.
    var isParked: Bool { claimWord.atomic.pointee.load(ordering: .relaxed) & 1 == 1 }

    /// True while the fiber is in transit from the thread that claimed its park to its worker. Owner worker only.
    var isOnItsWay: Bool { claimWord.atomic.pointee.load(ordering: .relaxed) & Waiter.kindBits == Waiter.Kind.sharedFiber.rawValue &+ 1 }

    /// Ends a claimed shared park once the fiber has reached its worker.
    @inline(__always)
    func noteArrival() {
        // Atomic, because a late claimant on another thread may still read the word.
        let word = claimWord.atomic
        word.pointee.store(Waiter.nextNumber(after: word.pointee.load(ordering: .relaxed)), ordering: .relaxed)
    }
}

/// Hands a fiber whose shared park was claimed to its worker. Any thread.
@inline(__always)
private func deliver(_ fiber: FiberPointer, _ outcome: Outcome) {
    fiber.outcome = outcome
    let home = fiber.worker
    // After the push the fiber may run and end, and its worker may end too. A worker of the same runtime keeps all inboxes alive, so the
    // borrowed reference is enough; any other thread retains the inbox.
    if let worker = Worker.current, worker.pointee.home == home.pointee.home {
        if worker == home { return home.receive(fiber) }
        home.pointee.lentInbox.withObject { $0.push(fiber) }
    } else {
        let inbox = home.pointee.inbox
        withExtendedLifetime(inbox) { inbox.push(fiber) }
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Makes a fiber whose shared park was claimed ready.
    func receive(_ fiber: FiberPointer) {
        fiber.noteArrival()
        pointee.ready.append(fiber)
    }
}

/// The wait of a plain thread, in its stack frame; fibers use their record instead.
struct ThreadPark: BitwiseCopyable {
    /// First, so that a pointer to the claim word is also a pointer to the park.
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

    /// Begins the only wait of this park. From here on it can be claimed.
    func begin() -> Waiter {
        let word = UnsafeMutableRawPointer(self).assumingMemoryBound(to: UInt64.self)
        word.pointee = Waiter.Kind.thread.rawValue
        return Waiter(presentOf: word)
    }

    /// Blocks the calling thread, which owns this park, until the wait is claimed.
    @inline(never)
    func block(_ waiter: Waiter, until deadline: Int64) -> Outcome {
        var deadline = deadline
        while hasWoken.pointee.load(ordering: .acquiring) == 0 {
            if cfiber_futex_wait(wakeWord, 0, deadline) == -ETIMEDOUT {
                if waiter.claimShared() { return .timedOut }
                // Another claimant was faster and is about to wake the thread.
                deadline = .max
            }
        }
        return pointee.outcome
    }

    fileprivate func resume(_ outcome: Outcome) {
        pointee.outcome = outcome
        let wakeWord = wakeWord
        hasWoken.pointee.store(1, ordering: .releasing)
        // The thread may have resumed already and its frame may be gone. A futex wake only uses the address.
        cfiber_futex_wake(wakeWord)
    }
}
