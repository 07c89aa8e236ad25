// SPDX-License-Identifier: Apache-2.0

/// Ticks at a fixed rate, without drift: tick number n is due n intervals after the start, however late the earlier ones were taken.
///
/// ```swift
/// let ticker = Ticker(every: .seconds(1))
/// while true {
///     let tick = try ticker.next()
///     if tick.missed > 0 { log("too slow: \(tick.missed) beats went by") }
///     try report()
/// }
/// ```
///
/// Missed ticks are not delivered later: the next call returns at once, with the latest tick that was due, and says how many were missed.
public final class Ticker {
    /// One tick.
    public struct Tick: Hashable, Sendable {
        /// Counts the intervals since the start, missed ones included: 1, 2, 3…
        public let number: Int
        /// The number of ticks that were missed since the previous one.
        public let missed: Int
    }

    public let interval: Duration
    private let start: Int64
    private let step: Int64
    @exclusivity(unchecked) private var last: Int64 = 0

    /// Starts now; the first tick is due one interval later.
    /// - Parameter interval: at least a nanosecond.
    public init(every interval: Duration) {
        require(interval >= .nanoseconds(1), "Ticker(every:) takes at least a nanosecond, not \(interval)")
        self.interval = interval
        start = Worker.here("Ticker").now
        step = Deadline.nanoseconds(interval)
    }

    /// Waits for the next tick, or takes the latest one that is due.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then the tick is not taken; ``ResourceError``.
    /// - Note: parks
    public func next() throws -> Tick {
        let worker = Worker.here("Ticker.next()")
        let next = due(last + 1)
        try worker.sleep(until: next > worker.now ? next : 0)
        return take()
    }

    /// Takes the latest tick that is due.
    @usableFromInline
    func take() -> Tick {
        let number = max(last + 1, (Worker.here("Ticker").now - start) / step)
        defer { last = number }
        return Tick(number: Int(number), missed: Int(number - last - 1))
    }

    /// In ``select(_:)``: the next tick, or the latest one that is due. If another arm is chosen, no tick is taken.
    @inlinable @inline(__always)
    public func onTick<Result>(_ handler: @escaping (Tick) throws -> Result) -> PlainArm<Result> {
        PlainArm(record) { try handler(self.take()) }
    }

    @usableFromInline
    var record: ArmRecord { ArmRecord(.deadline, deadline: due(last + 1)) }

    private func due(_ number: Int64) -> Int64 {
        let (time, overflow) = step.multipliedReportingOverflow(by: number)
        let (due, overflow2) = start.addingReportingOverflow(time)
        return overflow || overflow2 ? Deadline.never : due
    }
}
