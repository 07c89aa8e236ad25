// SPDX-License-Identifier: Apache-2.0

// A ring buffer for messages. Its two ends can be used at the same time; each has its own lock.
//
//     lock, back │ lock, front │ places …           each part begins on a pair of cache lines of its own
//
// Invariants:
//   * A call at one end touches only the state of that end, except that it may read the other end's count.
//   * A slot belongs to the end that has taken it until that end publishes its count.
// The ring handles untyped slots, as `MessageQueue` does. The holder of an end's lock uses that end; any thread may read `count`.

import Synchronization

/// One end of a ring: the back, where messages enter, or the front, where they leave.
private struct RingEnd: ~Copyable {
    /// The next slot, and the end of the ring.
    var slot: UnsafeMutableRawPointer
    let ringEnd: UnsafeMutableRawPointer
    /// The number of messages that have passed this end. The lock holder updates it by a plain load and store.
    let count = Atomic<Int>(0)
    /// The other end's count when this end last read it. It may be stale, which is safe because counts only grow.
    var seen = 0
    /// The last read of the other end's count found no room, or no message.
    var wasInVain = false

    init(_ start: UnsafeMutableRawPointer, _ end: UnsafeMutableRawPointer) {
        slot = start
        ringEnd = end
    }
}

/// A view of the ring. All mutable state lies in `sides`, so each call may create a new view.
struct DividedRing: BitwiseCopyable {
    private typealias End = UnsafeMutablePointer<RingEnd>

    private let sides: WaitSides
    private let limit: Int
    private let stride: Int

    private static var mostBytes: Int { 65536 }

    /// Whether `limit` messages of a size fit into a ring.
    static func suits(limit: Int, stride: Int) -> Bool { limit > 0 && limit <= mostBytes / stride }

    /// A view of an existing ring.
    @inline(__always)
    init(over sides: WaitSides, limit: Int, stride: Int) {
        self.sides = sides
        self.limit = limit
        self.stride = stride
    }

    /// Allocates and initialises a new ring.
    static func makeSides(limit: Int, stride: Int) -> WaitSides {
        require(
            MemoryLayout<RingEnd>.stride <= WaitSides.bytesOfSide, "the end of a ring needs more than the memory for a side of a wait point"
        )
        let sides = WaitSides(extraBytes: limit &* stride)
        let end = sides.extra + limit &* stride
        sides.first.bindMemory(to: RingEnd.self, capacity: 1).initialize(to: RingEnd(sides.extra, end))
        sides.second.bindMemory(to: RingEnd.self, capacity: 1).initialize(to: RingEnd(sides.extra, end))
        return sides
    }

    @inline(__always)
    private func end(_ isBack: Bool) -> End { (isBack ? sides.first : sides.second).assumingMemoryBound(to: RingEnd.self) }

    /// The number of messages in the ring.
    var count: Int {
        @inline(__always) get { end(true).pointee.count.load(ordering: .relaxed) &- end(false).pointee.count.load(ordering: .relaxed) }
    }

    /// Takes the next slot: for the sender an empty one, for the receiver one with a message. The caller must know that such a slot exists.
    /// The other end sees the change only after `noteDone`.
    @inline(__always)
    func take(isSend: Bool) -> UnsafeMutableRawPointer {
        let end = end(isSend)
        let slot = end.pointee.slot
        let next = slot + stride
        end.pointee.slot = next == end.pointee.ringEnd ? sides.extra : next
        return slot
    }

    /// Publishes this end's count with release semantics. The other end then sees the message or the room, and every write before it.
    @inline(__always)
    func noteDone(isSend: Bool, _ number: Int = 1) {
        let end = end(isSend)
        end.pointee.count.store(end.pointee.count.load(ordering: .relaxed) &+ number, ordering: .releasing)
    }

    // How one end learns the other end's progress without taking its lock.

    /// Whether this end may proceed by the count that it last read: the sender has room, or the receiver has a message.
    @inline(__always)
    func isKnownReady(isSend: Bool) -> Bool {
        let end = end(isSend)
        let difference = end.pointee.count.load(ordering: .relaxed) &- end.pointee.seen
        return isSend ? difference < limit : difference < 0
    }

    /// Reads the other end's count again. Returns the number of free slots for the sender, or the number of messages for the receiver.
    func ask(isSend: Bool) -> Int {
        let (end, other) = (end(isSend), end(!isSend))
        end.pointee.seen = other.pointee.count.load(ordering: .acquiring)
        let difference = end.pointee.count.load(ordering: .relaxed) &- end.pointee.seen
        return isSend ? limit &- difference : 0 &- difference
    }

    /// Whether an end's last read of the other end's count found no room, or no message.
    func wasInVain(isSend: Bool) -> Bool { end(isSend).pointee.wasInVain }
    func setInVain(_ isInVain: Bool, isSend: Bool) { end(isSend).pointee.wasInVain = isInVain }
}
