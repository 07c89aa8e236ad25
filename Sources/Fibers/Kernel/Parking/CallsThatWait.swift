// SPDX-License-Identifier: Apache-2.0

// How calls begin and end that may wait at a wait point, fibers of any worker and plain threads alike.
//
// A call of a cancelled fiber is refused before it takes the lock, one that had not to wait is charged after it has let go of it, and one that waited says what ended the wait.
// A call that never waits is not refused, and counts like one that did not have to wait, whether it finds something or not. So a loop over it lets the fibers run that could make it succeed.
// One worker, or any thread: see `WaitPoint`.

import CFiber

extension WaitPoint {
    /// What a call that may wait does first: a cancelled fiber is refused, and one that has not had to wait for long lets others run. It does so now and not when the call has succeeded, so that
    /// those others find nothing taken by a fiber that only waits for its next turn.
    @inline(__always)
    final func beginCall() throws {
        if _slowPath(isCallRefused()) { throw Worker.here("a call").running.cancellation }
    }

    /// As `beginCall`; true when the caller is cancelled.
    @inline(__always)
    final func isCallRefused() -> Bool { _slowPath(!spendsCall()) && isCallRefusedSlowly() }

    /// Takes one from the calls that the running fiber may make before it must look about itself; false when it must now, or is a thread.
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

    /// Counts a call that never waits and may take something. The caller counts before it takes: counting may let others run, which would find the thing taken.
    @inline(__always)
    final func countTry() {
        requireWorker()
        Worker.current?.countTry()
    }

    /// Counts a question whose answer is "not yet", and returns that answer, false. Without the lock.
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

    /// Throws when the calling fiber is cancelled. A thread never is, but it has no business with what is local.
    @inline(__always)
    final func refuseCancelledCaller() throws {
        if let worker = Worker.current { return try worker.refuseIfCancelled() }
        requireWorker()
    }

    /// Throws when a cancellation or a deadline has ended the wait.
    @inline(__always)
    final func checkWait(_ outcome: Outcome) throws {
        if _slowPath(outcome != .ready), let worker = Worker.current { try worker.check(outcome) }
    }

    /// Counts a call that has not waited. Without the lock, since others may run now.
    @inline(__always)
    final func chargeCaller() {
        if let worker = Worker.current { worker.chargeOperation() }
    }
}
