// A park that other threads may end. It is claimed in a word that lies in what is waited for and not in the record: who claims holds a reference to the one, while the
// other may have gone on, ended, and given its memory back.
//
// Invariants:
//   * `state` holds the fiber, by its address, exactly while it waits here and nobody has claimed that; smaller numbers than an address are for its owner;
//   * one compare-and-swap takes the fiber out. Whoever does has claimed the park: the fiber stays parked until he has made it ready, so he may write its record.
//     Everybody else finds another value and touches nothing else;
//   * on its own worker a fiber is claimed by its epoch first and then by the word, so a timer or a cancellation is one of those who compete, and nothing more. A claim
//     from elsewhere ends the epoch when the fiber arrives from the inbox.
//
// Any thread, except where it says worker.

import CFiber
import Synchronization

package class SharedWaiter: @unchecked Sendable {
    // The word has its cache line for itself: two processors that wait for each other's would otherwise take away each other's line by looking.
    private final let before: (UInt, UInt, UInt, UInt, UInt, UInt) = (0, 0, 0, 0, 0, 0)
    final let state = Atomic<UInt>(0)
    private final let after: (UInt, UInt, UInt, UInt, UInt, UInt, UInt) = (0, 0, 0, 0, 0, 0, 0)

    package init() {}

    /// Ends the park of the fiber that waits here and hands it to its worker. False when none does, or somebody else was faster.
    @discardableResult
    package final func unparkFromAnyThread(_ outcome: Outcome) -> Bool {
        let waiting = state.load(ordering: .relaxed)
        guard waiting >= 16, state.compareExchange(expected: waiting, desired: 0, ordering: .acquiringAndReleasing).exchanged else {
            return false
        }
        deliver(FiberPointer(bitPattern: waiting).unsafelyUnwrapped, outcome)
        return true
    }
}

/// Hands a fiber whose shared park was claimed to its worker. Any thread.
@inline(__always)
func deliver(_ fiber: FiberPointer, _ outcome: Outcome) {
    fiber.pointee.outcome = outcome
    let home = fiber.pointee.worker
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
    /// Announces that the running fiber will park, and that other threads may end that through `waiter`; the caller keeps that until its `park` returns, unless nothing of a user's goes with it. From here
    /// on it can be claimed.
    package func beginPark(sharing waiter: SharedWaiter) {
        waiter.state.store(prepareShared(waiter), ordering: .releasing)
    }

    /// As `beginPark(sharing:)`, but only if the state is `expected`. Without, the park has not begun.
    @inline(__always)
    func beginPark(sharing waiter: SharedWaiter, ifStill expected: UInt) -> Bool {
        let fiber = prepareShared(waiter)
        if waiter.state.compareExchange(expected: expected, desired: fiber, ordering: .acquiringAndReleasing).exchanged { return true }
        running.pointee.parking &+= 1
        running.endShared()
        return false
    }

    /// Announces that other threads may end the park that has begun, through the fiber's own claim word; they must make sure that the record is there.
    @inline(__always)
    func shareOwn() {
        let fiber = running
        fiber.pointee.isShared = true
        fiber.claimWord.pointee.store(UInt(bitPattern: fiber), ordering: .relaxed)
    }

    /// Makes a fiber ready whose shared park was claimed.
    func receive(_ fiber: FiberPointer) {
        fiber.pointee.parking = fiber.pointee.parking &+ 1
        fiber.endShared()
        pointee.ready.append(fiber)
    }

    /// The same, with a waiter of its own for each park.
    package func beginSharedPark() -> SharedWaiter {
        let waiter = SharedWaiter()
        beginPark(sharing: waiter)
        return waiter
    }

    @inline(__always)
    private func prepareShared(_ waiter: SharedWaiter) -> UInt {
        let fiber = beginPark().fiber
        fiber.pointee.isShared = true
        fiber.pointee.shared = waiter
        return UInt(bitPattern: fiber)
    }
}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    /// Takes the fiber out of the word in which its shared park is claimed. On its worker.
    @inline(__always)
    fileprivate func takeOut(of word: borrowing Atomic<UInt>) -> Bool {
        word.compareExchange(expected: UInt(bitPattern: self), desired: 0, ordering: .acquiringAndReleasing).exchanged
    }

    /// Claims the shared park, on the fiber's worker; false when somebody else has.
    @inline(__always)
    func claimShared() -> Bool {
        if let shared = pointee.shared { return takeOut(of: shared.state) }
        return takeOut(of: claimWord.pointee)
    }

    @inline(__always)
    func endShared() {
        pointee.isShared = false
        pointee.shared = nil
    }
}
