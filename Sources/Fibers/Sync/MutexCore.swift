// SPDX-License-Identifier: Apache-2.0

// The core of a mutex, for one worker or for all.
//
// Invariants:
//   * `state` is 0 while the mutex is free. Otherwise it is the holder, with bit 0 (contended) set when the wait queue may not be empty.
//     While the bit is clear, one operation on the word locks or unlocks the mutex, and the lock of the wait point is not touched.
//   * The contended bit is set with the lock of the wait point held. Only the holder clears it, also with that lock held.
//   * A waiter is queued only while the mutex has a holder. Unlocking makes the first waiter the holder before it resumes the waiter, so
//     no other caller can lock the mutex in between. The slot of a queued waiter is the holder that it would become.
// Runs on one worker or on any thread: see `WaitPoint`. A local mutex uses plain loads and stores for the word.

import CFiber
import Synchronization

@usableFromInline
final class MutexCore: SyncCore, @unchecked Sendable {
    private let state = Atomic<Holder>(0)

    private static var contended: Holder { 1 }
    /// How often the spin reads a mutex that another thread may be about to unlock.
    private static var looks: Int { 30 }

    @usableFromInline
    override init(isShared: Bool) { super.init(isShared: isShared) }

    deinit {
        if _slowPath(state.load(ordering: .relaxed) != 0) { noteGone() }
    }

    override var kind: Kind { Kind(local: "LocalMutex", shared: "FiberMutex") }

    /// Waits for the mutex and locks it.
    @usableFromInline
    func acquire() throws {
        // Only fibers, and code on a worker's own stack, have a call budget.
        if spendsCall() && take(UInt(cfiber_current().unsafelyUnwrapped.pointee.life)) { return }
        try acquireSlowly()
    }

    /// Locks the mutex if it is free.
    @usableFromInline
    func tryAcquire() -> Bool {
        countTry()
        return take(.caller)
    }

    /// Unlocks the mutex, or hands it to the first waiter.
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

    /// True when the caller holds it.
    var isHeldByCaller: Bool { state.load(ordering: .relaxed) & ~Self.contended == .caller }

    /// Like `acquire`, for a caller that must hold the mutex again even if it is cancelled.
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
            // In a shield, a wait ends only by a hand-off.
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

    /// Spins for a moment if the mutex is held and its wait queue is empty: critical sections are short, and parking takes longer. It does
    /// not spin if the holder may be a fiber that needs this very thread to run: with one worker, or with more workers than CPUs.
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

    /// Sets the contended bit if the mutex is held, and returns the state. The holder cannot unlock it until the lock of the wait point is
    /// free. That lock must be held.
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

    // Locking and unlocking by separate calls. A fiber could end in between, and the mutex would stay locked forever, so the fiber's
    // record counts these locks. `withLock` always unlocks and is not counted. Each function has a fast path of its own with the counting
    // in its branches: a shared one would have to save registers and make one more comparison.

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

    /// The value that represents the mutex in `FiberRecord.openLocks`. It is odd for a shared mutex, so that a message about it can be
    /// made without reading the mutex.
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

    /// The mutex is destroyed while it is locked. The holder may release the last reference, and then has nothing left to unlock. If
    /// another caller does, the holder would later unlock freed memory.
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
