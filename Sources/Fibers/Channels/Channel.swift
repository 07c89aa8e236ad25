// SPDX-License-Identifier: Apache-2.0

// The public ends of channels.

/// How many messages a channel holds that have been sent and not yet received.
public enum ChannelCapacity: Hashable, Sendable {
    /// None: a sender waits until a receiver takes the message.
    case rendezvous
    /// At most this many, at least 1. A sender waits while the channel is full.
    case bounded(Int)
    /// Any number, in pooled blocks of memory. A sender never waits.
    case unbounded

    @usableFromInline var limit: Int {
        switch self {
        case .rendezvous: return 0
        case .bounded(let limit):
            require(limit >= 1, "a bounded channel has room for at least 1 message, not \(limit): for none say .rendezvous")
            return limit
        case .unbounded: return .max
        }
    }
}

/// The channel is closed: its last receiver is gone, or ``ChannelSender/close()`` was called.
///
/// The message that was not sent stays with the caller; see ``ChannelSender/send(moving:)``.
public struct ChannelClosedError: Error, Hashable, Sendable, CustomStringConvertible {
    @usableFromInline
    init() {}

    public var description: String { "the channel is closed: the message was not sent" }
}

/// The result of a send that does not wait.
public enum TrySendResult: Hashable, Sendable {
    case sent
    /// The channel is full or, for a rendezvous, no receiver is waiting.
    case full
    case closed
}

/// The result of a receive that does not wait.
///
/// The Swift compiler takes seconds for a `switch` over this type when a message has hundreds of kilobytes. A ``select(_:)`` with
/// ``otherwise(_:)`` does the same and compiles at once.
public enum TryReceiveResult<Message: ~Copyable>: ~Copyable {
    case message(Message)
    case empty
    /// The channel is closed and empty: no message will ever arrive.
    case ended
}

extension TryReceiveResult: Copyable where Message: Copyable {}
extension TryReceiveResult: Sendable where Message: Sendable & ~Copyable {}

/// The sending end of a channel. All senders share one instance; the channel closes when its last reference is released.
public class ChannelSender<Message: ~Copyable> {
    @usableFromInline final let core: ChannelCore<Message>

    @inlinable
    init(_ core: ChannelCore<Message>) { self.core = core }

    deinit { core.close() }

    /// Moves a message out of a variable and sends it. Waits for room or, for a rendezvous, for a receiver.
    ///
    /// ```swift
    /// var job: Job? = Job(number: 7)
    /// do { try sender.send(moving: &job) } catch is ChannelClosedError { store(job!) }
    /// ```
    ///
    /// - Parameter message: holds the message. It is nil afterwards if and only if the message was sent: when this throws, the message is
    ///   still there.
    /// - Throws: ``ChannelClosedError``; `CancellationError` or ``TimeoutError`` when the fiber is cancelled.
    /// - Note: parks
    @inlinable
    public final func send(moving message: inout Message?) throws {
        if isLarge(Message.self) { return try sendLarge(from: &message) }
        try sendInline(from: &message)
    }

    @inlinable @inline(__always)
    final func sendInline(from message: inout Message?) throws {
        if message == nil { core.stopWithoutMessage() }
        guard try core.send(from: &message) else { throw ChannelClosedError() }
    }

    /// Moves a message out of a variable and sends it if that needs no wait. The variable is nil afterwards if and only if the message was
    /// sent. Never waits, but yields to other fibers from time to time, so a polling loop does not starve them.
    @inlinable
    public final func trySend(moving message: inout Message?) -> TrySendResult {
        if isLarge(Message.self) { return trySendLarge(from: &message) }
        return trySendInline(from: &message)
    }

    @inlinable @inline(__always)
    final func trySendInline(from message: inout Message?) -> TrySendResult {
        if message == nil { core.stopWithoutMessage() }
        return core.trySend(from: &message)
    }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func sendLarge(from message: inout Message?) throws { try sendInline(from: &message) }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func trySendLarge(from message: inout Message?) -> TrySendResult { trySendInline(from: &message) }

