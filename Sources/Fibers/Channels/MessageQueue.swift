// Messages in the order in which they came: linked blocks of a fixed size. Nothing is ever copied, and blocks that have become empty are used again.
//
//     head                                   tail
//     ┌─┬──────────┐   ┌─┬──────────┐   ┌─┬──▼───────┐        spare   ┌─┬──────────┐
//     │•┼─   ▓▓▓▓▓▓│──▶│•┼▓▓▓▓▓▓▓▓▓▓│──▶│ │▓▓        │          └───▶ │ │          │
//     └─┴────▲─────┘   └─┴──────────┘   └─┴──────────┘                └─┴──────────┘
//
// Invariants:
//   * messages lie from `head` to the end of its block, in the blocks behind it, and in the last one up to `tail`;
//   * a queue that has become empty begins at the start of its block again: what is sent and received in turn stays in one cache line;
//   * at most `mostSpares` blocks are kept for later.
// The idea of recycled blocks is monoio's local-sync.

@usableFromInline
struct MessageQueue<Message: ~Copyable>: ~Copyable {
    @usableFromInline typealias Slot = UnsafeMutablePointer<Message>

    /// The next to be taken, and the end of its block.
    @usableFromInline var head: Slot
    @usableFromInline var headEnd: Slot
    /// The next free place, and the end of its block.
    @usableFromInline var tail: Slot
    @usableFromInline var tailEnd: Slot
    @usableFromInline var spare: UnsafeMutableRawPointer?
    @usableFromInline var spares = 0
    /// In a block.
    @usableFromInline let places: Int

    /// - Parameter limit: how many messages there may be.
    @inlinable
    init(limit: Int) {
        places = min(Self.mostPlaces, max(1, limit))
        // A block of no places: the first message finds it full.
        (head, headEnd) = (Self.nowhere, Self.nowhere)
        (tail, tailEnd) = (Self.nowhere, Self.nowhere)
    }

    @inlinable
    static var mostSpares: Int { 16 }

    /// Places in a block at most: 64, and a kilobyte.
    @inlinable
    static var mostPlaces: Int { max(1, min(64, 1024 / max(1, MemoryLayout<Message>.stride))) }

    /// Where the places of a block begin; a link to the next block lies before them.
    @inlinable
    static var offset: Int { max(MemoryLayout<UInt>.size, MemoryLayout<Message>.alignment) }

    @inlinable @inline(__always)
    mutating func append(_ message: consuming Message) {
        if _slowPath(tail == tailEnd) { addBlock() }
        tail.initialize(to: message)
        tail += 1
    }

    /// There must be one.
    @inlinable @inline(__always)
    mutating func popFirst() -> Message {
        if _slowPath(head == headEnd) { leaveBlock() }
        let message = head.move()
        head += 1
        if head == tail { restart() }
        return message
    }

    /// The queue is empty.
    @inlinable @inline(__always)
    mutating func restart() {
        head = headEnd - places
        tail = head
    }

    @inlinable
    mutating func addBlock() {
        let block: UnsafeMutableRawPointer
        if let spare {
            block = spare
            self.spare = Self.next(of: block)
            spares -= 1
        } else {
            block = .allocate(
                byteCount: Self.offset + places * MemoryLayout<Message>.stride, alignment: 16)
        }
        Self.link(block, to: nil)
        let slots = (block + Self.offset).bindMemory(to: Message.self, capacity: places)
        if tailEnd == Self.nowhere {
            (head, headEnd) = (slots, slots + places)
        } else {
            Self.link(self.block(endingAt: tailEnd), to: block)
        }
        (tail, tailEnd) = (slots, slots + places)
    }

    /// The first block has been emptied, and there is another.
    @inlinable
    mutating func leaveBlock() {
        let block = self.block(endingAt: headEnd)
        let next = Self.next(of: block).unsafelyUnwrapped
        if spares < Self.mostSpares {
            Self.link(block, to: spare)
            spare = block
            spares += 1
        } else {
            block.deallocate()
        }
        head = (next + Self.offset).assumingMemoryBound(to: Message.self)
        headEnd = head + places
    }

    @inlinable
    deinit {
        guard headEnd != Self.nowhere else { return }
        var (head, headEnd) = (head, headEnd)
        var block = self.block(endingAt: headEnd)
        while true {
            let end = headEnd == tailEnd ? tail : headEnd
            head.deinitialize(count: end - head)
            let next = Self.next(of: block)
            block.deallocate()
            guard let next else { break }
            block = next
            head = (block + Self.offset).assumingMemoryBound(to: Message.self)
            headEnd = head + places
        }
        var rest = spare
        while let block = rest {
            rest = Self.next(of: block)
            block.deallocate()
        }
    }

    // Blocks.

    /// The end of a block that is not there.
    @inlinable
    static var nowhere: Slot { Slot(bitPattern: Int.max & ~(MemoryLayout<Message>.alignment - 1)).unsafelyUnwrapped }

    @inlinable
    func block(endingAt end: Slot) -> UnsafeMutableRawPointer { UnsafeMutableRawPointer(end - places) - Self.offset }

    @inlinable
    static func next(of block: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer? {
        UnsafeMutableRawPointer(bitPattern: block.load(as: UInt.self))
    }

    @inlinable
    static func link(_ block: UnsafeMutableRawPointer, to next: UnsafeMutableRawPointer?) {
        block.storeBytes(of: UInt(bitPattern: next), as: UInt.self)
    }
}
