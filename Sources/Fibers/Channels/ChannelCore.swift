// SPDX-License-Identifier: Apache-2.0

// What a channel does, for one worker or for all: messages in a queue, senders in line for room in it, receivers in line for messages.
//
// Invariants, whenever nobody has a lock:
//   * a receiver waits only while there is no message, neither in the queue nor with a sender in line;
//   * a sender waits only while the queue is full (one without places always is), and the channel is open;
//   * a message is in exactly one place: with its sender, in the queue, or with its receiver. It moves once from a sender to a waiting receiver, and from a waiting
//     sender into the queue or to a receiver;
//   * who waits has a slot: a sender's has the message, a receiver's is uninitialised. Whoever claims the wait moves the message, and the one who waited knows by that;
//   * a place in the queue belongs to whoever has taken it, with the lock of its end, until he has let go of that lock.
//
// A bounded channel of all workers, of up to 64 KB, is a ring with two locks, one for senders and one for receivers, so that the two sides need not wait for each other:
//   * the quick way, while nobody of the other side is in line, takes one of them, and touches what belongs to that end alone: it looks at the other's count, moves a message, and then lets its
//     own be seen;
//   * all else takes both, the senders' first;
//   * the lines, and whether the channel is closed, change only with both, so either is enough to look. Who stands in line therefore has seen all that was done in the quick way, and is seen by
//     all who come after.
//
// The class without the type of the message does all but the moves, so that little is made anew for each type.
// One worker, or any thread: see `WaitPoint`.

import CFiber
import Synchronization

@usableFromInline
class ChannelBase: WaitPoint {
    @exclusivity(unchecked) private final var isClosed = false
    @exclusivity(unchecked) private final var receiverCount: Int32 = 1
    private final let stride: UInt32
    /// Of what is not divided; else it knows the limit alone.
    @exclusivity(unchecked) private final var queue: MessageQueue
    /// Behind the first word the places of a small ring.
    private final var near: (UInt, UInt, UInt, UInt)

    private static var offsetOfPlaces: Int { 128 }
    private static var bytesOfPlaces: Int { 24 }

    /// How many messages the queue may hold: 0 for a rendezvous, `Int.max` without a limit.
    @usableFromInline final var limit: Int { queue.limit }
    /// Of what is divided.
    private final var ring: DividedRing {
        @inline(__always) get { DividedRing(over: sides, limit: queue.limit, stride: Int(stride)) }
    }
    /// The number of messages: exact for a caller that may read both ends, a hint for any other.
    private final var number: Int {
        @inline(__always) get { isDivided ? ring.count : queue.count }
    }
    private final var hasRoom: Bool {
        @inline(__always) get { number < limit }
    }

    private final var senders: Line { first }
    private final var receivers: Line { second }

    /// What a call finds when it comes: a message to be moved and what is to be done then, or nothing.
    @usableFromInline
    struct Step: BitwiseCopyable {
        /// Where to move the message to, or from where; nil when there is nothing to be moved.
        @usableFromInline let slot: UnsafeMutableRawPointer?
        /// What `finish` has to do then, or why there is nothing to be moved.
        @usableFromInline let rest: UInt

        fileprivate static var sent: UInt { 1 }
        fileprivate static var received: UInt { 2 }
        /// Neither of both, but all is done except to give the one lock back.
        fileprivate static var taken: UInt { 3 }
        /// Beside the address of a sender's place: there is room for its message now.
        fileprivate static var refill: UInt { 1 }

        /// The message has been moved by somebody else, or cannot be.
        @inline(__always)
        fileprivate init(_ outcome: Outcome) {
            slot = nil
            rest = UInt(outcome.rawValue)
        }

        @inline(__always)
        fileprivate init(_ slot: UnsafeMutableRawPointer?, _ rest: UInt = 0) {
            self.slot = slot
            self.rest = rest
        }

        /// It could only wait, and must not.
        fileprivate static var none: Step { Step(.timedOut) }
        fileprivate var outcome: Outcome { Outcome(rawValue: UInt8(truncatingIfNeeded: rest)).unsafelyUnwrapped }

