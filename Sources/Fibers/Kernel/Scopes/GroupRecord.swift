// SPDX-License-Identifier: Apache-2.0

// The kernel's state of a group: its scope, its children, the fibers that wait for them, and their results and errors.
//
// Invariants:
//   * the record lies in the frame of `withFiberGroup`, which does not return while a child is alive;
//   * `running` counts the children that are not daemons, and the slots handed to fibers that are about to spawn a child. It never exceeds
//     `limit`, and no fiber waits in `room` while it is less;
//   * a child leaves the group once it has ended and nothing of its body is left.
// Owner worker only.

import CFiber

typealias GroupPointer = UnsafeMutablePointer<GroupRecord>

struct GroupRecord: BitwiseCopyable {
    /// First, so that a pointer to the scope of a group is also a pointer to the group.
    fileprivate let scope: CancelScope
    fileprivate(set) var firstChild: FiberPointer?
    fileprivate var lastChild: FiberPointer?
    fileprivate(set) var running = 0
    fileprivate(set) var daemons = 0
    let limit: Int
    /// The wait reason of the owner, for callers to whom "a group" would mean nothing.
    fileprivate let reason: WaitReason
    /// Fibers that wait for a slot to spawn a child.
    fileprivate var room = WaitList()
    /// Fibers that wait for children to end.
    fileprivate var changes = WaitList()
    let ledger: Unmanaged<GroupLedger>

    init(owner: FiberPointer, limit: Int, reason: WaitReason, ledger: GroupLedger) {
        scope = CancelScope(.group, of: owner)
        self.reason = reason
        self.limit = limit
        self.ledger = .passUnretained(ledger)
    }
}

/// The results and errors of a group's children, in the order in which they ended.
final class GroupLedger {
    /// Errors that no cancellation caused, with their origins; the origin is nil for an error of the group's own body.
    @exclusivity(unchecked) private var failures: [(error: any Error, origin: UndeliveredError?)] = []
    /// The origins counted so far.
    @exclusivity(unchecked) private var seen: Set<ObjectIdentifier> = []
    /// A cancellation or deadline from outside the group ended a child.
    @exclusivity(unchecked) private(set) var wasCutShort = false
    /// An element is nil once its result has been taken.
    @exclusivity(unchecked) private var finished: [FiberCore?] = []
    @exclusivity(unchecked) private var taken = 0
    private let keepsResults: Bool
    /// Children on other workers, by id.
    @exclusivity(unchecked) fileprivate var remotes: [UInt64: FiberCore] = [:]

    init(keepsResults: Bool) { self.keepsResults = keepsResults }

    /// Records the end of a child; true if it failed. Daemons are meant to be cancelled, so a daemon never sets `wasCutShort`.
    fileprivate func note(_ core: FiberCore, isDaemon: Bool, wasCancelled: Bool, fromOutside: Bool) -> Bool {
        guard let failure = core.object as? UndeliveredError else {
            if keepsResults && !isDaemon { finished.append(core) }
            return false
        }
        let error = failure.take()
        if wasCancelled && error is CancellationError {
            if fromOutside && !isDaemon { wasCutShort = true }
            return false
        }
        noteFailure(error, from: failure.origin)
        return true
    }

    /// Records that a child, or the body, has failed. A fiber that joins a failed fiber and passes its error on has not failed by itself,
    /// so the two count once. Two fibers that throw the same object have both failed.
    ///
    /// - Parameter origin: the failure that was passed on, or the child's own; nil for the body's own.
    func noteFailure(_ error: any Error, from origin: UndeliveredError?) {
        if let origin, !seen.insert(ObjectIdentifier(origin)).inserted { return }
        failures.append((error, origin))
    }

    func takeFinished() -> FiberCore? {
        guard taken < finished.count else { return nil }
        let core = finished[taken]
        finished[taken] = nil
        taken += 1
        // Amortised constant cost.
        if taken * 2 > finished.count {
            finished.removeFirst(taken)
            taken = 0
        }
        return core
    }

    /// Releases all remaining results, which may refer to the group, and returns the failures.
    func close() -> [(error: any Error, origin: UndeliveredError?)] {
        let failures = failures
        self.failures = []
        finished = []
        return failures
    }
}

extension UnsafeMutablePointer where Pointee == GroupRecord {
    @inline(__always)
    init(_ scope: ScopePointer) {
        self = UnsafeMutableRawPointer(scope).assumingMemoryBound(to: GroupRecord.self)
    }

    var scope: ScopePointer { UnsafeMutableRawPointer(self).assumingMemoryBound(to: CancelScope.self) }
    private var worker: Worker { scope.pointee.fiber.worker }
    private var room: UnsafeMutablePointer<WaitList> { withUnsafeMutablePointer(to: &pointee.room) { $0 } }
    private var changes: UnsafeMutablePointer<WaitList> { withUnsafeMutablePointer(to: &pointee.changes) { $0 } }

