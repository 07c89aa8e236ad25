// SPDX-License-Identifier: Apache-2.0

// What a watch does, for one worker or for all: a value that changes, and the receivers that wait for the next change.
//
// Invariants, whenever the lock is free:
//   * `version` is counted up by each change; a receiver knows which one it has seen last;
//   * a receiver waits only while it has seen the version that is there, and the sender has not gone;
//   * a value that was replaced is let go of without the lock, since its deinit may look here.
// One worker, or any thread: see `WaitPoint`.
//
// The class without the type of the value knows versions and waiters, the generic one has the value.

@usableFromInline
class WatchBase: WaitPoint {
    @exclusivity(unchecked) private final var version: UInt64 = 0
    @exclusivity(unchecked) private final var isClosed = false

    private final var receivers: Line { first }

    /// What a receiver finds.
    @usableFromInline
    enum Step {
        /// A value that it has not seen, of this version. Locked, until `finishReceive`.
        case changed(UInt64)
        /// There was none, and a wait for one is over.
        case again
        case ended
    }

    @usableFromInline
    override init(isShared: Bool) { super.init(isShared: isShared) }

    override var kind: Kind { Kind(local: "watch of makeLocalWatch", shared: "watch of makeWatch") }

    /// Takes the lock to look at the value. Held until `endLooking`.
    @usableFromInline
    final func beginLooking() -> UInt64 {
        lock()
        return version
    }

    @usableFromInline
    final func endLooking() { unlock() }

    @usableFromInline
    final func isNewer(than seen: UInt64) -> Bool { withLock { version != seen } }

    /// Begins a change; false when there is another version than the expected one. With the lock held until `finishChange`, unless false.
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

    /// Looks for a version that has not been seen, and waits if there is none.
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

    /// The sender has gone.
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

    /// Replaces the value if its version is the expected one, or whatever it is.
    @inlinable
    func replace(_ expected: UInt64?, with value: Value) -> Bool {
        var value = value
        guard beginChange(of: expected) else { return false }
        swap(&self.value, &value)
        finishChange()
        // What was there before goes here, and not earlier.
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
