// SPDX-License-Identifier: Apache-2.0

// Channels on one worker, and those between workers as one worker sees them.

import CFaults
import CFiber
import Fibers
import Glibc
import Testing

/// Both kinds of channel, by their common ends.
enum ChannelKind: CaseIterable {
    case local, shared

    func make<Message: Sendable>(
        of _: Message.Type = Message.self, _ capacity: ChannelCapacity
    ) -> (ChannelSender<Message>, ChannelReceiver<Message>) {
        switch self {
        case .local:
            let (sender, receiver) = makeLocalChannel(of: Message.self, capacity)
            return (sender, receiver)
        case .shared:
            let (sender, receiver) = makeChannel(of: Message.self, capacity)
            return (sender, receiver)
        }
    }
}

/// Cannot be copied, and counts its ends.
struct Parcel: ~Copyable, Sendable {
    let number: Int
    private let ends: Counter

    init(_ number: Int, _ ends: Counter) {
        self.number = number
        self.ends = ends
    }

    deinit { ends.add() }
}

let capacities: [ChannelCapacity] = [.rendezvous, .bounded(1), .bounded(3), .bounded(1000), .unbounded]

extension KernelTests {
    @Suite struct ChannelTests {
        @Test(arguments: ChannelKind.allCases, capacities)
        func messages_comeInOrder(kind: ChannelKind, capacity: ChannelCapacity) throws {
            let n = 5_000
            var received: [Int] = []
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, capacity)
                try Fiber.spawnLocal {
                    for i in 0..<n { try sender.send(i) }
                    sender.close()
                }
                while let message = try receiver.receive() { received.append(message) }
            }
            #expect(received == Array(0..<n))
        }

        @Test(arguments: ChannelKind.allCases)
        func send_waitsForAReceiver_inARendezvous(kind: ChannelKind) throws {
            var log: [String] = []
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .rendezvous)
                let other = try Fiber.spawnLocal {
                    log.append("sending")
                    try sender.send(7)
                    log.append("sent")
                }
                for _ in 0..<5 { Fiber.yield() }
                log.append("receiving")
                log.append("\(try receiver.receive() ?? 0)")
                try other.join()
            }
            #expect(log == ["sending", "receiving", "7", "sent"])
        }

        @Test(arguments: ChannelKind.allCases)
        func send_waits_whenTheChannelIsFull(kind: ChannelKind) throws {
            var sent = 0
            var counts: [Int] = []
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .bounded(3))
                try Fiber.spawnLocal {
                    for i in 0..<6 {
                        try sender.send(i)
                        sent += 1
                    }
                    sender.close()
                }
                for _ in 0..<5 { Fiber.yield() }
                counts.append(sent)
                counts.append(receiver.count)
                _ = try receiver.receive()
                Fiber.yield()
                counts.append(sent)
                counts.append(receiver.count)
                while try receiver.receive() != nil {}
                counts.append(sent)
                counts.append(receiver.count)
            }
            #expect(counts == [3, 3, 4, 3, 6, 0])
        }

        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(1)])
        func sendersAndReceivers_haveTheirTurn_inTheOrderInWhichTheyCame(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var (received, order): ([Int], [Int]) = ([], [])
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, capacity)
                for i in 0..<10 { try Fiber.spawnLocal { try sender.send(i) } }
                Fiber.yield()
                for _ in 0..<10 { received.append(try receiver.receive() ?? -1) }
                for i in 0..<10 {
                    try Fiber.spawnLocal {
                        _ = try receiver.receive()
                        order.append(i)
                    }
                }
                Fiber.yield()
                for i in 0..<10 { try sender.send(i) }
                #expect(yield { order.count == 10 })
            }
            #expect(received == Array(0..<10))
            #expect(order == Array(0..<10))
        }

        // Closing.

        @Test(arguments: ChannelKind.allCases, capacities)
        func loop_ends_whenTheLastSenderHasGone(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var received: [Int] = []
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, capacity)
                for i in 0..<3 { try Fiber.spawnLocal { [sender] in for j in 0..<3 { try sender.send(i * 3 + j) } } }
                _ = consume sender
                for message in receiver { received.append(message) }
            }
            #expect(received.sorted() == Array(0..<9))
        }

        @Test(arguments: ChannelKind.allCases)
        func receivers_haveWhatWasSentBefore_whenTheChannelIsClosed(kind: ChannelKind) throws {
            var received: [Int?] = []
            var back: Int?
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .bounded(3))
                try sender.send(1)
                try sender.send(2)
                receiver.close()
                var third: Int? = 3
                do { try sender.send(moving: &third) } catch is ChannelClosedError { back = third }
                for _ in 0..<4 { received.append(try receiver.receive()) }
                let isClosed = sender.isClosed && receiver.isClosed
                #expect(isClosed)
                let result = sender.trySend(4)
                #expect(result == .closed)
                sender.close()
            }
            #expect(received == [1, 2, nil, nil])
            #expect(back == 3)
        }

        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(1)])
        func waitingSenders_haveTheirMessagesBack_whenTheChannelIsClosed(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var back: [Int] = []
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, capacity)
                for i in 0..<5 {
                    try Fiber.spawnLocal {
                        var message: Int? = i
                        do { try sender.send(moving: &message) } catch is ChannelClosedError { back.append(message ?? -1) }
                    }
                }
                Fiber.yield()
                receiver.close()
                #expect(yield { back.count == (capacity == .rendezvous ? 5 : 4) })
                #expect(sender.waiting == (0, 0))
            }
            #expect(back == (capacity == .rendezvous ? [0, 1, 2, 3, 4] : [1, 2, 3, 4]))
        }

        @Test(arguments: ChannelKind.allCases, capacities)
        func waitingReceivers_seeTheEnd_whenTheChannelIsClosed(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var ends = 0
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, capacity)
                for _ in 0..<5 { try Fiber.spawnLocal { if try receiver.receive() == nil { ends += 1 } } }
                Fiber.yield()
                sender.close()
                #expect(yield { ends == 5 })
            }
        }

        @Test(arguments: ChannelKind.allCases)
        func channel_closes_andDropsItsMessages_whenTheLastReceiverHasGone(kind: ChannelKind) throws {
            let ends = Counter()
            var result: TrySendResult?
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Mark.self, .bounded(5))
                try sender.send(Mark(ends))
                try sender.send(Mark(ends))
                _ = consume receiver
                #expect(ends.value == 2)
                result = sender.trySend(Mark(ends))
            }
            #expect(result == .closed)
            #expect(ends.value == 3)
        }

        @Test func channel_closes_whenTheLastOfSeveralReceiversHasGone() throws {
            var results: [TrySendResult] = []
            try FiberRuntime.run {
                let (sender, receiver) = makeChannel(of: Int.self, .unbounded)
                let other = receiver.share()
                _ = consume receiver
                results.append(sender.trySend(1))
                _ = consume other
                results.append(sender.trySend(1))
            }
            #expect(results == [.sent, .closed])
        }

        @Test(arguments: ChannelKind.allCases)
        func deinitOfAMessage_mayUseTheChannel_thatDropsIt(kind: ChannelKind) throws {
            final class Curious: @unchecked Sendable {
                var sender: ChannelSender<Curious>?
                let seen: Box<Bool?>
                init(_ sender: ChannelSender<Curious>, _ seen: Box<Bool?>) { (self.sender, self.seen) = (sender, seen) }
                deinit { seen.value = sender?.isClosed }
            }
            let seen = Box<Bool?>(nil)
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Curious.self, .bounded(2))
                try sender.send(Curious(sender, seen))
                _ = consume receiver
            }
            #expect(seen.value == true)
        }

        // Calls that do not wait.

        @Test(arguments: ChannelKind.allCases)
        func trySend_andTryReceive_sayWhatTheyFound(kind: ChannelKind) throws {
            var sends: [TrySendResult] = []
            var receives: [String] = []
            func note(_ result: consuming TryReceiveResult<Int>) {
                switch consume result {
                case .message(let message): receives.append("\(message)")
                case .empty: receives.append("empty")
                case .ended: receives.append("ended")
                }
            }
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .bounded(1))
                note(receiver.tryReceive())
                sends.append(sender.trySend(1))
                sends.append(sender.trySend(2))
                note(receiver.tryReceive())
                note(receiver.tryReceive())
                sends.append(sender.trySend(3))
                sender.close()
                sends.append(sender.trySend(4))
                note(receiver.tryReceive())
                note(receiver.tryReceive())

                let (meeting, other) = kind.make(of: Int.self, .rendezvous)
                sends.append(meeting.trySend(1))
                let waiting = try Fiber.spawnLocal { try other.receive() }
                Fiber.yield()
                sends.append(meeting.trySend(5))
                receives.append("\(try waiting.join() ?? 0)")
                note(other.tryReceive())
                try Fiber.spawnLocal { try meeting.send(6) }
                Fiber.yield()
                note(other.tryReceive())
            }
            #expect(sends == [.sent, .full, .sent, .closed, .full, .sent])
            #expect(receives == ["empty", "1", "empty", "3", "ended", "5", "empty", "6"])
        }

        @Test func capacity_isWhatWasAskedFor() throws {
            try FiberRuntime.run {
                let found = capacities.map { makeLocalChannel(of: Int.self, $0).0.capacity }
                #expect(found == [0, 1, 3, 1000, nil])
            }
        }

        // What cannot be copied.

        @Test(arguments: [false, true], capacities)
        func parcels_areMoved_andEndOnce(isShared: Bool, capacity: ChannelCapacity) throws {
            let n = 1_000
            let ends = Counter()
            var numbers: [Int] = []
            try FiberRuntime.run {
                let sender: ChannelSender<Parcel>
                let receiver: ChannelReceiver<Parcel>
                if isShared {
                    (sender, receiver) = makeChannel(of: Parcel.self, capacity)
                } else {
                    (sender, receiver) = makeLocalChannel(of: Parcel.self, capacity)
                }
                try Fiber.spawnLocal {
                    for i in 0..<n {
                        var parcel: Parcel? = Parcel(i, ends)
                        try sender.send(moving: &parcel)
                        if parcel != nil { break }
                    }
                    sender.close()
                }
                while let parcel = try receiver.receive() { numbers.append(parcel.number) }
            }
            #expect(numbers == Array(0..<n))
            #expect(ends.value == n)
        }

        @Test(arguments: [false, true])
        func parcel_staysWithItsSender_whenItWasNotSent(isShared: Bool) throws {
            let ends = Counter()
            var kept: [Int] = []
            try FiberRuntime.run {
                let sender: ChannelSender<Parcel>
                let receiver: ChannelReceiver<Parcel>
                if isShared {
                    (sender, receiver) = makeChannel(of: Parcel.self, .bounded(1))
                } else {
                    (sender, receiver) = makeLocalChannel(of: Parcel.self, .bounded(1))
                }
                func attempt(_ number: Int, _ send: (inout Parcel?) throws -> Void) {
                    var parcel: Parcel? = Parcel(number, ends)
                    do { try send(&parcel) } catch { kept.append(number) }
                    if let parcel { kept.append(parcel.number) }
                }
                attempt(1) { try sender.send(moving: &$0) }
                attempt(2) { parcel in try withTimeout(.zero) { try sender.send(moving: &parcel) } }
                attempt(3) { _ = sender.trySend(moving: &$0) }
                receiver.close()
                attempt(4) { try sender.send(moving: &$0) }
                _ = receiver.count
            }
            #expect(kept == [2, 2, 3, 4, 4])
            #expect(ends.value == 4)
        }

        // Cancellation.

        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(1)])
        func cancelledSender_sendsNothing_andOthersKeepTheirOrder(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var received: [Int] = []
            var errors = 0
            var left = (senders: -1, receivers: -1)
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, capacity)
                if capacity != .rendezvous { try sender.send(-1) }
                let fibers = try (0..<6).map { i in
                    try Fiber.spawnLocal { do { try sender.send(i) } catch is CancellationError { errors += 1 } }
                }
                Fiber.yield()
                for i in [0, 3, 5] { fibers[i].cancel() }
                Fiber.yield()
                left = sender.waiting
                for _ in 0..<(capacity == .rendezvous ? 3 : 4) { received.append(try receiver.receive() ?? -2) }
            }
            #expect(errors == 3)
            #expect(left == (3, 0))
            #expect(received == (capacity == .rendezvous ? [1, 2, 4] : [-1, 1, 2, 4]))
        }

        @Test(arguments: ChannelKind.allCases, capacities)
        func cancelledReceiver_losesNoMessage(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var received: Int?
            var left = (senders: -1, receivers: -1)
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, capacity)
                let impatient = try Fiber.spawnLocal { try receiver.receive() }
                let patient = try Fiber.spawnLocal { try receiver.receive() }
                Fiber.yield()
                // In the moment between the two it is claimed, and still in line.
                impatient.cancel()
                try sender.send(5)
                #expect(throws: CancellationError.self) { try impatient.join() }
                received = try patient.join()
                left = sender.waiting
            }
            #expect(received == 5)
            #expect(left == (0, 0))
        }

        @Test(arguments: ChannelKind.allCases)
        func deadline_endsTheWait(kind: ChannelKind) throws {
            var messages: [String] = []
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .rendezvous)
                do { try withTimeout(.milliseconds(2)) { _ = try receiver.receive() } } catch { messages.append("\(error)") }
                do { try withTimeout(.milliseconds(2)) { try sender.send(1) } } catch { messages.append("\(error)") }
                #expect(sender.waiting == (0, 0))
            }
            #expect(messages == ["timed out after 0.002 seconds (a message)", "timed out after 0.002 seconds (room in a channel)"])
        }

        @Test(arguments: ChannelKind.allCases)
        func cancelledFiber_neitherSendsNorReceives_evenIfItNeedNotWait(kind: ChannelKind) throws {
            var count = -1
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .unbounded)
                try sender.send(1)
                let fiber = try Fiber.spawnLocal {
                    var errors = 0
                    do { try sender.send(2) } catch is CancellationError { errors += 1 }
                    do { _ = try receiver.receive() } catch is CancellationError { errors += 1 }
                    for _ in receiver { errors += 10 }
                    return errors
                }
                fiber.cancel()
                let errors = try fiber.join()
                #expect(errors == 2)
                count = receiver.count
            }
            #expect(count == 1)
        }

        // Living with others.

        @Test(arguments: ChannelKind.allCases)
        func others_haveTheirTurn_whileOneAlwaysFindsRoom(kind: ChannelKind) throws {
            var turns = 0
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .unbounded)
                let other = try Fiber.spawnLocal { while true { turns += 1; try Fiber.checkCancellation(); Fiber.yield() } }
                for i in 0..<100_000 { try sender.send(i) }
                for _ in 0..<100_000 { _ = try receiver.receive() }
                other.cancel()
            }
            #expect(turns > 100)
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"), arguments: ChannelKind.allCases, capacities)
        func messages_allocateNothing_onceTheBlocksAreThere(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var count = -1
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, capacity)
                var isRunning = true
                let burst = capacity == .unbounded ? 300 : 10
                try Fiber.spawnLocal {
                    while isRunning {
                        for i in 0..<burst { try sender.send(i) }
                        Fiber.yield()
                    }
                    sender.close()
                }
                for _ in 0..<10_000 { _ = try receiver.receive() }
                count = try allocations { for _ in 0..<10_000 { _ = try receiver.receive() } }
                isRunning = false
                while try receiver.receive() != nil {}
            }
            #expect(count == 0)
        }

        @Test(.enabled(if: !isSanitized, "sanitizers keep memory"))
        func blocks_areUsedAgain_andFewAreKept_afterThePeak() throws {
            var growth: [Int] = []
            var spares: [Int] = []
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: (Int, Int, Int, Int).self, .unbounded)
                for _ in 0..<3 {
                    let before = Process.residentBytes
                    for i in 0..<1_000_000 { try sender.send((i, i, i, i)) }
                    growth.append(Process.residentBytes - before)
                    for i in 0..<1_000_000 { if try receiver.receive()?.0 != i { throw TestError() } }
                    spares.append(receiver.spareBlocks)
                }
            }
            // The first peak may find memory that earlier tests have left behind; the third finds that of the second.
            #expect(growth[2] < 5_000_000)
            #expect(spares.allSatisfy { 1...16 ~= $0 })
        }

        @Test func message_ofAnySizeAndAlignment_isCarried() throws {
            struct Large: Equatable {
                var words: InlineArray<300, Int>; static func == (a: Large, b: Large) -> Bool { a.words[299] == b.words[299] }
            }
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: Large.self, .bounded(3))
                let (empty, nothing) = makeLocalChannel(of: Void.self, .bounded(2000))
                let (wide, vectors) = makeLocalChannel(of: SIMD64<UInt8>.self, .unbounded)
                for i in 0..<100 {
                    try sender.send(Large(words: .init(repeating: i)))
                    try wide.send(.init(repeating: UInt8(i)))
                    let isRight = try receiver.receive() == Large(words: .init(repeating: i))
                    #expect(isRight)
                }
                for i in 0..<100 {
                    let isRight = try vectors.receive() == .init(repeating: UInt8(i))
                    #expect(isRight)
                }
                for _ in 0..<1000 { try empty.send(()) }
                empty.close()
                var count = 0
                for _ in nothing { count += 1 }
                #expect(count == 1000)
            }
        }

        @Test func reason_isTold_inTimeouts() {
            #expect(WaitReason.select.description == "one of several things")
        }

        #if compiler(>=6.2)
            @Test(.enabled(if: !isSanitized, "a child under a sanitizer may hang at its end"))
            func misuse_stopsTheProgram_withARemedy() async {
                let bounded = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    _ = makeLocalChannel(of: Int.self, .bounded(0))
                }
                expectMessage(bounded, "for none say .rendezvous")
                let local = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        _ = try makeLocalChannel(of: Int.self, .rendezvous).1.receive()
                    }
                }
                expectMessage(local, "use the one without Local")
            }
        #endif
    }
}

/// Can be copied, and counts its ends.
final class Mark: Sendable {
    private let ends: Counter
    init(_ ends: Counter) { self.ends = ends }
    deinit { ends.add() }
}
