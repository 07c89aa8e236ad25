// SPDX-License-Identifier: Apache-2.0

// Every value to every subscriber: the ends of broadcasts, as users name them.

/// What happens to a value for which there is no room, since a subscriber has yet to read the oldest.
public enum BroadcastPolicy: Hashable, Sendable {
    /// The oldest value makes room. Who has not read it has missed it, and is told by a ``LaggedError``.
    case dropOldest
    /// The sender waits for the slowest subscriber, and all get everything.
    case wait
}

/// A subscriber of a broadcast was so slow that values were replaced by newer ones before it came to them. It goes on with the oldest one that is there.
public struct LaggedError: Error, Hashable, Sendable, CustomStringConvertible {
    /// How many values it has not received, since the last one that it has.
    public let missed: Int

    @usableFromInline
    init(missed: Int) { self.missed = missed }

    public var description: String { "a subscriber of a broadcast was too slow and has missed \(missed) values" }
}

/// What the sending ends of broadcasts have in common.
public class BroadcastSendingEnd<Value> {
    @usableFromInline final let core: BroadcastCore<Value>

    @inlinable
    init(_ core: BroadcastCore<Value>) { self.core = core }

    deinit { core.close() }

    /// Sends a value to all who have subscribed; where that is the policy, waits for the slowest of them to make room. If nobody has, the value is dropped.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then it was not sent.
    /// - Complexity: O(*n*) for *n* subscribers that wait.
    /// - Note: parks
    @inlinable
    public final func send(_ value: Value) throws {
        if isLarge(Value.self) { return try core.sendLarge(value) }
        try core.send(value)
    }

    /// Sends a value if nobody has to wait for that: always, with ``BroadcastPolicy/dropOldest``. Does not wait; a loop over it lets other fibers run now and then.
    ///
    /// - Returns: `sent` or `full`.
    /// - Complexity: O(*n*) for *n* subscribers that wait.
    @inlinable
    @discardableResult
    public final func trySend(_ value: Value) -> TrySendResult {
        if isLarge(Value.self) { return core.trySendLarge(value) }
        return core.trySend(value)
    }

    /// How many have subscribed.
    @inlinable
    public final var subscriberCount: Int { core.currentSubscribers }

    /// How many values it holds for those who have not read them yet.
    @inlinable
    public final var capacity: Int { core.capacity }
}

/// What subscribers of broadcasts have in common.
public class BroadcastReceivingEnd<Value> {
    @usableFromInline final let core: BroadcastCore<Value>
    /// The number of the next value to be received.
    @exclusivity(unchecked) @usableFromInline final var position: Int
    /// How many values it has not received because it was too slow, in all.
    @exclusivity(unchecked) public private(set) final var missed = 0

    @usableFromInline
    init(_ core: BroadcastCore<Value>, at position: Int) {
        self.core = core
        self.position = position
    }

    deinit { core.leave(at: position) }

    /// The next value; waits for one. Nil when the sender has gone and all that it has sent was received.
    ///
    /// - Throws: ``LaggedError`` when values were missed since the last one, and then the next call has the oldest that is there; `CancellationError` or ``TimeoutError`` when the fiber is
    ///   cancelled, and then no value is lost.
    /// - Note: parks
    @inlinable
    public final func receive() throws -> Value? {
        if isLarge(Value.self) { return try receiveLarge() }
        return try receiveInline()
    }

    /// The next value if there is one. Does not wait; a loop over it lets other fibers run now and then.
    ///
    /// - Throws: ``LaggedError`` when values were missed since the last one, and then the next call has the oldest that is there.
    @inlinable
    public final func tryReceive() throws(LaggedError) -> TryReceiveResult<Value> {
        if isLarge(Value.self) { return try tryReceiveLarge() }
        return try tryReceiveInline()
    }

    @inlinable @inline(__always)
    final func receiveInline() throws -> Value? {
        try core.beginReceive()
        var hasWaited = false
        while true {
            switch core.tryReceive(at: &position) as BroadcastBase.ReceiveStep {
            case .copy(let place): return core.copy(place, charges: !hasWaited)
            case .take(let place): return core.take(place, charges: !hasWaited)
            case .missed(let count): throw lag(count)
            case .wait: try core.waitToReceive()
            case .ended:
                if !hasWaited { core.chargeTry() }
                return nil
            }
            hasWaited = true
        }
    }

    @inlinable @inline(__always)
    final func tryReceiveInline() throws(LaggedError) -> TryReceiveResult<Value> {
        switch core.tryReceive(at: &position) as BroadcastBase.ReceiveStep {
        case .copy(let place): return .message(core.copy(place, charges: true))
        case .take(let place): return .message(core.take(place, charges: true))
        case .missed(let count): throw lag(count)
        case .wait:
            core.abandon()
            return .empty
        case .ended:
            core.chargeTry()
            return .ended
        }
    }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func receiveLarge() throws -> Value? { try receiveInline() }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func tryReceiveLarge() throws(LaggedError) -> TryReceiveResult<Value> { try tryReceiveInline() }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func nextLarge() -> Value? { nextInline() }

