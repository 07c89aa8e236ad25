// SPDX-License-Identifier: Apache-2.0

// The common part of all locks and similar primitives. Runs on one worker or on any thread: see `WaitPoint`.

@usableFromInline
class SyncCore: WaitPoint, @unchecked Sendable {
    /// True when the wait queue is empty; for tests.
    package final var isLineEmpty: Bool { withLock { first.pointee.isEmpty } }

    /// Called before a caller waits for `holder`. Stops the program if that holder will never unlock, since the wait would never end. The
    /// lock must be held.
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
