// SPDX-License-Identifier: Apache-2.0

// What all locks and their like have in common. One worker, or any thread: see `WaitPoint`.

@usableFromInline
class SyncCore: WaitPoint, @unchecked Sendable {
    /// Nobody stands in line, for tests.
    package final var isLineEmpty: Bool { withLock { first.pointee.isEmpty } }

    /// Before a caller waits for `holder`: stops the program where that will never unlock, since the wait would have no end. With the lock held.
    @inline(__always)
    final func stopIfGone(_ holder: Holder, _ verb: String) {
        if let gone = Holders.nameIfGone(holder) { stopWaitingForever(gone, verb) }
    }

    @inline(never)
    private final func stopWaitingForever(_ gone: String, _ verb: String) -> Never {
        unlock()
        misuse(
            "\(Holders.describeCaller()) waits for a \(name) that \(gone) \(verb): the wait would never end. Let what holds a lock end it before it ends itself, also when it is cancelled, or make a new one for each runtime"
        )
    }
}
