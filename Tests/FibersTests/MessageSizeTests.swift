// SPDX-License-Identifier: Apache-2.0

// Messages of no size, of sizes around each limit, and of the widest alignment, by every way on which one can be moved.

import Fibers
import Testing

/// A message of a certain layout that carries a number, or as much of it as fits.
private protocol Sample: Sendable {
    init(_ number: Int)
    /// What is left of the number when it has come through.
    static func rest(of number: Int) -> Int
    var number: Int { get }
}

private struct Nothing: Sample {
    init(_: Int) {}
    static func rest(of _: Int) -> Int { 0 }
    var number: Int { 0 }
}

private struct OneByte: Sample {
    let byte: UInt8
    init(_ number: Int) { byte = UInt8(truncatingIfNeeded: number) }
    static func rest(of number: Int) -> Int { number & 255 }
    var number: Int { Int(byte) }
}

/// Its size, 9, is less than its stride, 16.
private struct Padded: Sample {
    let word: Int
    let byte: UInt8
    init(_ number: Int) { (word, byte) = (number, UInt8(truncatingIfNeeded: number)) }
    static func rest(of number: Int) -> Int { number }
    var number: Int { Int(byte) == word & 255 ? word : -1 }
}

/// Its alignment, 16, is the widest that Swift has.
private struct Wide: Sample {
    let flag: Bool
    let lanes: SIMD4<Int64>
    init(_ number: Int) { (flag, lanes) = (true, SIMD4(repeating: Int64(number))) }
    static func rest(of number: Int) -> Int { number }
    var number: Int { flag && lanes == SIMD4(repeating: lanes[0]) ? Int(lanes[0]) : -1 }
}

/// Has something to let go of.
private struct Texted: Sample {
    let text: String
    init(_ number: Int) { text = "a text that is too long to lie in its place: \(number)" }
    static func rest(of number: Int) -> Int { number }
    var number: Int { text.split(separator: " ").last.flatMap { Int($0) } ?? -1 }
}

#if compiler(>=6.2)
    /// So many bytes, of which the first, those in the middle and the last tell the number.
    private struct Bytes<let count: Int>: Sample {
        var bytes = InlineArray<count, UInt8>(repeating: 0)
        init(_ number: Int) {
            for i in [0, count / 2, count - 1] { bytes[i] = UInt8(truncatingIfNeeded: number) }
        }
        static func rest(of number: Int) -> Int { number & 255 }
        var number: Int { bytes[0] == bytes[count - 1] && bytes[0] == bytes[count / 2] ? Int(bytes[0]) : -1 }
    }
#endif

/// The layouts, for the tests' arguments.
enum MessageLayout: CaseIterable, CustomTestStringConvertible {
    case nothing, oneByte, padded, wide, counted
    /// Beside the most bytes of a slot in the caller's frame and of a block with several places, 1,024, and of a ring between workers, 65,536.
    case kilobyteLessOne, kilobyte, kilobyteAndOne, ringLessOne, ring, ringAndOne
    /// What these cost to compile where their type is known is the matter of LargeMessageTests.
    case quarterOfAMegabyte, megabyte

    var testDescription: String { "\(self)" }

    fileprivate func callAsFunction(_ body: any Body) throws {
        switch self {
        case .nothing: try body.run(Nothing.self)
        case .oneByte: try body.run(OneByte.self)
        case .padded: try body.run(Padded.self)
        case .wide: try body.run(Wide.self)
        case .counted: try body.run(Texted.self)
        default:
            #if compiler(>=6.2)
                switch self {
                case .kilobyteLessOne: try body.run(Bytes<1023>.self)
                case .kilobyte: try body.run(Bytes<1024>.self)
                case .kilobyteAndOne: try body.run(Bytes<1025>.self)
                case .ringLessOne: try body.run(Bytes<65_535>.self)
                case .ring: try body.run(Bytes<65_536>.self)
                case .ringAndOne: try body.run(Bytes<65_537>.self)
                case .quarterOfAMegabyte: try body.run(Bytes<262_144>.self)
                default: try body.run(Bytes<1_048_576>.self)
                }
            #endif
        }
    }
}

