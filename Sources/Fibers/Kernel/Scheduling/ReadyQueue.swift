// SPDX-License-Identifier: Apache-2.0

// The fibers that are ready to run, first in first out: a ring of pointers.
//
// Invariants:
//   * a fiber stands in it at most once, and there is room for every fiber alive: `reserve` makes it when a fiber is spawned, so that `append` never
//     fails, allocates or checks;
//   * `head` and `tail` count up, and wrap around; their difference is the number of fibers.
//
// A list linked through the records would need no memory, but then the CPU must have fetched one record, on a stack of its own and seldom in the first
// cache, before it knows which comes next: with 1,000 fibers a switch takes 12 ns instead of 8. Owner worker only.

import CFiber

struct ReadyQueue {
    private var ring: UnsafeMutablePointer<FiberPointer?>
    private var mask: UInt32
    private var head: UInt32 = 0
    private var tail: UInt32 = 0
    /// Where the fibers end that were put before all others since the last `endFront`.
    private var frontEnd: UInt32 = 0

    /// Nil when memory is short.
    init?() {
        guard let memory = cfiber_resize(nil, 64, MemoryLayout<FiberPointer?>.stride) else { return nil }
        ring = memory.bindMemory(to: FiberPointer?.self, capacity: 64)
        ring.initialize(repeating: nil, count: 64)
        mask = 63
    }

    @inline(__always) var isEmpty: Bool { head == tail }

    /// So many are ready that each has gone cold by its turn.
    @inline(__always) var isLong: Bool { tail &- head > 256 }

    /// Makes room for `count` fibers in all; false when memory is short.
    @inline(__always)
    mutating func reserve(_ count: Int) -> Bool {
        count <= Int(mask) || grow()
    }

    @inline(__always)
    mutating func append(_ fiber: FiberPointer) {
        ring[Int(tail & mask)] = fiber
        tail &+= 1
    }

    /// Puts a fiber before all others.
    mutating func prepend(_ fiber: FiberPointer) {
        if Int32(bitPattern: frontEnd &- head) <= 0 { frontEnd = head }
        head &-= 1
        ring[Int(head & mask)] = fiber
    }

    /// Moves the fibers that were put before the others behind them, so that every fiber has its turn.
    mutating func endFront() {
        while Int32(bitPattern: frontEnd &- head) > 0, let fiber = popFirst() { append(fiber) }
        frontEnd = head
    }

    mutating func removeAll() {
        head = tail
        frontEnd = head
    }

    /// Takes a fiber back that was appended last; false when another stands there.
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

    /// As `popFirst`, and fetches nothing.
    @inline(__always)
    mutating func takeFirst() -> FiberPointer? {
        guard head != tail else { return nil }
        let first = ring[Int(head & mask)].unsafelyUnwrapped
        head &+= 1
        return first
    }

    /// How many records are fetched together. Each lies in a page of its own, and a prefetch that misses the TLB stalls the CPU until its page walk ends; walks that start together overlap.
    /// A power of two, and a divisor of the ring's size.
    private static var batch: UInt32 { 8 }

    /// Before the next fiber is taken, `prefetchBatch` is due.
    @inline(__always) var isAtBatch: Bool { head & (Self.batch - 1) == 0 }

    /// Fetches the records of the batch after the next. With a long queue, it also fetches the frames of the next batch, whose records have arrived by now.
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

    /// The fiber whose turn is next, for prefetching.
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
