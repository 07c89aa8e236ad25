// SPDX-License-Identifier: Apache-2.0

// The root: the worker's loop on the thread's own stack. It runs when no fiber is ready, and, queued like a ready fiber, when there are
// messages from other workers. It delivers the messages, runs fibers, and sleeps in the event source until an event, a timer or another
// thread wakes it. Owner worker only.

import CFiber

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Runs fibers until no worker of the runtime has any left, except abandoned ones.
    func runUntilDone() {
        let workers = pointee.workers
        pointee.tick.began = counter
        while true {
            if _slowPath(pointee.ending.abandonAt != .max && !pointee.ending.isAbandoned && isOverdue) { abandonFibers() }
            collectInbox()
            deliverMessages()
            if !pointee.mailbox.leftovers.isEmpty && pointee.pool.warmCount > 0 { releaseLeftovers() }
            if !pointee.ending.isAbandoned, let next = pointee.ready.popFirst() {
                cfiber_switch(next)
                pointee.mailbox.isRootQueued = false
                continue
            }
            if pointee.ending.isActive && (live == 0 || pointee.ending.isAbandoned) {
                pointee.ending.isActive = false
                workers.noteEnd()
            }
            if workers.haveEnded { return }
            if pointee.mailbox.hasMessages {
                if isPollDue { poll(timeout: 0) }
            } else {
                sleep()
            }
        }
    }

    private func sleep() {
        if pointee.spinning.hasCredit {
            // Work from other workers may keep arriving during spins, so timers and event source are polled first.
            if isPollDue {
                poll(timeout: 0)
                pointee.pool.trim(now: now)
                if !pointee.ready.isEmpty { return }
            }
            if !isTimerNear && spin() { return }
        }
        pointee.pool.trim(now: now)
        let now = self.now
        var wake = Int64.max
        if let deadline = pointee.timers.earliest(after: now) { wake = deadline }
        if !pointee.ending.isAbandoned { wake = Swift.min(wake, pointee.ending.abandonAt) }
        if let trim = pointee.pool.nextTrim { wake = Swift.min(wake, trim) }
        guard pointee.inbox.beginSleep() else {
            // Work may keep arriving, so a poll must not be skipped.
            if isPollDue { poll(timeout: 0) }
            return
        }
        pointee.statistics.sleeps &+= 1
        let begun = cfiber_counter()
        poll(timeout: wake == .max ? -1 : Swift.max(0, wake &- now))
        let sent = pointee.inbox.endSleep()
        pointee.tick.noteSleep()
        if pointee.workers.maySpin && sent != 0 { pointee.spinning.noteWake(sent: sent, after: Int64(bitPattern: sent &- begun)) }
    }

    /// True if a timer would expire during a spin.
    private var isTimerNear: Bool {
        guard !pointee.timers.isEmpty else { return false }
        let now = self.now
        return pointee.timers.earliest(after: now).map { $0 < now &+ Spinning.longest } ?? false
    }

    /// Polls timers and event source; blocks for at most `timeout` nanoseconds if no event is pending. A negative timeout means no limit.
    func poll(timeout: Int64) {
        pointee.statistics.polls &+= 1
        pointee.lentEvents.poll(timeout: timeout)
        if !pointee.timers.isEmpty { expireTimers(now: now) }
        pointee.tick.lastPoll = counter
        // The time spent polling must not count as time used by fibers.
        pointee.tick.began = pointee.tick.lastPoll
    }

    private func expireTimers(now: Int64) {
        while let fiber = pointee.timers.popExpired(now: now) {
            // If the deadline of the scope is not later than that of the call itself, the scope's deadline ends the park.
            if fiber.scope.pointee.effective <= fiber.pointee.wakeAt {
                cancelExpired(fiber)
            } else {
                _ = unpark(Waiter(fiber), .timedOut)
            }
        }
    }
}
