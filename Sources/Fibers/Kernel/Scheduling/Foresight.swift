// SPDX-License-Identifier: Apache-2.0

// Which fibers will go on next, where nothing in the ready queue tells: a guess from who followed whom the last time.
//
// With so many fibers that their stacks are in no cache, the walk through the page tables to a stack and the misses on it take longer than all else that a hop from one fiber to the next does. In a ring, a
// pipeline, or a round of actors each fiber lets the next one go on, and only that one's record leads to the one after it: one miss after the other. But the order mostly repeats. So each record notes which
// fiber went on 16 switches after it (a jump pointer: Roth and Sohi, "Effective Jump-Pointer Prefetching for Linked Data Structures", ISCA 1999), and the stacks of a batch are walked to at once, their frames
// fetched two switches ahead, and what the next one waits for one switch ahead. A token in a ring of 20,011 fibers takes 345 ns a hop instead of 600 where memory is slow; a wrong guess fetches in vain.
//
// Invariants:
//   * `recent` and the guesses name records of this worker, which stay mapped until the worker ends, whoever lives there by then;
//   * a record that was given back to the system reads as zeros, which lead nowhere, and is not written.
// Owner worker only.

import CFiber

package struct Foresight {
    /// With so many fibers what they touch is mostly in the second cache, and to fetch it would only take instructions.
    static var fibersInCache: Int { 1024 }

    /// The fibers that resumed last, as a ring buffer; `count` have been noted so far.
    private let recent: UnsafeMutablePointer<FiberPointer>
    private var count: UInt32 = 0

    /// How far a record looks ahead.
    private static var distance: UInt32 { 16 }
    /// How many stacks are walked to at once.
    private static var batch: UInt32 { 8 }

    init(_ root: FiberPointer) {
        recent = .allocate(capacity: Int(Self.distance))
        recent.initialize(repeating: root, count: Int(Self.distance))
    }

    func destroy() { recent.deallocate() }

    /// Notes that a fiber goes on.
    mutating func note(_ fiber: FiberPointer) {
        let place = recent + Int(count % Self.distance)
        place.pointee.foreseen = fiber
        place.pointee = fiber
        count &+= 1
        guard count % Self.batch == 0 else { return }
        // Behind those come the fibers that the records of this batch name.
        let batch = recent + Int((count &- Self.batch) % Self.distance)
        for i in 0..<Int(Self.batch) { cfiber_prefetch(batch[i].foreseen) }
    }

    /// The fiber that will probably resume after `others` more switches: 0 asks for the next one.
    package func guess(_ others: UInt32) -> FiberPointer? { recent[Int((count &+ others) % Self.distance)].foreseen }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Before a switch to a fiber with nobody else ready: fetches what those will touch that probably come after it.
    @inline(never)
    func foresee(_ next: FiberPointer) {
        // The guess is about fibers that wait for others: events come in an order of their own.
        guard next.wait != nil else { return }
        pointee.foresight.note(next)
        pointee.foresight.guess(2)?.prefetchFrames()
        guard let point = pointee.foresight.guess(0)?.wait?.point else { return }
        for line in 0..<4 { cfiber_prefetch(point + 64 * line) }
    }
}
