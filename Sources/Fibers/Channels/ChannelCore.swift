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
        /// Room, or a message, in the queue. Locked.
        case queue
        /// Somebody waits for it, and is claimed. Locked.
        case met(PlacePointer)
        /// A message in the queue, and a sender, who is claimed and whose message is to follow. Locked.
        case queueAndSender(PlacePointer)
        /// It has waited, and somebody else has moved the message.
        case moved
        case closed
        /// It must not wait, and could not do otherwise.
        case none
    }

    @usableFromInline
    init(limit: Int, isShared: Bool) {
        require(limit >= 0, "a channel has room for 0 messages or more, not \(limit)")
        self.limit = limit
        isQuick = !isShared && limit > 0
        super.init(isShared: isShared)
    }

    // The common way: on one worker, nobody in line, nothing to do but to put the message into the queue, or to take it.

    /// There is a common way: a queue, and one worker.
    @usableFromInline final let isQuick: Bool

    /// True when the caller may append a message to the queue, which is counted already.
    @usableFromInline
    final func admitsSend() -> Bool {
        guard count < limit && receivers.pointee.isEmpty && !isClosed && spendsCall() else { return false }
        count &+= 1
        return true
    }

    /// True when the caller may take a message from the queue, which is not counted any more.
    @usableFromInline
    final func admitsReceive() -> Bool {
        guard count > 0 && senders.pointee.isEmpty && spendsCall() else { return false }
        count &-= 1
        return true
    }

    // All others. Each call is one call of these and, without another where nobody has to go on, a move of the message.

    /// Begins to send what is in the slot, and waits if that cannot be done at once.
    @usableFromInline
    final func beginSend(_ slot: UnsafeMutableRawPointer) throws -> Step {
        try beginCall()
        lock()
        if let step = look(isSend: true) { return step }
        if watch(for: { count < limit }) {
            lock()
            if let step = look(isSend: true) { return step }
        }
        return try wait(in: senders, slot, .send)
    }

    /// Begins to receive into the slot, and waits if that cannot be done at once. A message in the queue is not counted any more.
    @usableFromInline
    final func beginReceive(_ slot: UnsafeMutableRawPointer) throws -> Step {
        try beginCall()
        lock()
        if let step = look(isSend: false) { return step }
        if watch(for: { count > 0 }) {
            lock()
            if let step = look(isSend: false) { return step }
        }
        return try wait(in: receivers, slot, .receive)
    }

    /// What can be done at once; nil if nothing can. With the lock held.
    @inline(__always)
    private final func look(isSend: Bool) -> Step? {
        if isSend {
            if _slowPath(isClosed) { return leaveClosed() }
            if let receiver = claimFirst(of: receivers) { return .met(receiver) }
            guard count < limit else { return nil }
            count &+= 1
            return .queue
        }
        if count > 0 {
            if let sender = claimFirst(of: senders) { return .queueAndSender(sender) }
            count &-= 1
            return .queue
        }
        if let sender = claimFirst(of: senders) { return .met(sender) }
        return isClosed ? leaveClosed() : nil
    }

    private final func leaveClosed() -> Step {
        unlock()
        return .closed
    }

    /// As the two above, for calls that do not wait.
    @usableFromInline
    final func attempt(isSend: Bool) -> Step {
        requireWorker()
        lock()
        if let step = look(isSend: isSend) { return step }
        unlock()
        return .none
    }

    @inline(__always)
    private final func wait(in line: Line, _ slot: UnsafeMutableRawPointer, _ reason: WaitReason) throws -> Step {
        let outcome = wait(in: line, slot: slot, reason)
        if _fastPath(outcome == .ready) { return .moved }
        try checkWait(outcome)
        return .closed
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

    // In a select.

    /// Does without waiting what an arm is there for.
    func attempt(isSend: Bool, _ slot: UnsafeMutableRawPointer) -> TrySendResult {
        misuse("a channel without messages was used")
    }

    /// With the lock held.
    final func isReady(isSend: Bool) -> Bool {
        if isClosed { return true }
        return isSend ? count < limit || !receivers.pointee.isEmpty : count > 0 || !senders.pointee.isEmpty
    }

    final func makePlace(_ wait: UnsafeMutablePointer<Wait>, isSend: Bool, _ slot: UnsafeMutableRawPointer) -> Place {
        Place(wait, self, isSend ? senders : receivers, slot, 1)
    }

    // Ending.

    /// Lets go of the lock, and lets the one go on who was met.
    @usableFromInline
    final func finish(_ met: PlacePointer) {
        if isShared { unlock() }
        resume(met)
    }

    @usableFromInline
    final func finish() { unlock() }

    @usableFromInline
    final func stopWithoutMessage() -> Never { misuse("send(from:) was given nil: put a message there; it is nil once it has been sent") }

    /// Counts a call that must not wait.
    @usableFromInline
    final func chargeTry() { chargeCaller() }

    /// Takes the lock to take all messages out of the queue. With the lock held until `finish`.
    @usableFromInline
    final func beginDropping() {
        lock()
        count = 0
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
    @exclusivity(unchecked) @usableFromInline var queue: MessageQueue<Message>

    @inlinable
    static func slot(_ place: PlacePointer) -> UnsafeMutablePointer<Message?> {
        place.pointee.slot.unsafelyUnwrapped.assumingMemoryBound(to: Message?.self)
    }

    /// Sends what is in the slot, which is empty then; false when the channel is closed.
    @inlinable @inline(__always)
    func send(from slot: UnsafeMutablePointer<Message?>) throws -> Bool {
        let step = try beginSend(UnsafeMutableRawPointer(slot))
        if case .moved = step { return true }
        return send(from: slot, step) == .sent
    }

    @inlinable
    func trySend(from slot: UnsafeMutablePointer<Message?>) -> TrySendResult {
        let result = send(from: slot, attempt(isSend: true))
        chargeTry()
        return result
    }

    @inlinable @inline(__always)
    func send(from slot: UnsafeMutablePointer<Message?>, _ step: Step) -> TrySendResult {
        switch step {
        case .queue:
            queue.append(slot.pointee.take()!)
            if isShared { finish() }
        case .met(let receiver):
            Self.slot(receiver).pointee = slot.pointee.take()
            finish(receiver)
        case .closed: return .closed
        case .none, .moved, .queueAndSender: return .full
        }
        return .sent
    }

    /// The next message; nil when there will be none.
    @inlinable @inline(__always)
    func receive() throws -> Message? {
        var slot: Message? = nil
        let step = try withUnsafeMutablePointer(to: &slot) { try beginReceive(UnsafeMutableRawPointer($0)) }
        if case .moved = step { return slot }
        return receive(step)
    }

    /// `sent` when there is a message in the slot now, `full` when there was none.
    @inlinable
    func tryReceive(into slot: UnsafeMutablePointer<Message?>) -> TrySendResult {
        let step = attempt(isSend: false)
        defer { chargeTry() }
        switch step {
        case .closed: return .closed
        case .none: return .full
        case .queue, .met, .queueAndSender, .moved:
            slot.pointee = receive(step)
            return .sent
        }
    }

    @inlinable @inline(__always)
    func receive(_ step: Step) -> Message? {
        switch step {
        case .queue:
            let message = queue.popFirst()
            if isShared { finish() }
            return message
        case .queueAndSender(let sender):
            let message = queue.popFirst()
            queue.append(Self.slot(sender).pointee.take()!)
            finish(sender)
            return message
        case .met(let sender):
            let message = Self.slot(sender).pointee.take()
            finish(sender)
            return message
        case .closed, .none, .moved: return nil
        }
    }

    /// A receiver has gone; with the last one go the messages.
    @usableFromInline
    func dropReceiver() {
        guard removeReceiver() else { return }
        // What they own may have a deinit that looks here, so they go when the queue is as if they had never been.
        var messages = MessageQueue<Message>(limit: limit)
        beginDropping()
        swap(&queue, &messages)
        finish()
    }

    override func attempt(isSend: Bool, _ slot: UnsafeMutableRawPointer) -> TrySendResult {
        let slot = slot.assumingMemoryBound(to: Message?.self)
        return isSend ? trySend(from: slot) : tryReceive(into: slot)
    }

    @inlinable
    override init(limit: Int, isShared: Bool) {
        queue = MessageQueue(limit: limit)
        super.init(limit: limit, isShared: isShared)
    }
}
