// SPDX-License-Identifier: Apache-2.0

// The public ends of one-shots. The sender is an object, so that its release is noticed. The receiver is only a reference to the core.

/// The sender of a one-shot is gone and has sent nothing, so no value will arrive.
public struct OneShotUnsentError: Error, Hashable, Sendable, CustomStringConvertible {
    @usableFromInline
    init() {}

    public var description: String { "nothing will come: the sender of a one-shot has gone without sending" }
}

/// The common base of the sending ends of one-shots.
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

    /// The stored reference, read without retaining it. It lies behind Swift's object header of two words.
    @inlinable
    final var wordOfCore: Unmanaged<OneShotCore<Value>> {
        (Unmanaged.passUnretained(self).toOpaque() + 16).load(as: Unmanaged<OneShotCore<Value>>.self)
    }

    /// Sends the value. Never waits and never yields. Sending a second time is misuse.
    ///
    /// - Returns: nil when the value was sent, or the value itself if the receiver is gone. If the receiver is released later without
    ///   receiving, the value is destroyed with it.
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
        // This check comes first, because the call to the core may itself retain the core.
        let isWanted = !hasNoReceiver
        core.send(&slot, isWanted: isWanted)
        return slot
    }

    /// True when the receiver is gone, so that a value would be lost. A sender that computes a reply for a long time can check it to stop
    /// early. A loop that polls this yields to other fibers from time to time.
    @inlinable
    public final var isClosed: Bool { hasNoReceiver || WaitPoint.notYet() }

    @inlinable
    final var hasNoReceiver: Bool {
        // Several threads may check at the same time, so the check uses a copy of the reference: `&core` would be an exclusive access. The
        // copy is not retained, not even briefly, as unoptimised code would do to make an `Unmanaged` from `core`: another thread would
        // count that reference as a receiver.
        var reference = wordOfCore
        return withUnsafeMutablePointer(to: &reference) { reference in
            reference.withMemoryRebound(to: OneShotCore<Value>.self, capacity: 1) { isKnownUniquelyReferenced(&$0.pointee) }
        }
    }
}

/// The sending end of a one-shot between workers and threads. If its last reference is released before a value was sent, the receiver gets
/// a ``OneShotUnsentError``.
public final class OneShotSender<Value: ~Copyable & Sendable>: OneShotSendingEnd<Value>, @unchecked Sendable {}

/// The sending end of a one-shot that stays on its worker. If its last reference is released before a value was sent, the receiver gets a
/// ``OneShotUnsentError``.
public final class LocalOneShotSender<Value: ~Copyable>: OneShotSendingEnd<Value> {}

/// The receiving end of a one-shot between workers and threads. All copies are the same end: only one of them may receive, once.
public struct OneShotReceiver<Value: ~Copyable & Sendable>: Sendable {
    @usableFromInline let core: OneShotCore<Value>

    @inlinable
    init(_ core: OneShotCore<Value>) { self.core = core }

    /// Receives the value and waits for it if necessary. Receiving a second time is misuse, and so are two waits at the same time.
    ///
    /// - Throws: ``OneShotUnsentError`` when the sender is gone without sending; `CancellationError` or ``TimeoutError`` when the fiber is
    ///   cancelled. The value is not lost then and can be received later.
    /// - Note: parks
    @inlinable
    public func receive() throws -> Value { isLarge(Value.self) ? try core.receiveLarge() : try core.receive() }

    /// Receives the value if it has been sent. Returns `ended` also when the value was received before. Never waits, but yields to other
    /// fibers from time to time, so a polling loop does not starve them.
    @inlinable
    public func tryReceive() -> TryReceiveResult<Value> { isLarge(Value.self) ? core.tryReceiveLarge() : core.tryReceive() }
}

/// The receiving end of a one-shot that stays on its worker. All copies are the same end: only one of them may receive, once.
public struct LocalOneShotReceiver<Value: ~Copyable> {
    @usableFromInline let core: OneShotCore<Value>

    @inlinable
    init(_ core: OneShotCore<Value>) { self.core = core }

    /// Receives the value and waits for it if necessary. Receiving a second time is misuse, and so are two waits at the same time.
    ///
    /// - Throws: ``OneShotUnsentError`` when the sender is gone without sending; `CancellationError` or ``TimeoutError`` when the fiber is
    ///   cancelled. The value is not lost then and can be received later.
    /// - Note: parks
    @inlinable
    public func receive() throws -> Value { isLarge(Value.self) ? try core.receiveLarge() : try core.receive() }

    /// Receives the value if it has been sent. Returns `ended` also when the value was received before. Never waits, but yields to other
    /// fibers from time to time, so a polling loop does not starve them.
    @inlinable
    public func tryReceive() -> TryReceiveResult<Value> { isLarge(Value.self) ? core.tryReceiveLarge() : core.tryReceive() }
}

/// Makes a one-shot, which carries a single value from one fiber or thread to another.
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
/// A fiber that has to wait parks; a plain thread blocks. If the query is dropped unanswered, the receiver gets an error, because the last
/// reference to `reply` is released with the query. Keep no other reference to `reply`.
///
/// - Parameter type: the type of the value, where it cannot be inferred.
/// - Complexity: two allocations here; sending, waiting and receiving allocate nothing.
@inlinable
public func makeOneShot<Value: ~Copyable & Sendable>(of type: Value.Type = Value.self) -> (OneShotSender<Value>, OneShotReceiver<Value>) {
    let core = OneShotCore<Value>.make(isShared: true)
    return (OneShotSender(core), OneShotReceiver(core))
}

/// Makes a one-shot between fibers of the calling worker. It uses no locks and carries values of any type.
///
/// ```swift
/// let (sender, receiver) = makeLocalOneShot(of: Page.self)
/// try Fiber.spawnLocal { sender.send(try render()) }
/// let page = try receiver.receive()
/// ```
///
/// - Parameter type: the type of the value, where it cannot be inferred.
/// - Complexity: two allocations here; sending, waiting and receiving allocate nothing.
@inlinable
public func makeLocalOneShot<Value: ~Copyable>(
    of type: Value.Type = Value.self
) -> (LocalOneShotSender<Value>, LocalOneShotReceiver<Value>) {
    let core = OneShotCore<Value>.make(isShared: false)
    return (LocalOneShotSender(core), LocalOneShotReceiver(core))
}
