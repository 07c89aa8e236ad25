// SPDX-License-Identifier: Apache-2.0

// All randomness of the program, out of one seed.

import Glibc

/// Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014.
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    /// The generator of one fiber: the same seed and serial number, the same decisions.
    init(seed: UInt64, serial: UInt64) {
        var scattered = SplitMix64(state: serial)
        state = seed ^ scattered.next()
    }

    private init(state: UInt64) { self.state = state }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// What is sent: the byte at each position of each connection is known without keeping it.
enum Pattern {
    private static let period = 65_536
    /// Twice the same random bytes, so that every piece of up to one period lies in one place.
    private static let table: [UInt8] = {
        var random = SplitMix64(seed: 0, serial: 0)
        let once = (0..<period).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        return once + once
    }()

    private static func start(_ key: UInt64, _ position: Int) -> Int {
        Int((key &* 40_503 &+ UInt64(position)) % UInt64(period))
    }

    static func bytes(_ key: UInt64, at position: Int, count: Int) -> [UInt8] {
        let start = start(key, position)
        return Array(table[start..<start + min(count, period)])
    }

    /// Whether these bytes are those of a connection from a position on.
    static func matches(_ key: UInt64, at position: Int, _ bytes: UnsafeRawBufferPointer) -> Bool {
        var offset = 0
        while offset < bytes.count {
            let count = min(bytes.count - offset, period)
            let start = start(key, position + offset)
            // Not element by element: that is what a debug build would spend its time on.
            let isSame = table.withUnsafeBytes { memcmp($0.baseAddress! + start, bytes.baseAddress! + offset, count) == 0 }
            guard isSame else { return false }
            offset += count
        }
        return true
    }
}
