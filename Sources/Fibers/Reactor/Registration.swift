// SPDX-License-Identifier: Apache-2.0

// The driver's state of one descriptor (a slot), and the table of all slots.
//
// Invariants:
//   * a slot's address and index never change and its memory lives as long as the driver, so that a pointer to it may be read at any time;
//   * `generation` is odd while the slot is in use and grows by one at each start and each end, so a `Descriptor` or an event of an earlier
//     use never matches;
//   * `readable` / `writable` mean "may be": true from the start, after an event, and until a system call has shown otherwise. A fiber
//     parks for an event only while they are false (accepting without free descriptors also waits for time to pass). Every event that can
//     change that arrives after the call that showed it, because registration is edge-triggered.
// Owner worker only.

import CFiber

package typealias RegistrationPointer = UnsafeMutablePointer<Registration>

/// One cache line.
package struct Registration: BitwiseCopyable {
    package internal(set) var fd: Int32 = -1
    package internal(set) var generation: UInt32 = 0
    let index: UInt32
    var readable = true
    var writable = true
    var flags = Flags()
    var marks = Marks()
    /// Fibers that wait for an event: the holder of the direction lock, and callers of `wait`.
    var readers = WaitList()
    var writers = WaitList()
    /// Fibers that wait for the direction lock. One fiber at a time receives (or accepts) and one sends, so that readers are served in
    /// order and the bytes of several writers are not mixed.
    var readTurns = WaitList()
    var writeTurns = WaitList()
    /// The object that uses the slot, to be prefetched with it and never dereferenced. In a free slot: the next free slot.
    var user: UnsafeRawPointer?
    /// The number of requests to the backend that have not completed.
    var requests: Int32 = 0
    /// The last of these requests closes the descriptor.
    var closesAfterRequests = false

    struct Flags: OptionSet {
        let rawValue: UInt8
        /// The peer will send no more, or the socket is in error: from now on reads return immediately.
        static let hungUp = Flags(rawValue: 1)
        /// A short count does not show whether more is available.
        static let exact = Flags(rawValue: 2)
        /// The backend watches for everything that ends a wait to read.
        static let watchesRead = Flags(rawValue: 4)
        /// The backend also watches for room to write.
        static let watchesWrite = Flags(rawValue: 8)
        /// A fiber holds the lock for receiving or accepting.
        static let reading = Flags(rawValue: 16)
        /// A fiber holds the lock for sending.
        static let writing = Flags(rawValue: 32)
        /// Accepting has run out of descriptors and has reported that. Cleared when the queue of connections has been drained.
        static let short = Flags(rawValue: 64)
    }

    /// Rare conditions of a connection. They have a byte of their own: every read and write operates on the flags above, and two bytes
    /// there would make that slower.
    struct Marks: OptionSet {
        let rawValue: UInt8
        /// Urgent data has arrived over TCP at some time: `EAGAIN` alone does not mean that there is nothing to receive.
        static let urgent = Marks(rawValue: 1)
        /// This side has ended its sending half: writes fail at once, which the kernel announces on TCP only.
        static let sendEnded = Marks(rawValue: 2)
    }

    init(index: UInt32) { self.index = index }

    /// Identifies this use of the slot, in events.
    @inline(__always)
    package var token: UInt64 { UInt64(generation) << 32 | UInt64(index) }

    @inline(__always)
    func isReady(_ direction: Direction) -> Bool { direction == .read ? readable : writable }

    @inline(__always)
    mutating func noteNotReady(_ direction: Direction) {
        if direction == .read { readable = false } else { writable = false }
    }

    /// Ends a use.
    @inline(__always)
    mutating func end() { generation &+= 1 }
}

extension UnsafeMutablePointer where Pointee == Registration {
    /// The next free slot; only in a free slot.
    @inline(__always)
    fileprivate var nextFree: RegistrationPointer? {
        get { RegistrationPointer(mutating: pointee.user?.assumingMemoryBound(to: Registration.self)) }
        nonmutating set { pointee.user = UnsafeRawPointer(newValue) }
    }

