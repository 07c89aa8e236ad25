// SPDX-License-Identifier: Apache-2.0

// Shutdown of a worker: all its fibers are cancelled at once, and abandoned if they do not end in time. Owner worker only.

import CFiber

struct Ending: BitwiseCopyable {
    /// The worker is counted among those that have fibers.
    var isActive = false
    /// The remaining fibers were abandoned, and none runs any more.
    var isAbandoned = false
    /// Set once the runtime shuts down: all fibers are cancelled, and any that have not ended by then are abandoned.
    var abandonAt = Int64.max
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Cancels all fibers, the newest first, and every fiber that is spawned from now on; they have until `deadline` to end. A second call
    /// may shorten the time.
    func shutDown(until deadline: Int64) {
        // An infinite limit also starts a shutdown: fibers spawned from now on are cancelled.
        pointee.ending.abandonAt = Swift.min(pointee.ending.abandonAt, deadline, .max - 1)
        let fibers = liveFibers.reversed()
        // Children are cancelled through their groups, so that the groups know; then the children whose groups are shielded.
        for fiber in fibers where fiber.base.pointee.outer == nil { cancel(fiber.base) }
        for fiber in fibers { cancel(fiber.base) }
    }

    var isOverdue: Bool { now >= pointee.ending.abandonAt }

    /// Live fibers, in the order in which they were spawned.
    private var liveFibers: [FiberPointer] {
        var fibers: [FiberPointer] = []
        pointee.pool.forEachLive { fibers.append($0) }
        return fibers.sorted { $0.id < $1.id }
    }

    /// Abandons the fibers that did not end in time, and names them in a warning. They will never run again. Their memory is leaked,
    /// because Swift cannot unwind their stacks.
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
            // A handle must not access the record any more, and `join` needs a result.
            core.object = UndeliveredError(CancellationError(), of: core)
            core.record = nil
            core.remote?.endWaits()
        }
        // Last: a handler that yields, or wakes a fiber, must not make an abandoned fiber run.
        warn(
            "the runtime ends without \(names.joined(separator: ", "))\(rest): cancelled and not ended in time. They may ignore their cancellation, or wait in withCancellationShield without a deadline."
        )
    }

    /// Makes abandoned fibers unreachable for everything that could wake them, before their stacks are unmapped. Another thread that is
    /// waking one right now still needs the record.
    private func keepOthersAway(_ fibers: [FiberPointer]) {
        // Claims the parks, so that nothing else can.
        for fiber in fibers { _ = Waiter(fiber).claim() }
        // Fibers that other threads have already claimed are in the inbox, or will be soon.
        for fiber in fibers {
            while fiber.isOnItsWay { collectInbox() }
        }
        // After this no other thread can find their records.
        for fiber in fibers {
            fiber.wait?.leaveLines()
            fiber.cell?.withObject { $0.leave(fiber) }
        }
        pointee.ready.removeAll()
    }
}
