// SPDX-License-Identifier: Apache-2.0

// What the kernel knows of a group: its scope, its children, who waits for them, and what they leave behind.
//
// Invariants:
//   * it lies in the frame of `withFiberGroup`, which does not return while a child is alive;
//   * `running` counts the children that are no daemons, and slots on their way to a fiber that is about to spawn one; it never exceeds `limit`, and nobody waits
//     in `room` while it is less;
//   * a child leaves when its life is over and nothing of its body is left.
// Owner worker only.

import CFiber

typealias GroupPointer = UnsafeMutablePointer<GroupRecord>

struct GroupRecord: BitwiseCopyable {
    /// First, so that a pointer to the scope of a group is one to the group.
    fileprivate let scope: CancelScope
    fileprivate(set) var firstChild: FiberPointer?
    fileprivate var lastChild: FiberPointer?
    fileprivate(set) var running = 0
    fileprivate(set) var daemons = 0
    let limit: Int
    /// Why the owner waits for the children, where "a group" would say nothing to whoever made the call.
    fileprivate let reason: WaitReason
    /// Fibers that wait to spawn.
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
    /// What was not the doing of a cancellation, with where it comes from; nil for an error of the group's body.
    @exclusivity(unchecked) private var failures: [(error: any Error, origin: UndeliveredError?)] = []
    /// The origins of those.
    @exclusivity(unchecked) private var seen: Set<ObjectIdentifier> = []
    /// A child was ended by a cancellation or deadline from outside the group.
    @exclusivity(unchecked) private(set) var wasCutShort = false
    /// Nil where the result was taken.
    @exclusivity(unchecked) private var finished: [FiberCore?] = []
    @exclusivity(unchecked) private var taken = 0
    private let keepsResults: Bool
    /// The children on other workers, by id.
    @exclusivity(unchecked) fileprivate var remotes: [UInt64: FiberCore] = [:]

    init(keepsResults: Bool) { self.keepsResults = keepsResults }

    /// Notes the end of a child; true when it failed. A daemon is there to be cancelled, so it is never cut short.
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

    /// Notes that a child, or the body, has failed. A fiber that joins one that has failed and passes its error on does not fail by itself, so the two count once. Two that throw the same
    /// object have failed both.
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
        // At a cost that is constant on average.
        if taken * 2 > finished.count {
            finished.removeFirst(taken)
            taken = 0
        }
        return core
    }

    /// Releases all that is left, which may refer to the group, and returns the failures.
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

    /// Waits until fewer than `limit` children run, and takes the slot. False when the wait was ended by `endWaitsForRoom`. Parks.
    func takeSlot() throws -> Bool {
        let worker = worker
        try worker.refuseIfCancelled()
        if pointee.running < pointee.limit {
            pointee.running += 1
            return true
        }
        // Who wakes us hands his slot over, so that nobody comes in between.
        let outcome = worker.park(in: room, .group)
        try worker.check(outcome)
        return outcome == .ready
    }

    func endWaitsForRoom() { worker.wakeAll(&room.pointee, .closed) }

    /// Gives a slot to the next in line, if there is one.
    func giveSlot() {
        while let node = room.pointee.popFirst() {
            if worker.unpark(node.pointee.waiter, .ready) { return }
        }
        pointee.running -= 1
    }

    /// Makes a fiber that has not run yet a child; a slot was taken unless it is a daemon.
    func adopt(_ child: FiberPointer, isDaemon: Bool) {
        let wasCancelled = child.base.pointee.cause != nil
        child.base.pointee = CancelScope(isDaemon ? .daemon : .fiber, of: child)
        child.base.attach(to: scope)
        // Since the runtime shuts down.
        if wasCancelled { worker.cancel(child.base) }
        if isDaemon { pointee.daemons += 1 }
        child.pointee.previousSibling = pointee.lastChild
        child.pointee.nextSibling = nil
        if let last = pointee.lastChild { last.pointee.nextSibling = child } else { pointee.firstChild = child }
        pointee.lastChild = child
    }

    /// Lets a child go at the end of its life.
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
                // A runtime that shuts down cancels each fiber by itself, where a shield is around its group.
                fromOutside: cause != scope && (cause != child.base || worker.pointee.ending.abandonAt != .max))
        }
        if failed { worker.cancel(scope) }
        if isDaemon { pointee.daemons -= 1 } else { giveSlot() }
        noteChange()
    }

    // Children on other workers.

    /// Makes a fiber on its way a child; a slot was taken. Tells what it must know.
    func adoptRemote(_ core: FiberCore, name: String?, locals: FiberLocalNode?) -> Departure {
        pointee.ledger.withObject { $0.remotes[core.id] = core }
        return Departure(
            name: name, locals: locals, deadline: scope.pointee.effective, isCancelled: scope.pointee.cause != nil)
    }

    /// The scope has been cancelled: passes it on.
    func cancelRemoteChildren() {
        pointee.ledger.withObject { ledger in
            for core in ledger.remotes.values { worker.cancel(core) }
        }
    }

    /// Lets a child on another worker go. Unless it counts, its error is not the group's.
    func remoteChildEnded(_ core: FiberCore, wasCancelled: Bool, fromOutside: Bool, counts: Bool) {
        // It may have met the deadline first, and then nobody else tells the scope whose deadline that is.
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

    /// Waits until something about the children may have changed. Parks.
    func waitForChange() throws {
        try worker.check(worker.park(in: changes, pointee.reason))
    }

    /// Waits for the last child, then cancels the daemons and waits for them. Not to be cancelled itself: the children are what a cancellation reaches, and
    /// their frames may point into the frame that waits.
    func waitForEnd() {
        while pointee.running > 0 || pointee.daemons > 0 {
            if pointee.running == 0 { worker.cancel(scope) }
            worker.parkShielded(in: changes, pointee.reason)
        }
    }
}