    /// The list itself, inside the slot: it never moves.
    @inline(__always)
    func waiters(_ direction: Direction) -> UnsafeMutablePointer<WaitList> { direction == .read ? readers : writers }
    @inline(__always)
    var readers: UnsafeMutablePointer<WaitList> { withUnsafeMutablePointer(to: &pointee.readers) { $0 } }
    @inline(__always)
    var writers: UnsafeMutablePointer<WaitList> { withUnsafeMutablePointer(to: &pointee.writers) { $0 } }
    @inline(__always)
    var readTurns: UnsafeMutablePointer<WaitList> { withUnsafeMutablePointer(to: &pointee.readTurns) { $0 } }
    @inline(__always)
    var writeTurns: UnsafeMutablePointer<WaitList> { withUnsafeMutablePointer(to: &pointee.writeTurns) { $0 } }
}

struct RegistrationTable {
    private var chunks = RawArray<Chunk>()
    private var free: RegistrationPointer?
    private struct Chunk: BitwiseCopyable {
        var memory: UnsafeMutableRawPointer
        var slots: RegistrationPointer
    }

    private static var chunkShift: UInt32 { 8 }
    private static var chunkSize: Int { 1 << Int(chunkShift) }

    /// Takes a free slot into use, with a new generation; nil when memory is short.
    @inline(__always)
    mutating func take(fd: Int32, exact: Bool) -> RegistrationPointer? {
        if free == nil, !grow() { return nil }
        let slot = free.unsafelyUnwrapped
        free = slot.nextFree
        let generation = slot.pointee.generation &+ 1
        slot.initialize(to: Registration(index: slot.pointee.index))
        slot.pointee.fd = fd
        slot.pointee.generation = generation
        if exact { slot.pointee.flags.insert(.exact) }
        return slot
    }

    /// Returns a slot whose use has ended. Its waiters must have been woken.
    @inline(__always)
    mutating func put(_ slot: RegistrationPointer) {
        slot.pointee.fd = -1
        slot.nextFree = free
        free = slot
    }

    /// The slot that a token names, if it exists, whether or not that use has ended.
    @inline(__always)
    func slot(_ token: UInt64) -> RegistrationPointer? {
        let index = UInt32(truncatingIfNeeded: token)
        guard Int(index >> Self.chunkShift) < chunks.count else { return nil }
        return chunks.base.unsafelyUnwrapped[Int(index >> Self.chunkShift)].slots + Int(index & UInt32(Self.chunkSize - 1))
    }

    /// The registration that a token names; nil if that use of the slot has ended.
    @inline(__always)
    func find(_ token: UInt64) -> RegistrationPointer? {
        guard let slot = slot(token), slot.pointee.generation == UInt32(truncatingIfNeeded: token >> 32) else { return nil }
        return slot
    }

    @inline(never)
    private mutating func grow() -> Bool {
        require(MemoryLayout<Registration>.stride == 64, "a Registration no longer fills one cache line: make its fields fit")
        // One slot more than is used, so that the slots can begin at a cache line.
        guard chunks.reserveOne(), let memory = cfiber_resize(nil, Self.chunkSize + 1, MemoryLayout<Registration>.stride) else {
            return false
        }
        let aligned = memory.alignedUp(toMultipleOf: 64)
        let chunk = aligned.bindMemory(to: Registration.self, capacity: Self.chunkSize)
        let first = UInt32(chunks.count * Self.chunkSize)
        for i in (0..<Self.chunkSize).reversed() {
            (chunk + i).initialize(to: Registration(index: first + UInt32(i)))
            (chunk + i).nextFree = free
            free = chunk + i
        }
        chunks.append(Chunk(memory: memory, slots: chunk))
        return true
    }

    /// Calls `body` with each slot in use.
    func forEachOpen(_ body: (RegistrationPointer) -> Void) {
        for c in 0..<chunks.count {
            let slots = chunks.base.unsafelyUnwrapped[c].slots
            for i in 0..<Self.chunkSize where slots[i].generation & 1 == 1 { body(slots + i) }
        }
    }

    /// Calls `body` with each slot whose use has ended while requests on it have not.
    func forEachWithRequests(_ body: (RegistrationPointer) -> Void) {
        for c in 0..<chunks.count {
            let slots = chunks.base.unsafelyUnwrapped[c].slots
            for i in 0..<Self.chunkSize where slots[i].generation & 1 == 0 && slots[i].requests > 0 { body(slots + i) }
        }
    }

    mutating func destroy() {
        while let chunk = chunks.popLast() { cfiber_free(chunk.memory) }
        chunks.destroy()
        free = nil
    }
}
