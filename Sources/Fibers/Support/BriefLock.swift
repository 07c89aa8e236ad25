// SPDX-License-Identifier: Apache-2.0

// A lock that is held for a few instructions, by fibers of any worker and by plain threads, and never across a park. A thread that finds it
// locked spins for a while, and then sleeps until it is free. (U. Drepper, "Futexes Are Tricky", 2011, the second mutex.)
//
// Invariants:
//   * the word is 0 when the lock is free, 1 when it is locked, 2 when it is locked and a thread may be sleeping on it;
//   * a thread sets 2 before it sleeps. A thread that unlocks and finds 2 wakes one sleeper, which then sets 2 again, since others may
//     still sleep.
// Any thread.

import CFiber
import Synchronization

struct BriefLock: BitwiseCopyable {
    private let word: UnsafeMutablePointer<Atomic<UInt32>>
    private static var shortestPause: Int { 64 }
    private static var longestPause: Int { 512 }

    /// A free lock in memory that the caller owns.
    init(at memory: UnsafeMutableRawPointer) {
        word = memory.bindMemory(to: Atomic<UInt32>.self, capacity: 1)
        word.initialize(to: Atomic(0))
    }

    /// A lock that `init(at:)` has created there.
    @inline(__always)
    init(over memory: UnsafeMutableRawPointer) { word = memory.assumingMemoryBound(to: Atomic<UInt32>.self) }

    @inline(__always)
    func lock() {
        if word.pointee.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged { return }
        lockSlowly()
    }

    @inline(__always)
    func unlock() {
        if word.pointee.exchange(0, ordering: .releasing) == 2 { wake() }
    }

    /// Spins with pauses that double. So the holder can lock many times in a row while the word is in its cache, and the two CPUs do not
    /// contend for the cache line.
    @inline(never)
    private func lockSlowly() {
        var pause = Self.shortestPause
        while pause <= Self.longestPause {
            for _ in 0..<pause { cfiber_relax() }
            if word.pointee.load(ordering: .relaxed) == 0,
                word.pointee.compareExchange(expected: 0, desired: 1, ordering: .acquiring).exchanged
            {
                return
            }
            pause *= 2
        }
        while word.pointee.exchange(2, ordering: .acquiring) != 0 {
            _ = cfiber_futex_wait(UnsafeMutableRawPointer(word).assumingMemoryBound(to: UInt32.self), 2, .max)
        }
    }

    @inline(never)
    private func wake() {
        cfiber_futex_wake(UnsafeMutableRawPointer(word).assumingMemoryBound(to: UInt32.self))
    }
}
