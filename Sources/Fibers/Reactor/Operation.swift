// SPDX-License-Identifier: Apache-2.0

// An operation on a descriptor: how it is tried by a system call that does not block, and what a backend is asked for that performs it by itself. The driver does the rest.

package import CFiber
import Glibc

package enum Direction: BitwiseCopyable, Sendable {
    case read, write
}

/// What an operation returns besides counts and negative error numbers, which end at -4095.
package enum IOCode {
    /// The descriptor was closed on this side, before the operation or during it.
    @inline(__always) package static var closed: Int { -10_001 }
    /// The descriptor is of a kind that cannot be waited for.
    @inline(__always) package static var unsupported: Int { -10_003 }
    /// The calling fiber is cancelled, or was while it waited.
    @inline(__always) package static var cancelled: Int { -10_004 }
    /// Nothing is there, and the operation is not to wait.
    @inline(__always) package static var nothing: Int { -10_005 }

    // What an attempt tells the driver.

    /// The descriptor is not ready.
    @inline(__always) static var notReady: Int { -Int(EAGAIN) }
    /// The operation got further and is not done: other fibers may run, then it is tried again.
    @inline(__always) static var again: Int { -10_010 }
    /// It is tried again after a pause, since no event tells when it can succeed.
    @inline(__always) static var pause: Int { -10_011 }
}

package protocol Operation {
    static var direction: Direction { get }
    /// What a dump says of a fiber that waits in it.
    static var reason: WaitReason.Kind { get }
    /// Whether operations of this direction on one descriptor are performed one at a time, in the order of the calls.
    static var takesTurn: Bool { get }
    /// Whether an attempt is worth a system call only while the registration says that the descriptor may be ready.
    static var trustsReadiness: Bool { get }
    /// Whether the result is a descriptor, to be closed if it comes too late for the caller.
    static var makesDescriptor: Bool { get }

    /// A system call that does not block: its result, a negative errno, or one of the codes for attempts.
    mutating func attempt(_ slot: RegistrationPointer) -> Int
    /// The same for a backend that performs operations.
    mutating func submission(_ fd: Int32) -> Submission
    /// What the result of that means, as in `attempt`.
    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int
    /// The descriptor was closed meanwhile, and this is what a backend had done by then: an operation that counts what went counts it.
    mutating func noteLate(_ result: Int)
    /// How long the pause is that `IOCode.pause` asked for, in nanoseconds.
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

/// A request to a backend that performs operations, with the number of its descriptor.
package enum Submission: BitwiseCopyable {
    /// Waits until the descriptor is readable or writable: 0 then.
    case ready(Int32, Direction)
    case receive(Int32, UnsafeMutableRawPointer, Int)
    case send(Int32, UnsafeRawPointer, Int)
    case sendPieces(Int32, UnsafeMutablePointer<iovec>, Int)
    case receiveDatagrams(Int32, UnsafeMutablePointer<cfiber_datagram>, Int)
    case sendDatagrams(Int32, UnsafeMutablePointer<cfiber_datagram>, Int)
    /// `-EAGAIN` where no connection is there and the request is not to wait.
    case accept(Int32, UnsafeMutablePointer<sockaddr_storage>?, waits: Bool)
    case connect(Int32, UnsafePointer<sockaddr>, socklen_t)
    /// Reads or writes what is no socket; `kind` as `cfiber_kind` tells it.
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
