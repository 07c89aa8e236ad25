// SPDX-License-Identifier: Apache-2.0

// Select over channels whose messages are of all sorts of sizes, from none to more than a slot in the frame holds, with several arms for one channel, beside times that come and go.

import Fibers
import Glibc

extension Account {
    static let chosenMessages = Account("messages chosen by select", "sent", "received")
}

extension Kind {
    static let choosing = Kind("choosing", weight: 12, accounts: [.chosenMessages]) { job in
        let (channels, ends) = (Channels(job), Books())
        let receivers = try (0..<job.random(1...3)).map { _ in
            let own = channels.share()
            return try job.spawn(on: job.somewhere()) { try receive($0, own, ends) }
        }
        let senders = try (0..<job.random(1...3)).map { _ in
            let count = job.random(1...30)
            return try job.spawn(on: job.somewhere()) { try send($0, count, channels, ends) }
        }
        for sender in senders { try sender.join() }
        channels.close()
        for receiver in receivers { try receiver.join() }
        try receive(job, channels.own, ends)
        try Violation.unless(ends.isBalanced, "select has received something else than was sent: \(ends.description)")
    }

    /// Of an odd size, and with a stride that is larger.
    private struct Record: Sendable {
        let word: UInt64
        let byte: UInt8
        init(_ number: UInt8) { (word, byte) = (UInt64(number) &* 0x0101_0101_0101_0101, number) }
        var number: UInt8? { word == UInt64(byte) &* 0x0101_0101_0101_0101 ? byte : nil }
    }

    /// A kilobyte and a half, of the widest alignment.
    private struct Page: Sendable {
        let lanes: (SIMD64<UInt64>, SIMD64<UInt64>, SIMD64<UInt64>)
        init(_ number: UInt8) {
            let lane = SIMD64<UInt64>(repeating: UInt64(number))
            lanes = (lane, lane, lane)
        }
        var number: UInt8? {
            let isWhole = lanes.0 == lanes.1 && lanes.1 == lanes.2 && lanes.0 == SIMD64(repeating: lanes.0[0])
            return isWhole ? UInt8(exactly: lanes.0[0]) : nil
        }
    }

    /// What went through each of the channels, in number and sum, on both sides.
    private final class Books: Sendable {
        private let sums = Guarded<[[UInt64]]>([[UInt64]](repeating: [0, 0, 0, 0], count: 4))

        func note(_ channel: Int, sent number: UInt8) {
            sums.withLock {
                $0[channel][0] += 1; $0[channel][1] += UInt64(number)
            }
            Account.chosenMessages.left += 1
        }

        func note(_ channel: Int, received number: UInt8?) throws {
            guard let number else { throw Violation("a message has come through a select in pieces") }
            sums.withLock {
                $0[channel][2] += 1; $0[channel][3] += UInt64(number)
            }
            Account.chosenMessages.right += 1
        }

        var isBalanced: Bool { sums.value.allSatisfy { $0[0] == $0[2] && $0[1] == $0[3] } }
        var description: String { "\(sums.value)" }
    }

    /// The receiving ends of one fiber.
    private final class Ends: @unchecked Sendable {
        let stops: Receiver<Void>, bytes: Receiver<UInt8>, records: Receiver<Record>, pages: Receiver<Page>
        var isOpen = [true, true, true, true]
        init(
            _ stops: consuming Receiver<Void>, _ bytes: consuming Receiver<UInt8>, _ records: consuming Receiver<Record>,
            _ pages: consuming Receiver<Page>
        ) {
            (self.stops, self.bytes, self.records, self.pages) = (stops, bytes, records, pages)
        }
    }

    private final class Channels: @unchecked Sendable {
        let stops: Sender<Void>, bytes: Sender<UInt8>, records: Sender<Record>, pages: Sender<Page>
        let own: Ends

        init(_ job: Job) {
            func capacity() -> ChannelCapacity { [.rendezvous, .bounded(1), .bounded(16), .unbounded][job.random(0...3)] }
            let (first, second, third, fourth) = (
                makeChannel(of: Void.self, capacity()), makeChannel(of: UInt8.self, capacity()), makeChannel(of: Record.self, capacity()),
                makeChannel(of: Page.self, capacity())
            )
            (stops, bytes, records, pages) = (first.0, second.0, third.0, fourth.0)
            own = Ends(first.1, second.1, third.1, fourth.1)
        }

        func share() -> Ends { Ends(own.stops.share(), own.bytes.share(), own.records.share(), own.pages.share()) }

        func close() {
            stops.close()
            bytes.close()
            records.close()
            pages.close()
        }
    }

    private static func send(_ job: Job, _ count: Int, _ channels: Channels, _ books: Books) throws {
        for _ in 0..<count {
            if job.chance(3) { try job.pause() }
            job.step("send by a select")
            let number = job.random(0...UInt8.max)
            let (hasPage, limit) = (job.chance(3), job.chance(3) ? Duration.microseconds(job.random(-10...300)) : nil)
            try select {
                channels.stops.onSend(()) { books.note(0, sent: 0) }
                channels.bytes.onSend(number) { books.note(1, sent: number) }
                channels.records.onSend(Record(number)) { books.note(2, sent: number) }
                if hasPage {
                    channels.pages.onSend(Page(number)) { books.note(3, sent: number) }
                }
                // Once more, to be served as often as the arm before.
                channels.bytes.onSend(number ^ 1) { books.note(1, sent: number ^ 1) }
                onTimeout(limit) { Count.expectedErrors += 1 }
            }
        }
    }

    private static func receive(_ job: Job, _ ends: Ends, _ books: Books) throws {
        while ends.isOpen.contains(true) {
            if job.chance(4) { try job.pause() }
            job.step("receive by a select")
            let limit = job.chance(3) ? Duration.microseconds(job.random(0...300)) : nil
            let (again, looks) = (job.chance(2), job.chance(5))
            try select {
                if ends.isOpen[0] {
                    ends.stops.onReceive {
                        try books.note(0, received: 0)
                    } end: {
                        ends.isOpen[0] = false
                    }
                }
                if ends.isOpen[1] {
                    ends.bytes.onReceive {
                        try books.note(1, received: $0)
                    } end: {
                        ends.isOpen[1] = false
                    }
                }
                if ends.isOpen[2] {
                    ends.records.onReceive {
                        try books.note(2, received: $0.number)
                    } end: {
                        ends.isOpen[2] = false
                    }
                }
                if ends.isOpen[3] {
                    ends.pages.onReceive {
                        try books.note(3, received: $0.number)
                    } end: {
                        ends.isOpen[3] = false
                    }
                }
                if again && ends.isOpen[0] { ends.stops.onReceive { try books.note(0, received: 0) } }
                if looks { otherwise { Fiber.yield() } }
                onTimeout(limit) { Count.expectedErrors += 1 }
            }
        }
    }
}
