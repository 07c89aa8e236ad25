// SPDX-License-Identifier: Apache-2.0

// The public ends of broadcasts. A broadcast delivers every value to every subscriber.

/// What to do when the queue is full and a subscriber has not yet read the oldest value.
public enum BroadcastPolicy: Hashable, Sendable {
    /// Drop the oldest value. A subscriber that has not read it misses it and gets a ``LaggedError``.
    case dropOldest
    /// The sender waits for the slowest subscriber, so every subscriber gets every value.
    case wait
}

/// A subscriber was too slow: newer values replaced values that it had not read. Its next receive returns the oldest value still held.
public struct LaggedError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The number of values that the subscriber missed since the last one it received.
    public let missed: Int

    @usableFromInline
    init(missed: Int) { self.missed = missed }

    public var description: String { "a subscriber of a broadcast was too slow and has missed \(missed) values" }
}

/// The common base of the sending ends of broadcasts.
public class BroadcastSendingEnd<Value> {
    @usableFromInline final let core: BroadcastCore<Value>

    @inlinable
    init(_ core: BroadcastCore<Value>) { self.core = core }

    deinit { core.close() }

    /// Sends a value to every subscriber. With the policy `wait`, it waits until the slowest subscriber has made room. Without subscribers
    /// the value is dropped.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled. The value was not sent then.
    /// - Complexity: O(*n*) for *n* waiting subscribers.
    /// - Note: parks
    @inlinable
    public final func send(_ value: Value) throws {
        if isLarge(Value.self) { return try core.sendLarge(value) }
        try core.send(value)
    }

    /// Sends a value if that needs no wait, which is always so with ``BroadcastPolicy/dropOldest``. Never waits, but yields to other fibers
    /// from time to time, so a polling loop does not starve them.
    ///
    /// - Returns: `sent` or `full`.
    /// - Complexity: O(*n*) for *n* waiting subscribers.
    @inlinable
    @discardableResult
    public final func trySend(_ value: Value) -> TrySendResult {
        if isLarge(Value.self) { return core.trySendLarge(value) }
        return core.trySend(value)
    }

    /// The number of subscribers.
    @inlinable
    public final var subscriberCount: Int { core.currentSubscribers }

    /// The maximum number of values held for subscribers that have not read them yet.
    @inlinable
    public final var capacity: Int { core.capacity }
}

/// The common base of subscribers of broadcasts.
public class BroadcastReceivingEnd<Value> {
    @usableFromInline final let core: BroadcastCore<Value>
    /// The sequence number of the next value to receive.
    @exclusivity(unchecked) @usableFromInline final var position: Int
    /// The total number of values that this subscriber has missed because it was too slow.
    @exclusivity(unchecked) public private(set) final var missed = 0

    @usableFromInline
    init(_ core: BroadcastCore<Value>, at position: Int) {
        self.core = core
        self.position = position
    }

    deinit { core.leave(at: position) }

    /// Receives the next value and waits for one if necessary. Returns nil when the sender is gone and every value it sent has been
    /// received.
    ///
    /// - Throws: ``LaggedError`` when the subscriber has missed values since the last receive; the next call then returns the oldest value
    ///   still held. `CancellationError` or ``TimeoutError`` when the fiber is cancelled; no value is lost then.
    /// - Note: parks
    @inlinable
    public final func receive() throws -> Value? {
        if isLarge(Value.self) { return try receiveLarge() }
        return try receiveInline()
    }

    /// Receives the next value if one is available. Never waits, but yields to other fibers from time to time, so a polling loop does not
    /// starve them.
    ///
    /// - Throws: ``LaggedError`` when the subscriber has missed values since the last receive; the next call then returns the oldest value
    ///   still held.
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

/// Iterates over values as they arrive, until the sender is gone. When the subscriber has missed values, the loop continues with the oldest
/// value still held, and ``missed`` has increased. The loop also ends when the fiber is cancelled. To tell the two apart, call `try
/// Fiber.checkCancellation()` after the loop, or use ``receive()``, which throws.
extension BroadcastReceivingEnd: Sequence, IteratorProtocol {
    /// The subscriber is its own iterator.
    @inlinable
    public final func makeIterator() -> BroadcastReceivingEnd<Value> { self }

