// SPDX-License-Identifier: Apache-2.0

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

    /// Sleeps before the next try. Parks.
    package func pause(_ backoff: inout Backoff) throws {
        try sleep(until: Deadline.after(nanoseconds: backoff.next(), from: now))
    }
}
