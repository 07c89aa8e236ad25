// SPDX-License-Identifier: Apache-2.0

// A call that a thread of the blocking pool makes for a fiber, and whose fiber may be cancelled before it is over.
//
// Invariants:
//   * the call touches what it owns and nothing of the fiber's: bytes are in arrays of its own, descriptors are held by an `OpenFile` or belong to
//     it;
//   * its value is either taken by the fiber or refused by `deliver`, which then says so to the call, and the call undoes what it did. So a
//     descriptor is never lost, and bytes that nobody got go back to the file. `perform` in a fiber; the rest on any thread.

import Fibers
import Synchronization
import SystemPackage

final class PoolCall<Value: Sendable>: Sendable {
    private enum State {
        case open
        case delivered(Value)
        case abandoned
    }

    private let state = Guarded(State.open)
    /// Bytes that are written for certain.
    let progress = Atomic<Int>(0)

    /// False once the fiber has gone on without it.
    var isWanted: Bool {
        state.withLock { state in
            if case .abandoned = state { return false }
            return true
        }
    }

    /// Hands the value over; false when nobody wants it any more.
    func deliver(_ value: Value) -> Bool {
        state.withLock { state in
            if case .abandoned = state { return false }
            state = .delivered(value)
            return true
        }
    }

    /// The value, if there is one; none will be delivered afterwards.
    private func take() -> Value? {
        state.withLock { state in
            if case .delivered(let value) = state { return value }
            state = .abandoned
            return nil
        }
    }

    /// Makes the call and waits for its value. `body` must deliver one. A value that was there when the fiber was cancelled is returned. Parks.
    /// - Parameter file: what the call changes by ``OpenFile/change(_:_:orClosed:)``, if it does.
    static func perform(
        _ operation: String, _ subject: String?, changing file: OpenFile? = nil, _ body: @escaping @Sendable (PoolCall<Value>) -> Void
    ) throws -> Value {
        var written = 0
        return try perform(operation, subject, changing: file, written: &written, body)
    }

    /// The same; `written` is set to the bytes that are written for certain if this throws.
    static func perform(
        _ operation: String, _ subject: String?, changing file: OpenFile?, written: inout Int,
        _ body: @escaping @Sendable (PoolCall<Value>) -> Void
    ) throws -> Value {
        let call = PoolCall<Value>()
        do {
            try Worker.here("a call on a file").driver.callBlocking(operation) { body(call) }
        } catch {
            if let value = call.take() { return value }
            file?.abandon(call)
            written = call.progress.load(ordering: .acquiring)
            if let shortage = error as? ResourceError {
                throw IOError(.resources, errno: Errno(rawValue: shortage.errno), operation: operation, subject: subject)
            }
            throw error
        }
        // The body has ended, and nobody has abandoned it.
        return call.take().unsafelyUnwrapped
    }
}

extension IOError.Code {
    /// There is no such file, directory or program.
    public static let notFound = Self(description: "not found")
    /// The file is there already, and was to be made.
    public static let exists = Self(description: "exists already")
    /// There was more than the limit that the caller set: a line, a file or the output of a program is too long.
    public static let limitExceeded = Self(description: "limit exceeded")
}

extension IOError {
    /// The error of a call on a file or a program, where some error numbers mean more than with sockets.
    init(file result: Int, _ operation: String, _ subject: String?, bytesTransferred: Int = 0) {
        self.init(result, operation, subject: subject, bytesTransferred: bytesTransferred)
        let code: Code
        switch errno {
        case .noSuchFileOrDirectory, .notDirectory: code = .notFound
        case .fileExists: code = .exists
        case .readOnlyFileSystem: code = .notPermitted
        case .diskQuotaExceeded: code = .resources
        default: return
        }
        self.init(code, errno: errno, operation: operation, subject: subject, bytesTransferred: bytesTransferred)
    }
}

/// As `failure` of an operation, for a call on a file or a program.
func failure(file result: Int, _ operation: String, _ subject: String?, bytesTransferred: Int = 0) -> any Error {
    if result == IOCode.cancelled { return failure(result, operation) }
    return IOError(file: result, operation, subject, bytesTransferred: bytesTransferred)
}
