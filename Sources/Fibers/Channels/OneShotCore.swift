// SPDX-License-Identifier: Apache-2.0

// The core of a one-shot, local or shared: it carries one value from the sender to the receiver, once. Typically the value is the reply to
// a request.
//
// Invariants, whenever the lock is free:
//   * The state goes from open to sent or to dropped, and from sent (or, with a waiting receiver, directly from open) to taken. It never
//     goes back.
//   * A receiver waits only while the state is open; only one receiver waits at a time.
//   * The value is in exactly one place: with its sender, in the core while the state is sent, or with its receiver.
// The sender is an object, so that its release is noticed. The receiver is only a reference to the core: if the sender holds the only
// reference, the receiver is gone.
// Runs on one worker or on any thread: see `WaitPoint`.
//
// The base class, which is not generic, holds the state and the waiter; the generic subclass moves the value.

@usableFromInline
class OneShotBase: WaitPoint {
    private enum State {
        case open, sent, taken, dropped
    }

    @exclusivity(unchecked) private final var state = State.open

    private final var receivers: Line { first }

    /// The result of a receiver's look at the state.
    @usableFromInline
    enum Step {
        /// The value is present. The lock is held until `finishReceive`.
        case sent
        /// No value has been sent yet. The lock is held.
        case wait
        case taken
        case dropped
    }

    @usableFromInline
    override init(isShared: Bool) { super.init(isShared: isShared) }

    override var kind: Kind { Kind(local: "one-shot of makeLocalOneShot", shared: "one-shot of makeOneShot") }

    /// Begins to send: claims the waiting receiver, if any, and returns its wait-queue entry. The lock stays held until `finish`.
    @usableFromInline
    final func beginSend() -> PlacePointer? {
        lock()
        guard state == .open else {
            unlock()
            misuse("a one-shot was sent twice: it carries one value; for several use makeChannel")
        }
        let receiver = claimFirst(of: receivers)
        state = receiver == nil ? .sent : .taken
        return receiver
    }

    /// Marks the one-shot as taken when no receiver exists that could take the value.
    @usableFromInline
    final func sendToNobody() {
        _ = beginSend()
        state = .taken
        unlock()
    }

    @usableFromInline
    final func finish(_ receiver: PlacePointer? = nil) {
        unlock()
        if let receiver { resume(receiver) }
    }

    /// The sender is gone: a one-shot that is still open becomes dropped.
    @usableFromInline
    final func dropSender() {
        lock()
        guard state == .open else { return unlock() }
        state = .dropped
        let receiver = claimFirst(of: receivers)
        unlock()
        if let receiver { resume(receiver, .closed) }
    }

    /// Begins to receive; throws when the caller is cancelled.
    @usableFromInline
    final func beginReceive() throws -> Step {
        try refuseCancelledCaller()
        let step = tryReceive()
        switch step {
        case .wait:
            guard receivers.pointee.isEmpty else {
                unlock()
                misuse("two wait for one one-shot: let one receive and pass the value on")
            }
        case .taken: misuse("a one-shot was received twice: keep the value that came first")
        case .sent, .dropped: break
        }
        return step
    }

    @usableFromInline
    final func tryReceive() -> Step {
        requireWorker()
        lock()
        switch state {
        case .open: return .wait
        case .sent:
            state = .taken
            return .sent
        case .taken:
            abandon()
            return .taken
        case .dropped:
            abandon()
            return .dropped
        }
    }

    /// Waits until the sender has put the value into the slot. Returns false when the sender is gone without sending. The caller holds the
    /// lock.
    @usableFromInline
    final func waitToReceive(_ slot: UnsafeMutableRawPointer) throws -> Bool {
        let outcome = wait(in: receivers, slot: slot, .receive)
        try checkWait(outcome)
        return outcome == .ready
    }

    /// Releases the lock at the end of a call that did not wait.
    @usableFromInline
    final func finishReceive() {
        unlock()
        chargeCaller()
    }

    /// Releases the lock in a call that has found nothing, and counts the call.
    @usableFromInline
    final func abandon() {
        unlock()
        chargeCaller()
    }
}

@usableFromInline
final class OneShotCore<Value: ~Copyable>: OneShotBase, @unchecked Sendable {
    @exclusivity(unchecked) @usableFromInline var value: Value?

    @inlinable
    override init(isShared: Bool) {
        value = nil
        super.init(isShared: isShared)
    }

    @inlinable @inline(__always)
    static func make(isShared: Bool) -> OneShotCore {
        isLarge(Value.self) ? makeLarge(isShared: isShared) : OneShotCore(isShared: isShared)
    }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    static func makeLarge(isShared: Bool) -> OneShotCore { OneShotCore(isShared: isShared) }

    /// Sends the value in the slot and leaves the slot empty. If the receiver is gone, the value stays in the slot.
    @inlinable
    func send(_ slot: inout Value?, isWanted: Bool) {
        guard isWanted else { return sendToNobody() }
        let receiver = beginSend()
        if let receiver {
            swap(&receiver.pointee.slot.unsafelyUnwrapped.assumingMemoryBound(to: Value?.self).pointee, &slot)
        } else {
            swap(&value, &slot)
        }
        finish(receiver)
    }

    @inlinable
    func receive() throws -> Value {
        var slot: Value? = nil
        switch try beginReceive() {
        case .sent:
            swap(&value, &slot)
            finishReceive()
        case .wait:
            guard try withUnsafeMutablePointer(to: &slot, { try waitToReceive($0) }) else { throw OneShotUnsentError() }
        case .taken, .dropped: throw OneShotUnsentError()
        }
        return slot.take()!
    }

    @inlinable
    func tryReceive() -> TryReceiveResult<Value> {
        var slot: Value? = nil
        switch tryReceive() as Step {
        case .sent:
            swap(&value, &slot)
            finishReceive()
            return .message(slot.take()!)
        case .wait:
            abandon()
            return .empty
        case .taken, .dropped: return .ended
        }
    }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    func receiveLarge() throws -> Value { try receive() }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    func tryReceiveLarge() -> TryReceiveResult<Value> { tryReceive() }
}
