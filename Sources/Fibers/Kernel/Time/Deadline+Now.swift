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
}
