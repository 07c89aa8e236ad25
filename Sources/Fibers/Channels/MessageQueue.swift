// Messages in the order in which they came: linked blocks of a fixed size, in which nothing is ever copied. Blocks that have become empty are used again.
//
//     front                                   back
//     ┌─┬──────────┐   ┌─┬──────────┐   ┌─┬──▼───────┐        spare   ┌─┬──────────┐
//     │•┼─   ▓▓▓▓▓▓│──▶│•┼▓▓▓▓▓▓▓▓▓▓│──▶│ │▓▓        │          └───▶ │ │          │
//     └─┴────▲─────┘   └─┴──────────┘   └─┴──────────┘                └─┴──────────┘
//
// A queue with a small limit is a ring: one block with as many places, that follows itself.
//
// Invariants:
//   * messages lie from the front to the end of its block, in the blocks behind it, and in the last one up to the back; in a ring they may go on at its start;
//   * in a ring of all workers what happens at one end touches nothing of the other one;
//   * all others begin at the start of their block again when they have become empty: what is sent and received in turn stays in one cache line;
//   * at most `mostSpares` blocks are kept for later.
// It knows places and not types: who asks for one moves a message there, or from there. The idea of recycled blocks is monoio's local-sync.

import Synchronization

/// One end of a queue, where messages go in or come out.
struct QueueEnd: ~Copyable {
    /// The next place, and the end of its block.
    var slot = MessageQueue.nowhere
    var blockEnd = MessageQueue.nowhere
    /// How many messages have gone through here, or, of the back of a queue whose ends are not apart, how many there are. By a plain load and store of who may change it.
    let count = Atomic<Int>(0)
    /// What was seen last of the other end's count, which only grows.
    var seen = 0
    /// Of the front: blocks that wait to be used again.
    var spare: UnsafeMutableRawPointer?
    var spares: Int32 = 0
    /// The last look at the other end was in vain.
    var wasInVain = false
}

/// What changes lies in its ends: the two sides of a channel may use it at the same time.
struct MessageQueue {
    typealias End = UnsafeMutablePointer<QueueEnd>

    let back: End
    let front: End
    /// Bytes from one message to the next.
    private let stride: Int
    /// Of a block.
    private let blockBytes: Int
    let isRing: Bool
    /// A ring whose ends may be used at the same time.
    private let endsAreApart: Bool

    private static var mostSpares: Int { 16 }
    /// In a block of many: 64 messages, and a kilobyte.
    private static var mostPlaces: Int { 64 }
    private static var mostBytes: Int { 1024 }
    private static var mostBytesOfSharedRing: Int { 65536 }
    /// Where the places of a block begin; a link to the next block lies before them.
    private static var offset: Int { 16 }
    /// The end of a block that is not there.
    static var nowhere: UnsafeMutableRawPointer { UnsafeMutableRawPointer(bitPattern: 16).unsafelyUnwrapped }

    /// - Parameters:
    ///   - limit: how many messages there may be.
    ///   - ends: memory for them.
    init(limit: Int, stride: Int, isShared: Bool, ends: (back: UnsafeMutableRawPointer, front: UnsafeMutableRawPointer)) {
        self.stride = stride
        isRing = Self.isRing(limit: limit, stride: stride, isShared: isShared)
        endsAreApart = isRing && isShared
        let places = isRing ? limit : max(1, min(Self.mostPlaces, Self.mostBytes / stride))
        blockBytes = places &* stride
        back = ends.back.bindMemory(to: QueueEnd.self, capacity: 1)
        front = ends.front.bindMemory(to: QueueEnd.self, capacity: 1)
        require(
            MemoryLayout<QueueEnd>.stride <= WaitMemory.bytesOfSide,
            "the end of a queue needs more than the memory for a side of a wait point")
        // No block: the first message finds it full. Two ends that may move at once have theirs from the beginning.
        back.initialize(to: QueueEnd())
        front.initialize(to: QueueEnd())
        if endsAreApart { addBlock() }
    }

    static func isRing(limit: Int, stride: Int, isShared: Bool) -> Bool {
        limit > 0 && limit <= (isShared ? mostBytesOfSharedRing : mostBytes) / stride
    }

    /// How many messages there are, for who may look at both ends.
    var count: Int {
        @inline(__always) get {
            endsAreApart ? back.pointee.count.load(ordering: .relaxed) &- front.pointee.count.load(ordering: .relaxed) : countOfOne
        }
    }

    /// The same where the ends are not apart.
    var countOfOne: Int {
        @inline(__always) get { back.pointee.count.load(ordering: .relaxed) }
    }

