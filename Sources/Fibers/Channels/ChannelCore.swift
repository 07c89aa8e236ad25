// What a channel does, for one worker or for all: messages in a queue, senders in line for room in it, receivers in line for messages.
//
// Invariants, whenever the lock is free:
//   * a receiver waits only while there is no message, neither in the queue nor with a sender in line;
//   * a sender waits only while the queue is full (one without places always is), and the channel is open;
//   * a message is in exactly one place: with its sender, in the queue, or with its receiver. It moves once from a sender to a waiting receiver, and from a waiting
//     sender into the queue or to a receiver; waiting places have slots for that, optionals of the message;
//   * `count` is the number of messages in the queue; with what moves them it is changed before anybody else can look.
//
// The class without the type of the message knows who waits, the generic one below moves messages, which is all that is made anew for each type.
// One worker, or any thread: see `WaitPoint`.

import CFiber
import Synchronization

@usableFromInline
class ChannelBase: WaitPoint {
    /// How many messages the queue may hold: 0 for a rendezvous, `Int.max` without a limit.
    @usableFromInline final let limit: Int
    /// Who only watches looks at it without the lock; it is changed with it, so by a plain load and store.
    private final let storedCount = Atomic<Int>(0)
    @exclusivity(unchecked) private final var isClosed = false
    @exclusivity(unchecked) private final var receiverCount = 1

    private final var count: Int {
        @inline(__always) get { storedCount.load(ordering: .relaxed) }
        @inline(__always) set { storedCount.store(newValue, ordering: .relaxed) }
    }
    private final var senders: Line { first }
    private final var receivers: Line { second }

    /// What a call finds when it comes. Where it says so the lock is held, until `finish`.
    @usableFromInline
    enum Step {
        /// Somebody waits for it, and is claimed. Locked.
        case met(PlacePointer)
        /// There is room, or a message, in the queue. Locked.
        case queue
        /// Neither; the caller has to wait. Locked.
        case wait
        case closed
    }

    @usableFromInline
    init(limit: Int, isShared: Bool) {
        require(limit >= 0, "a channel has room for 0 messages or more, not \(limit)")
        self.limit = limit
        super.init(isShared: isShared)
    }

    // The common way: on one worker, nobody in line, nothing to do but to put the message into the queue, or to take it.

    /// True when the caller may append a message to the queue, which is counted already.
    @usableFromInline
    final func admitsSend() -> Bool {
        guard !isShared && count < limit && receivers.pointee.isEmpty && !isClosed && spendsOperation() else { return false }
        count &+= 1
        return true
    }

    /// True when the caller may take a message from the queue.
    @usableFromInline
    final func admitsReceive() -> Bool {
        guard !isShared && count > 0 && senders.pointee.isEmpty && spendsOperation() else { return false }
        count &-= 1
        return true
    }

    /// Takes one from the operations that the running fiber may do before it must let others run; false when it has to look about itself first.
    @inline(__always)
    private final func spendsOperation() -> Bool {
        guard let worker = Worker.current else { return false }
        guard worker.running.pointee.attention == 0 && worker.pointee.ioBudget > 1 else { return false }
        worker.pointee.ioBudget &-= 1
        return true
    }

    // Sending.

    /// Begins to send; throws when the caller is cancelled.
    @usableFromInline
    final func beginSend() throws -> Step {
        try refuseCancelledCaller()
        let step = trySend()
        guard case .wait = step, watch(for: { count < limit }) else { return step }
        return trySend()
    }

    @usableFromInline
    final func trySend() -> Step {
        lock()
        if isClosed {
            unlock()
            return .closed
        }
        if let receiver = claimFirst(of: receivers) { return .met(receiver) }
        guard count < limit else { return .wait }
        count &+= 1
        return .queue
    }

    /// Waits until a receiver has taken the message out of the slot, or moved it into the queue. With the lock held.
    @usableFromInline
    final func waitToSend(_ slot: UnsafeMutableRawPointer) throws -> Bool { try check(wait(in: senders, slot: slot, .send)) }

