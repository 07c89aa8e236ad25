// SPDX-License-Identifier: Apache-2.0

// The fibers that are ready to run, first in, first out: a ring of pointers.
//
// Invariants:
//   * a fiber is in the queue at most once, and there is room for every live fiber: `reserve` makes room when a fiber is spawned, so
//     `append` never fails, allocates or checks;
//   * `head` and `tail` count up, and wrap around; their difference is the number of fibers.
//
// A list linked through the records would need no memory of its own. But the CPU would have to fetch each record, on a stack of its own and
// rarely in the first-level cache, before it knew the next one: with 1,000 fibers a switch takes 12 ns instead of 8. Owner worker only.

import CFiber

struct ReadyQueue {
    private var ring: UnsafeMutablePointer<FiberPointer?>
    private var mask: UInt32
    private var head: UInt32 = 0
    private var tail: UInt32 = 0
    /// The end of the fibers that were prepended since the last `endFront`.
    private var frontEnd: UInt32 = 0

    /// Nil when memory is short.
    init?() {
        guard let memory = cfiber_resize(nil, 64, MemoryLayout<FiberPointer?>.stride) else { return nil }
        ring = memory.bindMemory(to: FiberPointer?.self, capacity: 64)
        ring.initialize(repeating: nil, count: 64)
        mask = 63
    }

    @inline(__always) var isEmpty: Bool { head == tail }

    /// True if the queue is so long that each fiber has left the cache before it runs.
    @inline(__always) var isLong: Bool { tail &- head > 256 }

    /// Makes room for `count` fibers in total; false if memory is short.
    @inline(__always)
    mutating func reserve(_ count: Int) -> Bool {
        count <= Int(mask) || grow()
    }

    @inline(__always)
    mutating func append(_ fiber: FiberPointer) {
        ring[Int(tail & mask)] = fiber
        tail &+= 1
    }

    /// Inserts a fiber at the front.
    mutating func prepend(_ fiber: FiberPointer) {
        if Int32(bitPattern: frontEnd &- head) <= 0 { frontEnd = head }
        head &-= 1
        ring[Int(head & mask)] = fiber
    }

    /// Moves the prepended fibers behind the others, so that every fiber gets to run.
    mutating func endFront() {
        while Int32(bitPattern: frontEnd &- head) > 0, let fiber = popFirst() { append(fiber) }
        frontEnd = head
    }

    mutating func removeAll() {
        head = tail
        frontEnd = head
    }

    /// Removes a fiber if it is the last in the queue; false otherwise.
    mutating func removeLast(_ fiber: FiberPointer) -> Bool {
        guard head != tail, ring[Int((tail &- 1) & mask)] == fiber else { return false }
        tail &-= 1
        return true
    }

    @inline(__always)
    mutating func popFirst() -> FiberPointer? {
        if _slowPath(isAtBatch) { prefetchBatch() }
        return takeFirst()
    }

    /// As `popFirst`, without prefetching.
    @inline(__always)
    mutating func takeFirst() -> FiberPointer? {
        guard head != tail else { return nil }
        let first = ring[Int(head & mask)].unsafelyUnwrapped
        head &+= 1
        return first
    }

    /// The number of records that are prefetched together. Each lies in a page of its own, and a prefetch that misses the TLB stalls the
    /// CPU until its page walk ends; walks that start together overlap. A power of two, and a divisor of the ring's size.
    private static var batch: UInt32 { 8 }

    /// True if `prefetchBatch` is due before the next fiber is removed.
    @inline(__always) var isAtBatch: Bool { head & (Self.batch - 1) == 0 }

    /// Prefetches the records of the batch after the next. If the queue is long, also prefetches the frames of the next batch, whose
    /// records have arrived by now.
    @inline(never)
    func prefetchBatch() {
        let count = tail &- head
        guard count >= 2 * Self.batch else { return }
        let now = ring + Int(head & mask)
        let later = ring + Int((head &+ Self.batch) & mask)
        for i in 0..<Int(Self.batch) { cfiber_prefetch(later[i]) }
        guard isLong else { return }
        for i in 0..<Int(Self.batch) { now[i].unsafelyUnwrapped.prefetchContext() }
    }

    /// The first fiber in the queue, for prefetching.
    @inline(__always) var first: FiberPointer? { head == tail ? nil : ring[Int(head & mask)] }

    @inline(never)
    private mutating func grow() -> Bool {
        let capacity = (Int(mask) + 1) * 2
        guard capacity <= Int(UInt32.max), let memory = cfiber_resize(nil, capacity, MemoryLayout<FiberPointer?>.stride) else {
            return false
        }
        let wider = memory.bindMemory(to: FiberPointer?.self, capacity: capacity)
        wider.initialize(repeating: nil, count: capacity)
        let count = tail &- head
        for i in 0..<count { wider[Int(i)] = ring[Int((head &+ i) & mask)] }
        cfiber_free(ring)
        ring = wider
        mask = UInt32(capacity - 1)
        frontEnd &-= head
        head = 0
        tail = count
        return true
    }

    func destroy() { cfiber_free(ring) }
}
