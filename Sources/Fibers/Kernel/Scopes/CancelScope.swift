// SPDX-License-Identifier: Apache-2.0

// A scope bounds a part of a fiber's work: its whole lifetime, a deadline, a group or a shield. A cancellation, or a deadline that has
// passed, spreads from a scope to everything inside it and claims the waiters that it finds, like any other event. So every park can be
// cancelled.
//
//     fiber A   base ← timeout ← group                `outer` points to the left, `inner`, within one fiber, to the right
//     fiber B                      ↑ base ← shield    the base of a child has the group as its `outer`
//
// Invariants:
//   * a scope lies in the frame of the call that made it (the base lies in the record), and that call returns only after everything inside
//     has been left. So `outer`, `inner` and `cause` point to valid scopes;
//   * `cause` is the scope that was cancelled: this one or one outside it. Once it is set, everything inside has a cause too, up to the
//     shields; the first cause stays;
//   * `effective` is the earliest deadline of the scope and of the scopes outside it, up to the nearest shield, and does not change while
//     the scope exists. So a fiber needs one timer, however many scopes it is in;
//   * the record's `attention` tells whether the innermost scope has a cause, and whether it has a deadline.
// Owner worker only. The tree and its rules are Trio's (N. J. Smith, "Timeouts and cancellation for humans", 2018); children carry the
// deadline by value.

import CFiber

typealias ScopePointer = UnsafeMutablePointer<CancelScope>

struct CancelScope: BitwiseCopyable {
    enum Kind: UInt8, BitwiseCopyable {
        case fiber, daemon, deadline, group, shield
    }

    let fiber: FiberPointer
    let kind: Kind
    /// The wait of `fiber` when the scope became a cause; `.none` if it did not wait. Later parks overwrite the reason in the record. Two
    /// fields, because they fill up a word.
    fileprivate var interruptedKind = WaitReason.Kind.none
    fileprivate var interruptedSubject: Int32 = 0
    var outer: ScopePointer?
    fileprivate(set) var inner: ScopePointer?
    fileprivate(set) var cause: ScopePointer?
    /// The scope's own deadline, in monotonic nanoseconds.
    let deadline: Int64
    fileprivate(set) var effective: Int64
    /// The scope's time limit in nanoseconds, if it has a deadline.
    let limit: Int64

    /// A scope that has not been entered yet.
    @inline(__always)
    init(_ kind: Kind, of fiber: FiberPointer, deadline: Int64 = .max, limit: Int64 = 0) {
        self.fiber = fiber
        self.kind = kind
        self.deadline = deadline
        self.limit = limit
        effective = deadline
    }
}

/// Flags that the next park of a fiber must check, in the first cache line of the record.
enum Attention {
    @inline(__always) static var cancelled: UInt8 { 1 }
    @inline(__always) static var deadline: UInt8 { 2 }
}

extension UnsafeMutablePointer where Pointee == CancelScope {
    /// Makes the scope the innermost one of its fiber, which must be running.
    @inline(__always)
    func enter() {
        let fiber = pointee.fiber
        let outer = fiber.scope
        outer.pointee.inner = self
        pointee.outer = outer
        if pointee.kind != .shield {
            pointee.cause = outer.pointee.cause
            pointee.effective = Swift.min(pointee.deadline, outer.pointee.effective)
        }
        fiber.scope = self
        fiber.noteScope()
    }

    /// Ends the scope, which must be the innermost.
    @inline(__always)
    func leave() {
        let fiber = pointee.fiber
        let outer = pointee.outer.unsafelyUnwrapped
        outer.pointee.inner = nil
        fiber.scope = outer
        fiber.noteScope()
    }

    /// Puts the base of a new fiber into a group.
    func attach(to group: ScopePointer) {
        pointee.outer = group
        pointee.fiber.pointee.is_child = 1
        pointee.cause = group.pointee.cause
        pointee.effective = group.pointee.effective
        pointee.fiber.noteScope()
    }

    /// Records the current wait of the scope's own fiber, before the scope becomes a cause. The error that leaves the scope names that
    /// wait, and not the clean-up that follows.
    fileprivate func noteInterruption() {
        let fiber = pointee.fiber
        guard fiber.isParked else { return }
        pointee.interruptedKind = fiber.reason.kind
        pointee.interruptedSubject = fiber.reason.subject
    }

    /// The error of a deadline that ended the work in the scope.
    func timeoutError() -> TimeoutError {
        TimeoutError(limit: .nanoseconds(pointee.limit), operation: interrupted.description)
    }

    /// The wait that the cancellation interrupted, in the scope's own fiber. For a scope that is a cause.
    var interrupted: WaitReason { WaitReason(pointee.interruptedKind, pointee.interruptedSubject) }

