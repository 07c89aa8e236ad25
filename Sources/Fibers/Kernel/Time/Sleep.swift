// The wait for a time and nothing else. Owner worker only.

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Parks the running fiber until a deadline; one that has passed lets the others run once.
    func sleep(until deadline: Int64) throws {
        try refuseIfCancelled()
        guard deadline > 0 else { return yield() }
        _ = beginPark()
        let outcome = park(.sleep, until: deadline)
        if outcome != .timedOut { try check(outcome) }
    }

    /// Sleeps before the next try, no longer than until `deadline`. False, without sleeping, when the deadline has passed. Parks.
    package func pause(_ backoff: inout Backoff, until deadline: Int64) throws -> Bool {
        let now = self.now
        guard now < deadline else { return false }
        try sleep(until: Swift.min(Deadline.after(nanoseconds: backoff.next(), from: now), deadline))
        return true
    }
}
