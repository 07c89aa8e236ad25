// SPDX-License-Identifier: Apache-2.0

// The ends of channels, as users name them.

/// How many messages a channel holds that have been sent and not yet received.
public enum ChannelCapacity: Hashable, Sendable {
    /// None: who sends waits until a receiver takes the message.
    case rendezvous
    /// So many, at least 1; who sends more waits for room.
    case bounded(Int)
    /// Any number, in blocks of memory that are used again: who sends never waits.
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

/// The channel is closed: its last receiver has gone, or ``ChannelSender/close()`` was called.
///
/// The message that was not sent stays with the caller; see ``ChannelSender/send(moving:)``.
public struct ChannelClosedError: Error, Hashable, Sendable, CustomStringConvertible {
    @usableFromInline
    init() {}

    public var description: String { "the channel is closed: the message was not sent" }
}

/// What became of a message in a call that does not wait.
public enum TrySendResult: Hashable, Sendable {
    case sent
    /// There is no room, or in a rendezvous no receiver that waits.
    case full
    case closed
}

/// What a call found that does not wait for messages.
///
/// Swift takes seconds to compile a `switch` over this where a message has hundreds of kilobytes. A ``select(_:)`` with ``otherwise(_:)`` does the same and compiles at once.
public enum TryReceiveResult<Message: ~Copyable>: ~Copyable {
    case message(Message)
    case empty
    /// There is none, and there will be none.
    case ended
}

extension TryReceiveResult: Copyable where Message: Copyable {}
extension TryReceiveResult: Sendable where Message: Sendable & ~Copyable {}

/// The sending end of a channel. Share it with all that send: when the last reference has gone, the channel closes.
public class ChannelSender<Message: ~Copyable> {
    @usableFromInline final let core: ChannelCore<Message>

    @inlinable
    init(_ core: ChannelCore<Message>) { self.core = core }

    deinit { core.close() }

    /// Moves a message out of a variable and sends it; waits for room, or for a receiver.
    ///
    /// ```swift
    /// var job: Job? = Job(number: 7)
    /// do { try sender.send(moving: &job) } catch is ChannelClosedError { store(job!) }
    /// ```
    ///
    /// - Parameter message: holds the message, and is nil afterwards exactly when the message was sent: whatever this throws, the message is still there.
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

    /// Moves a message out of a variable and sends it, if that needs no wait; the variable is nil afterwards exactly when it was sent. Does not wait; a loop over it lets other fibers run now and then.
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

    /// Closes the channel for all senders: receivers have what was sent before, and then see the end. Doing so again does nothing.
    @inlinable
    public final func close() { core.close() }

    /// True when nothing can be sent any more. A loop that waits for it lets other fibers run now and then.
    @inlinable
    public final var isClosed: Bool { core.hasClosed || WaitPoint.notYet() }

    /// How many messages have been sent and not yet received.
    @inlinable
    public final var count: Int { core.messageCount }

    /// How many messages it holds: 0 for a rendezvous, nil without a limit.
    @inlinable
    public final var capacity: Int? { core.limit == .max ? nil : core.limit }

    /// How many stand in line.
    package final var waiting: (senders: Int, receivers: Int) { core.waiting }
}

extension ChannelSender {
    /// Sends a message; waits for room, or for a receiver.
    ///
    /// - Throws: ``ChannelClosedError``; `CancellationError` or ``TimeoutError`` when the fiber is cancelled. The message was not sent then.
    /// - Note: parks
    @inlinable
    public final func send(_ message: Message) throws {
        if isLarge(Message.self) { return try sendLarge(message) }
        try sendInline(message)
    }

    /// Sends a message if nobody has to wait for that. Does not wait; a loop over it lets other fibers run now and then.
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

    /// The next message; waits for one. Nil when the channel is closed and all messages have been received.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then no message is lost.
    /// - Note: parks
    @inlinable
    public final func receive() throws -> Message? {
        if isLarge(Message.self) { return try receiveLarge() }
        return try core.receive()
    }

