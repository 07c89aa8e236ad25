/// The time that was given to a piece of work was over before the work was.
public struct TimeoutError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The limit of the ``withTimeout(_:_:)`` whose time was over; of a ``withDeadline(_:_:)`` what was left when it began.
    public let limit: Duration
    /// What the fiber that called ``withTimeout(_:_:)`` was waiting for when the time was over: `sleep`, `a message`, `read descriptor 7`; `running or ready` if it was computing. What it or other fibers
    /// did afterwards to clean up is not named here.
    public let operation: String
    /// The error by which a waiting call told the body, where that says more: an `IOError` has the number of bytes that were written, for instance.
    public let underlying: (any Error)?

    public var description: String { "timed out after \(limit) (\(operation))" }

    public static func == (a: TimeoutError, b: TimeoutError) -> Bool { a.limit == b.limit && a.operation == b.operation }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(limit)
        hasher.combine(operation)
    }
}
