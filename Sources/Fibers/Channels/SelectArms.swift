// SPDX-License-Identifier: Apache-2.0

// The public API of `select` and its arms.
//
// The handlers stay in the frame of the call; `Selection` gets only records without them. The optimiser can therefore follow every use of a
// handler and need not allocate its context. That is why everything here is inlined.

/// An event that ``select(_:)`` waits for. Made by ``ChannelReceiver/onReceive(_:end:)``, ``ChannelSender/onSend(_:_:closed:)``,
/// ``onTimeout(_:_:)``, ``Ticker/onTick(_:)``, ``onCancellation(_:)`` and ``otherwise(_:)``.
public protocol SelectArm<Result>: ~Copyable {
    associatedtype Result

    /// The memory in bytes that the arm needs while it waits.
    static var _space: Int { get }
    /// Writes the arm's record to memory and adds it to the selection.
    mutating func _begin(_ memory: UnsafeMutableRawPointer, _ selection: inout _Selection)
    /// Called when this arm, or an arm inside it, has happened. Calls the handler.
    mutating func _finish(_ memory: UnsafeMutableRawPointer, _ happened: UnsafeMutableRawPointer) throws -> Result
    /// Called when this arm has not happened.
    mutating func _discard(_ memory: UnsafeMutableRawPointer)
}

/// The arms of a running select, for ``SelectArm``.
public struct _Selection {
    @usableFromInline var selection = Selection()

    @usableFromInline
    init() {}
}

/// Waits until one of several events can happen, lets it happen, and calls its handler.
///
/// ```swift
/// try select {
///     jobs.onReceive { job in try work(job) } end: { isRunning = false }
///     results.onSend(result) { result = next() }
///     onTimeout(.seconds(1)) { log("nothing to do") }
/// }
/// ```
///
/// If several arms are ready, each is equally likely to be chosen; a timeout happens only when no other arm can. Exactly one arm happens;
/// the other arms neither receive nor send a message. The same channel may appear in several arms, even in one that sends and one that
/// receives: these two never meet each other. An `if` can leave out an arm.
///
/// An arm whose channel is closed, and has no messages left, calls its `end:` or `closed:` handler. Without such a handler the arm is
/// ignored. If that leaves no arm that can happen, the select throws ``ChannelClosedError``.
///
/// The arms lie on the stack, up to a kilobyte of them (about eight arms), and optimised builds allocate nothing. On a thread outside a
/// runtime the call blocks; all channels must then be made by ``makeChannel(of:_:)``.
///
/// - Returns: the result of the handler.
/// - Throws: the error of the handler; `CancellationError` or ``TimeoutError`` when the fiber is cancelled and there is no
///   ``onCancellation(_:)``. No arm has happened then.
/// - Note: parks
@inlinable @inline(__always)
@discardableResult
public func select<Arms: SelectArm & ~Copyable>(@SelectBuilder _ arms: () throws -> Arms) throws -> Arms.Result {
    var arms = try arms()
    return try withUnsafeTemporaryAllocation(byteCount: Arms._space, alignment: 16) { memory in
        let memory = memory.baseAddress.unsafelyUnwrapped
        var selection = _Selection()
        arms._begin(memory, &selection)
        let happened: ArmPointer
        do {
            happened = try selection.selection.run()
        } catch {
            arms._discard(memory)
            throw error
        }
        return try arms._finish(memory, UnsafeMutableRawPointer(happened))
    }
}

@resultBuilder
public enum SelectBuilder {
    @inlinable @inline(__always)
    public static func buildPartialBlock<Arm: SelectArm & ~Copyable>(first: consuming Arm) -> Arm { first }

    @inlinable @inline(__always)
    public static func buildPartialBlock<First: SelectArm & ~Copyable, Second: SelectArm & ~Copyable>(
        accumulated: consuming First, next: consuming Second
    ) -> ArmPair<First, Second> where First.Result == Second.Result {
        ArmPair(first: accumulated, second: next)
    }

    @inlinable @inline(__always)
    public static func buildOptional<Arm: SelectArm & ~Copyable>(_ arm: consuming Arm?) -> OptionalArm<Arm> { OptionalArm(arm: arm) }
}

