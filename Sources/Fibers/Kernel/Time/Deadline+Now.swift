// SPDX-License-Identifier: Apache-2.0

// Deadlines relative to now: by the clock of the calling worker's driver, or by the system clock outside workers. Any thread.

import CFiber

extension Deadline {
    /// The time a duration from now; `never` if that is beyond the clock's range (292 years).
    package static func after(_ duration: Duration) -> Int64 {
        after(duration, from: Worker.current?.now ?? cfiber_now())
    }

    @inline(__always)
    package static func after(_ duration: Duration?) -> Int64 {
        guard let duration else { return never }
        return after(duration)
    }

    /// The duration until an instant; negative if the instant has passed. An instant too far in the past for `Duration` counts as the
    /// farthest that `Duration` can represent.
    package static func distance(to instant: ContinuousClock.Instant) -> Duration {
        let now = Worker.current?.instant ?? .now
        let longest = Duration(attoseconds: .min)
        // No overflow: the clock counts from the machine's start, so neither this sum nor the difference to any later instant overflows.
        return instant < now.advanced(by: longest) ? longest : now.duration(to: instant)
    }
}
