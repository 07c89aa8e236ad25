// One value from one side to the other, once: how a request gets its reply.
//
// Invariants, whenever the lock is free:
//   * the state goes from open to sent, or to dropped, and from sent to taken, and never back;
//   * a receiver waits only while it is open, one at a time;
//   * the value is in exactly one place: with its sender, here while the state is sent, or with its receiver.
// The sender is an object, so that it is noticed when it goes. The receiver is nothing but a reference to the core, and if the sender's is the only one, the receiver has gone.
// One worker, or any thread: see `WaitPoint`.

/// The sender of a one-shot has gone and has sent nothing, so nothing will come.
public struct OneShotUnsentError: Error, Hashable, Sendable, CustomStringConvertible {
    @usableFromInline
    init() {}

    public var description: String { "nothing will come: the sender of a one-shot has gone without sending" }
}

/// What the sending ends of one-shots have in common.
public class OneShotSendingEnd<Value: ~Copyable> {
    @usableFromInline final let core: OneShotCore<Value>

    @inlinable
    init(_ core: OneShotCore<Value>) { self.core = core }

    deinit { core.dropSender() }

    /// Sends the value; never waits, and lets nobody else run. Once: a second time is misuse.
    ///
    /// - Returns: nil, or the value, if the receiver has gone. One that goes later lets the value go with it.
    @inlinable
    @discardableResult
    public final func send(_ value: consuming Value) -> Value? {
        if isLarge(Value.self) { return sendLarge(value) }
        return sendInline(value)
    }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func sendLarge(_ value: consuming Value) -> Value? { sendInline(value) }

    @inlinable @inline(__always)
    final func sendInline(_ value: consuming Value) -> Value? {
        var slot: Value? = consume value
        // Asked first: a call to the core is a reference, too.
        let isWanted = !hasNoReceiver
        core.send(&slot, isWanted: isWanted)
        return slot
    }

    /// True when nobody will receive what is sent: the receiver has gone. For whoever works long for a reply; a loop that waits for it lets other fibers run now and then.
    @inlinable
    public final var isClosed: Bool { hasNoReceiver || core.notYet() }

    @inlinable
    final var hasNoReceiver: Bool {
        // Asked of a copy of the reference that is not counted: `&core` would be an exclusive access, and several threads may ask at the same time.
        var reference = Unmanaged.passUnretained(core)
        return withUnsafeMutablePointer(to: &reference) { reference in
            reference.withMemoryRebound(to: OneShotCore<Value>.self, capacity: 1) { isKnownUniquelyReferenced(&$0.pointee) }
        }
    }
}

/// The sending end of a one-shot between workers and threads. If its last reference goes before anything was sent, the receiver gets a ``OneShotUnsentError``.
public final class OneShotSender<Value: ~Copyable & Sendable>: OneShotSendingEnd<Value>, @unchecked Sendable {}

/// The sending end of a one-shot that stays on its worker. If its last reference goes before anything was sent, the receiver gets a ``OneShotUnsentError``.
public final class LocalOneShotSender<Value: ~Copyable>: OneShotSendingEnd<Value> {}

/// The receiving end of a one-shot between workers and threads. Copies are the same end: one of them receives, once.
public struct OneShotReceiver<Value: ~Copyable & Sendable>: Sendable {
    @usableFromInline let core: OneShotCore<Value>

    @inlinable
    init(_ core: OneShotCore<Value>) { self.core = core }

    /// The value; waits for it. Once: a second time is misuse, and so is another wait meanwhile.
    ///
    /// - Throws: ``OneShotUnsentError`` when the sender has gone without sending; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then the value is not
    ///   lost: it can be received later.
    /// - Note: parks
    @inlinable
    public func receive() throws -> Value { isLarge(Value.self) ? try core.receiveLarge() : try core.receive() }

    /// The value if it is there; `ended` when it was received before, too. Does not wait; a loop over it lets other fibers run now and then.
    @inlinable
    public func tryReceive() -> TryReceiveResult<Value> { isLarge(Value.self) ? core.tryReceiveLarge() : core.tryReceive() }
}

/// The receiving end of a one-shot that stays on its worker. Copies are the same end: one of them receives, once.
public struct LocalOneShotReceiver<Value: ~Copyable> {
    @usableFromInline let core: OneShotCore<Value>

    @inlinable
    init(_ core: OneShotCore<Value>) { self.core = core }

    /// The value; waits for it. Once: a second time is misuse, and so is another wait meanwhile.
    ///
    /// - Throws: ``OneShotUnsentError`` when the sender has gone without sending; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then the value is not
    ///   lost: it can be received later.
    /// - Note: parks
    @inlinable
    public func receive() throws -> Value { isLarge(Value.self) ? try core.receiveLarge() : try core.receive() }

    /// The value if it is there; `ended` when it was received before, too. Does not wait; a loop over it lets other fibers run now and then.
    @inlinable
    public func tryReceive() -> TryReceiveResult<Value> { isLarge(Value.self) ? core.tryReceiveLarge() : core.tryReceive() }
}

/// Makes a one-shot: a single value from any fiber or thread to another.
///
/// ```swift
/// struct Query: Sendable {
///     let key: String
///     let reply: OneShotSender<Int>
/// }
/// let (reply, answer) = makeOneShot(of: Int.self)
/// try queries.send(Query(key: "apples", reply: reply))
/// let count = try withTimeout(.seconds(1)) { try answer.receive() }
/// ```
///
/// A fiber that has to wait parks, a plain thread blocks. Whoever drops the query unanswered answers it by that, with an error: keep no other reference to `reply` here.
///
/// - Parameter type: what is sent, where it cannot be inferred.
/// - Complexity: three allocations, and none for sending, waiting and receiving.
@inlinable
public func makeOneShot<Value: ~Copyable & Sendable>(of type: Value.Type = Value.self) -> (OneShotSender<Value>, OneShotReceiver<Value>) {
    let core = OneShotCore<Value>.make(isShared: true)
    return (OneShotSender(core), OneShotReceiver(core))
}

/// Makes a one-shot between fibers of the calling worker: without locks, and for values of any kind.
///
/// ```swift
/// let (sender, receiver) = makeLocalOneShot(of: Page.self)
/// try Fiber.spawnLocal { sender.send(try render()) }
/// let page = try receiver.receive()
/// ```
///
/// - Parameter type: what is sent, where it cannot be inferred.
/// - Complexity: three allocations, and none for sending, waiting and receiving.
@inlinable
public func makeLocalOneShot<Value: ~Copyable>(
    of type: Value.Type = Value.self
) -> (LocalOneShotSender<Value>, LocalOneShotReceiver<Value>) {
    let core = OneShotCore<Value>.make(isShared: false)
    return (LocalOneShotSender(core), LocalOneShotReceiver(core))
}

// What it does. The class without the type of the value knows its state and who waits, the generic one moves the value.

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

    /// Begins to send: who waits for the value, if there is one, and is claimed. With the lock held until `finish`.
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

    /// Lets go of the lock in a call that has not waited.
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

    /// Sends what is in the slot, which is empty then, unless nobody wants it.
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