        /// The move is not all.
        @inlinable @inline(__always)
        var isUnfinished: Bool { rest != 0 }
        /// It has waited, and somebody else has moved the message.
        @inlinable @inline(__always)
        var isMoved: Bool { rest == 0 }
        @inlinable @inline(__always)
        var isClosed: Bool { rest == 1 }
    }

    @usableFromInline
    init(limit: Int, stride: Int, isShared: Bool) {
        require(limit >= 0, "a channel has room for 0 messages or more, not \(limit)")
        self.stride = UInt32(stride)
        queue = MessageQueue(limit: limit, stride: stride)
        near = (0, 0, 0, 0)
        if isShared && DividedRing.suits(limit: limit, stride: stride) {
            super.init(DividedRing.makeSides(limit: limit, stride: stride))
            return
        }
        super.init(isShared: isShared)
        assert(
            withUnsafeMutablePointer(to: &near) { UnsafeMutableRawPointer($0) } == at(Self.offsetOfPlaces - 8),
            "the compiler has laid out the channel in another way")
        queue.placeNear(UnsafeMutableRawBufferPointer(start: at(Self.offsetOfPlaces), count: Self.bytesOfPlaces))
    }

    override var kind: Kind { Kind(local: "channel of makeLocalChannel", shared: "channel of makeChannel") }

    // Each call is one call of `beginSend`, `beginReceive` or `attempt`, a move of the message, and where somebody else is concerned one call of `finish`.

    // The common way on one worker has no call in it: nobody in line, and room or a message in a block that is there. All others are calls in the last place, and each of those is one function for
    // both directions: where two fibers take turns the CPU guesses that one returns to where the other one did, and each frame in which that is wrong takes as long as a switch.

    /// Begins to send what is in the caller's slot, and waits if that cannot be done at once.
    @usableFromInline
    final func beginSend(_ own: UnsafeMutableRawPointer) -> Step {
        if isShared { return beginShared(isSend: true, own) }
        guard let worker = Worker.current, receivers.pointee.isEmpty && queue.count < queue.limit && queue.hasPlaceReady && !isClosed,
            spendsCall(worker)
        else { return beginLocally(isSend: true, own) }
        return Step(queue.takeReadyPlace())
    }

    /// Begins to receive into the caller's slot, and waits if that cannot be done at once.
    @usableFromInline
    final func beginReceive(_ own: UnsafeMutableRawPointer) -> Step {
        if isShared { return beginShared(isSend: false, own) }
        guard let worker = Worker.current, queue.count > 0 && queue.hasMessageReady && senders.pointee.isEmpty, spendsCall(worker)
        else {
            return beginLocally(isSend: false, own)
        }
        return Step(queue.takeReadyMessage())
    }

    @inline(never)
    private final func beginLocally(isSend: Bool, _ own: UnsafeMutableRawPointer) -> Step {
        if isCallRefused() { return Step(.cancelled) }
        if let step = look(isSend: isSend, isShared: false) { return step }
        return waitInLine(isSend: isSend, own)
    }

    @inline(never)
    private final func waitInLine(isSend: Bool, _ own: UnsafeMutableRawPointer) -> Step {
        Step(waitLocally(Worker.current.unsafelyUnwrapped, in: isSend ? senders : receivers, own, isSend ? .send : .receive))
    }

    @inline(never)
    private final func beginShared(isSend: Bool, _ own: UnsafeMutableRawPointer) -> Step {
        if isCallRefused() { return Step(.cancelled) }
        if isDivided {
            var mayCome = false
            if let step = lookAside(isSend: isSend, &mayCome) { return step }
            if mayCome, watch(isSend: isSend), let step = lookAside(isSend: isSend, &mayCome) { return step }
            lock()
            if let step = lookShared(isSend: isSend) { return step }
        } else {
            lock()
            if let step = lookShared(isSend: isSend) { return step }
            if limit > 0, Worker.current?.maySpin ?? false {
                unlock()
                _ = watch(isSend: isSend)
                lock()
                if let step = lookShared(isSend: isSend) { return step }
            }
        }
        return Step(wait(in: isSend ? senders : receivers, slot: own, isSend ? .send : .receive))
    }

