// Which errors say that a cancellation, or a deadline, has ended a call. Any thread.

/// An error of an operation that may have been ended by a cancellation, or by the deadline of a scope, and says more than that.
package protocol OperationError: Error {
    var isCancellation: Bool { get }
}

/// True for the errors that a park throws because a scope around it was cancelled.
package func isCancellation(_ error: any Error) -> Bool {
    error is CancellationError || (error as? any OperationError)?.isCancellation == true
}
