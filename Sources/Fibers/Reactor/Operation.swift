// SPDX-License-Identifier: Apache-2.0

// An operation on a descriptor: the non-blocking system call that tries it, and the request that a completion backend performs instead. The
// driver does the rest.

package import CFiber
import Glibc

package enum Direction: BitwiseCopyable, Sendable {
    case read, write
}

/// The results of an operation besides counts and negative error numbers, which end at -4095.
package enum IOCode {
    /// The descriptor was closed on this side, before the operation or during it.
    @inline(__always) package static var closed: Int { -10_001 }
    /// The descriptor is of a kind that cannot be waited for.
    @inline(__always) package static var unsupported: Int { -10_003 }
    /// The calling fiber is cancelled, or was while it waited.
    @inline(__always) package static var cancelled: Int { -10_004 }
    /// Nothing is available, and the operation was asked not to wait.
    @inline(__always) package static var nothing: Int { -10_005 }

    // Codes that an attempt returns to the driver.

    /// The descriptor is not ready.
    @inline(__always) static var notReady: Int { -Int(EAGAIN) }
    /// The operation made progress and is not done: other fibers may run, then it is tried again.
    @inline(__always) static var again: Int { -10_010 }
    /// The operation is tried again after a pause, since no event reports when it can succeed.
    @inline(__always) static var pause: Int { -10_011 }
}

package protocol Operation {
    static var direction: Direction { get }
    /// The reason that a dump shows for a fiber that waits in the operation.
    static var reason: WaitReason.Kind { get }
    /// Whether operations of this direction on one descriptor are performed one at a time, in the order of the calls.
    static var takesTurn: Bool { get }
    /// Whether an attempt is worth a system call only while the registration says that the descriptor may be ready.
    static var trustsReadiness: Bool { get }
    /// Whether the result is a descriptor, to be closed if it arrives too late for the caller.
    static var makesDescriptor: Bool { get }

    /// Makes a system call that does not block. Returns its result, a negative errno, or one of the codes for attempts.
    mutating func attempt(_ slot: RegistrationPointer) -> Int
    /// The same operation as a request to a completion backend.
    mutating func submission(_ fd: Int32) -> Submission
    /// Converts the result of that request into a result of `attempt`.
    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int
    /// Takes the result that a backend had produced when the descriptor was closed meanwhile: an operation that counts bytes or datagrams
    /// counts it.
    mutating func noteLate(_ result: Int)
    /// The length of the pause that `IOCode.pause` requests, in nanoseconds.
    mutating func nextPause() -> Int64
}

extension Operation {
    @inline(__always) package static var takesTurn: Bool { true }
    @inline(__always) package static var trustsReadiness: Bool { true }
    @inline(__always) package static var makesDescriptor: Bool { false }

    package mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int { result }

    package mutating func noteLate(_ result: Int) {}

    package mutating func nextPause() -> Int64 {
        var backoff = Backoff.brief
        return backoff.next()
    }
}

/// A request to a completion backend, with its descriptor number.
package enum Submission: BitwiseCopyable {
    /// Waits until the descriptor is readable or writable. The result is then 0.
    case ready(Int32, Direction)
    case receive(Int32, UnsafeMutableRawPointer, Int)
    case send(Int32, UnsafeRawPointer, Int)
    case sendPieces(Int32, UnsafeMutablePointer<iovec>, Int)
    case receiveDatagrams(Int32, UnsafeMutablePointer<cfiber_datagram>, Int)
    case sendDatagrams(Int32, UnsafeMutablePointer<cfiber_datagram>, Int)
    /// The result is `-EAGAIN` where no connection is pending and the request must not wait.
    case accept(Int32, UnsafeMutablePointer<sockaddr_storage>?, waits: Bool)
    case connect(Int32, UnsafePointer<sockaddr>, socklen_t)
    /// Reads or writes a descriptor that is not a socket; `kind` is a result of `cfiber_kind`.
    case read(Int32, UnsafeMutableRawPointer, Int, kind: Int32)
    case write(Int32, UnsafeRawPointer, Int, kind: Int32)

    package var fd: Int32 {
        switch self {
        case .ready(let fd, _), .receive(let fd, _, _), .send(let fd, _, _), .sendPieces(let fd, _, _), .receiveDatagrams(let fd, _, _),
            .sendDatagrams(let fd, _, _), .accept(let fd, _, _), .connect(let fd, _, _), .read(let fd, _, _, _), .write(let fd, _, _, _):
            fd
        }
    }
}
