// SPDX-License-Identifier: Apache-2.0

// Predicts which fibers will resume next when the ready queue does not tell, from the order in which they last resumed.
//
// With so many fibers that their stacks are in no cache, the page walk to a stack and the misses on it take longer than the rest of a hop
// from one fiber to the next. In a ring, a pipeline, or a round of actors each fiber makes the next one ready, and only the record of that
// fiber leads to the one after it: one miss after the other. But the order mostly repeats. So each record stores which fiber resumed 16
// switches after it (a jump pointer: Roth and Sohi, "Effective Jump-Pointer Prefetching for Linked Data Structures", ISCA 1999). The page
// walks to the stacks of a batch start together, their frames are prefetched two switches ahead, and the object that the next fiber waits
// for one switch ahead. A token in a ring of 20,011 fibers takes 345 ns a hop instead of 600 where memory is slow; a wrong prediction costs
// a useless prefetch.
//
// Invariants:
//   * `recent` and the predictions name records of this worker, which stay mapped until the worker ends, whichever fibers use them by then;
//   * a record whose memory was given back to the system reads as zeros, which lead nowhere, and is never written.
// Owner worker only.

import CFiber

package struct Foresight {
    /// Up to this number of fibers, most of the memory that they touch is in the second-level cache, and prefetching it would only cost
    /// instructions.
    static var fibersInCache: Int { 1024 }

    /// The fibers that resumed last, as a ring buffer; `count` have been recorded so far.
    private let recent: UnsafeMutablePointer<FiberPointer>
    private var count: UInt32 = 0

    /// The number of switches that a record predicts ahead.
    private static var distance: UInt32 { 16 }
    /// The number of stacks whose page walks start together.
    private static var batch: UInt32 { 8 }

    init(_ root: FiberPointer) {
        recent = .allocate(capacity: Int(Self.distance))
        recent.initialize(repeating: root, count: Int(Self.distance))
    }

    func destroy() { recent.deallocate() }

    /// Records that a fiber resumes.
    mutating func note(_ fiber: FiberPointer) {
        let place = recent + Int(count % Self.distance)
        place.pointee.foreseen = fiber
        place.pointee = fiber
        count &+= 1
        guard count % Self.batch == 0 else { return }
        // The fibers that the records of this batch predict come next.
        let batch = recent + Int((count &- Self.batch) % Self.distance)
        for i in 0..<Int(Self.batch) { cfiber_prefetch(batch[i].foreseen) }
    }

    /// The fiber that will probably resume after `others` more switches: 0 asks for the next one.
    package func guess(_ others: UInt32) -> FiberPointer? { recent[Int((count &+ others) % Self.distance)].foreseen }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Called before a switch to a fiber when no other is ready: prefetches the memory that the fibers predicted after it will touch.
    @inline(never)
    func foresee(_ next: FiberPointer) {
        // Only fibers that wait for other fibers are predictable: events have an order of their own.
        guard next.wait != nil else { return }
        pointee.foresight.note(next)
        pointee.foresight.guess(2)?.prefetchFrames()
        guard let point = pointee.foresight.guess(0)?.wait?.point else { return }
        for line in 0..<4 { cfiber_prefetch(point + 64 * line) }
    }
}