/// What is done with messages of a layout.
private protocol Body {
    func run<Message: Sample>(_: Message.Type) throws
}

extension MessageLayout {
    /// The frames of unoptimised code have several copies of a message.
    fileprivate var roomy: FiberRuntime.Configuration {
        .init(workers: 1, stackSize: self == .megabyte || self == .quarterOfAMegabyte ? 128 << 20 : 8 << 20)
    }
}

/// How many of a type are sent: fewer where each takes a while to be copied.
private func number<Message: Sample>(of _: Message.Type) -> Int { MemoryLayout<Message>.size > 100_000 ? 4 : 70 }

/// What comes through channels of all capacities: rendezvous, rings and blocks, with waits on either side.
private struct ThroughChannels: Body {
    let kind: ChannelKind

    func run<Message: Sample>(_: Message.Type) throws {
        let count = number(of: Message.self)
        let capacities: [ChannelCapacity] =
            [.rendezvous, .bounded(2), .unbounded] + (count < 10 ? [] : [.bounded(1), .bounded(63), .bounded(65)])
        for capacity in capacities {
            let (sender, receiver) = kind.make(of: Message.self, capacity)
            let source = try Fiber.spawnLocal {
                for i in 0..<count {
                    if i % 3 == 0 && sender.trySend(Message(i)) == .sent { continue }
                    try sender.send(Message(i))
                }
                sender.close()
            }
            var expected = 0
            while true {
                if expected % 5 == 0, case .message(let message) = receiver.tryReceive() {
                    #expect(message.number == Message.rest(of: expected))
                    expected += 1
                }
                guard let message = try receiver.receive() else { break }
                #expect(message.number == Message.rest(of: expected))
                expected += 1
            }
            #expect(expected == count)
            try source.join()
        }
    }
}

/// Selects that find an arm ready, and selects that have waited, which both send and receive; each beside arms whose records a byte too many would spoil.
private struct ThroughSelect: Body {
    let kind: ChannelKind

    func run<Message: Sample>(_: Message.Type) throws {
        let count = number(of: Message.self)
        for capacity in [ChannelCapacity.rendezvous, .bounded(2)] {
            let (sender, receiver) = kind.make(of: Message.self, capacity)
            let (silentSender, silent) = kind.make(of: Message.self, .rendezvous)
            let source = try Fiber.spawnLocal {
                var sent = 0
                while sent < count {
                    try select {
                        silent.onReceive { _ in recordIssue("nobody has sent that") }
                        sender.onSend(Message(sent)) { sent += 1 }
                        onTimeout(.seconds(1_000)) { recordIssue("late") }
                    }
                    if sent % 4 == 0 { Fiber.yield() }
                }
                sender.close()
            }
            var expected = 0
            var isOpen = true
            while isOpen {
                try select {
                    receiver.onReceive { message in
                        #expect(message.number == Message.rest(of: expected))
                        expected += 1
                    } end: {
                        isOpen = false
                    }
                    silent.onReceive { _ in recordIssue("nobody has sent that") }
                    onTimeout(.seconds(1_000)) { recordIssue("late") }
                }
                if expected % 7 == 0 { Fiber.yield() }
            }
            #expect(expected == count)
            try source.join()
            withExtendedLifetime(silentSender) {}
        }
    }
}

/// One-shots, watches and broadcasts.
private struct ThroughTheOthers: Body {
    let reach: Reach

    func run<Message: Sample>(_: Message.Type) throws {
        for isWaitedFor in [false, true] {
            try passOneShot(Message.self, isWaitedFor)
            try passWatch(Message.self, isWaitedFor)
            for policy in [BroadcastPolicy.wait, .dropOldest] { try passBroadcast(Message.self, policy, isWaitedFor) }
        }
    }