    @inlinable @inline(__always)
    final func nextInline() -> Value? {
        while true {
            do { return try receiveInline() } catch is LaggedError { continue } catch { return nil }
        }
    }

    @usableFromInline
    final func lag(_ count: Int) -> LaggedError {
        missed += count
        return LaggedError(missed: count)
    }
}

/// The values as they come, until the sender has gone. Where some were missed the loop goes on with the oldest that is there, and ``missed`` has grown. The loop ends, too, when the fiber is
/// cancelled; where that matters, `try Fiber.checkCancellation()` behind it tells, or call ``receive()``, which throws.
extension BroadcastReceivingEnd: Sequence, IteratorProtocol {
    /// Itself.
    @inlinable
    public final func makeIterator() -> BroadcastReceivingEnd<Value> { self }

    @inlinable
    public final func next() -> Value? {
        if isLarge(Value.self) { return nextLarge() }
        return nextInline()
    }
}

/// The sending end of a broadcast between workers and threads. Share it with all that send: when the last reference has gone, the broadcast ends.
public final class BroadcastSender<Value: Sendable>: BroadcastSendingEnd<Value>, @unchecked Sendable {
    /// A new subscriber, to whom goes what is sent from here on.
    public func subscribe() -> sending BroadcastSubscriber<Value> { BroadcastSubscriber(core, at: core.join()) }
}

/// The sending end of a broadcast that stays on its worker. When the last reference has gone, the broadcast ends.
public final class LocalBroadcastSender<Value>: BroadcastSendingEnd<Value> {
    /// A new subscriber, to whom goes what is sent from here on.
    public func subscribe() -> LocalBroadcastSubscriber<Value> { LocalBroadcastSubscriber(core, at: core.join()) }
}

/// A subscriber of a broadcast between workers and threads. It has one owner: it may be given away, to another fiber of any worker or to a thread, and then it is gone here. It has
/// subscribed until it goes, so one that nobody reads holds up senders that wait.
public final class BroadcastSubscriber<Value: Sendable>: BroadcastReceivingEnd<Value> {
    /// Another subscriber, who has received what this one has.
    ///
    /// - Complexity: O(*n*) for *n* values that this one has yet to receive.
    public func share() -> sending BroadcastSubscriber<Value> {
        core.join(at: position)
        return BroadcastSubscriber(core, at: position)
    }
}

/// A subscriber of a broadcast that stays on its worker. It has subscribed until it goes, so one that nobody reads holds up senders that wait.
public final class LocalBroadcastSubscriber<Value>: BroadcastReceivingEnd<Value> {
    /// Another subscriber, who has received what this one has.
    ///
    /// - Complexity: O(*n*) for *n* values that this one has yet to receive.
    public func share() -> LocalBroadcastSubscriber<Value> {
        core.join(at: position)
        return LocalBroadcastSubscriber(core, at: position)
    }
}

/// Makes a broadcast between fibers of all workers, plain threads and what else there is in the program: each value goes to each who has subscribed, in the order in which they were sent.
///
/// ```swift
/// let prices = makeBroadcast(of: Price.self, capacity: 256, .dropOldest)
/// let mine = prices.subscribe()
/// try Fiber.spawn { for price in mine { draw(price) } }      // ends when the sender has gone
/// try prices.send(price)
/// ```
///
/// A fiber that has to wait parks, a plain thread blocks.
///
/// - Parameters:
///   - type: what is sent, where it cannot be inferred.
///   - capacity: how many values it holds for those who have not read them yet, at least 1. It takes memory for those that are there, in blocks, and none before.
///   - policy: what happens when that is not enough for the slowest.
@inlinable
public func makeBroadcast<Value: Sendable>(
    of type: Value.Type = Value.self, capacity: Int, _ policy: BroadcastPolicy
) -> BroadcastSender<Value> {
    BroadcastSender(BroadcastCore(capacity: capacity, policy, isShared: true))
}

/// Makes a broadcast between fibers of the calling worker: without locks, and for values of any kind.
///
/// ```swift
/// let events = makeLocalBroadcast(of: Event.self, capacity: 16, .wait)
/// let log = events.subscribe()
/// try Fiber.spawnLocal { for event in log { print(event) } }
/// try events.send(.started)
/// ```
///
/// - Parameters:
///   - type: what is sent, where it cannot be inferred.
///   - capacity: how many values it holds for those who have not read them yet, at least 1. It takes memory for those that are there, in blocks, and none before.
///   - policy: what happens when that is not enough for the slowest.
@inlinable
public func makeLocalBroadcast<Value>(
    of type: Value.Type = Value.self, capacity: Int, _ policy: BroadcastPolicy
) -> LocalBroadcastSender<Value> {
    LocalBroadcastSender(BroadcastCore(capacity: capacity, policy, isShared: false))
}
