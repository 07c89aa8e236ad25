// How calls begin and end that may wait at a wait point, fibers of any worker and plain threads alike.
//
// A call of a cancelled fiber is refused before it takes the lock, one that had not to wait is charged after it has let go of it, and one that waited says what ended the wait.
// One worker, or any thread: see `WaitPoint`.

extension WaitPoint {
    /// Throws when the calling fiber is cancelled. A thread never is, but it has no business with what is local.
    @inline(__always)
    final func refuseCancelledCaller() throws {
        if let worker = Worker.current { return try worker.refuseIfCancelled() }
        require(isShared, "a call on a Local… thing was made outside its worker: use the one without Local")
    }

    /// Throws when a cancellation or a deadline has ended the wait.
    @inline(__always)
    final func checkWait(_ outcome: Outcome) throws {
        if outcome != .ready, let worker = Worker.current { try worker.check(outcome) }
    }

    /// Counts a call that has not waited. Without the lock, since others may run now.
    @inline(__always)
    final func chargeCaller() {
        if let worker = Worker.current { worker.chargeOperation() }
    }
}
