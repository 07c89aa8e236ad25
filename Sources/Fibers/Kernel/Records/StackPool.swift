// SPDX-License-Identifier: Apache-2.0

// The stacks of a worker's fibers: slabs carved into slots of one size, a list of warm stacks that are ready to run, and a list of cold
// slots whose memory was given back to the system.
//
// Invariants:
//   * a slot is carved once, guarded once, and belongs to the pool until the runtime ends;
//   * a `warm` stack holds a record whose context is parked in the first frame and waits for its next fiber: starting a fiber on it is one
//     switch;
//   * a `cold` slot has its guard but no record: its memory was given back, or has not been used yet;
//   * nothing here touches a stack between the moment at which a fiber puts it into the pool and the moment at which the fiber has left it,
//     because both happen on the owner worker without a call in between.
// Owner worker only.

import CFiber
import Glibc

struct StackPool {
    /// Bytes from slot to slot, guard included: a power of two.
    let stride: Int
    let guardSize: Int
    private var guardMethod: Int32
    private let mayFallBack: Bool

    /// Stacks ready to run, linked through their records; the most recently used first.
    private(set) var warm: FiberPointer?
    private(set) var warmCount = 0
    /// The smallest `warmCount` since the last trim: the number of stacks that were not needed in all that time.
    private var idleCount = 0
    private var cold = RawArray<UnsafeMutableRawPointer>()
    private var slabs = RawArray<Slab>()
    /// Slots carved so far.
    private(set) var carved = 0
    /// The number of stacks that `mprotect` guards allow, from vm.max_map_count. Page-table guards have no limit.
    private var mappingLimit = Int.max
    private var lastTrim: Int64 = 0
    /// Nanoseconds between trims.
    private let trimInterval: Int64
    /// True until the kernel refuses to guard several slots in one call.
    private var carvesSeveral = true

    struct Slab {
        var base: UnsafeMutableRawPointer
        var slots: Int
        var used: Int
    }

    static let guardBytes = 64 * 1024
    static let smallestSlab = 16
    static let largestSlab = 4096
    /// Stacks that a trim keeps warm.
    static let keptWarm = 32
    /// The most stacks that one trim gives back, so that it delays other fibers by no more than about a millisecond.
    static let trimBatch = 1024

    init(stackSize: Int, guards: StackGuards, trimInterval: Int64) {
        self.trimInterval = max(0, trimInterval)
        stride = stackSize
        guardSize = Self.guardBytes
        guardMethod = Int32(guards == .mprotect ? CFIBER_GUARD_MPROTECT : CFIBER_GUARD_INSTALL)
        mayFallBack = guards == .automatic
        if guards == .mprotect { limitMappings() }
    }

    /// Takes a stack for a new fiber. Its record has no core, no name and no id.
    @inline(__always)
    mutating func take(for worker: Worker) throws(ResourceError) -> FiberPointer {
        if let fiber = warm {
            warm = fiber.next
            warmCount &-= 1
            if warmCount < idleCount { idleCount = warmCount }
            return fiber
        }
        return try make(for: worker)
    }

    /// Returns the stack of a finished fiber, which may still be running on it.
    @inline(__always)
    mutating func put(_ fiber: FiberPointer) {
        fiber.next = warm
        warm = fiber
        warmCount &+= 1
    }

    @inline(never)
    private mutating func make(for worker: Worker) throws(ResourceError) -> FiberPointer {
        let slot = try carveOrReuse()
        let fiber = recordPlace(slot)
        fiber.initialize(for: worker)
        fiber.pointee.stack_low = (slot + guardSize).assumingMemoryBound(to: CChar.self)
        fiber.pointee.stack_size = UnsafeMutableRawPointer(fiber) - (slot + guardSize)
        fiber.pointee.guard_size = guardSize
        // A record that was here before may have left waiters behind, so its epochs must not repeat.
        fiber.beginEpochs(at: worker.pointee.numbers.takeEpochs())
        cfiber_prepare(fiber, runLife)
        return fiber
    }

