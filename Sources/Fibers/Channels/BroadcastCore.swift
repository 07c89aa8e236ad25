// SPDX-License-Identifier: Apache-2.0

// The core of a broadcast, local or shared: one queue of values that all subscribers read.
//
//     number   9  10  11  12        next = 13        a subscriber at 10 has 10…12 before it; with a capacity of 4, one at 6 has missed 6…8
//     readers  1   2   3   3                         how many subscribers have yet to read the value
//
// Invariants, whenever the lock is free:
//   * Values are numbered in the order in which they are sent. The queue holds at most `capacity` values and uses memory only for the
//     values it holds (`BroadcastQueue`).
//   * A value is held while at least one subscriber that existed when it was sent has neither read nor missed it. The last reader moves it
//     out.
//   * Every subscriber reads in sequence order, so the oldest value leaves first. The exception is a leaving subscriber: it still counts as
//     a reader of older values but no longer of newer ones, so newer values may leave before it has skipped the older ones.
//   * A subscriber waits only at `next`, and only while the sender exists. A sender waits only while the queue is full, and only with the
//     policy `wait`.
//   * Values are destroyed without the lock held, because their deinit may use the broadcast.
// The base class, which is not generic, counts readers and holds the waiters; the generic subclass moves values.
// Runs on one worker or on any thread: see `WaitPoint`. Only the owner of a subscriber accesses its position.

@usableFromInline
class BroadcastBase: WaitPoint {
    @usableFromInline final let capacity: Int
    private final let waits: Bool
    @exclusivity(unchecked) private final var queue: BroadcastQueue
    @exclusivity(unchecked) private final var subscribers = 0
    @exclusivity(unchecked) private final var isClosed = false
    /// Claimed waiters, to be resumed once the lock is free.
    @exclusivity(unchecked) private final var claimed = WaitList()

    private final var senders: Line { first }
    private final var receivers: Line { second }

    /// The result of a sender's first look at the queue.
    @usableFromInline
    enum SendStep {
        /// Memory for the value. The lock is held until `finish`.
        case place(UnsafeMutableRawPointer)
        /// The oldest value, which some subscribers miss. The caller moves it out, then calls `replaceOldest` to make room. The lock is
        /// held until `finish`.
        case oldest(UnsafeMutableRawPointer)
        case wait
        case nobody
    }

    /// The result of a subscriber's look at the queue.
    @usableFromInline
    enum ReceiveStep {
        /// The value, which other subscribers have yet to read. The lock is held until `finish`.
        case copy(UnsafeMutableRawPointer)
        /// The value, which the caller moves out before it calls `endTaking`. The lock is held until `finish`.
        case take(UnsafeMutableRawPointer)
        case missed(Int)
        case wait
        case ended
    }

    @usableFromInline
    init(capacity: Int, policy: BroadcastPolicy, size: Int, alignment: Int, isShared: Bool) {
        require(capacity >= 1, "a broadcast has room for at least 1 value, not \(capacity)")
        self.capacity = capacity
        waits = policy == .wait
        queue = BroadcastQueue(capacity: capacity, size: size, alignment: alignment)
        super.init(isShared: isShared)
    }

    deinit { queue.free() }

    override var kind: Kind { Kind(local: "broadcast of makeLocalBroadcast", shared: "broadcast of makeBroadcast") }

    // Sending.

    /// Begins to send; throws when the caller is cancelled.
    @usableFromInline
    final func beginSend() throws -> SendStep {
        try refuseCancelledCaller()
        return trySend()
    }

    /// Finds room for the next value. The lock stays held also when the caller has to wait.
    @usableFromInline
    final func trySend() -> SendStep {
        lock()
        if subscribers == 0 {
            unlock()
            chargeCaller()
            return .nobody
        }
        if queue.count < capacity { return .place(queue.append(readers: subscribers)) }
        return waits ? .wait : .oldest(queue.slot(of: queue.front))
    }

    /// Drops the oldest value, which the caller has moved out, and returns memory for the next one. The caller holds the lock.
    @usableFromInline
    final func replaceOldest() -> UnsafeMutableRawPointer {
        queue.removeFirst()
        return queue.append(readers: subscribers)
    }

    /// Waits until a subscriber has moved the value from the slot into the queue. Returns false when the last subscriber is gone. When it
    /// returns false or throws, the value is still in the slot. The caller holds the lock.
    @usableFromInline
    final func waitToSend(_ slot: UnsafeMutableRawPointer) throws -> Bool {
        let outcome = wait(in: senders, slot: slot, .send)
        try checkWait(outcome)
        return outcome == .ready
    }

    /// Claims the first waiting sender if the queue has room for its value. The caller holds the lock.
    @usableFromInline
    final func claimSender() -> (from: UnsafeMutableRawPointer, to: UnsafeMutableRawPointer)? {
        guard !senders.pointee.isEmpty && queue.count < capacity, let sender = claimFirst(of: senders) else { return nil }
        claimed.append(sender.node)
        return (sender.pointee.slot.unsafelyUnwrapped, queue.append(readers: subscribers))
    }

    // Receiving.

    @usableFromInline
    final func beginReceive() throws { try refuseCancelledCaller() }

    /// Finds the value at a position and advances the position. The lock stays held also when there is no value yet.
    @usableFromInline
    final func tryReceive(at position: inout Int) -> ReceiveStep {
        lock()
        if position == queue.next {
            guard isClosed else { return .wait }
            unlock()
            return .ended
        }
        let oldest = queue.next - capacity
        if position < oldest {
            unlock()
            defer { position = oldest }
            return .missed(oldest - position)
        }
        return pass(&position)
    }

