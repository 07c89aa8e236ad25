// SPDX-License-Identifier: Apache-2.0

// `select` and its arms, as users write them.
//
// The handlers stay in the frame of the call, and only records without them are given to `Selection`: so the optimiser sees all that becomes of them, and no context of theirs is
// allocated. That is why everything here is inlined.

/// One of the things that ``select(_:)`` waits for. Made by ``ChannelReceiver/onReceive(_:end:)``, ``ChannelSender/onSend(_:_:closed:)``, ``onTimeout(_:_:)``, ``Ticker/onTick(_:)``,
/// ``onCancellation(_:)`` and ``otherwise(_:)``.
public protocol SelectArm<Result>: ~Copyable {
    associatedtype Result

    /// Bytes that it needs while it waits.
    static var _space: Int { get }
    /// Lays itself out.
    mutating func _begin(_ memory: UnsafeMutableRawPointer, _ selection: inout _Selection)
    /// It, or one inside it, has happened: calls the handler.
    mutating func _finish(_ memory: UnsafeMutableRawPointer, _ happened: UnsafeMutableRawPointer) throws -> Result
    /// It has not.
    mutating func _discard(_ memory: UnsafeMutableRawPointer)
}

/// The arms of a select that runs, for ``SelectArm``.
public struct _Selection {
    @usableFromInline var selection = Selection()

    @usableFromInline
    init() {}
}

/// Waits until one of several things can happen, lets it happen, and calls its handler.
///
/// ```swift
/// try select {
///     jobs.onReceive { job in try work(job) } end: { isRunning = false }
///     results.onSend(result) { result = next() }
///     onTimeout(.seconds(1)) { log("nothing to do") }
/// }
/// ```
///
/// If several are ready, each is as likely as any other; a timeout happens only where nothing else can. Exactly one happens: of those that do not, no message is received, and none is sent. The same channel may stand in several arms, and also
/// in one that sends and one that receives: these two never meet each other. With `if` an arm can be left out.
///
/// An arm whose channel is closed, and has no message left, calls its `end:` or `closed:`; without one it is as if it were not there, and when that is so of all the select throws
/// ``ChannelClosedError``.
///
/// The arms lie on the stack, up to a kilobyte of them (eight or so), and in optimised builds nothing is allocated. On a thread outside a runtime it blocks; all channels must then be of
/// ``makeChannel(of:_:)``.
///
/// - Returns: what the handler returns.
/// - Throws: what the handler throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, unless there is an ``onCancellation(_:)``, and then nothing has happened.
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

/// Two arms, or more, of which one may happen.
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

/// An arm that is there only sometimes.
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

/// Receives a message.
public struct ReceiveArm<Message: ~Copyable, Result>: SelectArm {
    /// The end itself, which closes the channel when nobody has it any more.
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

/// Sends a message.
public struct SendArm<Message: ~Copyable, Result>: SelectArm, ~Copyable {
    /// The end itself, which closes the channel when nobody has it any more.
    @usableFromInline let sender: ChannelSender<Message>
    /// By its full name, since `Message?` would be nil first, which takes much code where a message is large.
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

/// What has no message: a time that comes, a cancellation, or nothing else at all.
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
    /// In ``select(_:)``: the next message.
    ///
    /// - Parameters:
    ///   - received: gets the message.
    ///   - end: called when the channel is closed and all messages have been received. Without it the arm then never happens.
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
    ///   - message: what to send.
    ///   - sent: called when it has been sent.
    ///   - closed: called when the channel is closed, and the message not sent. Without it the arm then never happens.
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
    ///   - message: what to send.
    ///   - unsent: gets the message back when it was not sent, before the handler of what happened instead is called. Not where an arm behind this one throws while it is being made: then
    ///     nothing has begun, and the message goes with its arm.
    ///   - sent: called when it has been sent.
    ///   - closed: called when the channel is closed. Without it the arm then never happens.
    @inlinable @inline(__always)
    public final func onSend<Result>(
        moving message: consuming Message, unsent: @escaping (consuming Message) -> Void, _ sent: @escaping () throws -> Result,
        closed: (() throws -> Result)? = nil
    ) -> SendArm<Message, Result> {
        SendArm(self, message, sent, closed, unsent)
    }
}

/// In ``select(_:)``: happens when nothing else has for a time. Zero or less has passed at once, nil never does.
///
/// A timeout comes last: where an arm can happen when the select begins, that one does, however short the time is, and only ``otherwise(_:)`` has to stand back.
@inlinable @inline(__always)
public func onTimeout<Result>(_ limit: Duration?, _ handler: @escaping () throws -> Result) -> PlainArm<Result> {
    PlainArm(ArmRecord(.timeout, after: limit), handler)
}

/// In ``select(_:)``: happens at an instant, which is turned into a time from now. For a time that runs on from one select to the next.
///
/// Once the instant has come the arm is ready, and as likely as any other that is, so that a channel which always has a message does not hide it for ever.
@inlinable @inline(__always)
public func onDeadline<Result>(_ instant: ContinuousClock.Instant, _ handler: @escaping () throws -> Result) -> PlainArm<Result> {
    PlainArm(ArmRecord(.deadline, at: instant), handler)
}

/// In ``select(_:)``: happens when the fiber is cancelled, by whatever, in place of an error. What the handler does may park only in ``withCancellationShield(_:)``.
@inlinable @inline(__always)
public func onCancellation<Result>(_ handler: @escaping () throws -> Result) -> PlainArm<Result> {
    PlainArm(ArmRecord(.cancellation), handler)
}

/// In ``select(_:)``: happens when nothing else can at once, so that the call never waits. A loop over it lets other fibers run now and then.
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
