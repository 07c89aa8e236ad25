// SPDX-License-Identifier: Apache-2.0

// What a mutex does, for one worker or for all.
//
// Invariants:
//   * `state` is 0 while the mutex is free, else its holder, with bit 0 set once somebody may stand in line. So while it is not, the mutex is taken and given back by one
//     operation on the word, and the lock of the wait point stays alone;
//   * bit 0 is set with that lock held, and only the holder clears it, with it held, too;
//   * somebody stands in line only while the mutex has a holder: who unlocks makes the first in line the holder before he lets him go on, so nobody comes in between. The slot of a
//     place is the holder that it would be.
// One worker, or any thread: see `WaitPoint`. What is local uses the word by plain loads and stores.

import CFiber
import Synchronization

@usableFromInline
final class MutexCore: SyncCore, @unchecked Sendable {
    private let state = Atomic<Holder>(0)

    private static var contended: Holder { 1 }
    /// How often a mutex is looked at that another thread may be about to give back.
    private static var looks: Int { 30 }

    @usableFromInline
    override init(isShared: Bool) { super.init(isShared: isShared) }

    deinit {
        if _slowPath(state.load(ordering: .relaxed) != 0) { noteGone() }
    }

    override var kind: Kind { Kind(local: "LocalMutex", shared: "FiberMutex") }

    /// Takes the mutex; waits for it.
    @usableFromInline
    func acquire() throws {
        // Only fibers spend calls, and what runs on a worker's own stack.
        if spendsCall() && take(UInt(cfiber_current().unsafelyUnwrapped.pointee.life)) { return }
        try acquireSlowly()
    }

    /// Takes the mutex if nobody has it.
    @usableFromInline
    func tryAcquire() -> Bool {
        countTry()
        return take(.caller)
    }

    /// Gives the mutex back, or to the first in line.
    @usableFromInline
    func release() {
        guard let fiber = cfiber_current() else { return releaseFromThread() }
        let me = UInt(fiber.pointee.life)
        if isShared {
            if state.compareExchange(expected: me, desired: 0, ordering: .releasing).exchanged { return }
        } else if state.load(ordering: .relaxed) == me {
            return state.store(0, ordering: .relaxed)
        }
        releaseSlowly(me)
    }

    /// True when the caller has it.
    var isHeldByCaller: Bool { state.load(ordering: .relaxed) & ~Self.contended == .caller }

    /// As `acquire`, for one who must have it again though he is cancelled.
    func acquireShielded() {
        let me = Holder.caller
        if take(me) { return }
        guard let worker = Worker.current else {
            _ = waitForTurn(me)
            return
        }
        var shield = CancelScope(.shield, of: worker.running)
        withLocalPointer(to: &shield) { shield in
            shield.enter()
            // In a shield no wait ends but by its turn.
            _ = waitForTurn(me)
            shield.leave()
        }
    }

    @inline(__always)
    private func take(_ me: Holder) -> Bool {
        if isShared { return state.compareExchange(expected: 0, desired: me, ordering: .acquiring).exchanged }
        guard state.load(ordering: .relaxed) == 0 else { return false }
        state.store(me, ordering: .relaxed)
        return true
    }

    @inline(never)
    private func acquireSlowly() throws {
        try beginCall()
        let me = Holder.caller
        if isShared { watch(me) }
        if take(me) { return }
        try checkWait(waitForTurn(me))
    }

    /// Waits for a moment, where somebody else has the mutex and nobody waits in line: sections are short, and to park takes longer. Not where that may be a fiber that waits for this
    /// very thread: with one worker, or more than CPUs.
    private func watch(_ me: Holder) {
        if let worker = Worker.current, !worker.pointee.workers.maySpin { return }
        for _ in 0..<Self.looks {
            let state = state.load(ordering: .relaxed)
            if state == 0 || state & Self.contended != 0 || state == me { return }
            cfiber_relax()
        }
    }

    @inline(never)
    private func waitForTurn(_ me: Holder) -> Outcome {
        lock()
        while true {
            if take(me) {
                unlock()
                return .ready
            }
            let holder = markContended()
            if holder & ~Self.contended == me { stopLockedTwice(me) }
            if holder != 0 {
                stopIfGone(holder & ~Self.contended, "holds")
                return wait(in: first, slot: UnsafeMutableRawPointer(bitPattern: me), .lock)
            }
        }
    }

    /// Says that somebody may stand in line, unless nobody holds the mutex; who does cannot give it back then before the lock of the wait point is free. With that lock held.
    private func markContended() -> Holder {
        var holder = state.load(ordering: .relaxed)
        while holder != 0 && holder & Self.contended == 0 {
            if !isShared {
                state.store(holder | Self.contended, ordering: .relaxed)
                break
            }
            let (done, now) = state.compareExchange(expected: holder, desired: holder | Self.contended, ordering: .acquiring)
            if done { break }
            holder = now
        }
        return holder
    }

