// SPDX-License-Identifier: Apache-2.0

// A FIFO queue of messages: linked blocks of a fixed size, in which no message is ever copied. Emptied blocks are pooled.
//
//     front                                   back
//     ┌─┬──────────┐   ┌─┬──────────┐   ┌─┬──▼───────┐        spare   ┌─┬──────────┐
//     │•┼─   ▓▓▓▓▓▓│──▶│•┼▓▓▓▓▓▓▓▓▓▓│──▶│ │▓▓        │          └───▶ │ │          │
//     └─┴────▲─────┘   └─┴──────────┘   └─┴──────────┘                └─┴──────────┘
//
// A queue with a small limit is a ring: one block with `limit` slots that is its own successor. The slots of the smallest rings lie in the
// channel object.
//
// Invariants:
//   * Messages lie from the front to the end of its block, in the blocks after it, and in the last block up to the back. In a ring they may
//     wrap around to its start.
//   * When the queue becomes empty it starts over at the beginning of its block, so that alternating sends and receives stay in one cache
//     line.
//   * At most `mostSpares` blocks are pooled.
//   * The queue allocates no memory before the first message.
// The queue handles untyped slots; the caller moves the messages. The idea of recycled blocks comes from monoio's local-sync. Calls must
// not overlap: they run on the worker of a local channel, or with the lock held. Only `count` may be read without the lock.

import Synchronization

/// The struct fills one cache line. The fields that every message needs come first.
struct MessageQueue: ~Copyable {
    /// The next slot to fill, and the end of its block.
    private var back = MessageQueue.nowhere
    private var backEnd = MessageQueue.nowhere
    /// The number of messages. A plain load and store suffices, because only one caller changes it at a time.
    private let number = Atomic<Int>(0)
    /// The maximum number of messages.
    let limit: Int
    /// The next message, and the end of its block.
    private var front = MessageQueue.nowhere
    private var frontEnd = MessageQueue.nowhere
    /// Pooled blocks.
    private var spare: UnsafeMutableRawPointer?
    private(set) var spares: UInt8 = 0
    private let isRing: Bool
    /// The number of slots in a block.
    private let places: UInt16
    /// The distance in bytes from one message to the next.
    private let stride: UInt32

    private static var mostSpares: UInt8 { 16 }
    /// The limits of a block: 64 messages and a kilobyte.
    private static var mostPlaces: Int { 64 }
    private static var mostBytes: Int { 1024 }
    /// The offset of the slots in a block; a link to the next block lies before them.
    private static var offset: Int { 16 }
    /// A sentinel: the end of a block while no block exists.
    private static var nowhere: UnsafeMutableRawPointer { UnsafeMutableRawPointer(bitPattern: 16).unsafelyUnwrapped }

    /// - Parameter limit: the maximum number of messages.
    init(limit: Int, stride: Int) {
        self.limit = limit
        self.stride = UInt32(stride)
        isRing = limit > 0 && limit <= Self.mostBytes / stride
        let places = isRing ? limit : max(1, min(Self.mostPlaces, Self.mostBytes / stride))
        self.places = UInt16(places)
    }

    /// Lets a ring use the given memory for its slots, if they fit. Must be called before the first message.
    mutating func placeNear(_ memory: UnsafeMutableRawBufferPointer) {
        guard isRing && blockBytes <= memory.count else { return }
        back = memory.baseAddress.unsafelyUnwrapped
        backEnd = back + blockBytes
        (front, frontEnd) = (back, backEnd)
    }

    private var blockBytes: Int {
        @inline(__always) get { Int(places) &* Int(stride) }
    }

    /// The number of messages.
    var count: Int {
        @inline(__always) get { number.load(ordering: .relaxed) }
    }

    /// Takes the slot for the next message and counts that message. The queue must have room.
    @inline(__always)
    mutating func takeBack() -> UnsafeMutableRawPointer {
        if _slowPath(!hasPlaceReady) { addBlock() }
        return takeReadyPlace()
    }

    /// Takes the slot of the next message and no longer counts that message. The queue must not be empty.
    @inline(__always)
    mutating func takeFront() -> UnsafeMutableRawPointer {
        if _slowPath(!hasMessageReady) { leaveBlock() }
        return takeReadyMessage()
    }

    // The same without a function call, while the current block suffices.

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

    /// Resets the count and returns the number of messages. The caller then takes each of them by one call of `takeForgotten`.
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

    /// Adds a block: the last one is full, or no block exists.
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

    /// Leaves the first block, which is empty, for the next one.
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

    /// Frees all blocks. The messages must be gone, and no call may follow.
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
