// SPDX-License-Identifier: Apache-2.0

// Messages in the order in which they came: linked blocks of a fixed size, in which nothing is ever copied. Blocks that have become empty are used again.
//
//     front                                   back
//     ┌─┬──────────┐   ┌─┬──────────┐   ┌─┬──▼───────┐        spare   ┌─┬──────────┐
//     │•┼─   ▓▓▓▓▓▓│──▶│•┼▓▓▓▓▓▓▓▓▓▓│──▶│ │▓▓        │          └───▶ │ │          │
//     └─┴────▲─────┘   └─┴──────────┘   └─┴──────────┘                └─┴──────────┘
//
// A queue with a small limit is a ring: one block with as many places, that follows itself. The smallest lie in the channel itself.
//
// Invariants:
//   * messages lie from the front to the end of its block, in the blocks behind it, and in the last one up to the back; in a ring they may go on at its start;
//   * when the queue becomes empty it starts over at the beginning of its block, so that alternating sends and receives stay in one cache line;
//   * at most `mostSpares` blocks are kept for later;
//   * it takes no memory before the first message.
// It knows places and not types: the caller moves a message there, or from there. The idea of recycled blocks is monoio's local-sync. One call at a time: on the worker of a local channel, or with the
// lock; only `count` may be looked at without.

import Synchronization

/// One cache line, and first what every message needs.
struct MessageQueue: ~Copyable {
    /// The next place, and the end of its block.
    private var back = MessageQueue.nowhere
    private var backEnd = MessageQueue.nowhere
    /// How many messages there are. By a plain load and store, since only one changes it at a time.
    private let number = Atomic<Int>(0)
    /// How many there may be.
    let limit: Int
    /// The next message, and the end of its block.
    private var front = MessageQueue.nowhere
    private var frontEnd = MessageQueue.nowhere
    /// Blocks that wait to be used again.
    private var spare: UnsafeMutableRawPointer?
    private(set) var spares: UInt8 = 0
    private let isRing: Bool
    /// Of a block.
    private let places: UInt16
    /// Bytes from one message to the next.
    private let stride: UInt32

    private static var mostSpares: UInt8 { 16 }
    /// In a block of many: 64 messages, and a kilobyte.
    private static var mostPlaces: Int { 64 }
    private static var mostBytes: Int { 1024 }
    /// Where the places of a block begin; a link to the next block lies before them.
    private static var offset: Int { 16 }
    /// The end of a block that is not there.
    private static var nowhere: UnsafeMutableRawPointer { UnsafeMutableRawPointer(bitPattern: 16).unsafelyUnwrapped }

    /// - Parameter limit: how many messages there may be.
    init(limit: Int, stride: Int) {
        self.limit = limit
        self.stride = UInt32(stride)
        isRing = limit > 0 && limit <= Self.mostBytes / stride
        let places = isRing ? limit : max(1, min(Self.mostPlaces, Self.mostBytes / stride))
        self.places = UInt16(places)
    }

    /// Before the first message: a ring may have its places in memory that is there, if they fit.
    mutating func placeNear(_ memory: UnsafeMutableRawBufferPointer) {
        guard isRing && blockBytes <= memory.count else { return }
        back = memory.baseAddress.unsafelyUnwrapped
        backEnd = back + blockBytes
        (front, frontEnd) = (back, backEnd)
    }

    private var blockBytes: Int {
        @inline(__always) get { Int(places) &* Int(stride) }
    }

    /// How many messages there are.
    var count: Int {
        @inline(__always) get { number.load(ordering: .relaxed) }
    }

    /// Where the next message goes, which has come with that; there must be room.
    @inline(__always)
    mutating func takeBack() -> UnsafeMutableRawPointer {
        if _slowPath(!hasPlaceReady) { addBlock() }
        return takeReadyPlace()
    }

    /// Where the next message is, which has left with that; there must be one.
    @inline(__always)
    mutating func takeFront() -> UnsafeMutableRawPointer {
        if _slowPath(!hasMessageReady) { leaveBlock() }
        return takeReadyMessage()
    }

    // The same, without a call, while the block has more.

    var hasPlaceReady: Bool {
        @inline(__always) get { back != backEnd }
    }
    var hasMessageReady: Bool {
        @inline(__always) get { front != frontEnd }
    }

    @inline(__always)
    mutating func takeReadyPlace() -> UnsafeMutableRawPointer {
        let slot = back
        back = slot + Int(stride)
        number.store(count &+ 1, ordering: .relaxed)
        return slot
    }

    @inline(__always)
    mutating func takeReadyMessage() -> UnsafeMutableRawPointer {
        let slot = front
        front = slot + Int(stride)
        number.store(count &- 1, ordering: .relaxed)
        if front == back {
            front = frontEnd - blockBytes
            back = front
        }
        return slot
    }

    /// Forgets all messages, and says how many there were: so many calls of `takeForgotten` find them.
    mutating func forgetAll() -> Int {
        let count = count
        number.store(0, ordering: .relaxed)
        return count
    }

    mutating func takeForgotten() -> UnsafeMutableRawPointer {
        let slot = takeFront()
        number.store(0, ordering: .relaxed)
        return slot
    }

    // Blocks.

    /// The last block is full, or there is none.
    @inline(never)
    private mutating func addBlock() {
        if isRing && backEnd != Self.nowhere {
            back = backEnd - blockBytes
            return
        }
        let block: UnsafeMutableRawPointer
        if let spare {
            block = spare
            self.spare = Self.next(of: block)
            spares -= 1
        } else {
            block = .allocate(byteCount: Self.offset + blockBytes, alignment: 16)
        }
        Self.link(block, to: nil)
        let slots = block + Self.offset
        if backEnd == Self.nowhere {
            front = slots
            frontEnd = slots + blockBytes
        } else {
            Self.link(self.block(endingAt: backEnd), to: block)
        }
        back = slots
        backEnd = slots + blockBytes
    }

    /// The first block has been emptied, and there is another.
    @inline(never)
    private mutating func leaveBlock() {
        if isRing {
            front = frontEnd - blockBytes
            return
        }
        let block = self.block(endingAt: frontEnd)
        let next = Self.next(of: block).unsafelyUnwrapped
        if spares < Self.mostSpares {
            Self.link(block, to: spare)
            spare = block
            spares += 1
        } else {
            block.deallocate()
        }
        front = next + Self.offset
        frontEnd = front + blockBytes
    }

    /// Gives the blocks back, when the messages are gone and no call comes any more.
    func freeBlocks(near: UnsafeMutableRawPointer) {
        Self.freeBlocks(from: spare)
        if frontEnd != Self.nowhere && frontEnd - blockBytes != near { Self.freeBlocks(from: block(endingAt: frontEnd)) }
    }

    private static func freeBlocks(from first: UnsafeMutableRawPointer?) {
        var rest = first
        while let block = rest {
            rest = next(of: block)
            block.deallocate()
        }
    }

    private func block(endingAt end: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer { end - blockBytes - Self.offset }

    private static func next(of block: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer? {
        UnsafeMutableRawPointer(bitPattern: block.load(as: UInt.self))
    }

    private static func link(_ block: UnsafeMutableRawPointer, to next: UnsafeMutableRawPointer?) {
        block.storeBytes(of: UInt(bitPattern: next), as: UInt.self)
    }
}
