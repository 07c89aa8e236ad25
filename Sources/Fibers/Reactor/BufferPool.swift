// SPDX-License-Identifier: Apache-2.0

// Pooled read buffers. A fiber borrows one only while it handles the bytes that it has read, so that an idle connection holds none. Owner
// worker only.

import CFiber

package struct BufferPool {
    /// Bytes in each buffer.
    package let size: Int
    /// Free buffers, each beginning with the address of the next.
    private var free: UnsafeMutableRawPointer?
    private var freeCount = 0
    /// The number of free buffers that the pool keeps; further ones are freed.
    private static var kept: Int { 64 }

    init(size: Int) { self.size = max(size, MemoryLayout<UnsafeRawPointer>.size) }

    /// Returns nil when memory is short.
    @inline(__always)
    mutating func take() -> UnsafeMutableRawPointer? {
        guard let buffer = free else { return cfiber_resize(nil, size, 1) }
        free = buffer.load(as: UnsafeMutableRawPointer?.self)
        freeCount &-= 1
        return buffer
    }

    @inline(__always)
    package mutating func put(_ buffer: UnsafeMutableRawPointer) {
        if _slowPath(freeCount >= Self.kept) { return cfiber_free(buffer) }
        buffer.storeBytes(of: free, as: UnsafeMutableRawPointer?.self)
        free = buffer
        freeCount &+= 1
    }

    mutating func destroy() {
        while let buffer = free {
            free = buffer.load(as: UnsafeMutableRawPointer?.self)
            cfiber_free(buffer)
        }
        freeCount = 0
    }
}
