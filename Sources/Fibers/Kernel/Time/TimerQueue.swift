// SPDX-License-Identifier: Apache-2.0

// Deadlines of parked fibers: a heap of four children per node in one array, and a table by which each fiber finds its entry.
//
//     record.timerIndex ──▶ seats │fiber, index│ ──▶ heap │deadline, seat│
//
// An entry that moves changes its index in the table of seats and not in its fiber's record. The table is dense, while records lie on stacks of their own and have mostly gone cold: with 100,000
// sleeping fibers each move would otherwise be a miss in cache and page table.
//
// A fiber has one entry at most, which stays when its park ends before the deadline. Most deadlines are set again and again and never come (an idle timeout
// around each read), and then the next park finds the entry at an earlier time than it wants and leaves it there: a comparison, no work on the heap and no
// miss. When that earlier time comes, the entry moves to the time that is wanted by then, or goes. Inserting, advancing and removing cost O(log n)
// moves of 16 bytes; an insert allocates only when the array grows. Four children halve the depth of a binary heap for the same number of cache lines
// touched on the way (LaMarca & Ladner, "The influence of caches on the performance of heaps", 1996).
//
// Invariants:
//   * the entry of a fiber is never later than its `wakeAt`;
//   * `timerIndex` is the seat of a fiber that has an entry, else -1; a seat that is free is linked to the next free one;
//   * `wakeAt` is `Int64.max` unless the fiber is parked until then, so nobody is woken by the deadline of an earlier park.
// Owner worker only.

import CFiber

struct TimerQueue {
    private struct Entry: BitwiseCopyable {
        var deadline: Int64
        var seat: Int
    }

    private struct Seat: BitwiseCopyable {
        var fiber: FiberPointer?
        /// Of the entry in the heap; of a free seat the next free one, or -1.
        var index: Int
    }

    private var heap = RawArray<Entry>()
    private var seats = RawArray<Seat>()
    private var freeSeat = -1

    @inline(__always) var isEmpty: Bool { heap.isEmpty }
    var count: Int { heap.count }

    /// The earliest time at which a fiber may have to be woken. Where nothing else happens before, it may be one that is not wanted any more.
    @inline(__always)
    mutating func earliest(after now: Int64) -> Int64? {
        // Most first entries will not stay the first until their time comes, so only what is near is put right: once in each of its deadlines, not at each sleep.
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

    /// Wants the park of a fiber to end at a time, `Int64.max` for never. False when memory is short.
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

    /// Takes a fiber out, which must be in.
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

    /// Takes out the fiber whose time has come first, of those that still want it.
    mutating func popExpired(now: Int64) -> FiberPointer? {
        while let top = first, top.deadline <= now {
            let fiber = fiber(of: top)
            let wanted = fiber.pointee.wakeAt
            // One that is wanted later takes its turn among the others first, also when that time has come as well.
            if wanted <= top.deadline {
                remove(fiber)
                return fiber
            }
            postpone(top, to: wanted)
        }
        return nil
    }

    /// Moves the first entry to the later time that its fiber wants by now.
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