/// Two or more arms, of which one may happen.
public struct ArmPair<First: SelectArm & ~Copyable, Second: SelectArm & ~Copyable>: SelectArm, ~Copyable
where First.Result == Second.Result {
    public typealias Result = First.Result

    @usableFromInline var first: First
    @usableFromInline var second: Second

    @inlinable @inline(__always)
    init(first: consuming First, second: consuming Second) {
        self.first = first
        self.second = second
    }

    @inlinable @inline(__always)
    public static var _space: Int { First._space &+ Second._space }

    @inlinable @inline(__always)
    public mutating func _begin(_ memory: UnsafeMutableRawPointer, _ selection: inout _Selection) {
        first._begin(memory, &selection)
        second._begin(memory + First._space, &selection)
    }

    @inlinable @inline(__always)
    public mutating func _finish(_ memory: UnsafeMutableRawPointer, _ happened: UnsafeMutableRawPointer) throws -> Result {
        let (one, other) = (memory, memory + First._space)
        if happened < other {
            second._discard(other)
            return try first._finish(one, happened)
        }
        first._discard(one)
        return try second._finish(other, happened)
    }

    @inlinable @inline(__always)
    public mutating func _discard(_ memory: UnsafeMutableRawPointer) {
        first._discard(memory)
        second._discard(memory + First._space)
    }
}

/// An arm that is present only if a condition holds.
public struct OptionalArm<Arm: SelectArm & ~Copyable>: SelectArm, ~Copyable {
    public typealias Result = Arm.Result

    @usableFromInline var arm: Arm?

    @inlinable @inline(__always)
    init(arm: consuming Arm?) { self.arm = arm }

    @inlinable @inline(__always)
    public static var _space: Int { Arm._space }

    @inlinable @inline(__always)
    public mutating func _begin(_ memory: UnsafeMutableRawPointer, _ selection: inout _Selection) { arm?._begin(memory, &selection) }

    @inlinable @inline(__always)
    public mutating func _finish(_ memory: UnsafeMutableRawPointer, _ happened: UnsafeMutableRawPointer) throws -> Result {
        try arm!._finish(memory, happened)
    }

    @inlinable @inline(__always)
    public mutating func _discard(_ memory: UnsafeMutableRawPointer) { arm?._discard(memory) }
}

/// An arm that receives a message.
public struct ReceiveArm<Message: ~Copyable, Result>: SelectArm {
    /// The receiving or sending end itself, not the core: retaining the end keeps the channel open while the select runs.
    @usableFromInline let receiver: ChannelReceiver<Message>
    @usableFromInline let received: (consuming Message) throws -> Result
    @usableFromInline let ended: (() throws -> Result)?

    @inlinable @inline(__always)
    init(_ receiver: ChannelReceiver<Message>, _ received: @escaping (consuming Message) throws -> Result, _ ended: (() throws -> Result)?)
    {
        self.receiver = receiver
        self.received = received
        self.ended = ended
    }

    @inlinable @inline(__always)
    public static var _space: Int { ArmRecord.space(slot: MemoryLayout<Message>.stride) }

    @inlinable @inline(__always)
    public mutating func _begin(_ memory: UnsafeMutableRawPointer, _ selection: inout _Selection) {
        let arm = memory.initializeMemory(
            as: ArmRecord.self, to: ArmRecord(.receive, receiver.core, slot: memory + ArmRecord.offsetOfSlot, wantsEnd: ended != nil))
        selection.selection.add(arm)
    }

    @inlinable @inline(__always)
    public mutating func _finish(_ memory: UnsafeMutableRawPointer, _ happened: UnsafeMutableRawPointer) throws -> Result {
        let arm = memory.assumingMemoryBound(to: ArmRecord.self)
        if arm.pointee.hasEnded { return try ended.unsafelyUnwrapped() }
        return try received(Self.slot(arm).move())
    }

    @inlinable @inline(__always)
    public mutating func _discard(_ memory: UnsafeMutableRawPointer) {}

