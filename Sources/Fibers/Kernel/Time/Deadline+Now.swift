// SPDX-License-Identifier: Apache-2.0

// Deadlines from now on: by the clock of the calling worker's driver, or by that of the system outside workers. Any thread.

import CFiber

extension Deadline {
    /// The moment a duration from now; never, where that lies beyond what the clock can show (292 years).
    package static func after(_ duration: Duration) -> Int64 {
        after(duration, from: Worker.current?.now ?? cfiber_now())
    }

    @inline(__always)
    package static func after(_ duration: Duration?) -> Int64 {
        guard let duration else { return never }
        return after(duration)
    }

    /// How long it is until an instant, less than zero for one that has passed. One that lies so far back that a `Duration` does not reach there counts as the farthest that it reaches.
    package static func distance(to instant: ContinuousClock.Instant) -> Duration {
        let now = Worker.current?.instant ?? .now
        let longest = Duration(attoseconds: .min)
        // The clock counts from the machine's start, so this does not overflow, and the difference to anything later does not.
        return instant < now.advanced(by: longest) ? longest : now.duration(to: instant)
    }
}
