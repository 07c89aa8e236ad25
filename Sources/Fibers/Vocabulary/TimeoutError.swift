// SPDX-License-Identifier: Apache-2.0

/// The time limit of an operation passed before the operation was done.
public struct TimeoutError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The limit of the ``withTimeout(_:_:)`` that expired; for a ``withDeadline(_:_:)`` the time that was left when it began.
    public let limit: Duration
    /// The reason for which the fiber that called ``withTimeout(_:_:)`` was waiting when the limit passed: `sleep`, `a message`, `read
    /// descriptor 7`; `running or ready` if it was computing. Later clean-up by that fiber or others is not named here.
    public let operation: String

    public var description: String { "timed out after \(limit) (\(operation))" }
}