    @inlinable @inline(__always)
    static func slot(_ arm: ArmPointer) -> UnsafeMutablePointer<Message> {
        arm.pointee.slot.unsafelyUnwrapped.bindMemory(to: Message.self, capacity: 1)
    }
}

/// An arm that sends a message.
public struct SendArm<Message: ~Copyable, Result>: SelectArm, ~Copyable {
    /// The receiving or sending end itself, not the core: retaining the end keeps the channel open while the select runs.
    @usableFromInline let sender: ChannelSender<Message>
    /// Written as `Optional<Message>` because a `Message?` property would first be initialised to nil, which takes much code for a large
    /// message.
    @usableFromInline var message: Optional<Message>
    @usableFromInline let sent: () throws -> Result
    @usableFromInline let closed: (() throws -> Result)?
    @usableFromInline let unsent: ((consuming Message) -> Void)?

    @inlinable @inline(__always)
    init(
        _ sender: ChannelSender<Message>, _ message: consuming Message, _ sent: @escaping () throws -> Result,
        _ closed: (() throws -> Result)?,
        _ unsent: ((consuming Message) -> Void)?
    ) {
        self.sender = sender
        self.message = wrapped(message)
        self.sent = sent
        self.closed = closed
        self.unsent = unsent
    }

    @inlinable @inline(__always)
    public static var _space: Int { ArmRecord.space(slot: MemoryLayout<Message>.stride) }

    @inlinable @inline(__always)
    public mutating func _begin(_ memory: UnsafeMutableRawPointer, _ selection: inout _Selection) {
        let arm = memory.initializeMemory(
            as: ArmRecord.self, to: ArmRecord(.send, sender.core, slot: memory + ArmRecord.offsetOfSlot, wantsEnd: closed != nil))
        unwrap(&message, to: Self.slot(arm))
        selection.selection.add(arm)
    }

    @inlinable @inline(__always)
    public mutating func _finish(_ memory: UnsafeMutableRawPointer, _ happened: UnsafeMutableRawPointer) throws -> Result {
        let arm = memory.assumingMemoryBound(to: ArmRecord.self)
        if !arm.pointee.hasEnded { return try sent() }
        handBack(arm)
        return try closed.unsafelyUnwrapped()
    }

    @inlinable @inline(__always)
    public mutating func _discard(_ memory: UnsafeMutableRawPointer) { handBack(memory.assumingMemoryBound(to: ArmRecord.self)) }

    @inlinable @inline(__always)
    func handBack(_ arm: ArmPointer) {
        let message = Self.slot(arm).move()
        if let unsent { unsent(message) }
    }

    @inlinable @inline(__always)
    static func slot(_ arm: ArmPointer) -> UnsafeMutablePointer<Message> {
        arm.pointee.slot.unsafelyUnwrapped.bindMemory(to: Message.self, capacity: 1)
    }
}

/// An arm without a message: a timeout, a deadline, a cancellation, `otherwise`, or `never`.
public struct PlainArm<Result>: SelectArm {
    @usableFromInline let record: ArmRecord
    @usableFromInline let handler: () throws -> Result

    @inlinable @inline(__always)
    init(_ record: ArmRecord, _ handler: @escaping () throws -> Result) {
        self.record = record
        self.handler = handler
    }

    @inlinable @inline(__always)
    public static var _space: Int { ArmRecord.space(slot: 0) }

    @inlinable @inline(__always)
    public mutating func _begin(_ memory: UnsafeMutableRawPointer, _ selection: inout _Selection) {
        selection.selection.add(memory.initializeMemory(as: ArmRecord.self, to: record))
    }

    @inlinable @inline(__always)
    public mutating func _finish(_ memory: UnsafeMutableRawPointer, _ happened: UnsafeMutableRawPointer) throws -> Result { try handler() }

    @inlinable @inline(__always)
    public mutating func _discard(_ memory: UnsafeMutableRawPointer) {}
}

