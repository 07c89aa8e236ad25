// SPDX-License-Identifier: Apache-2.0

// The locks that a fiber took by `lock()` and has not unlocked. Its record stores only the sum of their addresses
// (`FiberRecord.openLocks`). The sum is odd if an odd number of those locks is shared between workers. Owner worker only.

import CFiber

/// Stops the program because a fiber ended while holding locks that it took by `lock()`: no other fiber could ever unlock them.
@inline(never)
func stopEndedWithLocks(_ fiber: FiberPointer) -> Never {
    let token = fiber.pointee.openLocks
    let address = UnsafeRawPointer(bitPattern: token & ~1)
    #if arch(arm64)
        let end: UInt = 1 << 48
    #else
        let end: UInt = 1 << 47
    #endif
    // The sum of several addresses is normally larger than any address, and not a multiple of 16 if some of the locks are shared. It is
    // only formatted, never dereferenced.
    let isOne = token & 15 <= 1 && token < end
    let locks =
        isOne
        ? "a \(token & 1 == 1 ? "FiberMutex" : "LocalMutex") locked (the one at \(address.map { "\($0)" } ?? "0"))"
        : "several mutexes locked"
    misuse(
        "\(fiber.numberAndName) has ended and left \(locks), which nobody else could ever unlock: call unlock() on each way out, also where an error is thrown, or use withLock { … }, which does"
    )
}
