// Deadlines are nanoseconds of CLOCK_MONOTONIC, `Int64.max` for never.

import CFiber

package enum Deadline {
    @inline(__always) package static var never: Int64 { .max }

    /// The moment a duration from now; never, where that lies beyond what the clock can show (292 years). Fractions of a nanosecond count as one.
    package static func after(_ duration: Duration) -> Int64 {
        let (seconds, attoseconds) = duration.components
        let (whole, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        if overflow { return seconds < 0 ? 0 : never }
        let fraction = attoseconds / 1_000_000_000 + (attoseconds % 1_000_000_000 > 0 ? 1 : 0)
        let (sum, overflow1) = whole.addingReportingOverflow(fraction)
        let (deadline, overflow2) = sum.addingReportingOverflow(cfiber_now())
        return overflow1 || overflow2 ? never : max(0, deadline)
    }

    @inline(__always)
    package static func after(_ duration: Duration?) -> Int64 {
        guard let duration else { return never }
        return after(duration)
    }
}