    // Receiving.

    /// Begins to receive; throws when the caller is cancelled. A message in the queue is not counted any more.
    @usableFromInline
    final func beginReceive() throws -> Step {
        try refuseCancelledCaller()
        let step = tryReceive()
        guard case .wait = step, watch(for: { count > 0 }) else { return step }
        return tryReceive()
    }

    /// Where the other side is at work on another worker, to wait for it takes less than to park and to be sent home. True when the lock, which was held, is not held any more.
    ///
    /// It looks only now and then: each look takes the cache line away from the other side, which meanwhile can do many of its own.
    @inline(__always)
    private final func watch(for hasCome: () -> Bool) -> Bool {
        guard isShared && limit > 0, let worker = Worker.current, worker.mayWatch else { return false }
        unlock()
        _ = worker.watch(every: 16, for: hasCome)
        return true
    }

    @usableFromInline
    final func tryReceive() -> Step {
        lock()
        if count > 0 {
            count &-= 1
            return .queue
        }
        if let sender = claimFirst(of: senders) { return .met(sender) }
        if isClosed {
            unlock()
            return .closed
        }
        return .wait
    }

    /// A message has been taken from the queue: the first sender in line whose message is to follow, and is counted already. With the lock held.
    @usableFromInline
    final func claimSender() -> PlacePointer? {
        if senders.pointee.isEmpty { return nil }
        guard let sender = claimFirst(of: senders) else { return nil }
        count &+= 1
        return sender
    }

    /// Waits until a sender has put a message into the slot; false when there will be none.
    @usableFromInline
    final func waitToReceive(_ slot: UnsafeMutableRawPointer) throws -> Bool { try check(wait(in: receivers, slot: slot, .receive)) }

    // In a select.

    /// Does without waiting what an arm is there for.
    func attempt(isSend: Bool, _ slot: UnsafeMutableRawPointer) -> TrySendResult {
        misuse("a channel without messages was used")
    }

    /// With the lock held.
    final func isReady(isSend: Bool, besides wait: UnsafeMutablePointer<Wait>?) -> Bool {
        if isClosed { return true }
        return isSend ? count < limit || hasOthers(in: receivers, than: wait) : count > 0 || hasOthers(in: senders, than: wait)
    }

    final func makePlace(_ wait: UnsafeMutablePointer<Wait>, isSend: Bool, _ slot: UnsafeMutableRawPointer) -> Place {
        Place(wait, self, isSend ? senders : receivers, slot, 1)
    }

    // Ending.

    /// Lets go of the lock, and lets the one go on who was met.
    @usableFromInline
    final func finish(_ met: PlacePointer? = nil) {
        unlock()
        if let met { resume(met) }
        chargeCaller()
    }

    @usableFromInline
    final func abandon() { unlock() }

    /// Takes the lock to take all messages out of the queue. With the lock held until `abandon`.
    @usableFromInline
    final func beginDropping() {
        lock()
        count = 0
    }

    private final func check(_ outcome: Outcome) throws -> Bool {
        try checkWait(outcome)
        return outcome == .ready
    }

    /// No message can be sent from here on. Those that wait to send have theirs back, those that wait to receive see the end.
    @usableFromInline
    final func close() {
        lock()
        guard !isClosed else { return unlock() }
        isClosed = true
        var claimed = WaitList()
        claimAll(of: senders, into: &claimed)
        claimAll(of: receivers, into: &claimed)
        unlock()
        resumeAll(&claimed, .closed)
    }

    @usableFromInline
    final func addReceiver() { withLock { receiverCount += 1 } }

    /// True for the last: nobody will take what is in the queue.
    @usableFromInline
    final func removeReceiver() -> Bool {
        let isLast = withLock {
            receiverCount -= 1
            return receiverCount == 0
        }
        if isLast { close() }
        return isLast
    }

    /// How many stand in line, for tests and diagnostics; among them those whose wait has ended and that have not left yet.
    final var waiting: (senders: Int, receivers: Int) { withLock { (senders.pointee.count, receivers.pointee.count) } }