    private final func lookShared(isSend: Bool) -> Step? { look(isSend: isSend, isShared: true) }

    /// Why a call has come to nothing that is not over because of the channel.
    @usableFromInline
    final func refusal(_ step: Step) -> any Error {
        do {
            try Worker.here("a call").check(step.outcome)
        } catch {
            return error
        }
        misuse("a call on a channel came to nothing without a reason")
    }

    /// As the two above, for calls that do not wait.
    @usableFromInline
    final func attempt(isSend: Bool) -> Step {
        requireWorker()
        lock()
        if let step = look(isSend: isSend, isShared: isShared) { return step }
        unlock()
        return .none
    }

    /// What can be done at once; nil if nothing can. With the lock held, which then it is still, and else only as long as the move needs it.
    @inline(__always)
    private final func look(isSend: Bool, isShared: Bool) -> Step? {
        if isSend {
            if _slowPath(isClosed) { return leaveClosed() }
            if let receiver = claimFirst(of: receivers, isShared: isShared) { return meet(receiver, isShared: isShared) }
            return (isShared ? hasRoom : queue.count < queue.limit) ? takeSlot(isSend: true, isShared: isShared) : nil
        }
        if (isShared ? number : queue.count) > 0 {
            guard let sender = claimFirst(of: senders, isShared: isShared) else { return takeSlot(isSend: false, isShared: isShared) }
            let slot = isShared && isDivided ? ring.take(isSend: false) : queue.takeFront()
            return Step(slot, UInt(bitPattern: sender) | Step.refill)
        }
        if let sender = claimFirst(of: senders, isShared: isShared) { return meet(sender, isShared: isShared) }
        return isClosed ? leaveClosed() : nil
    }

    private final func leaveClosed() -> Step {
        unlock()
        return Step(.closed)
    }

    /// Somebody who waits, and is claimed. On one worker nobody runs before the message has been moved.
    @inline(__always)
    private final func meet(_ place: PlacePointer, isShared: Bool) -> Step {
        if isShared {
            unlock()
            return Step(place.pointee.slot, UInt(bitPattern: place))
        }
        resumeLocally(place)
        return Step(place.pointee.slot)
    }

    /// A place in the queue, which others see when the move is over, and until then one lock is held. On one worker nobody looks before.
    @inline(__always)
    private final func takeSlot(isSend: Bool, isShared: Bool) -> Step {
        if isShared && isDivided {
            let slot = ring.take(isSend: isSend)
            // From here on it is the quick way.
            unlockSide(isSecond: isSend)
            return Step(slot, isSend ? Step.sent : Step.received)
        }
        let slot = isSend ? queue.takeBack() : queue.takeFront()
        return isShared ? Step(slot, Step.taken) : Step(slot)
    }

    /// The quick way with two locks; nil, and no lock, when it must be the other one: then, too, whether what is missing may come from the other side.
    @inline(__always)
    private final func lookAside(isSend: Bool, _ mayCome: inout Bool) -> Step? {
        lockSide(isSecond: !isSend)
        let isQuick = isQuick(isSend: isSend)
        if isQuick && (ring.isKnownReady(isSend: isSend) || askOtherSide(isSend: isSend)) {
            return Step(ring.take(isSend: isSend), isSend ? Step.sent : Step.received)
        }
        mayCome = isQuick && !isClosed
        unlockSide(isSecond: !isSend)
        return nil
    }

    @inline(__always)
    private final func isQuick(isSend: Bool) -> Bool { isSend ? receivers.pointee.isEmpty && !isClosed : senders.pointee.isEmpty }