    @inline(never)
    private func releaseFromThread() {
        let me = Holder.caller
        if isShared && state.compareExchange(expected: me, desired: 0, ordering: .releasing).exchanged { return }
        releaseSlowly(me)
    }

    @inline(never)
    private func releaseSlowly(_ me: Holder) {
        lock()
        guard state.load(ordering: .relaxed) == me | Self.contended else { stopUnlockedByAnother(me) }
        guard let next = claimFirst(of: first) else {
            state.store(0, ordering: .releasing)
            return unlock()
        }
        let holder = UInt(bitPattern: next.pointee.slot)
        state.store(first.pointee.isEmpty ? holder : holder | Self.contended, ordering: .releasing)
        unlock()
        resume(next)
    }

    // Locks that are taken by one call and given back by another: a fiber could end in between, and the mutex would stay locked for ever. So its record notes them. `withLock` has no such ways out
    // and needs no note. Each is a fast path of its own, with the note in its branches: a common one would have registers to save, and a comparison more.

    @usableFromInline
    func lockOpenly() throws {
        guard spendsCall() else { return try lockOpenlySlowly() }
        let fiber = cfiber_current().unsafelyUnwrapped
        let me = UInt(fiber.pointee.life)
        if isShared {
            guard state.compareExchange(expected: 0, desired: me, ordering: .acquiring).exchanged else { return try lockOpenlySlowly() }
            fiber.pointee.openLocks &+= sharedToken
        } else {
            guard state.load(ordering: .relaxed) == 0 else { return try lockOpenlySlowly() }
            state.store(me, ordering: .relaxed)
            fiber.pointee.openLocks &+= token
        }
    }

    @inline(never)
    private func lockOpenlySlowly() throws {
        try acquireSlowly()
        noteOpenLock(isTaken: true)
    }

    @usableFromInline
    func tryLockOpenly() -> Bool {
        guard tryAcquire() else { return false }
        noteOpenLock(isTaken: true)
        return true
    }

    @usableFromInline
    func unlockOpenly() {
        guard let fiber = cfiber_current() else { return unlockOpenlyFromThread() }
        let me = UInt(fiber.pointee.life)
        if isShared {
            fiber.pointee.openLocks &-= sharedToken
            if state.compareExchange(expected: me, desired: 0, ordering: .releasing).exchanged { return }
        } else {
            fiber.pointee.openLocks &-= token
            if state.load(ordering: .relaxed) == me { return state.store(0, ordering: .relaxed) }
        }
        releaseSlowly(me)
    }

    @inline(never)
    private func unlockOpenlyFromThread() {
        noteOpenLock(isTaken: false)
        releaseFromThread()
    }

    /// What stands for the mutex in `FiberRecord.openLocks`. Odd for one between workers, so that a message about it need not look at the mutex.
    @inline(__always)
    private var token: UInt { UInt(bitPattern: Unmanaged.passUnretained(self).toOpaque()) }
    @inline(__always)
    private var sharedToken: UInt { token &+ 1 }

    @inline(never)
    private func noteOpenLock(isTaken: Bool) {
        guard let fiber = cfiber_current() else { return cfiber_count_open_lock(isTaken ? 1 : -1) }
        let token = isShared ? sharedToken : token
        fiber.pointee.openLocks = isTaken ? fiber.pointee.openLocks &+ token : fiber.pointee.openLocks &- token
    }

    /// The mutex ends while it is locked. Its holder may let it go, and has nothing to unlock then; for another one, it would be gone.
    @inline(never)
    private func noteGone() {
        let holder = state.load(ordering: .relaxed) & ~Self.contended
        if holder == .caller { return noteOpenLock(isTaken: false) }
        if Holders.nameIfGone(holder) != nil { return }
        misuse(
            "the last reference to a \(name) went away while \(Holders.describe(holder)) holds it, which will unlock memory of something else: let what locks a mutex keep it, too"
        )
    }

    // Misuse.

    @inline(never)
    private func stopLockedTwice(_ me: Holder) -> Never {
        unlock()
        misuse(
            "\(Holders.describe(me)) locks a mutex that it holds already, and would wait for itself for ever: hand what the mutex protects on to the code that needs it, or unlock before"
        )
    }

    @inline(never)
    private func stopUnlockedByAnother(_ me: Holder) -> Never {
        let holder = state.load(ordering: .relaxed) & ~Self.contended
        unlock()
        let who = Holders.describe(me)
        if holder == 0 {
            misuse("\(who) unlocks a mutex that nobody holds: unlock() belongs to a lock() before it, withLock { … } does both")
        }
        misuse(
            "\(who) unlocks a mutex that \(Holders.describe(holder)) holds: only the holder unlocks it; to signal somebody else use a FiberEvent, a semaphore or a condition"
        )
    }
}
