// SPDX-License-Identifier: Apache-2.0

// Deadlines are nanoseconds of CLOCK_MONOTONIC, `Int64.max` for never.

package enum Deadline {
    @inline(__always) package static var never: Int64 { .max }

    @inline(__always)
    package static func after(_ duration: Duration, from start: Int64) -> Int64 {
        let (deadline, overflow) = start.addingReportingOverflow(nanoseconds(duration))
        return overflow ? never : max(0, deadline)
    }

    /// The sum of a time and a length; `never` where that is too large.
    @inline(__always)
    static func after(nanoseconds length: Int64, from start: Int64) -> Int64 {
        let (sum, overflow) = start.addingReportingOverflow(length)
        return overflow ? never : sum
    }

    /// A duration in nanoseconds, rounded up; `never` where it does not fit. It avoids `components`, whose 128-bit division takes as long
    /// as the rest of setting a deadline.
    static func nanoseconds(_ duration: Duration) -> Int64 {
        let attoseconds = duration.attoseconds
        let high = attoseconds >> 64
        if high < 0 {
            let length = attoseconds == .min ? never : nanoseconds(Duration(attoseconds: -attoseconds))
            return length == never ? .min : -length
        }
        guard high < 1_000_000_000 else { return never }
        let (whole, rest) = UInt64(1_000_000_000).dividingFullWidth(
            (UInt64(truncatingIfNeeded: high), UInt64(truncatingIfNeeded: attoseconds)))
        return Int64(exactly: whole).flatMap { rest == 0 ? $0 : $0 == never ? never : $0 &+ 1 } ?? never
    }
}