    private func passOneShot<Message: Sample>(_: Message.Type, _ isWaitedFor: Bool) throws {
        let (send, receive): ((Message) -> Void, () throws -> Message)
        switch reach {
        case .local:
            let (sender, receiver) = makeLocalOneShot(of: Message.self)
            (send, receive) = ({ #expect(sender.send($0) == nil) }, receiver.receive)
        case .shared:
            let (sender, receiver) = makeOneShot(of: Message.self)
            (send, receive) = ({ #expect(sender.send($0) == nil) }, receiver.receive)
        }
        if !isWaitedFor { send(Message(200)) }
        let handle = try Fiber.spawnLocal { try receive().number }
        letTheOthersPark()
        if isWaitedFor { send(Message(200)) }
        #expect(try handle.join() == Message.rest(of: 200))
    }

    private func passWatch<Message: Sample>(_: Message.Type, _ isWaitedFor: Bool) throws {
        let (sender, receiver): (WatchSendingEnd<Message>, WatchReceivingEnd<Message>)
        switch reach {
        case .local: (sender, receiver) = makeLocalWatch(Message(1))
        case .shared: (sender, receiver) = makeWatch(Message(1))
        }
        #expect(receiver.value.number == Message.rest(of: 1))
        if !isWaitedFor { sender.send(Message(2)) }
        let handle = try Fiber.spawnLocal { try receiver.changed()?.number }
        letTheOthersPark()
        if isWaitedFor { sender.update { $0 = Message(2) } }
        #expect(try handle.join() == Message.rest(of: 2))
    }

    private func passBroadcast<Message: Sample>(_: Message.Type, _ policy: BroadcastPolicy, _ isWaitedFor: Bool) throws {
        let (sender, receivers): (BroadcastSendingEnd<Message>, [BroadcastReceivingEnd<Message>])
        switch reach {
        case .local:
            let end = makeLocalBroadcast(of: Message.self, capacity: 3, policy)
            (sender, receivers) = (end, [end.subscribe(), end.subscribe()])
        case .shared:
            let end = makeBroadcast(of: Message.self, capacity: 3, policy)
            (sender, receivers) = (end, [end.subscribe(), end.subscribe()])
        }
        let count = min(20, number(of: Message.self))
        func send() throws { for i in 0..<count { try sender.send(Message(i)) } }
        let source = isWaitedFor ? nil : try Fiber.spawnLocal(send)
        let readers = try receivers.map { receiver in
            try Fiber.spawnLocal {
                var next = 0
                while next < count {
                    do {
                        let message = try receiver.receive()
                        #expect(message?.number == Message.rest(of: next))
                        next += 1
                    } catch let lag as LaggedError { next += lag.missed }
                }
            }
        }
        letTheOthersPark()
        if isWaitedFor { try send() }
        try source?.join()
        for reader in readers { try reader.join() }
    }
}

extension KernelTests {
    @Suite struct MessageSizeTests {
        @Test(arguments: ChannelKind.allCases, MessageLayout.allCases)
        func message_ofEachLayout_comesThroughChannels(kind: ChannelKind, layout: MessageLayout) throws {
            try FiberRuntime.run(layout.roomy) { try layout(ThroughChannels(kind: kind)) }
        }

        @Test(arguments: ChannelKind.allCases, MessageLayout.allCases)
        func message_ofEachLayout_comesThroughSelect(kind: ChannelKind, layout: MessageLayout) throws {
            try FiberRuntime.run(layout.roomy) { try layout(ThroughSelect(kind: kind)) }
        }

        @Test(arguments: Reach.allCases, MessageLayout.allCases)
        func message_ofEachLayout_comesThroughTheOthers(reach: Reach, layout: MessageLayout) throws {
            try FiberRuntime.run(layout.roomy) { try layout(ThroughTheOthers(reach: reach)) }
        }

        /// A generic move of a value of no size may write the byte that makes up its stride.
        @Test func arm_hasAByteForAMessage_ofNoSize() {
            #expect(MemoryLayout<Void>.size == 0 && MemoryLayout<Void>.stride == 1)
            #expect(ReceiveArm<Void, Void>._space == ReceiveArm<UInt8, Void>._space)
            #expect(SendArm<Void, Void>._space == SendArm<UInt8, Void>._space)
            // Nor is there less than the stride for one that is padded.
            #expect(ReceiveArm<(Padded, Padded), Void>._space >= ReceiveArm<UInt8, Void>._space + 16)
        }
    }
}
