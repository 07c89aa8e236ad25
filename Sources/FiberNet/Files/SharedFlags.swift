// SPDX-License-Identifier: Apache-2.0

// The flag O_NONBLOCK of what others have open, too, where it had to be set on that.
//
// Invariants:
//   * the flag is looked at, set and restored under one lock. So who finds it set knows whether a stream has set it, and then is counted, or somebody
//     else, whose it stays;
//   * it is restored when the last stream goes that works with what is open, whichever of them was the first: none of them ever blocks.
// Any thread.

import CFiber
import Fibers
import Glibc

final class SharedFlags: @unchecked Sendable {
    /// Those that are to be restored, in no order.
    private static let all = Guarded<[SharedFlags]>([])

    /// A descriptor of its own for what is open.
    private let fd: Int32
    /// What it had before.
    private let flags: Int32
    /// Streams that work with it. Under the lock of `all`.
    private var users = 1
    /// Where this stands in `all`, so that it leaves without a search. Under the lock of `all`.
    private var index = 0

    private init(_ fd: Int32, _ flags: Int32) {
        self.fd = fd
        self.flags = flags
    }

    /// Makes what is open non-blocking, if it is not. Adds to `shared` what is to be ended by ``end(_:)``, which makes it as before if `restoring`,
    /// or if it is shared with a stream that wants that. 0 or a negative errno.
    static func makeNonBlocking(_ fd: Int32, restoring: Bool, _ shared: inout [SharedFlags]) -> Int32 {
        all.withLock { all in
            let flags = cfiber_flags(fd)
            if flags < 0 { return flags }
            if flags & O_NONBLOCK != 0 {
                for entry in all where cfiber_may_share(entry.fd, fd) != 0 {
                    entry.users += 1
                    shared.append(entry)
                }
                return 0
            }
            if !restoring { return cfiber_set_flags(fd, flags | O_NONBLOCK) }
            let second = cfiber_duplicate(fd)
            if second < 0 { return second }
            let status = cfiber_set_flags(fd, flags | O_NONBLOCK)
            if status < 0 {
                _ = cfiber_close(second)
                return status
            }
            let entry = SharedFlags(second, flags)
            entry.index = all.count
            all.append(entry)
            shared.append(entry)
            return 0
        }
    }

    /// A stream works with these no longer.
    static func end(_ shared: [SharedFlags]) {
        if shared.isEmpty { return }
        let ended = all.withLock { all in
            for entry in shared { entry.users -= 1 }
            let ended = shared.filter { $0.users == 0 }
            for entry in ended {
                _ = cfiber_set_flags(entry.fd, entry.flags)
                // The last entry takes the gap.
                let last = all.removeLast()
                if last !== entry {
                    last.index = entry.index
                    all[entry.index] = last
                }
            }
            return ended
        }
        // To close a serial line may wait until all is sent.
        for entry in ended { _ = cfiber_close(entry.fd) }
    }
}
