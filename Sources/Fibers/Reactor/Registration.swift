// SPDX-License-Identifier: Apache-2.0

// What the driver knows of one descriptor, and the table of all of them.
//
// Invariants:
//   * a slot's address and index never change and its memory lives as long as the driver, so that a pointer to it may always be looked at;
//   * `generation` is odd while the slot is in use and grows by one at each end and each start, so a `Descriptor` or an event of an earlier use never matches;
//   * `readable` / `writable` mean "may be": true from the start, after an event, and until a system call has shown otherwise. A fiber parks for an event only while
//     they are false (accepting without descriptors also waits for time to pass), and every event that can change that arrives after the call that showed it, because registration is edge-triggered.
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
    /// Fibers that wait for an event: whoever has the turn, and callers of `wait`.
    var readers = WaitList()
    var writers = WaitList()
    /// Fibers whose turn has not come: one at a time receives (or accepts), and one sends, so that readers are served in order and what several write is not mixed.
    var readTurns = WaitList()
    var writeTurns = WaitList()
    /// The object that uses the slot, to be fetched together with it; never followed. Of a free slot, the next free one.
    var user: UnsafeRawPointer?
    /// Requests to the backend that have not completed.
    var requests: Int32 = 0
    /// The descriptor is to be closed with the last of them.
    var closesAfterRequests = false

    struct Flags: OptionSet {
        let rawValue: UInt8
        /// The peer will send no more, or the socket is in error: reads answer at once, for ever.
        static let hungUp = Flags(rawValue: 1)
        /// A short count says nothing about whether more is there.
        static let exact = Flags(rawValue: 2)
        /// The backend watches for everything that ends a wait to read.
        static let watchesRead = Flags(rawValue: 4)
        /// And for room to write.
        static let watchesWrite = Flags(rawValue: 8)
        /// A fiber has the turn to receive or accept.
        static let reading = Flags(rawValue: 16)
        /// A fiber has the turn to send.
        static let writing = Flags(rawValue: 32)
        /// Accepting has met a lack of descriptors, of which the operator was told, and has not caught up since.
        static let short = Flags(rawValue: 64)
    }

    /// What has happened to few connections. In a byte of its own: operations on the flags above are in every read and write, and dearer with two bytes.
    struct Marks: OptionSet {
        let rawValue: UInt8
        /// Urgent data has come over TCP at some time: `EAGAIN` alone does not say that nothing is there.
        static let urgent = Marks(rawValue: 1)
        /// This side has ended its sending: writes fail at once, which the kernel announces on TCP alone.
        static let sendEnded = Marks(rawValue: 2)
    }

    init(index: UInt32) { self.index = index }

    /// Names this use of the slot, in events.
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
    /// Of a free slot.
    @inline(__always)
    fileprivate var nextFree: RegistrationPointer? {
        get { RegistrationPointer(mutating: pointee.user?.assumingMemoryBound(to: Registration.self)) }
        nonmutating set { pointee.user = UnsafeRawPointer(newValue) }
    }

    /// The list itself, in the slot: it stays where it is.
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

    /// A slot in use, with a generation of its own; nil when memory is short.
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

    /// Takes a slot back whose use has ended. The waiters must have been woken.
    @inline(__always)
    mutating func put(_ slot: RegistrationPointer) {
        slot.pointee.fd = -1
        slot.nextFree = free
        free = slot
    }

    /// The slot that a token names, if that was ever one, whether or not the use is over.
    @inline(__always)
    func slot(_ token: UInt64) -> RegistrationPointer? {
        let index = UInt32(truncatingIfNeeded: token)
        guard Int(index >> Self.chunkShift) < chunks.count else { return nil }
        return chunks.base.unsafelyUnwrapped[Int(index >> Self.chunkShift)].slots + Int(index & UInt32(Self.chunkSize - 1))
    }

    /// The registration that a token names, nil when that use of the slot is over.
    @inline(__always)
    func find(_ token: UInt64) -> RegistrationPointer? {
        guard let slot = slot(token), slot.pointee.generation == UInt32(truncatingIfNeeded: token >> 32) else { return nil }
        return slot
    }

    @inline(never)
    private mutating func grow() -> Bool {
        require(MemoryLayout<Registration>.stride == 64, "a Registration no longer fills one cache line: make its fields fit")
        // One slot more than is used, so that they can begin at a cache line.
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

    /// Calls `body` with each slot whose use has ended, but not its requests.
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