    /// The outermost of the scopes from which this one has its effective deadline.
    var bound: ScopePointer {
        var bound = self
        var scope = self
        while true {
            if scope.pointee.deadline == pointee.effective { bound = scope }
            guard scope.pointee.kind != .shield, let outer = scope.pointee.outer, outer.pointee.effective == pointee.effective else {
                return bound
            }
            scope = outer
        }
    }
}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    /// Called when the fiber has ended: tells its group, if it has one, and resets the base.
    @inline(never)
    func endBase() {
        if let group = base.pointee.outer { GroupPointer(group).childEnded(self) }
        base.pointee = CancelScope(.fiber, of: self)
        pointee.is_child = 0
        pointee.attention = 0
    }

    /// Gives the fiber a deadline: that of the scope on another worker in which it was spawned.
    func bound(by deadline: Int64) {
        let wasCancelled = base.pointee.cause != nil
        base.pointee = CancelScope(.fiber, of: self, deadline: deadline)
        noteScope()
        // The fiber was cancelled before because the runtime is shutting down.
        if wasCancelled { worker.cancel(base) }
    }

    @inline(__always)
    fileprivate func noteScope() {
        let scope = scope
        pointee.attention =
            (scope.pointee.cause != nil ? Attention.cancelled : 0) | (scope.pointee.effective != .max ? Attention.deadline : 0)
    }

    /// The error that a park of the fiber throws once it is cancelled: a `TimeoutError` if the innermost scope's own deadline has passed,
    /// and a `CancellationError` in any other case. So no scope between here and the cancelled one mistakes the timeout for its own.
    package var cancellation: any Error {
        let scope = scope
        if scope.pointee.kind == .deadline && scope.pointee.cause == scope { return scope.timeoutError() }
        return CancellationError()
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Cancels everything inside a scope, except inside shields, unless that has been done already. Makes fibers ready but runs none.
    ///
    /// In constant space: groups may nest as deep as memory allows, but the caller's stack is limited.
    func cancel(_ top: ScopePointer) {
        if top.pointee.cause == nil { top.noteInterruption() }
        var entered: ScopePointer? = top
        while let scope = entered {
            var last: ScopePointer? = scope
            if scope.pointee.cause == nil && (scope == top || scope.pointee.kind != .shield) {
                scope.pointee.cause = top
                if scope.pointee.kind == .group {
                    GroupPointer(scope).cancelRemoteChildren()
                    if let child = GroupPointer(scope).pointee.firstChild {
                        entered = child.base
                        continue
                    }
                }
                entered = scope.pointee.inner
                if entered != nil { continue }
                interrupt(scope.pointee.fiber)
            }
            // This fiber is done. Continue with the next child of its group, and after the last child with the scopes inside the group in
            // its own fiber.
            entered = nil
            while let done = last?.pointee.fiber, done != top.pointee.fiber {
                if let sibling = done.pointee.nextSibling {
                    entered = sibling.base
                    break
                }
                let group = done.base.pointee.outer.unsafelyUnwrapped
                entered = group.pointee.inner
                if entered != nil { break }
                interrupt(group.pointee.fiber)
                last = group
            }
        }
    }

    /// Called when the innermost scope of a fiber has been given a cause.
    private func interrupt(_ fiber: FiberPointer) {
        // Not `|=`, which would be an access to the whole record while another thread claims the park.
        fiber.pointee.attention = fiber.pointee.attention | Attention.cancelled
        _ = unpark(Waiter(fiber), .cancelled)
    }

    /// Called when the effective deadline of a fiber's innermost scope has passed.
    ///
    /// Does nothing if the cancellation has reached the scope already. So of many fibers in deep groups only the first walks outwards to
    /// the scope whose deadline it was.
    func cancelExpired(_ fiber: FiberPointer) {
        let scope = fiber.scope
        if let cause = scope.pointee.cause, cause.pointee.deadline == scope.pointee.effective { return }
        cancel(scope.bound)
    }

    /// True if the running fiber is cancelled, or its deadline has passed by the clock.
    @inline(__always)
    package var isCancelled: Bool {
        let attention = running.pointee.attention
        return attention == 0 ? false : isCancelled(attention)
    }

    @inline(never)
    private func isCancelled(_ attention: UInt8) -> Bool {
        if attention & Attention.cancelled != 0 { return true }
        let fiber = running
        guard fiber.scope.pointee.effective <= now else { return false }
        cancelExpired(fiber)
        return true
    }

    /// Runs `body` inside a shield, which no outer cancellation or deadline reaches.
    @inline(__always)
    func shielded<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
        var scope = CancelScope(.shield, of: running)
        return try withLocalPointer(to: &scope) { scope throws(Failure) in
            scope.enter()
            defer { scope.leave() }
            return try body()
        }
    }

    /// For operations that may not need to park. True if the running fiber is known to be cancelled; it has then yielded, so that a loop
    /// that ignores the result starves no other fiber.
    @inline(__always)
    package func refusesOperation() -> Bool {
        if _fastPath(running.pointee.attention & Attention.cancelled == 0) { return false }
        yield()
        return true
    }
}