    /// Whether there is room, or a message, when what was known of it has been used up. With the lock of the own side.
    ///
    /// Where both sides are as fast, one follows at the other's heels: each message is in the cache of the other CPU, and so is the count, and both take three times as long. So whoever finds few, and
    /// had not to wait for them, leaves the other side alone for a moment, in which that gets ahead by dozens.
    @inline(never)
    private final func askOtherSide(isSend: Bool) -> Bool {
        let ring = ring
        var number = ring.ask(isSend: isSend)
        if number > 0 && number < min(16, limit / 8) && !ring.wasInVain(isSend: isSend), let worker = Worker.current, worker.mayPause {
            unlockSide(isSecond: !isSend)
            for _ in 0..<pauses { cfiber_relax() }
            lockSide(isSecond: !isSend)
            guard isQuick(isSend: isSend) else { return false }
            number = ring.ask(isSend: isSend)
        }
        ring.setInVain(number <= 0, isSend: isSend)
        return number > 0
    }

    /// Between two looks at the other side: what it takes that to use up half of the room.
    private final var pauses: Int { min(64, limit / 2 + 1) }

    /// Where the other side is at work on another worker, to wait for it takes less than to park and to be sent home. True when it has done something.
    @inline(__always)
    private final func watch(isSend: Bool) -> Bool {
        guard limit > 0, let worker = Worker.current, worker.maySpin else { return false }
        return worker.spin(every: pauses) { isSend ? hasRoom : number > 0 }
    }

    /// After the move: lets others see it, and lets the one go on who was met.
    @usableFromInline
    final func finish(_ step: Step) {
        switch step.rest {
        case 0: return
        case Step.sent:
            ring.noteDone(isSend: true)
            unlockSide(isSecond: false)
        case Step.received:
            ring.noteDone(isSend: false)
            unlockSide(isSecond: true)
        case Step.taken: unlock()
        default:
            let place = PlacePointer(bitPattern: step.rest & ~Step.refill).unsafelyUnwrapped
            if step.rest & Step.refill != 0 {
                let message = place.pointee.slot.unsafelyUnwrapped
                if isDivided {
                    ring.noteDone(isSend: false)
                    move(from: message, to: ring.take(isSend: true))
                    ring.noteDone(isSend: true)
                } else {
                    move(from: message, to: queue.takeBack())
                }
                unlock()
            }
            resume(place)
        }
    }

    fileprivate func move(from: UnsafeMutableRawPointer, to: UnsafeMutableRawPointer) {
        misuse("a channel without messages was used")
    }

    // In a select.

    /// Does without waiting what an arm is there for.
    func attempt(isSend: Bool, _ own: UnsafeMutableRawPointer) -> TrySendResult {
        misuse("a channel without messages was used")
    }

    /// With the lock held.
    final func isReady(isSend: Bool) -> Bool {
        if isClosed { return true }
        return isSend ? hasRoom || !receivers.pointee.isEmpty : number > 0 || !senders.pointee.isEmpty
    }

    final func makePlace(_ wait: UnsafeMutablePointer<Wait>, isSend: Bool, _ slot: UnsafeMutableRawPointer) -> Place {
        Place(wait, self, isSend ? senders : receivers, slot, 1)
    }

    // Ending.

    @usableFromInline
    final func stopWithoutMessage() -> Never { misuse("send(moving:) was given nil: put a message there; it is nil once it has been sent") }

    /// Counts a call that must not wait.
    @usableFromInline
    final func chargeTry() { chargeCaller() }

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

    /// Says how many messages are left that nobody will receive: none as long as there are other receivers. Nothing is counted any more afterwards, and nobody else comes.
    @usableFromInline
    final func removeReceiver() -> Int {
        let isLast = withLock {
            receiverCount -= 1
            return receiverCount == 0
        }
        guard isLast else { return 0 }
        close()
        return withLock {
            guard isDivided else { return queue.forgetAll() }
            let count = ring.count
            ring.noteDone(isSend: false, count)
            return count
        }
    }

    /// Where one of those is.
    @usableFromInline
    final func nextLeftover() -> UnsafeMutableRawPointer { isDivided ? ring.take(isSend: false) : queue.takeForgotten() }

