// SPDX-License-Identifier: Apache-2.0

// Locks that a fiber has taken by `lock()` and not unlocked, as its record knows them: a sum of their addresses (`FiberRecord.openLocks`), which is odd where an odd number of them is shared
// between workers. Owner worker only.

import CFiber

/// A fiber has ended with locks that it took by `lock()`: nobody could ever unlock them.
@inline(never)
func stopEndedWithLocks(_ fiber: FiberPointer) -> Never {
    let token = fiber.pointee.openLocks
    let address = UnsafeRawPointer(bitPattern: token & ~1)
    #if arch(arm64)
        let end: UInt = 1 << 48
    #else
        let end: UInt = 1 << 47
    #endif
    // A sum of several is larger than an address can be, as a rule, and no multiple of 16 where some are shared. Nothing is read there.
    let isOne = token & 15 <= 1 && token < end
    let locks =
        isOne
        ? "a \(token & 1 == 1 ? "FiberMutex" : "LocalMutex") locked (the one at \(address.map { "\($0)" } ?? "0"))"
        : "several mutexes locked"
    misuse(
        "\(fiber.numberAndName) has ended and left \(locks), which nobody else could ever unlock: call unlock() on each way out, also where an error is thrown, or use withLock { … }, which does"
    )
}
