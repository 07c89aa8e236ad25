// SPDX-License-Identifier: Apache-2.0

// The end of a worker's fibers: cancelled all at once, and left behind if they do not end. Owner worker only.

import CFiber

struct Ending: BitwiseCopyable {
    /// Counted among the workers that have fibers.
    var isActive = false
    /// Its fibers were left behind, and none runs any more.
    var isAbandoned = false
    /// Set once the runtime shuts down: all fibers are cancelled, and those not ended by then are abandoned.
    var abandonAt = Int64.max
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Cancels all fibers, the newest first, and those that are spawned from now on; gives them until `deadline` to end. A second call may shorten the time.
    func shutDown(until deadline: Int64) {
        // A limit without end is a shutdown, too: what is spawned from now on is cancelled.
        pointee.ending.abandonAt = Swift.min(pointee.ending.abandonAt, deadline, .max - 1)
        let fibers = liveFibers.reversed()
        // Children of groups by way of their groups, so that these know; then those whose groups are shielded.
        for fiber in fibers where fiber.base.pointee.outer == nil { cancel(fiber.base) }
        for fiber in fibers { cancel(fiber.base) }
    }

    var isOverdue: Bool { now >= pointee.ending.abandonAt }

    /// In the order in which they were spawned.
    private var liveFibers: [FiberPointer] {
        var fibers: [FiberPointer] = []
        pointee.pool.forEachLive { fibers.append($0) }
        return fibers.sorted { $0.id < $1.id }
    }

    /// Names the fibers that did not end in time. They will never run again; what they own stays in memory, since Swift cannot unwind their stacks.
    func abandonFibers() {
        pointee.ending.isAbandoned = true
        if live == 0 { return }
        let fibers = liveFibers
        let names = fibers.prefix(20).map { fiber in
            "\(fiber.numberAndName) (\(fiber.reason))"
        }
        let rest = fibers.count > names.count ? ", and \(fibers.count - names.count) more" : ""
        Holders.noteLeftBehind(fibers)
        keepOthersAway(fibers)
        for fiber in fibers {
            guard let core = fiber.coreField.pointee, core.record != nil else { continue }
            // A handle must not look for the record any more, and `join` has an answer.
            core.object = UndeliveredError(CancellationError(), of: core)
            core.record = nil
            core.remote?.endWaits()
        }
        // Last: a handler that yields, or wakes somebody, must not let one of them run.
        warn(
            "the runtime ends without \(names.joined(separator: ", "))\(rest): cancelled and not ended in time. They may ignore their cancellation, or wait in withCancellationShield without a deadline."
        )
    }

    /// Their stacks will be unmapped: takes them out of what they could be woken by. Another thread that is waking one in this moment still needs the record.
    private func keepOthersAway(_ fibers: [FiberPointer]) {
        // Ends the parks, so that nothing else does.
        for fiber in fibers { _ = Waiter(fiber).claim() }
        // Those that others have claimed before are in the inbox, or will be.
        for fiber in fibers {
            while fiber.isOnItsWay { collectInbox() }
        }
        // From here on nobody finds their records any more.
        for fiber in fibers {
            fiber.wait?.leaveLines()
            fiber.cell?.withObject { $0.leave(fiber) }
        }
        pointee.ready.removeAll()
    }
}
