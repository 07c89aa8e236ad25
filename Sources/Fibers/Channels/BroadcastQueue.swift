// SPDX-License-Identifier: Apache-2.0

// The values of a broadcast that subscribers have yet to read, found by their numbers, in blocks that are allocated as values come and are pooled as values leave.
//
//     number        front                                   next
//     block     ┌─────▼────────┐ ┌──────────────┐ ┌───────────▼──┐
//               │  ·  9  10 11 │ │ 12 13 14  15 │ │ 16 17 18  ·  │        a value, behind the count of its readers
//               └──────────────┘ └──────────────┘ └──────────────┘
//     directory       ▲ 2              ▲ 3              ▲ 0              a ring of blocks: block b is at b modulo its length
//
// Invariants:
//   * the queue holds the values with numbers in `front..<next`, except those that were taken out of the middle, whose count is 0. It always holds the value at `front`;
//   * there are blocks from that of `front` to that of the last value, and a few spare ones. The directory doubles when it has no room for one more block;
//   * memory grows with the number of values, never with the capacity.
// It knows places and not types: the caller moves the values. With the lock of the broadcast held.

struct BroadcastQueue {
    /// The oldest value.
    private(set) var front = 0
    /// The number of the value that comes next.
    private(set) var next = 0
    private var directory: UnsafeMutablePointer<UnsafeMutableRawPointer>
    /// The length of the directory, a power of two, less one.
    private var directoryMask = 1
    /// The number of the first block that is not there.
    private var endOfBlocks = 0
    /// Blocks that wait to be used again, linked by their first words.
    private var spare: UnsafeMutableRawPointer?
    private var spares = 0
    private let mostSpares: Int
    /// The number of values in a block is a power of two, so that number and place are found by a shift and a mask.
    private let shift: Int
    private let placeMask: Int
    /// From one value to the next, and from a count to its value, in bytes.
    private let stride: Int
    private let valueOffset: Int

    /// In a block of a small broadcast, so that not each value needs another one.
    private static var fewestPlaces: Int { 8 }
    /// In a block of many: 64 values, and two kilobytes with their counts.
    private static var mostPlaces: Int { 64 }
    private static var mostBytes: Int { 2048 }
    private static var mostSpareBytes: Int { 16 * 1024 }

    /// - Parameters:
    ///   - capacity: how many values there will be at most.
    ///   - size: of a value, its stride.
    ///   - alignment: of a value, 16 at most.
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

    /// How many have yet to read the value with a number that is there.
    @inline(__always)
    func readers(of number: Int) -> UnsafeMutablePointer<Int> { place(of: number).assumingMemoryBound(to: Int.self) }

    /// Where a value lies.
    @inline(__always)
    func slot(of number: Int) -> UnsafeMutableRawPointer { place(of: number) + valueOffset }

    @inline(__always)
    private func place(of number: Int) -> UnsafeMutableRawPointer {
        directory[(number >> shift) & directoryMask] + (number & placeMask) * stride
    }

    /// Where the caller puts the next value, which so many subscribers will read.
    @inline(__always)
    mutating func append(readers: Int) -> UnsafeMutableRawPointer {
        if _slowPath(next >> shift == endOfBlocks) { addBlock() }
        let number = next
        next = number + 1
        self.readers(of: number).initialize(to: readers)
        return slot(of: number)
    }

    /// Removes the oldest value, which the caller has moved away, and those behind it that were taken out before.
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

    /// Frees all memory; the queue is empty and is not used afterwards.
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