    private final func pass(_ position: inout Int) -> ReceiveStep {
        let readers = queue.readers(of: position)
        let slot = queue.slot(of: position)
        position += 1
        readers.pointee -= 1
        return readers.pointee == 0 ? .take(slot) : .copy(slot)
    }

    /// Removes a value from the queue after its last reader has moved it out. The caller holds the lock.
    @usableFromInline
    final func endTaking() { if queue.readers(of: queue.front).pointee == 0 { queue.removeFirst() } }

    /// Waits until there is a value to receive, or the sender is gone. The caller holds the lock.
    @usableFromInline
    final func waitToReceive() throws { try checkWait(wait(in: receivers, .receive)) }

    // Ending.

    /// Releases the lock and resumes all claimed waiters. If a new value was sent, also resumes the waiting subscribers.
    @usableFromInline
    final func finish(hasSent: Bool, charges: Bool) {
        var claimed = claimed
        self.claimed = WaitList()
        if hasSent { claimAll(of: receivers, into: &claimed) }
        unlock()
        resumeAll(&claimed)
        if charges { chargeCaller() }
    }

    /// Releases the lock in a call that has found nothing, and counts the call.
    @usableFromInline
    final func abandon() {
        unlock()
        chargeCaller()
    }

    /// Counts a call that did not wait. The caller must not hold the lock.
    @usableFromInline
    final func chargeTry() { chargeCaller() }

    /// Closes the broadcast: the sender is gone.
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

    /// Adds a subscriber and returns its position.
    @usableFromInline
    final func join() -> Int {
        withLock {
            subscribers += 1
            return queue.next
        }
    }

    /// Adds a subscriber that has yet to receive the same values as one at this position.
    @usableFromInline
    final func join(at position: Int) {
        lock()
        subscribers += 1
        for number in max(position, queue.next - capacity)..<queue.next { queue.readers(of: number).pointee += 1 }
        unlock()
    }

    /// Begins to remove a subscriber: no new value counts it as a reader. Returns the number of the first value that does not count it.
    @usableFromInline
    final func beginLeaving() -> Int {
        var released = WaitList()
        lock()
        subscribers -= 1
        // Without subscribers a waiting sender would wait forever. It keeps its value.
        if subscribers == 0 { claimAll(of: senders, into: &released) }
        let end = queue.next
        unlock()
        resumeAll(&released, .closed)
        return end
    }

    /// Skips values up to `end` and stops at the first one for which this subscriber is the last reader. Returns the slot of that value
    /// with the lock held until `finish`, or nil with the lock released.
    @usableFromInline
    final func skip(from position: inout Int, to end: Int) -> UnsafeMutableRawPointer? {
        lock()
        position = max(position, queue.next - capacity)
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
    @usableFromInline typealias Slot = UnsafeMutablePointer<Value>

    @inlinable
    init(capacity: Int, _ policy: BroadcastPolicy, isShared: Bool) {
        super.init(
            capacity: capacity, policy: policy, size: MemoryLayout<Value>.stride, alignment: MemoryLayout<Value>.alignment,
            isShared: isShared)
    }

    @inlinable
    func send(_ value: Value) throws {
        try withSlot(for: Value.self) { own in
            own.initialize(to: value)
            var isUnsent = true
            defer { if isUnsent { own.deinitialize(count: 1) } }
            let step = try beginSend()
            isUnsent = if case .wait = step { try !waitToSend(own) } else { !put(own, step) }
        }
    }

    @inlinable
    func trySend(_ value: Value) -> TrySendResult {
        var result = TrySendResult.sent
        withSlot(for: Value.self) { own in
            own.initialize(to: value)
            let step = trySend()
            if put(own, step) { return }
            if case .wait = step {
                abandon()
                result = .full
            }
            own.deinitialize(count: 1)
        }
        return result
    }

    /// Sends the value in the slot if the queue has room or drops its oldest value. Returns true then, and the slot is uninitialised. A
    /// dropped value is destroyed once the lock is free.
    @inlinable
    func put(_ own: Slot, _ step: SendStep) -> Bool {
        switch step {
        case .place(let place):
            Self.move(from: own, to: place)
            finish(hasSent: true, charges: true)
            return true
        case .oldest(let oldest):
            withSlot(for: Value.self) { missed in
                Self.move(from: oldest, to: missed)
                Self.move(from: own, to: replaceOldest())
                finish(hasSent: true, charges: true)
                missed.deinitialize(count: 1)
            }
            return true
        case .wait, .nobody: return false
        }
    }

    @inlinable
    func copy(_ place: UnsafeMutableRawPointer, charges: Bool) -> Value {
        let value = place.assumingMemoryBound(to: Value.self).pointee
        finish(hasSent: false, charges: charges)
        return value
    }

    @inlinable
    func take(_ place: UnsafeMutableRawPointer, charges: Bool) -> Value {
        let value = place.assumingMemoryBound(to: Value.self).move()
        endTaking()
        var hasSent = false
        while let (from, to) = claimSender() {
            Self.move(from: from, to: to)
            hasSent = true
        }
        finish(hasSent: hasSent, charges: charges)
        return value
    }

    @inlinable @inline(__always)
    static func move(from: UnsafeMutableRawPointer, to: UnsafeMutableRawPointer) {
        to.bindMemory(to: Value.self, capacity: 1).moveInitialize(from: from.assumingMemoryBound(to: Value.self), count: 1)
    }

    /// Removes a subscriber: senders no longer wait for it, and values that no other subscriber has yet to read are destroyed.
    @usableFromInline
    func leave(at position: Int) {
        var position = position
        let end = beginLeaving()
        while let place = skip(from: &position, to: end) { withExtendedLifetime(take(place, charges: false)) {} }
    }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    func sendLarge(_ value: Value) throws { try send(value) }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    func trySendLarge(_ value: Value) -> TrySendResult { trySend(value) }
}
