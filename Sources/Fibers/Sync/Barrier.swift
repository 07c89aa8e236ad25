// SPDX-License-Identifier: Apache-2.0

// A place where so many meet before any of them goes on.
//
// Invariants, whenever the lock of the wait point is free:
//   * `arrived` is the number of places in line, and less than `parties`;
//   * a round is over when the last one comes: he takes all places out of the line and says so in their slots, also to those whose wait a cancellation has ended and who have not left yet.
//     They have been counted, so for them, too, the round is over, and the cancellation comes with their next wait. So each round has as many parties as it should, exactly.
// One worker, or any thread: see `WaitPoint`.

final class BarrierCore: SyncCore, @unchecked Sendable {
    let parties: Int
    @exclusivity(unchecked) private var arrived = 0

    init(_ parties: Int, isShared: Bool) {
        require(parties >= 1, "a barrier is for at least 1 party, not \(parties)")
        self.parties = parties
        super.init(isShared: isShared)
    }

    override var kind: Kind { Kind(local: "LocalBarrier", shared: "Barrier") }

    /// Waits for the others; true for the last.
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

/// Where a number of fibers, of all workers, and plain threads meet: each waits until all have come, again and again.
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

    /// A barrier at which nobody waits.
    ///
    /// - Parameter parties: how many have to come, at least 1.
    public init(parties: Int) { core = BarrierCore(parties, isShared: true) }

    /// Waits until all parties have come. The barrier is then ready for the next round.
    ///
    /// - Returns: true for the last that came, false for the others.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled before all have come: it leaves, and its place is free again.
    /// - Note: parks
    @discardableResult
    public func wait() throws -> Bool { try core.wait() }

    /// How many have to come.
    public var parties: Int { core.parties }
    /// How many have come and wait for the others.
    public var waitingCount: Int { core.waiting }

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

/// Where a number of fibers of one worker meet. As ``Barrier``, without locks and atomic operations.
public final class LocalBarrier {
    private let core: BarrierCore

    /// A barrier at which nobody waits.
    ///
    /// - Parameter parties: how many have to come, at least 1.
    public init(parties: Int) { core = BarrierCore(parties, isShared: false) }

    /// Waits until all parties have come. The barrier is then ready for the next round.
    ///
    /// - Returns: true for the last that came, false for the others.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled before all have come: it leaves, and its place is free again.
    /// - Note: parks
    @discardableResult
    public func wait() throws -> Bool { try core.wait() }

    /// How many have to come.
    public var parties: Int { core.parties }
    /// How many have come and wait for the others.
    public var waitingCount: Int { core.waiting }

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

@available(*, unavailable, message: "it stays on its worker: Barrier is for all")
extension LocalBarrier: Sendable {}