    deinit { queue.freeBlocks(near: at(Self.offsetOfPlaces)) }

    /// How many stand in line, for tests and diagnostics; among them those whose wait has ended and that have not left yet.
    final var waiting: (senders: Int, receivers: Int) { withLock { (senders.pointee.count, receivers.pointee.count) } }

    @usableFromInline
    final var hasClosed: Bool { withLock { isClosed } }
    @usableFromInline
    final var messageCount: Int { withLock { number } }
    final var spareBlocks: Int { Int(queue.spares) }
}

// Its ends say where they may go.
extension ChannelBase: @unchecked Sendable {}

@usableFromInline
final class ChannelCore<Message: ~Copyable>: ChannelBase, @unchecked Sendable {
    @usableFromInline typealias Slot = UnsafeMutablePointer<Message>

    /// Sends a message, which is nil then; false, with the message, when the channel is closed. It has it, too, when it throws.
    @inlinable @inline(__always)
    func send(from message: inout Message?) throws -> Bool {
        var isSent = true
        try withSlot(for: Message.self) { own in
            own.initialize(to: message.take()!)
            let step = beginSend(UnsafeMutableRawPointer(own))
            if let slot = step.slot {
                slot.bindMemory(to: Message.self, capacity: 1).moveInitialize(from: own, count: 1)
                if step.isUnfinished { finish(step) }
            } else if !step.isMoved {
                message = own.move()
                isSent = false
                if !step.isClosed { throw refusal(step) }
            }
        }
        return isSent
    }

    @inlinable
    func trySend(from message: inout Message?) -> TrySendResult {
        var result = TrySendResult.sent
        withSlot(for: Message.self) { own in
            own.initialize(to: message.take()!)
            result = attempt(isSend: true, UnsafeMutableRawPointer(own))
            if result != .sent { message = own.move() }
        }
        return result
    }

    /// The next message; nil when there will be none.
    @inlinable @inline(__always)
    func receive() throws -> Message? {
        var message: Message? = nil
        try withSlot(for: Message.self) { own in
            let step = beginReceive(UnsafeMutableRawPointer(own))
            if let slot = step.slot {
                message = slot.assumingMemoryBound(to: Message.self).move()
                if step.isUnfinished { finish(step) }
            } else if step.isMoved {
                message = own.move()
            } else if !step.isClosed {
                throw refusal(step)
            }
        }
        return message
    }

    /// The next message if there is one, and what was found.
    @inlinable
    func tryReceive(into message: inout Message?) -> TrySendResult {
        var result = TrySendResult.sent
        withSlot(for: Message.self) { own in
            result = attempt(isSend: false, UnsafeMutableRawPointer(own))
            if result == .sent { message = own.move() }
        }
        return result
    }

    /// A receiver has gone; with the last one go the messages. What they own may have a deinit that looks here: the queue is as if they had never been.
    @usableFromInline
    func dropReceiver() {
        for _ in 0..<removeReceiver() { nextLeftover().assumingMemoryBound(to: Message.self).deinitialize(count: 1) }
    }

    @usableFromInline
    override func attempt(isSend: Bool, _ own: UnsafeMutableRawPointer) -> TrySendResult {
        let step = attempt(isSend: isSend)
        defer { chargeTry() }
        guard let slot = step.slot else { return step.isClosed ? .closed : .full }
        if isSend { move(from: own, to: slot) } else { move(from: slot, to: own) }
        if step.isUnfinished { finish(step) }
        return .sent
    }

    override func move(from: UnsafeMutableRawPointer, to: UnsafeMutableRawPointer) {
        to.bindMemory(to: Message.self, capacity: 1).moveInitialize(from: from.assumingMemoryBound(to: Message.self), count: 1)
    }

    @inlinable
    init(limit: Int, isShared: Bool) {
        super.init(limit: limit, stride: MemoryLayout<Message>.stride, isShared: isShared)
    }
}