    /// Closes the channel for all senders. Receivers still get the messages sent before, and then see the end. Closing a closed channel has
    /// no effect.
    @inlinable
    public final func close() { core.close() }

    /// True when the channel is closed for sending. A loop that polls this yields to other fibers from time to time.
    @inlinable
    public final var isClosed: Bool { core.hasClosed || WaitPoint.notYet() }

    /// The number of messages that have been sent and not yet received.
    @inlinable
    public final var count: Int { core.messageCount }

    /// The maximum number of messages in the channel: 0 for a rendezvous, nil if unbounded.
    @inlinable
    public final var capacity: Int? { core.limit == .max ? nil : core.limit }

    /// The lengths of the wait queues.
    package final var waiting: (senders: Int, receivers: Int) { core.waiting }
}

extension ChannelSender {
    /// Sends a message. Waits for room or, for a rendezvous, for a receiver.
    ///
    /// - Throws: ``ChannelClosedError``; `CancellationError` or ``TimeoutError`` when the fiber is cancelled. The message was not sent
    ///   then.
    /// - Note: parks
    @inlinable
    public final func send(_ message: Message) throws {
        if isLarge(Message.self) { return try sendLarge(message) }
        try sendInline(message)
    }

    /// Sends a message if that needs no wait. Never waits, but yields to other fibers from time to time, so a polling loop does not starve
    /// them.
    @inlinable
    public final func trySend(_ message: Message) -> TrySendResult {
        if isLarge(Message.self) { return trySendLarge(message) }
        return trySendInline(message)
    }

    @inlinable @inline(__always)
    final func sendInline(_ message: Message) throws {
        var unsent: Message? = message
        guard try core.send(from: &unsent) else { throw ChannelClosedError() }
    }

    @inlinable @inline(__always)
    final func trySendInline(_ message: Message) -> TrySendResult {
        var slot: Message? = message
        return trySendInline(from: &slot)
    }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func sendLarge(_ message: Message) throws { try sendInline(message) }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func trySendLarge(_ message: Message) -> TrySendResult { trySendInline(message) }
}

/// The receiving end of a channel.
public class ChannelReceiver<Message: ~Copyable> {
    @usableFromInline final let core: ChannelCore<Message>

    @inlinable
    init(_ core: ChannelCore<Message>) { self.core = core }

    deinit { core.dropReceiver() }

    /// Receives the next message and waits for one if necessary. Returns nil when the channel is closed and every message has been
    /// received.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled; no message is lost then.
    /// - Note: parks
    @inlinable
    public final func receive() throws -> Message? {
        if isLarge(Message.self) { return try receiveLarge() }
        return try core.receive()
    }

    /// Receives the next message if one is available. Never waits, but yields to other fibers from time to time, so a polling loop does not
    /// starve them.
    @inlinable
    public final func tryReceive() -> TryReceiveResult<Message> {
        if isLarge(Message.self) { return tryReceiveLarge() }
        return tryReceiveInline()
    }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func receiveLarge() throws -> Message? { try core.receive() }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func tryReceiveLarge() -> TryReceiveResult<Message> { tryReceiveInline() }

    @inlinable @inline(__always)
    final func tryReceiveInline() -> TryReceiveResult<Message> {
        var slot: Message? = nil
        switch core.tryReceive(into: &slot) {
        case .sent: return .message(slot.take()!)
        case .full: return .empty
        case .closed: return .ended
        }
    }

    /// The number of pooled blocks.
    package final var spareBlocks: Int { core.spareBlocks }

    /// Closes the channel. Nothing can be sent any more; messages sent before can still be received. Closing a closed channel has no
    /// effect.
    @inlinable
    public final func close() { core.close() }

    /// True when the channel is closed for sending; it may still hold messages. A loop that polls this yields to other fibers from time to
    /// time.
    @inlinable
    public final var isClosed: Bool { core.hasClosed || WaitPoint.notYet() }

