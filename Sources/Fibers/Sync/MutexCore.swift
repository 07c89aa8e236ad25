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

    /// Takes the mutex; waits for it.
    @usableFromInline
    func acquire() throws {
        if spendsCall() && take(UInt(bitPattern: cfiber_current())) { return }
        try acquireSlowly()
    }

    /// Takes the mutex if nobody has it.
    @usableFromInline
    func tryAcquire() -> Bool {
        countTry()
        return take(Self.caller)
    }

    /// Gives the mutex back, or to the first in line.
    @usableFromInline
    func release() {
        let me = Self.caller
        if isShared {
            if state.compareExchange(expected: me, desired: 0, ordering: .releasing).exchanged { return }
        } else if state.load(ordering: .relaxed) == me {
            return state.store(0, ordering: .relaxed)
        }
        releaseSlowly(me)
    }

    /// True when the caller has it.
    var isHeldByCaller: Bool { state.load(ordering: .relaxed) & ~Self.contended == Self.caller }

    /// As `acquire`, for one who must have it again though he is cancelled.
    func acquireShielded() {
        if take(Self.caller) { return }
        guard let worker = Worker.current else {
            _ = waitForTurn()
            return
        }
        var shield = CancelScope(.shield, of: worker.running)
        _withUnprotectedUnsafeMutablePointer(to: &shield) { shield in
            shield.enter()
            // In a shield no wait ends but by its turn.
            _ = waitForTurn()
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
        if isShared { watch() }
        if take(Self.caller) { return }
        try checkWait(waitForTurn())
    }

    /// Waits for a moment, where somebody else has the mutex and nobody waits in line: sections are short, and to park takes longer. Not where that may be a fiber that waits for this
    /// very thread: with one worker, or more than CPUs.
    private func watch() {
        if let worker = Worker.current, !worker.pointee.runtime.workers.mayWatch { return }
        for _ in 0..<Self.looks {
            let state = state.load(ordering: .relaxed)
            if state == 0 || state & Self.contended != 0 || state == Self.caller { return }
            cfiber_relax()
        }
    }

    @inline(never)
    private func waitForTurn() -> Outcome {
        let me = Self.caller
        lock()
        while true {
            if take(me) {
                unlock()
                return .ready
            }
            let holder = markContended()
            if holder & ~Self.contended == me { stopLockedTwice(me) }
            if holder != 0 { return wait(in: first, slot: UnsafeMutableRawPointer(bitPattern: me), .lock) }
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

    // Misuse. The lock of the wait point is held and stays so: a holder who finds his mutex contended cannot go on and end while his name is read.

    @inline(never)
    private func stopLockedTwice(_ me: Holder) -> Never {
        misuse(
            "\(Self.describe(me)) locks a mutex that it holds already, and would wait for itself for ever: hand what the mutex protects on to the code that needs it, or unlock before"
        )
    }

    @inline(never)
    private func stopUnlockedByAnother(_ me: Holder) -> Never {
        let holder = markContended()
        let who = Self.describe(me)
        if holder == 0 {
            misuse("\(who) unlocks a mutex that nobody holds: unlock() belongs to a lock() before it, withLock { … } does both")
        }
        misuse(
            "\(who) unlocks a mutex that \(Self.describe(holder)) holds: only the holder unlocks it; to signal somebody else use a FiberEvent, a semaphore or a condition"
        )
    }
}