extension ChannelReceiver where Message: ~Copyable {
    /// In ``select(_:)``: receives the next message.
    ///
    /// - Parameters:
    ///   - received: the handler, which gets the message.
    ///   - end: called when the channel is closed and every message has been received. Without it, the arm never happens then.
    @inlinable @inline(__always)
    public final func onReceive<Result>(
        _ received: @escaping (consuming Message) throws -> Result, end: (() throws -> Result)? = nil
    ) -> ReceiveArm<Message, Result> {
        ReceiveArm(self, received, end)
    }
}

extension ChannelSender {
    /// In ``select(_:)``: sends a message, unless another arm happens.
    ///
    /// - Parameters:
    ///   - message: the message.
    ///   - sent: called after the message has been sent.
    ///   - closed: called when the channel is closed and the message was not sent. Without it, the arm never happens then.
    @inlinable @inline(__always)
    public final func onSend<Result>(
        _ message: Message, _ sent: @escaping () throws -> Result, closed: (() throws -> Result)? = nil
    ) -> SendArm<Message, Result> {
        SendArm(self, message, sent, closed, nil)
    }
}

extension ChannelSender where Message: ~Copyable {
    /// In ``select(_:)``: sends a message that cannot be copied, unless another arm happens.
    ///
    /// - Parameters:
    ///   - message: the message.
    ///   - unsent: gets the message back if it was not sent, before the handler of the arm that happened instead is called. It is not
    ///     called if making a later arm throws: the select has not begun then, and the message is destroyed with its arm.
    ///   - sent: called after the message has been sent.
    ///   - closed: called when the channel is closed. Without it, the arm never happens then.
    @inlinable @inline(__always)
    public final func onSend<Result>(
        moving message: consuming Message, unsent: @escaping (consuming Message) -> Void, _ sent: @escaping () throws -> Result,
        closed: (() throws -> Result)? = nil
    ) -> SendArm<Message, Result> {
        SendArm(self, message, sent, closed, unsent)
    }
}

/// In ``select(_:)``: happens when no other arm has happened for the given time. A time of zero or less has passed at once; nil never
/// passes.
///
/// A timeout has the lowest priority except for ``otherwise(_:)``: if another arm can happen when the select begins, that arm happens,
/// however short the time is.
@inlinable @inline(__always)
public func onTimeout<Result>(_ limit: Duration?, _ handler: @escaping () throws -> Result) -> PlainArm<Result> {
    PlainArm(ArmRecord(.timeout, after: limit), handler)
}

/// In ``select(_:)``: happens at an instant, which is converted to a time from now. Use it for a deadline that spans several selects.
///
/// Once the instant has passed, the arm is as likely to be chosen as any other ready arm, so a channel that always has a message cannot
/// starve it.
@inlinable @inline(__always)
public func onDeadline<Result>(_ instant: ContinuousClock.Instant, _ handler: @escaping () throws -> Result) -> PlainArm<Result> {
    PlainArm(ArmRecord(.deadline, at: instant), handler)
}

/// In ``select(_:)``: happens when the fiber is cancelled, for any reason, instead of an error being thrown. The handler may park only in
/// ``withCancellationShield(_:)``.
@inlinable @inline(__always)
public func onCancellation<Result>(_ handler: @escaping () throws -> Result) -> PlainArm<Result> {
    PlainArm(ArmRecord(.cancellation), handler)
}

/// In ``select(_:)``: happens when no other arm can happen at once, so that the call never waits. A loop over such a select yields to other
/// fibers from time to time.
@inlinable @inline(__always)
public func otherwise<Result>(_ handler: @escaping () throws -> Result) -> PlainArm<Result> { PlainArm(ArmRecord(.otherwise), handler) }

/// In ``select(_:)``: never happens.
@inlinable @inline(__always)
public func never<Result>(_: Result.Type = Void.self) -> PlainArm<Result> {
    PlainArm(ArmRecord(.never)) { misuse("what never happens has happened") }
}

extension ArmRecord {
    @usableFromInline
    init(_ kind: Kind, after time: Duration?) { self.init(kind, deadline: Deadline.after(time)) }

    @usableFromInline
    init(_ kind: Kind, at instant: ContinuousClock.Instant) { self.init(kind, after: Deadline.distance(to: instant)) }
}
