// SPDX-License-Identifier: Apache-2.0

// Deadlines of parked fibers: a heap with four children per node in one array, and a table through which each fiber finds its entry.
//
//     record.timerIndex ──▶ seats │fiber, index│ ──▶ heap │deadline, seat│
//
// An entry that moves updates its index in the table of seats, not in its fiber's record. The table is dense, while each record lies on a
// stack of its own and has usually left the cache: with 100,000 sleeping fibers each move would otherwise be a miss in the cache and the
// TLB.
//
// A fiber has at most one entry. The entry stays when the park ends before the deadline, because most deadlines are set again and again and
// never expire (an idle timeout around each read). The next park then finds an entry that is earlier than it needs, and leaves it there:
// one comparison, no work on the heap and no miss. When that earlier time comes, the entry moves to the deadline that the fiber wants by
// then, or is removed.
//
// Inserting, advancing and removing cost O(log n) moves of 16 bytes; an insert allocates only when an array grows. Four children halve the
// depth of a binary heap for the same number of cache lines touched on the way (LaMarca & Ladner, "The influence of caches on the
// performance of heaps", 1996).
//
// Invariants:
//   * the entry of a fiber is never later than its `wakeAt`;
//   * `timerIndex` is the seat of a fiber that has an entry, else -1. A free seat is linked to the next free seat;
//   * `wakeAt` is `Int64.max` unless the fiber is parked until then, so the deadline of an earlier park wakes no fiber.
// Owner worker only.

import CFiber

struct TimerQueue {
    private struct Entry: BitwiseCopyable {
        var deadline: Int64
        var seat: Int
    }

    private struct Seat: BitwiseCopyable {
        var fiber: FiberPointer?
        /// The index of the entry in the heap; in a free seat, the next free seat or -1.
        var index: Int
    }

    private var heap = RawArray<Entry>()
    private var seats = RawArray<Seat>()
    private var freeSeat = -1

    @inline(__always) var isEmpty: Bool { heap.isEmpty }
    var count: Int { heap.count }

    /// The earliest time at which a fiber may have to be woken. It may be a time that no fiber wants any longer: the worker then wakes for
    /// nothing.
    @inline(__always)
    mutating func earliest(after now: Int64) -> Int64? {
        // Most entries are postponed before their time comes. So only an entry that is due within 10 ms is corrected: once per deadline,
        // not at each sleep.
        while let top = first {
            guard top.deadline &- now < 10_000_000 else { return top.deadline }
            let wanted = fiber(of: top).pointee.wakeAt
            if wanted <= top.deadline { return top.deadline }
            postpone(top, to: wanted)
        }
        return nil
    }

    private var first: Entry? { heap.isEmpty ? nil : heap.base.unsafelyUnwrapped[0] }

    @inline(__always)
    private func seat(_ number: Int) -> UnsafeMutablePointer<Seat> { seats.base.unsafelyUnwrapped + number }

    @inline(__always)
    private func fiber(of entry: Entry) -> FiberPointer { seat(entry.seat).pointee.fiber.unsafelyUnwrapped }

    /// Sets the time at which the park of a fiber ends; `Int64.max` for never. False if memory is short.
    @inline(__always)
    mutating func arm(_ fiber: FiberPointer, _ wanted: Int64) -> Bool {
        fiber.pointee.wakeAt = wanted
        let number = Int(fiber.pointee.timerIndex)
        if number < 0 { return wanted == .max || insert(fiber, wanted) }
        let index = seat(number).pointee.index
        if wanted < heap.base.unsafelyUnwrapped[index].deadline { siftUp(Entry(deadline: wanted, seat: number), from: index) }
        return true
    }

    private mutating func insert(_ fiber: FiberPointer, _ deadline: Int64) -> Bool {
        guard heap.reserveOne(), freeSeat >= 0 || seats.reserveOne() else { return false }
        let entry = Entry(deadline: deadline, seat: takeSeat(for: fiber))
        heap.append(entry)
        siftUp(entry, from: heap.count - 1)
        return true
    }

    private mutating func takeSeat(for fiber: FiberPointer) -> Int {
        var number = freeSeat
        if number >= 0 {
            freeSeat = seat(number).pointee.index
            seat(number).pointee.fiber = fiber
        } else {
            number = seats.count
            seats.append(Seat(fiber: fiber, index: 0))
        }
        fiber.pointee.timerIndex = Int32(truncatingIfNeeded: number)
        return number
    }

    /// Removes a fiber, which must have an entry.
    mutating func remove(_ fiber: FiberPointer) {
        let number = Int(fiber.pointee.timerIndex)
        let index = seat(number).pointee.index
        fiber.pointee.timerIndex = -1
        seat(number).pointee = Seat(fiber: nil, index: freeSeat)
        freeSeat = number
        guard let moved = heap.popLast(), index < heap.count else { return }
        let entries = heap.base.unsafelyUnwrapped
        if index > 0, moved.deadline < entries[(index - 1) / 4].deadline {
            siftUp(moved, from: index)
        } else {
            siftDown(moved, from: index)
        }
    }

    /// Removes and returns the fiber with the earliest expired deadline, skipping entries whose fibers want a later time.
    mutating func popExpired(now: Int64) -> FiberPointer? {
        while let top = first, top.deadline <= now {
            let fiber = fiber(of: top)
            let wanted = fiber.pointee.wakeAt
            // An entry that is wanted later is first reordered among the others, even if its later time has come as well.
            if wanted <= top.deadline {
                remove(fiber)
                return fiber
            }
            postpone(top, to: wanted)
        }
        return nil
    }

    /// Moves the first entry to the later time that its fiber wants by now, or removes it if that is never.
    private mutating func postpone(_ first: Entry, to wanted: Int64) {
        if wanted == .max { remove(fiber(of: first)) } else { siftDown(Entry(deadline: wanted, seat: first.seat), from: 0) }
    }

    private func siftUp(_ entry: Entry, from start: Int) {
        let entries = heap.base.unsafelyUnwrapped
        var index = start
        while index > 0 {
            let parent = (index - 1) / 4
            guard entry.deadline < entries[parent].deadline else { break }
            place(entries[parent], at: index)
            index = parent
        }
        place(entry, at: index)
    }

    private func siftDown(_ entry: Entry, from start: Int) {
        let entries = heap.base.unsafelyUnwrapped
        let count = heap.count
        var index = start
        while true {
            let first = index &* 4 &+ 1
            guard first < count else { break }
            var least = first
            for child in first &+ 1..<min(first &+ 4, count) where entries[child].deadline < entries[least].deadline { least = child }
            guard entries[least].deadline < entry.deadline else { break }
            place(entries[least], at: index)
            index = least
        }
        place(entry, at: index)
    }

    @inline(__always)
    private func place(_ entry: Entry, at index: Int) {
        heap.base.unsafelyUnwrapped[index] = entry
        seat(entry.seat).pointee.index = index
    }

    mutating func destroy() {
        heap.destroy()
        seats.destroy()
    }
}