    /// The address of a slot's record.
    private func recordPlace(_ slot: UnsafeMutableRawPointer) -> FiberPointer {
        // If all stacks ended at the same offset in their pages, they would compete for the same cache sets. So each is shifted by a few
        // cache lines, few enough that the first page still holds the record and shallow frames.
        let colour = (Int(bitPattern: slot) / stride &* 5 % Self.colours) * Self.colourStep
        return (slot + stride - Self.recordSpace - colour).bindMemory(to: FiberRecord.self, capacity: 1)
    }

    static let colours = 13
    static let colourStep = 128
    static let recordSpace = (MemoryLayout<FiberRecord>.stride + 63) & ~63

    private mutating func carveOrReuse() throws(ResourceError) -> UnsafeMutableRawPointer {
        if let slot = cold.popLast() { return slot }
        if slabs.isEmpty || slabs.last.used == slabs.last.slots { try mapSlab() }
        if carveSeveral(), let slot = cold.popLast() { return slot }
        let slab = slabs.last
        let slot = slab.base + slab.used * stride
        try protect(slot)
        slabs.last.used += 1
        carved += 1
        return slot
    }

    /// Carves several slots at once. Only with so many fibers that the next slots will be needed, too: a fresh stack then costs 2.7 µs
    /// instead of 3.3.
    private mutating func carveSeveral() -> Bool {
        let count = min(Int(CFIBER_GUARD_BATCH), slabs.last.slots - slabs.last.used)
        guard carvesSeveral, carved >= 4 * Int(CFIBER_GUARD_BATCH), guardMethod == CFIBER_GUARD_INSTALL, cold.reserve(count) else {
            return false
        }
        let first = slabs.last.base + slabs.last.used * stride
        guard cfiber_guard_several(first, stride, count, guardSize) == 0 else {
            carvesSeveral = false
            return false
        }
        for i in (0..<count).reversed() { cold.append(first + i * stride) }
        slabs.last.used += count
        carved += count
        return true
    }

    private mutating func mapSlab() throws(ResourceError) {
        guard slabs.reserveOne() else { throw .memory(ENOMEM, "growing the table of stack slabs", bytes: slabs.count * 48) }
        var slots = slabs.isEmpty ? Self.smallestSlab : min(slabs.last.slots * 2, Self.largestSlab)
        while true {
            var base: UnsafeMutableRawPointer?
            let status = cfiber_map(slots * stride, &base)
            if status == 0, let base {
                slabs.append(Slab(base: base, slots: slots, used: 0))
                return
            }
            guard status == -ENOMEM, slots > 1 else {
                throw .memory(-status, "mapping a stack of \(stride) bytes (\(carved) are mapped)", bytes: slots * stride)
            }
            slots /= 2
        }
    }

    private mutating func protect(_ slot: UnsafeMutableRawPointer) throws(ResourceError) {
        guard carved < mappingLimit else { throw .mappings(ENOMEM, "guarding one more stack", stacks: carved) }
        var status = cfiber_guard(slot, guardSize, guardMethod)
        if status == -EINVAL, guardMethod == CFIBER_GUARD_INSTALL, mayFallBack {
            guardMethod = Int32(CFIBER_GUARD_MPROTECT)
            limitMappings()
            status = cfiber_guard(slot, guardSize, guardMethod)
        }
        if status == 0 { return }
        if status == -ENOMEM, guardMethod == CFIBER_GUARD_MPROTECT {
            throw .mappings(ENOMEM, "guarding one more stack", stacks: carved)
        }
        if status == -EINVAL {
            throw ResourceError(
                .kernel, errno: EINVAL, operation: "guarding a stack by page-table markers",
                remedy: "This kernel lacks MADV_GUARD_INSTALL (Linux 6.13): use Configuration.guards = .automatic.")
        }
        throw .memory(-status, "guarding a stack", bytes: guardSize)
    }

