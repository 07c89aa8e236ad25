// SPDX-License-Identifier: Apache-2.0

// Barriers: a fixed number of parties wait for each other.
//
// Invariants, whenever the lock of the wait point is free:
//   * `arrived` is the number of queued waiters, and less than `parties`.
//   * A round is over when the last party comes. That party removes all waiters from the queue and marks their slots, also those of
//     waiters whose wait was ended by a cancellation and that have not left yet. They have been counted, so the round is over for them,
//     too, and the cancellation takes effect at their next wait. So each round has exactly the right number of parties.
// Runs on one worker or on any thread: see `WaitPoint`.

final class BarrierCore: SyncCore, @unchecked Sendable {
    let parties: Int
    @exclusivity(unchecked) private var arrived = 0

    init(_ parties: Int, isShared: Bool) {
        require(parties >= 1, "a barrier is for at least 1 party, not \(parties)")
        self.parties = parties
        super.init(isShared: isShared)
    }

    override var kind: Kind { Kind(local: "LocalBarrier", shared: "Barrier") }

    /// Waits for the other parties; returns true for the last one.
    func wait() throws -> Bool {
        try beginCall()
        lock()
        if arrived == parties - 1 {
            endRound()
            return true
        }
        arrived += 1
        var isOver = false
        try withUnsafeMutablePointer(to: &isOver) { isOver in
            let outcome = wait(in: first, slot: isOver, .barrier)
            if !isOver.pointee { try checkWait(outcome) }
        }
        return false
    }

    private func endRound() {
        var claimed = WaitList()
        while let place = popFirst(of: first) {
            place.pointee.slot.unsafelyUnwrapped.storeBytes(of: true, as: Bool.self)
            if claim(place, isShared: isShared) { claimed.append(place.node) }
        }
        arrived = 0
        unlock()
        resumeAll(&claimed)
    }

    override func hasLeft(_ place: PlacePointer, _ claimed: inout WaitList) { arrived -= 1 }

    var waiting: Int { withLock { arrived } }
}

/// A meeting point for a fixed number of fibers of all workers and plain threads: each waits until all have come, in repeated rounds.
///
/// ```swift
/// while !isDone {
///     computePart()
///     if try barrier.wait() { joinParts() }       // one of them, the last to come
///     try barrier.wait()
/// }
/// ```
public final class Barrier: Sendable {
    private let core: BarrierCore

    /// Creates a barrier.
    ///
    /// - Parameter parties: the number of parties in each round, at least 1.
    public init(parties: Int) { core = BarrierCore(parties, isShared: true) }

    /// Waits until all parties have come. The barrier is then ready for the next round.
    ///
    /// - Returns: true for the last party of the round, false for the others.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled before all parties have come. It is no longer counted
    ///   then.
    /// - Note: parks
    @discardableResult
    public func wait() throws -> Bool { try core.wait() }

    /// The number of parties in each round.
    public var parties: Int { core.parties }
    /// The number of parties that wait for the others.
    public var waitingCount: Int { core.waiting }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

/// A meeting point for a fixed number of fibers of one worker. Like ``Barrier``, but without locks and atomic operations.
public final class LocalBarrier {
    private let core: BarrierCore

    /// Creates a barrier.
    ///
    /// - Parameter parties: the number of parties in each round, at least 1.
    public init(parties: Int) { core = BarrierCore(parties, isShared: false) }

    /// Waits until all parties have come. The barrier is then ready for the next round.
    ///
    /// - Returns: true for the last party of the round, false for the others.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled before all parties have come. It is no longer counted
    ///   then.
    /// - Note: parks
    @discardableResult
    public func wait() throws -> Bool { try core.wait() }

    /// The number of parties in each round.
    public var parties: Int { core.parties }
    /// The number of parties that wait for the others.
    public var waitingCount: Int { core.waiting }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

@available(*, unavailable, message: "it stays on its worker: Barrier is for all")
extension LocalBarrier: Sendable {}
