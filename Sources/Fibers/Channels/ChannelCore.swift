// SPDX-License-Identifier: Apache-2.0

// The core of a channel, local or shared: a queue of messages, a wait queue of senders that need room, and a wait queue of receivers that
// need messages.
//
// Invariants, whenever no lock is held:
//   * A receiver waits only while there is no message, neither in the queue nor with a waiting sender.
//   * A sender waits only while the queue is full (a rendezvous always is) and the channel is open.
//   * A message is in exactly one place: with its sender, in the queue, or with its receiver. It moves once from a sender to a waiting
//     receiver, and from a waiting sender into the queue or to a receiver.
//   * Every waiter has a slot. A sender's slot holds the message; a receiver's slot is uninitialised. The caller that claims the wait moves
//     the message, and the outcome tells the waiter that it was moved.
//   * A queue slot belongs to the caller that took it with the lock of its end held, until that caller releases the lock.
//
// A bounded shared channel of up to 64 KB is a ring with two locks, one for senders and one for receivers, so that the two sides do not
// wait for each other:
//   * The fast path applies while no waiter of the other side is queued. It takes one lock and touches only the state of that end: it reads
//     the other end's count, moves a message, and then publishes its own count.
//   * The slow path takes both locks, the senders' first.
//   * The wait queues and `isClosed` change only with both locks held, so holding either one is enough to read them. A waiter therefore has
//     seen the effects of all earlier fast-path calls, and all later fast-path calls see the waiter.
//
// The base class, which is not generic, does everything but the moves, so that little code is specialised for each message type.
// Runs on one worker or on any thread: see `WaitPoint`.

import CFiber
import Synchronization

@usableFromInline
class ChannelBase: WaitPoint {
    @exclusivity(unchecked) private final var isClosed = false
    @exclusivity(unchecked) private final var receiverCount: Int32 = 1
    private final let stride: UInt32
    /// The queue of a channel that is not divided. In a divided channel only its limit is used.
    @exclusivity(unchecked) private final var queue: MessageQueue
    /// Inline slots of a small ring, after the first word.
    private final var near: (UInt, UInt, UInt, UInt)

    private static var offsetOfPlaces: Int { 128 }
    private static var bytesOfPlaces: Int { 24 }

    /// The maximum number of messages in the queue: 0 for a rendezvous, `Int.max` if unbounded.
    @usableFromInline final var limit: Int { queue.limit }
    /// The ring of a divided channel.
    private final var ring: DividedRing {
        @inline(__always) get { DividedRing(over: sides, limit: queue.limit, stride: Int(stride)) }
    }
    /// The number of messages: exact for a caller that may read both ends, a hint for any other caller.
    private final var number: Int {
        @inline(__always) get { isDivided ? ring.count : queue.count }
    }
    private final var hasRoom: Bool {
        @inline(__always) get { number < limit }
    }

    private final var senders: Line { first }
    private final var receivers: Line { second }

    /// The result of a call's first look: a message to move and the work to do after the move, or nothing to move.
    @usableFromInline
    struct Step: BitwiseCopyable {
        /// The address to move the message to, or from; nil when there is nothing to move.
        @usableFromInline let slot: UnsafeMutableRawPointer?
        /// The work for `finish`, or the reason why there is nothing to move.
        @usableFromInline let rest: UInt

        fileprivate static var sent: UInt { 1 }
        fileprivate static var received: UInt { 2 }
        /// Only the lock of an undivided channel remains to be released.
        fileprivate static var taken: UInt { 3 }
        /// A flag beside the address of a waiting sender: the queue now has room for its message.
        fileprivate static var refill: UInt { 1 }

        /// Nothing to move: another caller has moved the message, or the call failed.
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

        /// The call could only wait, and must not.
        fileprivate static var none: Step { Step(.timedOut) }
        fileprivate var outcome: Outcome { Outcome(rawValue: UInt8(truncatingIfNeeded: rest)).unsafelyUnwrapped }

        /// `finish` must be called after the move.
        @inlinable @inline(__always)
        var isUnfinished: Bool { rest != 0 }
        /// The caller has waited, and another caller has moved the message.
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

    // Each operation is one call of `beginSend`, `beginReceive` or `attempt`, then the move of the message, and then one call of `finish`
    // if other callers are concerned.

    // The local fast path makes no calls: no waiter on the other side, and room or a message in the current block. Every other path is a
    // tail call of one function for both directions. When two fibers alternate, the CPU's return predictor predicts a return into the other
    // fiber's frames, and each mispredicted frame costs as much as a switch.

    /// Begins to send the message in the caller's slot, and waits if that cannot be done at once.
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

    /// The error of a call that failed for a reason other than the state of the channel.
    @usableFromInline
    final func refusal(_ step: Step) -> any Error {
        do {
            try Worker.here("a call").check(step.outcome)
        } catch {
            return error
        }
        misuse("a call on a channel came to nothing without a reason")
    }