    /// Where the next message goes; there must be room.
    @inline(__always)
    func takeBack() -> UnsafeMutableRawPointer {
        if _slowPath(!hasPlaceReady) { addBlock() }
        return takeReadyPlace()
    }

    /// Where the next message is; there must be one.
    @inline(__always)
    func takeFront() -> UnsafeMutableRawPointer {
        if _slowPath(!hasMessageReady) { leaveBlock() }
        return takeReadyMessage()
    }

    // The same, without a call, while the end's block has more.

    var hasPlaceReady: Bool {
        @inline(__always) get { back.pointee.slot != back.pointee.blockEnd }
    }
    var hasMessageReady: Bool {
        @inline(__always) get { front.pointee.slot != front.pointee.blockEnd }
    }

    @inline(__always)
    func takeReadyPlace() -> UnsafeMutableRawPointer {
        let slot = back.pointee.slot
        back.pointee.slot = slot + stride
        return slot
    }

    @inline(__always)
    func takeReadyMessage() -> UnsafeMutableRawPointer {
        let slot = front.pointee.slot
        front.pointee.slot = slot + stride
        if !endsAreApart && front.pointee.slot == back.pointee.slot {
            front.pointee.slot = front.pointee.blockEnd - blockBytes
            back.pointee.slot = front.pointee.slot
        }
        return slot
    }

    /// The messages before this one have left, and this one leaves with them.
    @inline(__always)
    func noteLeft(_ number: Int = 1) { if endsAreApart { Self.add(number, front) } else { Self.add(0 &- number, back) } }

    /// A message has come.
    @inline(__always)
    func noteCome() { Self.add(1, back) }

    /// What the other end sees of it, it sees with all that was done before.
    @inline(__always)
    private static func add(_ number: Int, _ end: End) {
        end.pointee.count.store(end.pointee.count.load(ordering: .relaxed) &+ number, ordering: .releasing)
    }

    // What one end knows of the other, and may ask without its lock.

    /// Whether there is room for a message, or a message, for all that the end knows.
    @inline(__always)
    func isKnownReady(isSend: Bool, limit: Int) -> Bool {
        let end = isSend ? back : front
        let difference = end.pointee.count.load(ordering: .relaxed) &- end.pointee.seen
        return isSend ? difference < limit : difference < 0
    }

    /// Looks at the other end: for how many messages there is room, or how many there are.
    func ask(isSend: Bool, limit: Int) -> Int {
        let (end, other) = isSend ? (back, front) : (front, back)
        end.pointee.seen = other.pointee.count.load(ordering: .acquiring)
        let difference = end.pointee.count.load(ordering: .relaxed) &- end.pointee.seen
        return isSend ? limit &- difference : 0 &- difference
    }

    // Blocks.

    /// The last block is full, or there is none.
    @inline(never)
    private func addBlock() {
        if isRing && back.pointee.blockEnd != Self.nowhere {
            back.pointee.slot = back.pointee.blockEnd - blockBytes
            return
        }
        let block: UnsafeMutableRawPointer
        if let spare = front.pointee.spare {
            block = spare
            front.pointee.spare = Self.next(of: block)
            front.pointee.spares -= 1
        } else {
            block = .allocate(byteCount: Self.offset + blockBytes, alignment: 16)
        }
        Self.link(block, to: nil)
        let slots = block + Self.offset
        if back.pointee.blockEnd == Self.nowhere {
            front.pointee.slot = slots
            front.pointee.blockEnd = slots + blockBytes
        } else {
            Self.link(self.block(endingAt: back.pointee.blockEnd), to: block)
        }
        back.pointee.slot = slots
        back.pointee.blockEnd = slots + blockBytes
    }

    /// The first block has been emptied, and there is another.
    @inline(never)
    private func leaveBlock() {
        if isRing {
            front.pointee.slot = front.pointee.blockEnd - blockBytes
            return
        }
        let block = self.block(endingAt: front.pointee.blockEnd)
        let next = Self.next(of: block).unsafelyUnwrapped
        if front.pointee.spares < Self.mostSpares {
            Self.link(block, to: front.pointee.spare)
            front.pointee.spare = block
            front.pointee.spares += 1
        } else {
            block.deallocate()
        }
        front.pointee.slot = next + Self.offset
        front.pointee.blockEnd = front.pointee.slot + blockBytes
    }

    /// Gives the blocks back, when the messages are gone and nobody comes any more.
    func freeBlocks() {
        Self.freeBlocks(from: front.pointee.spare)
        if front.pointee.blockEnd != Self.nowhere { Self.freeBlocks(from: block(endingAt: front.pointee.blockEnd)) }
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
