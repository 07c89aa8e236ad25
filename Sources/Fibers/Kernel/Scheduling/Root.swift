// SPDX-License-Identifier: Apache-2.0

// The root: what a worker does on the thread's own stack. It runs when no fiber is ready, and, as one of those that are ready, when there are messages from other workers. It delivers
// them, runs fibers, and sleeps in the event source until a timer or another thread wants something. Owner worker only.

import CFiber

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Runs fibers until the runtime has none any more, on any worker, but those that are abandoned.
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
            // What it spins for may come again and again, so timers and event source have their turn before.
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
            // Something may come again and again.
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

    /// A timer would expire while the worker spins.
    private var isTimerNear: Bool {
        guard !pointee.timers.isEmpty else { return false }
        let now = self.now
        return pointee.timers.earliest(after: now).map { $0 < now &+ Spinning.longest } ?? false
    }

    /// Looks at timers and event source; blocks for at most `timeout` nanoseconds (negative: without end) when nothing has happened before.
    func poll(timeout: Int64) {
        pointee.statistics.polls &+= 1
        pointee.lentEvents.poll(timeout: timeout)
        if !pointee.timers.isEmpty { expireTimers(now: now) }
        pointee.tick.lastPoll = counter
        // What the look took is no fiber's doing.
        pointee.tick.began = pointee.tick.lastPoll
    }

    private func expireTimers(now: Int64) {
        while let fiber = pointee.timers.popExpired(now: now) {
            // Not later than the deadline of the call itself: then it is the scope's.
            if fiber.scope.pointee.effective <= fiber.pointee.wakeAt {
                cancelExpired(fiber)
            } else {
                _ = unpark(Waiter(fiber), .timedOut)
            }
        }
    }
}