    @usableFromInline
    final var hasClosed: Bool { withLock { isClosed } }
    @usableFromInline
    final var messageCount: Int { withLock { count } }
}

// Its ends say where they may go.
extension ChannelBase: @unchecked Sendable {}

@usableFromInline
final class ChannelCore<Message: ~Copyable>: ChannelBase, @unchecked Sendable {
    @exclusivity(unchecked) @usableFromInline var queue = MessageQueue<Message>()

    @inlinable
    static func slot(_ place: PlacePointer) -> UnsafeMutablePointer<Message?> {
        place.pointee.slot.unsafelyUnwrapped.assumingMemoryBound(to: Message?.self)
    }

    /// Sends what is in the slot, which is empty then; false when the channel is closed.
    @inlinable
    func send(from slot: UnsafeMutablePointer<Message?>) throws -> Bool {
        switch try beginSend() {
        case .closed: return false
        case .wait: return try waitToSend(UnsafeMutableRawPointer(slot))
        case .met(let receiver): deliver(from: slot, to: receiver)
        case .queue: enqueue(from: slot)
        }
        return true
    }

    /// Puts the next message into the slot; false when there will be none.
    @inlinable
    func receive(into slot: UnsafeMutablePointer<Message?>) throws -> Bool {
        switch try beginReceive() {
        case .closed: return false
        case .wait: return try waitToReceive(UnsafeMutableRawPointer(slot))
        case .met(let sender): take(from: sender, into: slot)
        case .queue: dequeue(into: slot)
        }
        return true
    }

    @inlinable
    func trySend(from slot: UnsafeMutablePointer<Message?>) -> TrySendResult {
        switch trySend() {
        case .closed: return .closed
        case .wait:
            abandon()
            return .full
        case .met(let receiver): deliver(from: slot, to: receiver)
        case .queue: enqueue(from: slot)
        }
        return .sent
    }

    /// `sent` when there is a message in the slot now, `full` when there was none.
    @inlinable
    func tryReceive(into slot: UnsafeMutablePointer<Message?>) -> TrySendResult {
        switch tryReceive() {
        case .closed: return .closed
        case .wait:
            abandon()
            return .full
        case .met(let sender): take(from: sender, into: slot)
        case .queue: dequeue(into: slot)
        }
        return .sent
    }

    @inlinable
    func deliver(from slot: UnsafeMutablePointer<Message?>, to receiver: PlacePointer) {
        swap(&Self.slot(receiver).pointee, &slot.pointee)
        finish(receiver)
    }

    @inlinable
    func enqueue(from slot: UnsafeMutablePointer<Message?>) {
        queue.append(slot.pointee.take()!)
        finish()
    }

    @inlinable
    func take(from sender: PlacePointer, into slot: UnsafeMutablePointer<Message?>) {
        swap(&slot.pointee, &Self.slot(sender).pointee)
        finish(sender)
    }

    @inlinable
    func dequeue(into slot: UnsafeMutablePointer<Message?>) {
        slot.initialize(to: queue.popFirst())
        let sender = claimSender()
        if let sender { queue.append(Self.slot(sender).pointee.take()!) }
        finish(sender)
    }

    /// A receiver has gone; with the last one go the messages.
    @usableFromInline
    func dropReceiver() {
        guard removeReceiver() else { return }
        // What they own may have a deinit that looks here, so they go when the queue is as if they had never been.
        var messages = MessageQueue<Message>()
        beginDropping()
        swap(&queue, &messages)
        abandon()
    }

    override func attempt(isSend: Bool, _ slot: UnsafeMutableRawPointer) -> TrySendResult {
        let slot = slot.assumingMemoryBound(to: Message?.self)
        return isSend ? trySend(from: slot) : tryReceive(into: slot)
    }

    @inlinable
    override init(limit: Int, isShared: Bool) { super.init(limit: limit, isShared: isShared) }
}
