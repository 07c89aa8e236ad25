// SPDX-License-Identifier: Apache-2.0

// Messages between fibers of all workers and plain threads, through channels and select, with deadlines, and channels that are closed on the way.

import Fibers
import Glibc

extension Account {
    static let channelMessages = Account("messages through channels", "sent", "received")
}

extension Kind {
    static let talking = Kind("talking", weight: 20, accounts: [.channelMessages]) { job in
        let capacities: [ChannelCapacity] = [.rendezvous, .bounded(1), .bounded(16), .unbounded]
        let (first, firstEnd) = makeChannel(of: UInt64.self, capacities[job.random(0...3)])
        let (second, secondEnd) = makeChannel(of: UInt64.self, capacities[job.random(0...3)])
        let (sent, received) = (Sum(), Sum())
        let receivers = try (0..<job.random(1...4)).map { _ in
            let ends = Ends(firstEnd.share(), secondEnd.share())
            return try job.spawn(on: job.somewhere()) { try receive($0, ends, received) }
        }
        let senders = try (0..<job.random(1...4)).map { _ in
            let count = job.random(1...40)
            return try job.spawn(on: job.somewhere()) { try send($0, count, first, second, sent) }
        }
        // Threads wait without parking, and are woken all the same.
        let ends = Ends(firstEnd.share(), secondEnd.share())
        let seed = job.random(0...UInt64.max)
        if job.chance(4) {
            job.step("send from a thread")
            try withBlockingThread(name: "sends to fibers") {
                for i in UInt64(0)..<10 where try passOn(seed &+ i, first, second) { noteSent(seed &+ i, sent) }
            }
        }
        if job.chance(3) {
            try job.pause()
            first.close()
        }
        for sender in senders { try sender.join() }
        first.close()
        second.close()
        for receiver in receivers { try receiver.join() }
        try receive(job, ends, received)
        try Violation.unless(sent.value == received.value, "what was received is not what was sent")
    }

    /// What was sent or received, in sum and number.
    private final class Sum: Sendable {
        private let sum = Guarded<(UInt64, Int)>((0, 0))
        func add(_ number: UInt64) {
            sum.withLock { $0 = ($0.0 &+ number, $0.1 + 1) }
        }

        var value: [UInt64] { [sum.value.0, UInt64(sum.value.1)] }
    }

    /// The ends of two channels, on their way to whoever owns them.
    private final class Ends: @unchecked Sendable {
        let (first, second): (Receiver<UInt64>, Receiver<UInt64>)
        init(_ first: consuming Receiver<UInt64>, _ second: consuming Receiver<UInt64>) { (self.first, self.second) = (first, second) }
    }

    /// False when it was handed back.
    private static func passOn(_ number: UInt64, _ first: Sender<UInt64>, _ second: Sender<UInt64>) throws -> Bool {
        try select {
            first.onSend(number) {
                true
            } closed: {
                false
            }
            second.onSend(number) {
                true
            } closed: {
                false
            }
        }
    }

    private static func send(_ job: Job, _ count: Int, _ first: Sender<UInt64>, _ second: Sender<UInt64>, _ sent: Sum) throws {
        for _ in 0..<count {
            let number = job.random(0...UInt64.max)
            if job.chance(3) { try job.pause() }
            job.step("send a message")
            let sender = job.chance(2) ? first : second
            var isSent = false
            do {
                switch job.random(0...3) {
                case 0: isSent = try passOn(number, first, second)
                case 1: isSent = sender.trySend(number) == .sent
                case 2:
                    try withTimeout(.microseconds(job.random(0...300))) { try sender.send(number) }
                    isSent = true
                default:
                    var message: UInt64? = number
                    do { try sender.send(moving: &message) } catch {
                        try Violation.unless(message == number, "a send has failed, and its message is gone")
                        throw error
                    }
                    try Violation.unless(message == nil, "a message was sent and is still there")
                    isSent = true
                }
            } catch is TimeoutError {
                Count.expectedErrors += 1
                continue
            } catch is ChannelClosedError {
                Count.expectedErrors += 1
                continue
            }
            guard isSent else { continue }
            noteSent(number, sent)
        }
    }

    private static func noteSent(_ number: UInt64, _ sent: Sum) {
        Account.channelMessages.left += 1
        sent.add(number)
    }

    private static func receive(_ job: Job, _ ends: Ends, _ received: Sum) throws {
        var isOpen = (true, true)
        func note(_ number: UInt64) {
            Account.channelMessages.right += 1
            received.add(number)
        }
        while isOpen.0 || isOpen.1 {
            if job.chance(4) { try job.pause() }
            job.step("receive a message")
            let limit = job.chance(3) ? Duration.microseconds(job.random(0...300)) : nil
            do {
                switch job.random(0...2) {
                case 0 where isOpen.0:
                    // Not without end: senders may all want to send to the other.
                    if let number = try withTimeout(limit ?? .milliseconds(1), { try ends.first.receive() }) {
                        note(number)
                    } else {
                        isOpen.0 = false
                    }
                case 1 where isOpen.1:
                    switch ends.second.tryReceive() {
                    case .message(let number): note(number)
                    case .empty: Fiber.yield()
                    case .ended: isOpen.1 = false
                    }
                default:
                    try withTimeout(limit) {
                        try select {
                            if isOpen.0 {
                                ends.first.onReceive {
                                    note($0)
                                } end: {
                                    isOpen.0 = false
                                }
                            }
                            if isOpen.1 {
                                ends.second.onReceive {
                                    note($0)
                                } end: {
                                    isOpen.1 = false
                                }
                            }
                        }
                    }
                }
            } catch is TimeoutError { Count.expectedErrors += 1 }
        }
    }
}
