// SPDX-License-Identifier: Apache-2.0

// The ends of one-shots, as users name them. The sender is an object, so that its end is noticed. The receiver is nothing but a reference to the core.

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
    init(_ core: OneShotCore<Value>) {
        self.core = core
        assert(
            wordOfCore.toOpaque() == Unmanaged.passUnretained(core).toOpaque(),
            "the compiler has laid out the end of a one-shot in another way")
    }

    deinit { core.dropSender() }

    /// The reference as it stands here, not a copy that is counted: behind Swift's header of two words.
    @inlinable
    final var wordOfCore: Unmanaged<OneShotCore<Value>> {
        (Unmanaged.passUnretained(self).toOpaque() + 16).load(as: Unmanaged<OneShotCore<Value>>.self)
    }

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
    public final var isClosed: Bool { hasNoReceiver || WaitPoint.notYet() }

    @inlinable
    final var hasNoReceiver: Bool {
        // Several threads may ask at the same time. So it is asked of a copy of the reference: `&core` would be an exclusive access. And the copy is not counted, not even for the moment that it takes
        // unoptimised code to make an `Unmanaged` of `core`: another thread would find a receiver in that moment.
        var reference = wordOfCore
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
/// - Complexity: two allocations, and none for sending, waiting and receiving.
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
/// - Complexity: two allocations, and none for sending, waiting and receiving.
@inlinable
public func makeLocalOneShot<Value: ~Copyable>(
    of type: Value.Type = Value.self
) -> (LocalOneShotSender<Value>, LocalOneShotReceiver<Value>) {
    let core = OneShotCore<Value>.make(isShared: false)
    return (LocalOneShotSender(core), LocalOneShotReceiver(core))
}