    /// The number of messages that have been sent and not yet received.
    @inlinable
    public final var count: Int { core.messageCount }

    /// The maximum number of messages in the channel: 0 for a rendezvous, nil if unbounded.
    @inlinable
    public final var capacity: Int? { core.limit == .max ? nil : core.limit }
}

/// Iterates over messages as they arrive, until the channel is closed and empty. The loop also ends when the fiber is cancelled. To tell
/// the two apart, call `try Fiber.checkCancellation()` after the loop, or use ``receive()``, which throws.
extension ChannelReceiver: Sequence {
    @inlinable
    public final func makeIterator() -> Messages<Message> { Messages(self) }
}

/// The messages of a ``ChannelReceiver``, as an iterator.
public struct Messages<Message>: IteratorProtocol {
    @usableFromInline let receiver: ChannelReceiver<Message>

    @inlinable
    init(_ receiver: ChannelReceiver<Message>) { self.receiver = receiver }

    @inlinable
    public mutating func next() -> Message? {
        if isLarge(Message.self) { return receiver.nextLarge() }
        return (try? receiver.receive()) ?? nil
    }
}

extension ChannelReceiver {
    /// The implementation of ``Messages/next()`` for large messages.
    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func nextLarge() -> Message? { (try? core.receive()) ?? nil }
}

/// The sending end of a channel that stays on its worker.
public final class LocalSender<Message: ~Copyable>: ChannelSender<Message> {}

/// The receiving end of a channel that stays on its worker.
public final class LocalReceiver<Message: ~Copyable>: ChannelReceiver<Message> {}

/// The sending end of a channel between workers and threads.
public final class Sender<Message: ~Copyable & Sendable>: ChannelSender<Message>, @unchecked Sendable {}

/// The receiving end of a channel between workers and threads. It has one owner: it can be transferred to a fiber of any worker or to a
/// thread, and the previous owner can then no longer use it. For a work queue with several consumers, give each consumer its own receiver
/// with ``share()``.
public final class Receiver<Message: ~Copyable & Sendable>: ChannelReceiver<Message> {
    /// Adds a receiver of the same channel. Each message goes to exactly one receiver; the channel closes when all receivers are gone.
    public func share() -> sending Receiver<Message> {
        core.addReceiver()
        return Receiver(core)
    }
}

/// Makes a channel between fibers of any worker and plain threads.
///
/// ```swift
/// let (sender, receiver) = makeChannel(of: Job.self, .bounded(128))
/// try Fiber.spawn { for job in receiver { work(job) } }        // ends when the last sender has gone
/// try sender.send(job)
/// ```
///
/// A fiber that has to wait parks; a plain thread blocks. Messages arrive in the order in which they were sent. Senders that wait for room
/// and receivers that wait for messages are also served in order.
///
/// - Parameters:
///   - type: the type of the messages, where it cannot be inferred.
///   - capacity: the maximum number of messages in the channel.
@inlinable
public func makeChannel<Message: ~Copyable & Sendable>(
    of type: Message.Type = Message.self, _ capacity: ChannelCapacity
) -> sending (Sender<Message>, Receiver<Message>) {
    let core = ChannelCore<Message>(limit: capacity.limit, isShared: true)
    return (Sender(core), Receiver(core))
}

/// Makes a channel between fibers of the calling worker. It uses no locks and no atomic operations, and carries messages of any type.
///
/// - Parameters:
///   - type: the type of the messages, where it cannot be inferred.
///   - capacity: the maximum number of messages in the channel.
@inlinable
public func makeLocalChannel<Message: ~Copyable>(
    of type: Message.Type = Message.self, _ capacity: ChannelCapacity
) -> (LocalSender<Message>, LocalReceiver<Message>) {
    let core = ChannelCore<Message>(limit: capacity.limit, isShared: false)
    return (LocalSender(core), LocalReceiver(core))
}
