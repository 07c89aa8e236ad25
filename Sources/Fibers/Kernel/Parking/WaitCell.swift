// SPDX-License-Identifier: Apache-2.0

// A wait queue of one waiter, for waits that other threads end: a signal, a job of the blocking pool, the end of a fiber elsewhere. Its
// state is a single word, without a lock.
//
//     empty ──── enter ───→ address of the waiter's claim word ──── a signaller takes it out ───→ busy ──── claim, free ───→ empty, or a value of the owner's
//       ↑                                    │
//       └──────────── leave ─────────────────┘
//
// Invariants:
//   * the waiter's claim word is valid while the cell holds its address or is busy with it, because a waiting call returns only after the
//     waiter has left the cell. The waiter leaves either by its own compare-and-swap from the address to empty, or because a signaller has
//     removed it, has finished with its claim word, and has freed the cell;
//   * so a signaller claims while the cell is busy, and the claim word is valid however late the signaller comes. If a timer or a
//     cancellation was faster, the claim fails;
//   * the signaller frees the cell before it resumes the waiter, so the waiter's next wait finds the cell free;
//   * `busy` lasts only for a few instructions of a thread that takes no lock and runs no other fiber. So a fiber never waits for a
//     signaller on its own worker;
//   * values below an address belong to the owner of the cell: bit 0, which may also be set while the cell is busy. `hasSleepers` is set
//     only together with `busy`.
// Any thread, except where a comment says worker.

import CFiber
import Synchronization

