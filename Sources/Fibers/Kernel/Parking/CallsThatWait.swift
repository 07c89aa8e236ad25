// SPDX-License-Identifier: Apache-2.0

// How calls on wait points begin and end, both for calls that may wait and for calls that never do.
//
//   * A call by a cancelled fiber is refused before it takes the lock.
//   * A call that did not wait is charged after it releases the lock.
//   * A call that waited reports how the wait ended.
//   * A call that never waits is not refused. It is charged like a call that did not wait, whether it succeeds or not, so that a loop over
//     it lets the fibers run that could make it succeed.
// One worker, or any thread: see `WaitPoint`.

import CFiber

extension WaitPoint {
    /// The first step of a call that may wait: refuses a cancelled fiber, and yields if the fiber has made many calls without waiting. It
    /// yields here and not after the call has succeeded: otherwise the other fibers would find the resource taken by a fiber that is merely
    /// waiting to be scheduled again.
    @inline(__always)
    final func beginCall() throws {
        if _slowPath(isCallRefused()) { throw Worker.here("a call").running.cancellation }
    }

    /// As `beginCall`; returns true if the caller is cancelled.
    @inline(__always)
    final func isCallRefused() -> Bool { _slowPath(!spendsCall()) && isCallRefusedSlowly() }

    /// Takes one call from the running fiber's budget. False if the fiber must yield and check for cancellation first, or if the caller is
    /// a thread.
    @inline(__always)
    final func spendsCall() -> Bool {
        guard let worker = Worker.current else { return false }
        return spendsCall(worker)
    }

    @inline(__always)
    final func spendsCall(_ worker: Worker) -> Bool { worker.spendsCall() }

    @inline(never)
    private final func isCallRefusedSlowly() -> Bool {
        guard let worker = Worker.current else {
            requireWorker()
            return false
        }
        worker.chargeCalls()
        return worker.isRefused
    }

    /// Charges a call that never waits and may take something. The caller charges it before it takes anything: charging may yield, and the
    /// other fibers would then find the resource taken.
    @inline(__always)
    final func countTry() {
        requireWorker()
        Worker.current?.countTry()
    }

    /// Charges a query whose answer is "not yet", and returns that answer, false. Without the lock.
    @usableFromInline
    static func notYet() -> Bool {
        Worker.current?.countTry()
        return false
    }

    /// For calls that never wait.
    @inline(__always)
    final func requireWorker() {
        if _slowPath(!isShared && Worker.current == nil) { stopWithoutWorker() }
    }

    /// Throws if the calling fiber is cancelled. A thread is never cancelled, but it must not use a local wait point.
    @inline(__always)
    final func refuseCancelledCaller() throws {
        if let worker = Worker.current { return try worker.refuseIfCancelled() }
        requireWorker()
    }

    /// Throws if a cancellation or a deadline ended the wait.
    @inline(__always)
    final func checkWait(_ outcome: Outcome) throws {
        if _slowPath(outcome != .ready), let worker = Worker.current { try worker.check(outcome) }
    }

    /// Charges a call that did not wait. Without the lock, because charging may yield.
    @inline(__always)
    final func chargeCaller() {
        if let worker = Worker.current { worker.chargeOperation() }
    }
}
