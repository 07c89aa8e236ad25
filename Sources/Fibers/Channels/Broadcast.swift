// Every value to everyone who has subscribed, through one ring that all of them read.
//
//            capacity = 8          next = 13
//     number  8   9  10  11  12   5   6   7          a subscriber at 9 has 9…12 before it; one at 4 has missed 4, which was where 12 is
//     left    0   2   2   3   3   0   0   0          how many have yet to read it
//
// Invariants, whenever the lock is free:
//   * values are numbered in the order in which they are sent, and number *i* lies at *i* modulo the capacity; `next` is the number of the next one;
//   * a place holds a value as long as there is a subscriber who was there when it was sent and has not read it, or missed it: `left` counts them. The last to read takes it along;
//   * places get free in the order of their numbers, since everyone reads in that order;
//   * a subscriber waits only at `next`, while there is a sender; a sender waits only while the place for its value is taken, and only where that is the policy;
//   * values are let go of without the lock, since their deinit may look here.
// One worker, or any thread: see `WaitPoint`. Where a subscriber is is known to its owner alone.

/// What happens to a value for whose place in the ring somebody has yet to come.
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
    public final func send(_ value: Value) throws { try core.send(value) }

    /// Sends a value if nobody has to wait for that: always, with ``BroadcastPolicy/dropOldest``.
    ///
    /// - Returns: `sent` or `full`.
    /// - Complexity: O(*n*) for *n* subscribers that wait.
    @inlinable
    @discardableResult
    public final func trySend(_ value: Value) -> TrySendResult { core.trySend(value) ? .sent : .full }

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
        try core.beginReceive()
        var hasWaited = false
        while true {
            switch core.tryReceive(at: &position) as BroadcastBase.ReceiveStep {
            case .copy(let place): return core.copy(place, charges: !hasWaited)
            case .take(let place): return core.take(place, charges: !hasWaited)
            case .missed(let count): throw lag(count)
            case .wait: try core.waitToReceive()
            case .ended: return nil
            }
            hasWaited = true
        }
    }

    /// The next value if there is one.
    ///
    /// - Throws: ``LaggedError`` when values were missed since the last one, and then the next call has the oldest that is there.
    @inlinable
    public final func tryReceive() throws(LaggedError) -> TryReceiveResult<Value> {
        switch core.tryReceive(at: &position) as BroadcastBase.ReceiveStep {
        case .copy(let place): return .message(core.copy(place, charges: true))
        case .take(let place): return .message(core.take(place, charges: true))
        case .missed(let count): throw lag(count)
        case .wait:
            core.abandon()
            return .empty
        case .ended: return .ended
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
        while true {
            do { return try receive() } catch is LaggedError { continue } catch { return nil }
        }
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
///   - capacity: how many values it holds for those who have not read them yet, at least 1.
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
///   - capacity: how many values it holds for those who have not read them yet, at least 1.
///   - policy: what happens when that is not enough for the slowest.
@inlinable
public func makeLocalBroadcast<Value>(
    of type: Value.Type = Value.self, capacity: Int, _ policy: BroadcastPolicy
) -> LocalBroadcastSender<Value> {
    LocalBroadcastSender(BroadcastCore(capacity: capacity, policy, isShared: false))
}

// What it does. The class without the type of the value counts and knows who waits, the generic one moves values.

@usableFromInline
class BroadcastBase: WaitPoint {
    @usableFromInline final let capacity: Int
    private final let waits: Bool
    @exclusivity(unchecked) private final var next = 0
    /// Of each place.
    @exclusivity(unchecked) private final var left: [Int]
    @exclusivity(unchecked) private final var subscribers = 0
    @exclusivity(unchecked) private final var isClosed = false
    /// Who has been claimed, and goes on when the lock is free.
    @exclusivity(unchecked) private final var claimed = WaitList()

    private final var senders: Line { first }
    private final var receivers: Line { second }

    /// What a sender finds.
    @usableFromInline
    enum SendStep {
        /// A place for the value; what is in it has been missed. Locked, until `finish`.
        case place(Int)
        case wait
        case nobody
    }

    /// What a subscriber finds.
    @usableFromInline
    enum ReceiveStep {
        /// The value in this place, for others too. Locked, until `finish`.
        case copy(Int)
        /// The value in this place, which is free then. Locked, until `finish`.
        case take(Int)
        case missed(Int)
        case wait
        case ended
    }

    @usableFromInline
    init(capacity: Int, policy: BroadcastPolicy, isShared: Bool) {
        require(capacity >= 1, "a broadcast has room for at least 1 value, not \(capacity)")
        self.capacity = capacity
        waits = policy == .wait
        left = [Int](repeating: 0, count: capacity)
        super.init(isShared: isShared)
    }

    // Sending.

    /// Begins to send; throws when the caller is cancelled.
    @usableFromInline
    final func beginSend() throws -> SendStep {
        try refuseCancelledCaller()
        return trySend()
    }

    /// Finds the place for the next value. Locked also where the caller has to wait.
    @usableFromInline
    final func trySend() -> SendStep {
        lock()
        if subscribers == 0 {
            unlock()
            return .nobody
        }
        if waits && left[next % capacity] > 0 { return .wait }
        return .place(takePlace())
    }

    private final func takePlace() -> Int {
        let place = next % capacity
        left[place] = subscribers
        next += 1
        return place
    }

    /// Waits until somebody has put the value from the slot into the ring, or the last subscriber has gone. With the lock held.
    @usableFromInline
    final func waitToSend(_ slot: UnsafeMutableRawPointer) throws { try checkWait(wait(in: senders, slot: slot, .send)) }

    /// The first sender in line, if there is a place for its value now. With the lock held.
    @usableFromInline
    final func claimSender() -> (slot: UnsafeMutableRawPointer, place: Int)? {
        guard !senders.pointee.isEmpty && left[next % capacity] == 0, let sender = claimFirst(of: senders) else { return nil }
        claimed.append(sender.node)
        return (sender.pointee.slot.unsafelyUnwrapped, takePlace())
    }

    // Receiving.

    @usableFromInline
    final func beginReceive() throws { try refuseCancelledCaller() }

    /// Finds the value at a position, and moves that on. Locked also where there is none yet.
    @usableFromInline
    final func tryReceive(at position: inout Int) -> ReceiveStep {
        lock()
        if position == next {
            guard isClosed else { return .wait }
            unlock()
            return .ended
        }
        let oldest = next - capacity
        if position < oldest {
            unlock()
            defer { position = oldest }
            return .missed(oldest - position)
        }
        return pass(&position)
    }

    private final func pass(_ position: inout Int) -> ReceiveStep {
        let place = position % capacity
        position += 1
        left[place] -= 1
        return left[place] == 0 ? .take(place) : .copy(place)
    }

    /// Waits until there is more to receive, or never will be. With the lock held.
    @usableFromInline
    final func waitToReceive() throws { try checkWait(wait(in: receivers, .receive)) }

    // Ending.

    /// Lets go of the lock, and lets all go on who were claimed, and those who wait for a value if there is a new one.
    @usableFromInline
    final func finish(hasSent: Bool, charges: Bool) {
        var claimed = claimed
        self.claimed = WaitList()
        if hasSent { claimAll(of: receivers, into: &claimed) }
        unlock()
        resumeAll(&claimed)
        if charges { chargeCaller() }
    }

    @usableFromInline
    final func abandon() { unlock() }

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

    // Subscribers.

    /// Another subscriber, at the position that is returned.
    @usableFromInline
    final func join() -> Int {
        withLock {
            subscribers += 1
            return next
        }
    }

    /// Another subscriber, who has yet to receive what one at this position has.
    @usableFromInline
    final func join(at position: Int) {
        lock()
        subscribers += 1
        for number in max(position, next - capacity)..<next { left[number % capacity] += 1 }
        unlock()
    }

    /// A subscriber goes, and no more is sent to it: the number of the first value that does not count it.
    @usableFromInline
    final func beginLeaving() -> Int {
        lock()
        subscribers -= 1
        // Who waits to send waits for nobody then, and keeps the value.
        if subscribers == 0 { claimAll(of: senders, into: &claimed) }
        let end = next
        finish(hasSent: false, charges: false)
        return end
    }

    /// Passes by values up to the first that nobody else has yet to read: where that lies. Locked then, until `finish`.
    @usableFromInline
    final func skip(from position: inout Int, to end: Int) -> Int? {
        lock()
        position = max(position, next - capacity)
        while position < end {
            if case .take(let place) = pass(&position) { return place }
        }
        unlock()
        return nil
    }

    @usableFromInline
    final var currentSubscribers: Int { withLock { subscribers } }
}

@usableFromInline
final class BroadcastCore<Value>: BroadcastBase, @unchecked Sendable {
    @exclusivity(unchecked) @usableFromInline var values: [Value?]

    @inlinable
    init(capacity: Int, _ policy: BroadcastPolicy, isShared: Bool) {
        values = [Value?](repeating: nil, count: max(capacity, 0))
        super.init(capacity: capacity, policy: policy, isShared: isShared)
    }

    @inlinable
    func send(_ value: Value) throws {
        var slot: Value? = value
        switch try beginSend() {
        case .place(let place): put(&slot, place)
        case .wait: try withUnsafeMutablePointer(to: &slot) { try waitToSend($0) }
        case .nobody: break
        }
        withExtendedLifetime(slot) {}
    }

    @inlinable
    func trySend(_ value: Value) -> Bool {
        var slot: Value? = value
        switch trySend() as SendStep {
        case .place(let place): put(&slot, place)
        case .wait:
            abandon()
            return false
        case .nobody: break
        }
        withExtendedLifetime(slot) {}
        return true
    }

    /// What was missed is in the slot then, to be let go of by the caller, when the lock is free.
    @inlinable
    func put(_ slot: inout Value?, _ place: Int) {
        swap(&values[place], &slot)
        finish(hasSent: true, charges: true)
    }

    @inlinable
    func copy(_ place: Int, charges: Bool) -> Value {
        let value = values[place]!
        finish(hasSent: false, charges: charges)
        return value
    }

    @inlinable
    func take(_ place: Int, charges: Bool) -> Value {
        let value = values[place].take()!
        var hasSent = false
        while let (slot, place) = claimSender() {
            swap(&values[place], &slot.assumingMemoryBound(to: Value?.self).pointee)
            hasSent = true
        }
        finish(hasSent: hasSent, charges: charges)
        return value
    }

    /// A subscriber has gone: nobody waits for it any more, and what it alone had yet to read goes with it.
    @usableFromInline
    func leave(at position: Int) {
        var position = position
        let end = beginLeaving()
        while let place = skip(from: &position, to: end) { withExtendedLifetime(take(place, charges: false)) {} }
    }
}