    /// Waits until fewer than `limit` children run, and takes a slot. False if `endWaitsForRoom` ended the wait. Parks.
    func takeSlot() throws -> Bool {
        let worker = worker
        try worker.refuseIfCancelled()
        if pointee.running < pointee.limit {
            pointee.running += 1
            return true
        }
        // The waker hands its slot over directly, so that no other fiber can take it first.
        let outcome = worker.park(in: room, .group)
        try worker.check(outcome)
        return outcome == .ready
    }

    func endWaitsForRoom() { worker.wakeAll(&room.pointee, .closed) }

    /// Hands a free slot to the first fiber that waits for one, or returns it.
    func giveSlot() {
        while let node = room.pointee.popFirst() {
            if worker.unpark(node.pointee.waiter, .ready) { return }
        }
        pointee.running -= 1
    }

    /// Makes a fiber that has not run yet a child. The caller has taken a slot for it, unless it is a daemon.
    func adopt(_ child: FiberPointer, isDaemon: Bool) {
        let wasCancelled = child.base.pointee.cause != nil
        child.base.pointee = CancelScope(isDaemon ? .daemon : .fiber, of: child)
        child.base.attach(to: scope)
        // The fiber was cancelled before because the runtime is shutting down.
        if wasCancelled { worker.cancel(child.base) }
        if isDaemon { pointee.daemons += 1 }
        child.pointee.previousSibling = pointee.lastChild
        child.pointee.nextSibling = nil
        if let last = pointee.lastChild { last.pointee.nextSibling = child } else { pointee.firstChild = child }
        pointee.lastChild = child
    }

    /// Removes a child that has ended.
    func childEnded(_ child: FiberPointer) {
        let next = child.pointee.nextSibling
        let previous = child.pointee.previousSibling
        if let previous { previous.pointee.nextSibling = next } else { pointee.firstChild = next }
        if let next { next.pointee.previousSibling = previous } else { pointee.lastChild = previous }
        let isDaemon = child.base.pointee.kind == .daemon
        let cause = child.base.pointee.cause
        let failed = pointee.ledger.withObject {
            $0.note(
                child.coreField.pointee.unsafelyUnwrapped, isDaemon: isDaemon, wasCancelled: cause != nil,
                // The shutdown of a runtime cancels each fiber on its own if a shield protects its group; that counts as a cancellation
                // from outside.
                fromOutside: cause != scope && (cause != child.base || worker.pointee.ending.abandonAt != .max))
        }
        if failed { worker.cancel(scope) }
        if isDaemon { pointee.daemons -= 1 } else { giveSlot() }
        noteChange()
    }

    // Children on other workers.

    /// Makes a fiber in transit to another worker a child. The caller has taken a slot for it. Returns the information that the other
    /// worker needs.
    func adoptRemote(_ core: FiberCore, name: String?, locals: FiberLocalNode?) -> Departure {
        pointee.ledger.withObject { $0.remotes[core.id] = core }
        return Departure(
            name: name, locals: locals, deadline: scope.pointee.effective, isCancelled: scope.pointee.cause != nil)
    }

    /// Passes a cancellation of the scope on to the children on other workers.
    func cancelRemoteChildren() {
        pointee.ledger.withObject { ledger in
            for core in ledger.remotes.values { worker.cancel(core) }
        }
    }

    /// Removes a child on another worker. Its error counts as the group's only if `counts` is true.
    func remoteChildEnded(_ core: FiberCore, wasCancelled: Bool, fromOutside: Bool, counts: Bool) {
        // The child may have reached the deadline first. Then nothing else would tell the scope whose deadline it was.
        if scope.pointee.cause == nil && scope.pointee.effective <= worker.now { worker.cancel(scope.bound) }
        let cause = scope.pointee.cause
        let failed = pointee.ledger.withObject { ledger in
            ledger.remotes[core.id] = nil
            return counts
                && ledger.note(
                    core, isDaemon: false, wasCancelled: wasCancelled, fromOutside: cause == nil ? fromOutside : cause != scope)
        }
        if failed { worker.cancel(scope) }
        giveSlot()
        noteChange()
    }

    func noteChange() {
        if !changes.pointee.isEmpty { worker.wakeAll(&changes.pointee, .ready) }
    }

    /// Waits until the state of the children may have changed. Parks.
    func waitForChange() throws {
        try worker.check(worker.park(in: changes, pointee.reason))
    }

    /// Waits for the last child, then cancels the daemons and waits for them. The wait itself cannot be cancelled: a cancellation reaches
    /// the children instead, and their frames may point into the waiting frame.
    func waitForEnd() {
        while pointee.running > 0 || pointee.daemons > 0 {
            if pointee.running == 0 { worker.cancel(scope) }
            worker.parkShielded(in: changes, pointee.reason)
        }
    }
}