    @inlinable
    public final func next() -> Value? {
        if isLarge(Value.self) { return nextLarge() }
        return nextInline()
    }
}

/// The sending end of a broadcast between workers and threads. All senders share one instance; the broadcast ends when its last reference
/// is released.
public final class BroadcastSender<Value: Sendable>: BroadcastSendingEnd<Value>, @unchecked Sendable {
    /// Adds a subscriber. It receives every value sent from now on.
    public func subscribe() -> sending BroadcastSubscriber<Value> { BroadcastSubscriber(core, at: core.join()) }
}

/// The sending end of a broadcast that stays on its worker. The broadcast ends when the last reference is released.
public final class LocalBroadcastSender<Value>: BroadcastSendingEnd<Value> {
    /// Adds a subscriber. It receives every value sent from now on.
    public func subscribe() -> LocalBroadcastSubscriber<Value> { LocalBroadcastSubscriber(core, at: core.join()) }
}

/// A subscriber of a broadcast between workers and threads. It has one owner: it can be transferred to a fiber of any worker or to a
/// thread, and the previous owner can then no longer use it. It stays subscribed until its last reference is released, so a subscriber that
/// is not read blocks senders that wait.
public final class BroadcastSubscriber<Value: Sendable>: BroadcastReceivingEnd<Value> {
    /// Adds a subscriber at the same position: it has received exactly the values that this one has.
    ///
    /// - Complexity: O(*n*) for *n* values that this subscriber has not received yet.
    public func share() -> sending BroadcastSubscriber<Value> {
        core.join(at: position)
        return BroadcastSubscriber(core, at: position)
    }
}

/// A subscriber of a broadcast that stays on its worker. It stays subscribed until its last reference is released, so a subscriber that is
/// not read blocks senders that wait.
public final class LocalBroadcastSubscriber<Value>: BroadcastReceivingEnd<Value> {
    /// Adds a subscriber at the same position: it has received exactly the values that this one has.
    ///
    /// - Complexity: O(*n*) for *n* values that this subscriber has not received yet.
    public func share() -> LocalBroadcastSubscriber<Value> {
        core.join(at: position)
        return LocalBroadcastSubscriber(core, at: position)
    }
}

/// Makes a broadcast between fibers of any worker and plain threads. Every subscriber receives every value, in the order in which the
/// values were sent.
///
/// ```swift
/// let prices = makeBroadcast(of: Price.self, capacity: 256, .dropOldest)
/// let mine = prices.subscribe()
/// try Fiber.spawn { for price in mine { draw(price) } }      // ends when the sender has gone
/// try prices.send(price)
/// ```
///
/// A fiber that has to wait parks; a plain thread blocks.
///
/// - Parameters:
///   - type: the type of the values, where it cannot be inferred.
///   - capacity: the maximum number of values held for subscribers that have not read them yet, at least 1. Memory is allocated in blocks,
///     for the values held and not for the capacity.
///   - policy: what to do when the queue is full because the slowest subscriber has fallen behind.
@inlinable
public func makeBroadcast<Value: Sendable>(
    of type: Value.Type = Value.self, capacity: Int, _ policy: BroadcastPolicy
) -> BroadcastSender<Value> {
    BroadcastSender(BroadcastCore(capacity: capacity, policy, isShared: true))
}

/// Makes a broadcast between fibers of the calling worker. It uses no locks and carries values of any type.
///
/// ```swift
/// let events = makeLocalBroadcast(of: Event.self, capacity: 16, .wait)
/// let log = events.subscribe()
/// try Fiber.spawnLocal { for event in log { print(event) } }
/// try events.send(.started)
/// ```
///
/// - Parameters:
///   - type: the type of the values, where it cannot be inferred.
///   - capacity: the maximum number of values held for subscribers that have not read them yet, at least 1. Memory is allocated in blocks,
///     for the values held and not for the capacity.
///   - policy: what to do when the queue is full because the slowest subscriber has fallen behind.
@inlinable
public func makeLocalBroadcast<Value>(
    of type: Value.Type = Value.self, capacity: Int, _ policy: BroadcastPolicy
) -> LocalBroadcastSender<Value> {
    LocalBroadcastSender(BroadcastCore(capacity: capacity, policy, isShared: false))
}
