// SPDX-License-Identifier: Apache-2.0

/// The time that was given to a piece of work was over before the work was.
public struct TimeoutError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The limit of the ``withTimeout(_:_:)`` whose time was over; of a ``withDeadline(_:_:)`` what was left when it began.
    public let limit: Duration
    /// What the fiber that called ``withTimeout(_:_:)`` was waiting for when the time was over: `sleep`, `a message`, `read descriptor 7`; `running or ready` if it was computing. What it or other fibers
    /// did afterwards to clean up is not named here.
    public let operation: String

    public var description: String { "timed out after \(limit) (\(operation))" }
}
