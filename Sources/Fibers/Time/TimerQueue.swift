// Deadlines of parked fibers: a heap of four children per node in one array, each fiber knowing its position.
//
// Insert and remove cost O(log n) moves of 16 bytes; an insert allocates only when the array grows. Four children halve the depth of a binary heap
// for the same number of cache lines touched on the way (LaMarca & Ladner, "The influence of caches on the performance of heaps", 1996).
// Owner worker only.

import CFiber

struct TimerQueue {
    struct Entry: BitwiseCopyable {
        var deadline: Int64
        var fiber: FiberPointer
    }

    private var heap = RawArray<Entry>()

    @inline(__always) var isEmpty: Bool { heap.isEmpty }
    var count: Int { heap.count }

    /// The earliest deadline in monotonic nanoseconds.
    @inline(__always)
    var earliest: Int64? { heap.isEmpty ? nil : heap.base.unsafelyUnwrapped[0].deadline }

    /// False when memory is short.
    mutating func insert(_ fiber: FiberPointer, _ deadline: Int64) -> Bool {
        guard heap.reserveOne() else { return false }
        let entry = Entry(deadline: deadline, fiber: fiber)
        heap.append(entry)
        siftUp(entry, from: heap.count - 1)
        return true
    }

    mutating func remove(_ fiber: FiberPointer) {
        let index = Int(fiber.pointee.timerIndex)
        fiber.pointee.timerIndex = -1
        guard let moved = heap.popLast(), index < heap.count else { return }
        let entries = heap.base.unsafelyUnwrapped
        if index > 0, moved.deadline < entries[(index - 1) / 4].deadline {
            siftUp(moved, from: index)
        } else {
            siftDown(moved, from: index)
        }
    }

    /// Takes out the fiber with the earliest deadline if that has passed.
    mutating func popExpired(now: Int64) -> FiberPointer? {
        guard !heap.isEmpty, heap.base.unsafelyUnwrapped[0].deadline <= now else { return nil }
        let fiber = heap.base.unsafelyUnwrapped[0].fiber
        remove(fiber)
        return fiber
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
        entry.fiber.pointee.timerIndex = Int32(truncatingIfNeeded: index)
    }

    mutating func destroy() { heap.destroy() }
}