    /// The next message if there is one. Does not wait; a loop over it lets other fibers run now and then.
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

    /// Blocks of memory that are kept for messages to come.
    package final var spareBlocks: Int { core.spareBlocks }

    /// Closes the channel: nothing can be sent any more, and what was sent before can be received. Doing so again does nothing.
    @inlinable
    public final func close() { core.close() }

    /// True when nothing can be sent any more; there may be messages yet. A loop that waits for it lets other fibers run now and then.
    @inlinable
    public final var isClosed: Bool { core.hasClosed || WaitPoint.notYet() }

    /// How many messages have been sent and not yet received.
    @inlinable
    public final var count: Int { core.messageCount }

    /// How many messages it holds: 0 for a rendezvous, nil without a limit.
    @inlinable
    public final var capacity: Int? { core.limit == .max ? nil : core.limit }
}

/// The messages as they come, until the channel is closed and empty. The loop ends, too, when the fiber is cancelled; where that matters, `try Fiber.checkCancellation()` behind
/// it tells, or call ``receive()``, which throws.
extension ChannelReceiver: Sequence {
    @inlinable
    public final func makeIterator() -> Messages<Message> { Messages(self) }
}

/// What ``ChannelReceiver`` receives, for loops.
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
    /// As ``Messages/next()``.
    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func nextLarge() -> Message? { (try? core.receive()) ?? nil }
}

/// The sending end of a channel that stays on its worker.
public final class LocalSender<Message: ~Copyable>: ChannelSender<Message> {}

/// The receiving end of a channel that stays on its worker.
public final class LocalReceiver<Message: ~Copyable>: ChannelReceiver<Message> {}

/// The sending end of a channel between workers and threads.
public final class Sender<Message: ~Copyable & Sendable>: ChannelSender<Message>, @unchecked Sendable {}

/// The receiving end of a channel between workers and threads. It has one owner: it may be given away, to another fiber of any worker or to a thread, and then it is gone here. For a queue
/// of work with many consumers make each its own with ``share()``.
public final class Receiver<Message: ~Copyable & Sendable>: ChannelReceiver<Message> {
    /// Another receiver of the same channel. Each message goes to one of them; the channel closes when all have gone.
    public func share() -> sending Receiver<Message> {
        core.addReceiver()
        return Receiver(core)
    }
}

/// Makes a channel between fibers of all workers, plain threads and what else there is in the program.
///
/// ```swift
/// let (sender, receiver) = makeChannel(of: Job.self, .bounded(128))
/// try Fiber.spawn { for job in receiver { work(job) } }        // ends when the last sender has gone
/// try sender.send(job)
/// ```
///
/// A fiber that has to wait parks, a plain thread blocks. Messages come in the order in which they were sent, and so do those who wait for room or messages.
///
/// - Parameters:
///   - type: what is sent, where it cannot be inferred.
///   - capacity: how many messages it holds.
@inlinable
public func makeChannel<Message: ~Copyable & Sendable>(
    of type: Message.Type = Message.self, _ capacity: ChannelCapacity
) -> sending (Sender<Message>, Receiver<Message>) {
    let core = ChannelCore<Message>(limit: capacity.limit, isShared: true)
    return (Sender(core), Receiver(core))
}

/// Makes a channel between fibers of the calling worker: without locks and atomic operations, and for messages of any kind.
///
/// - Parameters:
///   - type: what is sent, where it cannot be inferred.
///   - capacity: how many messages it holds.
@inlinable
public func makeLocalChannel<Message: ~Copyable>(
    of type: Message.Type = Message.self, _ capacity: ChannelCapacity
) -> (LocalSender<Message>, LocalReceiver<Message>) {
    let core = ChannelCore<Message>(limit: capacity.limit, isShared: false)
    return (LocalSender(core), LocalReceiver(core))
}