    /// The counterpart of `beginSend` and `beginReceive` for calls that do not wait.
    @usableFromInline
    final func attempt(isSend: Bool) -> Step {
        requireWorker()
        lock()
        if let step = look(isSend: isSend, isShared: isShared) { return step }
        unlock()
        return .none
    }

    /// Does what can be done at once; returns nil if nothing can. Called with the lock held. The lock stays held when this returns nil;
    /// otherwise it is held only as long as the move needs it.
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

    /// Meets a waiter that the caller has claimed. A local waiter is resumed already here: on one worker no other fiber runs before the
    /// message has been moved.
    @inline(__always)
    private final func meet(_ place: PlacePointer, isShared: Bool) -> Step {
        if isShared {
            unlock()
            return Step(place.pointee.slot, UInt(bitPattern: place))
        }
        resumeLocally(place)
        return Step(place.pointee.slot)
    }

    /// Takes a slot in the queue. One lock stays held until the move is done, and only then do other callers see the change. A local
    /// channel needs no lock: no other fiber runs before the move is done.
    @inline(__always)
    private final func takeSlot(isSend: Bool, isShared: Bool) -> Step {
        if isShared && isDivided {
            let slot = ring.take(isSend: isSend)
            // From here on this side's lock is enough, as on the fast path.
            unlockSide(isSecond: isSend)
            return Step(slot, isSend ? Step.sent : Step.received)
        }
        let slot = isSend ? queue.takeBack() : queue.takeFront()
        return isShared ? Step(slot, Step.taken) : Step(slot)
    }

    /// The fast path of a divided channel. Returns nil, with no lock held, when the slow path is needed. `mayCome` then tells whether the
    /// other side may still supply the missing room or message.
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

    /// Whether there is room, or a message, once the last known count is used up. The caller holds the lock of its own side.
    ///
    /// When both sides run at the same speed they contend for the same cache lines: each message, and the count, is in the other CPU's
    /// cache, and both sides take three times as long. A caller that finds only a few messages, or little room, and did not have to wait
    /// therefore pauses for a moment, in which the other side gets ahead by dozens.
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

    /// The pause between two reads of the other side's count: the time in which the other side uses up half of the room.
    private final var pauses: Int { min(64, limit / 2 + 1) }

    /// Spins while the other side runs on another worker: that costs less than to park and be sent back to the own worker. Returns true
    /// when the other side has made progress.
    @inline(__always)
    private final func watch(isSend: Bool) -> Bool {
        guard limit > 0, let worker = Worker.current, worker.maySpin else { return false }
        return worker.spin(every: pauses) { isSend ? hasRoom : number > 0 }
    }

    /// Completes a step after the move: publishes the change, releases the lock, and resumes the claimed waiter.
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

    // Select.

    /// Performs the operation of a select arm without waiting.
    func attempt(isSend: Bool, _ own: UnsafeMutableRawPointer) -> TrySendResult {
        misuse("a channel without messages was used")
    }

    /// The caller holds the lock.
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

    /// Closes the channel for sending. Waiting senders keep their messages; waiting receivers see the end.
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

    /// Removes a receiver and returns the number of messages that no receiver can take any more: 0 while there are other receivers. The
    /// messages no longer count as queued, and no other caller uses the queue after that.
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

    /// The address of the next message that no receiver can take.
    @usableFromInline
    final func nextLeftover() -> UnsafeMutableRawPointer { isDivided ? ring.take(isSend: false) : queue.takeForgotten() }

    deinit { queue.freeBlocks(near: at(Self.offsetOfPlaces)) }

    /// The lengths of the wait queues, for tests and diagnostics. They include waiters whose wait has ended and that have not left the
    /// queue yet.
    final var waiting: (senders: Int, receivers: Int) { withLock { (senders.pointee.count, receivers.pointee.count) } }

    @usableFromInline
    final var hasClosed: Bool { withLock { isClosed } }
    @usableFromInline
    final var messageCount: Int { withLock { number } }
    final var spareBlocks: Int { Int(queue.spares) }
}

// Safe because the types of its ends restrict where a channel can be used.
extension ChannelBase: @unchecked Sendable {}

@usableFromInline
final class ChannelCore<Message: ~Copyable>: ChannelBase, @unchecked Sendable {
    @usableFromInline typealias Slot = UnsafeMutablePointer<Message>

    /// Sends a message and sets the variable to nil. Returns false when the channel is closed. When it returns false or throws, the message
    /// is back in the variable.
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

    /// Receives the next message; nil when the channel is closed and empty.
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

    /// Receives the next message if one is available, and reports the result.
    @inlinable
    func tryReceive(into message: inout Message?) -> TrySendResult {
        var result = TrySendResult.sent
        withSlot(for: Message.self) { own in
            result = attempt(isSend: false, UnsafeMutableRawPointer(own))
            if result == .sent { message = own.move() }
        }
        return result
    }

    /// Removes a receiver. With the last receiver the remaining messages are destroyed. Their deinit may use this channel, which is already
    /// empty by then.
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
