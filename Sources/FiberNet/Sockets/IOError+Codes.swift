// SPDX-License-Identifier: Apache-2.0

// Converts results of drivers and system calls to errors.

import Fibers
import SystemPackage

extension IOError {
    /// The error for a negative errno, or for one of the codes of `IOCode` other than `cancelled`.
    @inline(never)
    package init(_ result: Int, _ operation: String, subject: String? = nil, bytesTransferred: Int = 0, datagramsTransferred: Int = 0) {
        let code: Code
        var errno: Errno?
        switch result {
        case IOCode.closed: code = .closed
        case IOCode.unsupported:
            code = .unsupported
            errno = .notPermitted
        default:
            let error = Errno(rawValue: CInt(truncatingIfNeeded: -result))
            errno = error
            code =
                switch error {
                case .connectionRefused: .refused
                case .connectionReset, .brokenPipe, .connectionAbort: .reset
                case .timedOut: .timedOut
                case .networkUnreachable, .hostIsDown, .noRouteToHost, .networkDown: .unreachable
                case .addressInUse: .addressInUse
                case .addressNotAvailable: .addressNotAvailable
                // Linux also reports this for a connection to a Unix socket whose file it does not find; the two cases are not told apart.
                case .permissionDenied: .notPermitted
                case .notPermitted: .notPermitted
                case .messageTooLong: .tooLarge
                case .tooManyOpenFiles, .tooManyOpenFilesInSystem, .noMemory, .noBufferSpace, .noSpace: .resources
                default: .system
                }
        }
        self.init(
            code, errno: errno, operation: operation, subject: subject, bytesTransferred: bytesTransferred,
            datagramsTransferred: datagramsTransferred)
    }
}

/// The error for a negative result of an operation that waits.
///
/// It is a `CancellationError` or a `TimeoutError` if the fiber was cancelled, and an `IOError` otherwise. Call it in the scope of the
/// operation.
@inline(never)
func failure(
    _ result: Int, _ operation: String, subject: String? = nil, bytesTransferred: Int = 0, datagramsTransferred: Int = 0
) -> any Error {
    if result == IOCode.cancelled { return Worker.here("an operation of FiberNet").running.cancellation }
    return IOError(
        result, operation, subject: subject, bytesTransferred: bytesTransferred, datagramsTransferred: datagramsTransferred)
}
