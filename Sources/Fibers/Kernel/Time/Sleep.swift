// SPDX-License-Identifier: Apache-2.0

// Sleeping: waiting for a deadline and nothing else. Owner worker only.

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Parks the running fiber until a deadline. If the deadline has passed, it only yields once.
    func sleep(until deadline: Int64) throws {
        try refuseIfCancelled()
        guard deadline > 0 else { return yield() }
        _ = beginPark()
        let outcome = park(.sleep, until: deadline)
        if outcome != .timedOut { try check(outcome) }
    }

    /// Sleeps before the next attempt. Parks.
    package func pause(_ backoff: inout Backoff) throws {
        try sleep(until: Deadline.after(nanoseconds: backoff.next(), from: now))
    }
}
