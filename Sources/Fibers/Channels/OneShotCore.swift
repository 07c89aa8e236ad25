// SPDX-License-Identifier: Apache-2.0

// The core of a one-shot, local or shared: it carries one value from the sender to the receiver, once. Typically the value is the reply to a request.
//
// Invariants, whenever the lock is free:
//   * the state goes from open to sent, or to dropped, and from sent to taken, and never back;
//   * a receiver waits only while it is open, one at a time;
//   * the value is in exactly one place: with its sender, here while the state is sent, or with its receiver.
// The sender is an object, so that it is noticed when it goes. The receiver is nothing but a reference to the core, and if the sender's is the only one, the receiver has gone.
// One worker, or any thread: see `WaitPoint`.
//
// The class without the type of the value knows its state and the waiter, the generic one moves the value.

@usableFromInline
class OneShotBase: WaitPoint {
    private enum State {
        case open, sent, taken, dropped
    }

    @exclusivity(unchecked) private final var state = State.open

    private final var receivers: Line { first }

    /// What a receiver finds.
    @usableFromInline
    enum Step {
        /// The value is here. Locked, until `finish`.
        case sent
        /// Not yet. Locked.
        case wait
        case taken
        case dropped
    }

    @usableFromInline
    override init(isShared: Bool) { super.init(isShared: isShared) }

    override var kind: Kind { Kind(local: "one-shot of makeLocalOneShot", shared: "one-shot of makeOneShot") }

    /// Begins to send: claims the receiver if one waits, and returns its place. The lock stays held until `finish`.
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

    /// Marks it as sent while there is nobody who could receive.
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

    /// The sender has gone.
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

    /// Waits until the sender has put the value into the slot; false when there will be none. With the lock held.
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

    /// Sends the value in the slot and leaves the slot empty. If the receiver has gone, the value stays in the slot.
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
