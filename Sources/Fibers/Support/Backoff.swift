// SPDX-License-Identifier: Apache-2.0

// The length of pauses between attempts, where no event reports when the next one can succeed.

/// Pauses that double, from the first to the longest, in nanoseconds.
package struct Backoff: BitwiseCopyable {
    private var pause: Int64
    private let longest: Int64

    @inline(__always)
    package init(from first: Int64, to longest: Int64) {
        pause = first
        self.longest = longest
    }

    /// For a resource that another fiber or process may release soon: 1 to 50 ms.
    @inline(__always)
    package static var brief: Backoff { Backoff(from: 1_000_000, to: 50_000_000) }
    /// For a resource that the whole system is short of: 5 to 100 ms.
    @inline(__always)
    package static var patient: Backoff { Backoff(from: 5_000_000, to: 100_000_000) }

    /// The pause before the next attempt.
    package mutating func next() -> Int64 {
        defer { pause = min(pause * 2, longest) }
        return pause
    }
}
