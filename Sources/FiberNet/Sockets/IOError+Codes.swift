// SPDX-License-Identifier: Apache-2.0

// From what drivers and system calls return to errors.

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
                // Linux says so too when a connection to a Unix socket's file finds no file; that is left as it is.
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

/// The error for a negative result of an operation that waits: `CancellationError` or `TimeoutError` if that ended the wait, `IOError` for everything else. Call it in the scope of the operation.
@inline(never)
func failure(
    _ result: Int, _ operation: String, subject: String? = nil, bytesTransferred: Int = 0, datagramsTransferred: Int = 0
) -> any Error {
    if result == IOCode.cancelled { return Worker.here("an operation of FiberNet").running.cancellation }
    return IOError(
        result, operation, subject: subject, bytesTransferred: bytesTransferred, datagramsTransferred: datagramsTransferred)
}