package class WaitCell: @unchecked Sendable {
    // The word has a cache line of its own. Otherwise two processors that spin on adjacent cells would steal the line from each other.
    private final let before: (UInt, UInt, UInt, UInt, UInt, UInt) = (0, 0, 0, 0, 0, 0)
    final let state = Atomic<UInt>(0)
    private final let after: (UInt, UInt, UInt, UInt, UInt, UInt, UInt) = (0, 0, 0, 0, 0, 0, 0)

    @inline(__always) static var empty: UInt { 0 }
    /// The bit reserved for the owner of the cell.
    @inline(__always) static var ownersBit: UInt { 1 }
    /// A signaller has removed the waiter and may still read its claim word.
    @inline(__always) static var busy: UInt { 4 }
    /// Threads sleep until the cell is no longer busy.
    private static var hasSleepers: UInt { 8 }
    private static var leastAddress: UInt { 16 }
    private static var shortestPause: Int { 64 }
    private static var longestPause: Int { 512 }

    package init() {}

    @inline(__always)
    static func holdsWaiter(_ state: UInt) -> Bool { state >= leastAddress }

    @inline(__always)
    static func isBusy(_ state: UInt) -> Bool { state < leastAddress && state & busy != 0 }

    /// Ends the park of the fiber that waits here and hands it to its worker. False if no fiber waits, or something else ended the park
    /// first. Never blocks.
    @discardableResult
    package final func unparkFromAnyThread(_ outcome: Outcome) -> Bool {
        let waiting = state.load(ordering: .relaxed)
        guard Self.holdsWaiter(waiting), takeOut(waiting) else { return false }
        return resume(waiting, outcome, orLeave: Self.empty)
    }

    @inline(__always)
    private final func takeOut(_ waiting: UInt) -> Bool {
        state.compareExchange(expected: waiting, desired: Self.busy, ordering: .acquiringAndReleasing).exchanged
    }

    /// Claims a waiter that the caller has removed, which made the cell busy; then frees the cell and resumes the waiter.
    ///
    /// - Parameters:
    ///   - outcome: `ready` or `closed`, by which the waiter knows that it has left the cell.
    ///   - value: the owner's value to leave in the cell if something else ended the wait.
    /// - Returns: whether the claim ended the wait.
    final func resume(_ waiting: UInt, _ outcome: Outcome, orLeave value: UInt) -> Bool {
        let waiter = Waiter(presentOf: ClaimWord(bitPattern: waiting).unsafelyUnwrapped)
        let isClaimed = waiter.claimShared()
        free(leaving: isClaimed ? Self.empty : value)
        if isClaimed { waiter.resume(outcome) }
        return isClaimed
    }

    /// Frees the busy cell. The caller must not access the waiter from here on.
    private final func free(leaving value: UInt) {
        var old = Self.busy
        while true {
            // Keep the owner's bit, which may have been set in the meantime.
            let next = old & Self.ownersBit | value
            let (done, now) = state.compareExchange(expected: old, desired: next, ordering: .acquiringAndReleasing)
            if done { break }
            old = now
        }
        if _slowPath(old & Self.hasSleepers != 0) { cfiber_futex_wake_all(futex) }
    }

    /// Frees the cell of a waiter whose wait something else has ended and which has not run since. If the waiter still waits, returns its
    /// identity and leaves the cell busy; the caller then stops the program.
    @inline(never)
    final func removeEndedWaiter() -> Holder? {
        let waiting = state.load(ordering: .relaxed)
        if Self.isBusy(waiting) { waitWhileBusy() }
        guard Self.holdsWaiter(waiting), takeOut(waiting) else { return nil }
        let waiter = Waiter(presentOf: ClaimWord(bitPattern: waiting).unsafelyUnwrapped)
        if waiter.isUnclaimed { return Holder(waiter.fiber.pointee.life) }
        free(leaving: Self.empty)
        return nil
    }

    // The waiter's side.

    /// Removes a fiber whose wait was not ended through the cell. Afterwards no signaller accesses its record. The fiber's worker only.
    @inline(never)
    final func leave(_ fiber: FiberPointer) {
        let (done, now) = state.compareExchange(
            expected: UInt(bitPattern: fiber.claimWord), desired: Self.empty, ordering: .acquiringAndReleasing)
        if !done && Self.isBusy(now) { waitWhileBusy() }
    }

    /// Spins for longer than a signaller needs, then sleeps: the system may have preempted the signaller.
    private final func waitWhileBusy() {
        var pause = Self.shortestPause
        while pause <= Self.longestPause {
            if !Self.isBusy(state.load(ordering: .acquiring)) { return }
            for _ in 0..<pause { cfiber_relax() }
            pause *= 2
        }
        while true {
            let now = state.load(ordering: .acquiring)
            guard Self.isBusy(now) else { return }
            let next = now | Self.hasSleepers
            if now != next, !state.compareExchange(expected: now, desired: next, ordering: .relaxed).exchanged { continue }
            _ = cfiber_futex_wait(futex, UInt32(truncatingIfNeeded: next), .max)
        }
    }

    /// The low half of the word: all supported processors are little-endian.
    private final var futex: UnsafeMutablePointer<UInt32> {
        withUnsafePointer(to: state) { UnsafeMutableRawPointer(mutating: $0).assumingMemoryBound(to: UInt32.self) }
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Begins a park of the running fiber in an empty cell. From here on it can be claimed. The caller must retain the cell until
    /// `park(in:)` returns.
    package func beginPark(in cell: WaitCell) {
        cell.state.store(enter(cell), ordering: .releasing)
    }

    /// As `beginPark(in:)`, but only if the cell's word is `expected`. Otherwise the park has not begun.
    @inline(__always)
    func beginPark(in cell: WaitCell, ifStill expected: UInt) -> Bool {
        let waiting = enter(cell)
        if cell.state.compareExchange(expected: expected, desired: waiting, ordering: .acquiringAndReleasing).exchanged { return true }
        running.noteArrival()
        running.cell = nil
        return false
    }

    @inline(__always)
    private func enter(_ cell: WaitCell) -> UInt {
        let waiter = beginPark(as: .sharedFiber)
        waiter.fiber.cell = .passUnretained(cell)
        return UInt(bitPattern: waiter.word)
    }

    /// As `beginPark(in:)`, with a new cell for each park.
    package func beginSharedPark() -> WaitCell {
        let cell = WaitCell()
        beginPark(in: cell)
        return cell
    }

    /// Parks the running fiber, which has entered the cell by `beginPark(in:)`, until it is unparked through the cell or something else
    /// ends the park.
    @inline(__always)
    package func park(in cell: WaitCell, _ reason: WaitReason, until deadline: Int64 = .max) -> Outcome {
        let outcome = park(reason, until: deadline)
        let fiber = running
        fiber.cell = nil
        // A signaller that claimed the park has also removed the fiber.
        if _slowPath(outcome != .ready && outcome != .closed) { cell.leave(fiber) }
        return outcome
    }
}
