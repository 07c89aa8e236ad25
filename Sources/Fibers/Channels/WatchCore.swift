// SPDX-License-Identifier: Apache-2.0

// The core of a watch, local or shared: a value that changes, and the receivers that wait for the next change.
//
// Invariants, whenever the lock is free:
//   * Each change increments `version`; a receiver knows the version that it has seen last.
//   * A receiver waits only while it has seen the current version and the sender exists.
//   * A replaced value is released without the lock held, because its deinit may use the watch.
// Runs on one worker or on any thread: see `WaitPoint`.
//
// The base class, which is not generic, holds the version and the waiters; the generic subclass holds the value.

@usableFromInline
class WatchBase: WaitPoint {
    @exclusivity(unchecked) private final var version: UInt64 = 0
    @exclusivity(unchecked) private final var isClosed = false

    private final var receivers: Line { first }

    /// The result of a receiver's look at the version.
    @usableFromInline
    enum Step {
        /// An unseen value of this version. The lock is held until `finishReceive`.
        case changed(UInt64)
        /// The value was already seen, and the wait for a new one is over. The caller must look again.
        case again
        case ended
    }

    @usableFromInline
    override init(isShared: Bool) { super.init(isShared: isShared) }

    override var kind: Kind { Kind(local: "watch of makeLocalWatch", shared: "watch of makeWatch") }

    /// Takes the lock for reading the value. The lock is held until `endLooking`.
    @usableFromInline
    final func beginLooking() -> UInt64 {
        lock()
        return version
    }

    @usableFromInline
    final func endLooking() { unlock() }

    @usableFromInline
    final func isNewer(than seen: UInt64) -> Bool { withLock { version != seen } }

    /// Begins a change. Returns false, with the lock free, when the current version is not the expected one; otherwise the lock is held
    /// until `finishChange`.
    @usableFromInline
    final func beginChange(of expected: UInt64?) -> Bool {
        lock()
        if let expected, expected != version {
            unlock()
            return false
        }
        version &+= 1
        return true
    }

    @usableFromInline
    final func finishChange() {
        var claimed = WaitList()
        claimAll(of: receivers, into: &claimed)
        unlock()
        resumeAll(&claimed)
    }

    /// Begins to receive; throws when the caller is cancelled.
    @usableFromInline
    final func beginReceive() throws { try refuseCancelledCaller() }

    /// Looks for an unseen version, and waits for a change if the current version has been seen.
    @usableFromInline
    final func advance(from seen: UInt64) throws -> Step {
        lock()
        if version != seen { return .changed(version) }
        if isClosed {
            unlock()
            chargeCaller()
            return .ended
        }
        try checkWait(wait(in: receivers, .receive))
        return .again
    }

    @usableFromInline
    final func finishReceive(hasWaited: Bool) {
        unlock()
        if !hasWaited { chargeCaller() }
    }

    /// Closes the watch: the sender is gone.
    @usableFromInline
    final func close() {
        lock()
        isClosed = true
        var claimed = WaitList()
        claimAll(of: receivers, into: &claimed)
        unlock()
        resumeAll(&claimed, .closed)
    }
}

@usableFromInline
final class WatchCore<Value>: WatchBase, @unchecked Sendable {
    @exclusivity(unchecked) @usableFromInline var value: Value

    @inlinable
    init(_ value: Value, isShared: Bool) {
        self.value = value
        super.init(isShared: isShared)
    }

    @inlinable
    var latest: (value: Value, version: UInt64) {
        let version = beginLooking()
        let value = value
        endLooking()
        return (value, version)
    }

    @inlinable
    func send(_ value: Value) { _ = replace(nil, with: value) }

    /// Replaces the value if its version is the expected one; without an expected version, always.
    @inlinable
    func replace(_ expected: UInt64?, with value: Value) -> Bool {
        var value = value
        guard beginChange(of: expected) else { return false }
        swap(&self.value, &value)
        finishChange()
        // Keeps the old value alive until here, where the lock is free.
        withExtendedLifetime(value) {}
        return true
    }

    @inlinable
    func changed(since seen: UInt64) throws -> (value: Value, version: UInt64)? {
        try beginReceive()
        var hasWaited = false
        while true {
            switch try advance(from: seen) {
            case .changed(let version):
                let value = value
                finishReceive(hasWaited: hasWaited)
                return (value, version)
            case .again: hasWaited = true
            case .ended: return nil
            }
        }
    }
}
