// SPDX-License-Identifier: Apache-2.0

// What a broadcast does, for one worker or for all: one queue of values that all subscribers read.
//
//     number   9  10  11  12        next = 13        a subscriber at 10 has 10…12 before it; with a capacity of 4, one at 6 has missed 6…8
//     readers  1   2   3   3                         how many subscribers have yet to read the value
//
// Invariants, whenever the lock is free:
//   * values are numbered in the order in which they are sent; the queue holds no more than the capacity, and takes memory for what it holds (`BroadcastQueue`);
//   * a value is held as long as a subscriber that was there when it was sent has neither read nor missed it. The last reader moves it out;
//   * every subscriber reads in the order of the numbers, so the oldest value leaves first. The exception is a subscriber that is leaving: it still counts among the readers of older values and no longer
//     among those of newer ones, which may leave before it has passed the older ones;
//   * a subscriber waits only at `next`, while there is a sender; a sender waits only while the queue is full, and only if that is the policy;
//   * values are destroyed without the lock held, since their deinit may use the broadcast.
// The class without the type of the value counts and knows the waiters, the generic one moves values.
// One worker, or any thread: see `WaitPoint`. Only the owner of a subscriber knows its position.

@usableFromInline
class BroadcastBase: WaitPoint {
    @usableFromInline final let capacity: Int
    private final let waits: Bool
    @exclusivity(unchecked) private final var queue: BroadcastQueue
    @exclusivity(unchecked) private final var subscribers = 0
    @exclusivity(unchecked) private final var isClosed = false
    /// Claimed waiters, which are resumed once the lock is free.
    @exclusivity(unchecked) private final var claimed = WaitList()

    private final var senders: Line { first }
    private final var receivers: Line { second }

    /// What a sender finds.
    @usableFromInline
    enum SendStep {
        /// Memory for the value. Locked, until `finish`.
        case place(UnsafeMutableRawPointer)
        /// The oldest value, which some subscribers miss: the caller moves it away, and `replaceOldest` then makes room. Locked, until `finish`.
        case oldest(UnsafeMutableRawPointer)
        case wait
        case nobody
    }

    /// What a subscriber finds.
    @usableFromInline
    enum ReceiveStep {
        /// The value here, for others too. Locked, until `finish`.
        case copy(UnsafeMutableRawPointer)
        /// The value here, which the caller moves away before it calls `endTaking`. Locked, until `finish`.
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

    /// Finds room for the next value. Locked also where the caller has to wait.
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

    /// Drops the oldest value, which has been moved away, and returns memory for the next one. With the lock held.
    @usableFromInline
    final func replaceOldest() -> UnsafeMutableRawPointer {
        queue.removeFirst()
        return queue.append(readers: subscribers)
    }

    /// Waits until a subscriber has moved the value from the slot into the queue. False when the last subscriber has gone; the value is still in the slot then, and also when this throws. With the
    /// lock held.
    @usableFromInline
    final func waitToSend(_ slot: UnsafeMutableRawPointer) throws -> Bool {
        let outcome = wait(in: senders, slot: slot, .send)
        try checkWait(outcome)
        return outcome == .ready
    }

    /// The first sender in line, if there is room for its value now. With the lock held.
    @usableFromInline
    final func claimSender() -> (from: UnsafeMutableRawPointer, to: UnsafeMutableRawPointer)? {
        guard !senders.pointee.isEmpty && queue.count < capacity, let sender = claimFirst(of: senders) else { return nil }
        claimed.append(sender.node)
        return (sender.pointee.slot.unsafelyUnwrapped, queue.append(readers: subscribers))
    }

    // Receiving.

    @usableFromInline
    final func beginReceive() throws { try refuseCancelledCaller() }

    /// Finds the value at a position, and moves that on. Locked also where there is none yet.
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

    /// A value that all have read has been moved away. With the lock held.
    @usableFromInline
    final func endTaking() { if queue.readers(of: queue.front).pointee == 0 { queue.removeFirst() } }

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

    /// Releases the lock in a call that has found nothing, and counts the call.
    @usableFromInline
    final func abandon() {
        unlock()
        chargeCaller()
    }

    /// Counts a call that did not wait. Without the lock.
    @usableFromInline
    final func chargeTry() { chargeCaller() }

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
            return queue.next
        }
    }

    /// Another subscriber, who has yet to receive what one at this position has.
    @usableFromInline
    final func join(at position: Int) {
        lock()
        subscribers += 1
        for number in max(position, queue.next - capacity)..<queue.next { queue.readers(of: number).pointee += 1 }
        unlock()
    }

    /// A subscriber goes, and no more is sent to it: the number of the first value that does not count it.
    @usableFromInline
    final func beginLeaving() -> Int {
        var released = WaitList()
        lock()
        subscribers -= 1
        // A sender in line has nobody to wait for then, and keeps its value.
        if subscribers == 0 { claimAll(of: senders, into: &released) }
        let end = queue.next
        unlock()
        resumeAll(&released, .closed)
        return end
    }

    /// Passes by values up to the first that nobody else has yet to read: where that lies. Locked then, until `finish`.
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

    /// Sends the value in the slot if there is room for it; true then, and the slot is uninitialised. A value that is dropped for it is destroyed once the lock is free.
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

    /// A subscriber has gone: nobody waits for it any more, and what it alone had yet to read goes with it.
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