    private mutating func limitMappings() {
        let most = cfiber_read_number("/proc/sys/vm/max_map_count")
        guard most > 0 else { return }
        // The rest of the program needs mappings too: malloc, files, threads.
        mappingLimit = max(0, (Int(most) - max(0, cfiber_count_mappings()) - 512) / 2)
    }

    // Giving memory back.

    /// The time at which an idle worker should wake to trim; nil if there is nothing to trim.
    var nextTrim: Int64? { warmCount > Self.keptWarm ? Deadline.after(nanoseconds: trimInterval, from: lastTrim) : nil }

    /// Gives back the memory of stacks that were not needed since the last trim, and the deep pages of some that stay warm. Called when the
    /// worker is idle.
    @inline(never)
    mutating func trim(now: Int64) {
        guard now - lastTrim >= trimInterval else { return }
        let surplus = min(idleCount - Self.keptWarm, Self.trimBatch)
        // There is more to give back than one batch: continue soon.
        lastTrim = surplus == Self.trimBatch ? now - trimInterval + 1_000_000 : now
        if surplus > 0 { retire(surplus) }
        var fiber = warm
        for _ in 0..<Self.keptWarm {
            guard let some = fiber else { break }
            giveBackDeepPages(some)
            fiber = some.next
        }
        idleCount = surplus == Self.trimBatch ? idleCount - surplus : warmCount
    }

    private mutating func retire(_ count: Int) {
        guard cold.reserve(count) else { return }
        let first = cold.count
        for _ in 0..<count {
            guard let fiber = warm else { break }
            warm = fiber.next
            warmCount -= 1
            let low = UnsafeMutableRawPointer(fiber.pointee.stack_low!)
            end(fiber)
            cold.append(low - guardSize)
        }
        // A failure leaves the pages in place: it costs memory and nothing else.
        cold.base?.advanced(by: first).withMemoryRebound(to: UnsafeMutableRawPointer?.self, capacity: cold.count - first) {
            _ = cfiber_give_back_several($0, cold.count - first, guardSize, stride - guardSize)
        }
    }

    /// Destroys a record and its context.
    private func end(_ fiber: FiberPointer) {
        cfiber_forget(fiber)
        fiber.destroy()
    }

    private func giveBackDeepPages(_ fiber: FiberPointer) {
        let low = UnsafeMutableRawPointer(fiber.pointee.stack_low!)
        let size = stride - guardSize
        let kept = 2 * Int(getpagesize())
        guard cfiber_resident_depth(low, size) > kept else { return }
        _ = cfiber_give_back(low, size - kept)
    }

    /// The greatest depth that a stack has reached, in bytes from its top, rounded to pages.
    static func highWaterMark(_ fiber: FiberPointer) -> Int {
        let page = Int(getpagesize())
        let end = (UInt(bitPattern: fiber.pointee.stack_low) + UInt(fiber.pointee.stack_size) + UInt(page) - 1) & ~UInt(page - 1)
        return cfiber_resident_depth(fiber.pointee.stack_low, Int(end - UInt(bitPattern: fiber.pointee.stack_low)))
    }

    /// Calls `body` with each fiber that is alive. Visits every stack carved so far.
    func forEachLive(_ body: (FiberPointer) -> Void) {
        for i in 0..<slabs.count {
            let slab = slabs.base.unsafelyUnwrapped[i]
            for j in 0..<slab.used {
                // A slot whose memory was given back reads as zeros, so its id is 0.
                let fiber = recordPlace(slab.base + j * stride)
                if fiber.id != 0 { body(fiber) }
            }
        }
    }

    /// Unmaps all slabs. No fiber of this pool will run again.
    ///
    /// - Parameter abandoned: whether some fibers have not ended.
    mutating func destroy(abandoned: Bool) {
        if abandoned { forEachLive(end) }
        while let fiber = warm {
            warm = fiber.next
            end(fiber)
        }
        while let slab = slabs.popLast() { _ = cfiber_unmap(slab.base, slab.slots * stride) }
        slabs.destroy()
        cold.destroy()
    }
}
