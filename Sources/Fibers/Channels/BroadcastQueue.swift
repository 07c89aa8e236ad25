// SPDX-License-Identifier: Apache-2.0

// The values of a broadcast that some subscriber has yet to read, indexed by sequence number. They lie in blocks, which are allocated as
// values arrive and pooled as values leave.
//
//     number        front                                   next
//     block     ┌─────▼────────┐ ┌──────────────┐ ┌───────────▼──┐
//               │  ·  9  10 11 │ │ 12 13 14  15 │ │ 16 17 18  ·  │        a value, behind the count of its readers
//               └──────────────┘ └──────────────┘ └──────────────┘
//     directory       ▲ 2              ▲ 3              ▲ 0              a ring of blocks: block b is at b modulo its length
//
// Invariants:
//   * The queue holds the values with numbers in `front..<next`, except values already taken out of the middle, whose reader count is 0. It
//     always holds the value at `front`.
//   * Blocks exist from the block of `front` to the block of the last value, plus a few spare ones. The directory doubles when it has no
//     room for another block.
//   * Memory grows with the number of values, never with the capacity.
// The queue handles untyped slots; the caller moves the values. The caller holds the lock of the broadcast.

struct BroadcastQueue {
    /// The number of the oldest value.
    private(set) var front = 0
    /// The number of the next value to append.
    private(set) var next = 0
    private var directory: UnsafeMutablePointer<UnsafeMutableRawPointer>
    /// The length of the directory, a power of two, minus one.
    private var directoryMask = 1
    /// The number of the first block that is not allocated.
    private var endOfBlocks = 0
    /// Pooled blocks, linked by their first words.
    private var spare: UnsafeMutableRawPointer?
    private var spares = 0
    private let mostSpares: Int
    /// log2 of the number of values in a block. It is a power of two, so a shift and a mask find the slot of a number.
    private let shift: Int
    private let placeMask: Int
    /// The distance in bytes from one entry to the next, and from a reader count to its value.
    private let stride: Int
    private let valueOffset: Int

    /// The minimum number of entries in a block, so that a small broadcast does not need a new block for each value.
    private static var fewestPlaces: Int { 8 }
    /// The limits of a block: 64 values, and two kilobytes including the reader counts.
    private static var mostPlaces: Int { 64 }
    private static var mostBytes: Int { 2048 }
    private static var mostSpareBytes: Int { 16 * 1024 }

    /// - Parameters:
    ///   - capacity: the maximum number of values.
    ///   - size: the stride of a value.
    ///   - alignment: the alignment of a value, at most 16.
    init(capacity: Int, size: Int, alignment: Int) {
        let alignment = max(alignment, MemoryLayout<Int>.alignment)
        valueOffset = max(alignment, MemoryLayout<Int>.size)
        stride = (valueOffset + size + alignment - 1) & ~(alignment - 1)
        let places = max(1, min(max(capacity, Self.fewestPlaces), Self.mostPlaces, Self.mostBytes / stride))
        shift = Int.bitWidth - 1 - places.leadingZeroBitCount
        placeMask = (1 << shift) - 1
        mostSpares = max(1, Self.mostSpareBytes / (stride << shift))
        directory = .allocate(capacity: directoryMask + 1)
    }

    var count: Int { next - front }

    /// The number of subscribers that have yet to read a value, which must be in the queue.
    @inline(__always)
    func readers(of number: Int) -> UnsafeMutablePointer<Int> { place(of: number).assumingMemoryBound(to: Int.self) }

    /// The address of a value.
    @inline(__always)
    func slot(of number: Int) -> UnsafeMutableRawPointer { place(of: number) + valueOffset }

    @inline(__always)
    private func place(of number: Int) -> UnsafeMutableRawPointer {
        directory[(number >> shift) & directoryMask] + (number & placeMask) * stride
    }

    /// Appends an entry for the next value, which `readers` subscribers will read. Returns the address to move the value to.
    @inline(__always)
    mutating func append(readers: Int) -> UnsafeMutableRawPointer {
        if _slowPath(next >> shift == endOfBlocks) { addBlock() }
        let number = next
        next = number + 1
        self.readers(of: number).initialize(to: readers)
        return slot(of: number)
    }

    /// Removes the oldest value, which the caller has moved out, and the values after it that were already taken out.
    @inline(__always)
    mutating func removeFirst() {
        let block = front >> shift
        repeat { front += 1 } while front != next && readers(of: front).pointee == 0
        if _slowPath(front >> shift != block) { leaveBlocks(from: block) }
    }

    // Blocks.

    @inline(never)
    private mutating func addBlock() {
        if endOfBlocks - front >> shift > directoryMask { growDirectory() }
        let block: UnsafeMutableRawPointer
        if let spare {
            block = spare
            self.spare = UnsafeMutableRawPointer(bitPattern: block.load(as: UInt.self))
            spares -= 1
        } else {
            block = .allocate(byteCount: stride << shift, alignment: 16)
        }
        directory[endOfBlocks & directoryMask] = block
        endOfBlocks += 1
    }

    private mutating func growDirectory() {
        let mask = directoryMask << 1 | 1
        let larger = UnsafeMutablePointer<UnsafeMutableRawPointer>.allocate(capacity: mask + 1)
        for block in front >> shift..<endOfBlocks { larger[block & mask] = directory[block & directoryMask] }
        directory.deallocate()
        directory = larger
        directoryMask = mask
    }

    @inline(never)
    private mutating func leaveBlocks(from first: Int) {
        for number in first..<min(front >> shift, endOfBlocks) {
            let block = directory[number & directoryMask]
            guard spares < mostSpares else {
                block.deallocate()
                continue
            }
            block.storeBytes(of: UInt(bitPattern: spare), as: UInt.self)
            spare = block
            spares += 1
        }
    }

    /// Frees all memory. The queue must be empty and must not be used afterwards.
    func free() {
        for block in front >> shift..<max(front >> shift, endOfBlocks) { directory[block & directoryMask].deallocate() }
        var rest = spare
        while let block = rest {
            rest = UnsafeMutableRawPointer(bitPattern: block.load(as: UInt.self))
            block.deallocate()
        }
        directory.deallocate()
    }
}
