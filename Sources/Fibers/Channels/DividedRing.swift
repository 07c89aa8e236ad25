// SPDX-License-Identifier: Apache-2.0

// A ring of places for messages whose two ends may be used at the same time, each with a lock of its own.
//
//     lock, back │ lock, front │ places …           each part begins on a pair of cache lines of its own
//
// Invariants:
//   * what happens at one end touches nothing of the other one, except that it may ask for the other's count;
//   * a place belongs to the end that has taken it, until that end lets its count be seen.
// It knows places and not types, as `MessageQueue` does. Each end is used by the holder of its lock; `count` may be looked at by any thread.

import Synchronization

/// One end of a ring, where messages go in or come out.
private struct RingEnd: ~Copyable {
    /// The next place, and the end of the ring.
    var slot: UnsafeMutableRawPointer
    let ringEnd: UnsafeMutableRawPointer
    /// How many messages have gone through here. By a plain load and store of the lock's holder.
    let count = Atomic<Int>(0)
    /// The other end's count when this end last read it. Counts only grow.
    var seen = 0
    /// The last look at the other end was in vain.
    var wasInVain = false

    init(_ start: UnsafeMutableRawPointer, _ end: UnsafeMutableRawPointer) {
        slot = start
        ringEnd = end
    }
}

/// Everything that changes lies in the sides, so this may be made anew for each call.
struct DividedRing: BitwiseCopyable {
    private typealias End = UnsafeMutablePointer<RingEnd>

    private let sides: WaitSides
    private let limit: Int
    private let stride: Int

    private static var mostBytes: Int { 65536 }

    /// Whether so many messages of a size are few enough for a ring.
    static func suits(limit: Int, stride: Int) -> Bool { limit > 0 && limit <= mostBytes / stride }

    /// The ring that was made there.
    @inline(__always)
    init(over sides: WaitSides, limit: Int, stride: Int) {
        self.sides = sides
        self.limit = limit
        self.stride = stride
    }

    /// A new ring, and memory for it.
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

    /// How many messages there are.
    var count: Int {
        @inline(__always) get { end(true).pointee.count.load(ordering: .relaxed) &- end(false).pointee.count.load(ordering: .relaxed) }
    }

    /// Where the next message goes, or is; there must be room for it, or it must be there. It has come, or left, with `noteDone`.
    @inline(__always)
    func take(isSend: Bool) -> UnsafeMutableRawPointer {
        let end = end(isSend)
        let slot = end.pointee.slot
        let next = slot + stride
        end.pointee.slot = next == end.pointee.ringEnd ? sides.extra : next
        return slot
    }

    /// Publishes this end's count with release semantics: the other end then sees the messages, or the room, and every write before.
    @inline(__always)
    func noteDone(isSend: Bool, _ number: Int = 1) {
        let end = end(isSend)
        end.pointee.count.store(end.pointee.count.load(ordering: .relaxed) &+ number, ordering: .releasing)
    }

    // What one end knows of the other, and may ask without its lock.

    /// Whether this end may go on by the count that it last read: the sender finds room, the receiver a message.
    @inline(__always)
    func isKnownReady(isSend: Bool) -> Bool {
        let end = end(isSend)
        let difference = end.pointee.count.load(ordering: .relaxed) &- end.pointee.seen
        return isSend ? difference < limit : difference < 0
    }

    /// Looks at the other end: for how many messages there is room, or how many there are.
    func ask(isSend: Bool) -> Int {
        let (end, other) = (end(isSend), end(!isSend))
        end.pointee.seen = other.pointee.count.load(ordering: .acquiring)
        let difference = end.pointee.count.load(ordering: .relaxed) &- end.pointee.seen
        return isSend ? limit &- difference : 0 &- difference
    }

    /// Whether the last look of an end was in vain.
    func wasInVain(isSend: Bool) -> Bool { end(isSend).pointee.wasInVain }
    func setInVain(_ isInVain: Bool, isSend: Bool) { end(isSend).pointee.wasInVain = isInVain }
}
