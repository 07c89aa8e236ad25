// Deadlines are nanoseconds of CLOCK_MONOTONIC, `Int64.max` for never.

import CFiber

package enum Deadline {
    @inline(__always) package static var never: Int64 { .max }

    /// The moment a duration from now; never, where that lies beyond what the clock can show (292 years).
    package static func after(_ duration: Duration) -> Int64 {
        after(duration, from: Worker.current?.now ?? cfiber_now())
    }

    @inline(__always)
    package static func after(_ duration: Duration?) -> Int64 {
        guard let duration else { return never }
        return after(duration)
    }

    package static func after(_ duration: Duration, from start: Int64) -> Int64 {
        let length = nanoseconds(duration)
        if length == never { return never }
        let (deadline, overflow) = start.addingReportingOverflow(length)
        return overflow ? (length < 0 ? 0 : never) : max(0, deadline)
    }

    /// A duration; fractions of a nanosecond count as one. What is too long to be said is `never`.
    static func nanoseconds(_ duration: Duration) -> Int64 {
        let (seconds, attoseconds) = duration.components
        let (whole, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        let fraction = attoseconds / 1_000_000_000 + (attoseconds % 1_000_000_000 > 0 ? 1 : 0)
        let (sum, overflow2) = whole.addingReportingOverflow(fraction)
        return overflow || overflow2 ? (seconds < 0 ? .min : never) : sum
    }
}
