// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// An error of a socket, a descriptor or a file: the cause, the operation, its subject, and the progress before it.
///
/// It reports causes outside the program. In a cancelled fiber these calls throw a `CancellationError` or a `TimeoutError` instead, like
/// all other calls that wait.
public struct IOError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The cause, for deciding what to do next. More codes may be added; compare with `==` and keep a default.
    public struct Code: Hashable, Sendable, CustomStringConvertible {
        public let description: String

        /// The socket was closed on this side, before the call or while it waited.
        public static let closed = Code(description: "closed")
        /// The system gave up, since the peer did not answer for minutes (`ETIMEDOUT`). A `withTimeout` that ends the call throws a
        /// `TimeoutError` instead.
        public static let timedOut = Code(description: "timed out")
        /// No socket listens, or receives datagrams, at the address.
        public static let refused = Code(description: "refused")
        /// The peer is gone: it reset the connection, or this side wrote after the peer's end had closed.
        public static let reset = Code(description: "reset by peer")
        /// No route leads to the peer.
        public static let unreachable = Code(description: "unreachable")
        /// Another socket already uses the address.
        public static let addressInUse = Code(description: "address in use")
        /// The address does not belong to this machine.
        public static let addressNotAvailable = Code(description: "address not available")
        /// Not allowed: a port below 1024, a file, a sandbox.
        public static let notPermitted = Code(description: "not permitted")
        /// A datagram is larger than the path to the receiver can carry; no part of it was sent.
        public static let tooLarge = Code(description: "too large")
        /// Descriptors, memory or kernel buffers have run out.
        public static let resources = Code(description: "out of resources")
        /// The descriptor is of a kind that cannot be waited for, for instance a regular file.
        public static let unsupported = Code(description: "unsupported")
        /// Anything else; see ``IOError/errno``.
        public static let system = Code(description: "system error")
    }

    public let code: Code
    /// The system's error, if the error came from the system.
    public let errno: Errno?
    /// The call that failed: `read`, `accept`, `connect`…
    public let operation: String
    /// The object of the call: an address, for example.
    public let subject: String?
    /// Bytes that had been written before the error; 0 for everything but writes.
    public let bytesTransferred: Int
    /// Datagrams of a batch that had been sent before the error. The next datagram caused it.
    public let datagramsTransferred: Int

    package init(
        _ code: Code, errno: Errno? = nil, operation: String, subject: String? = nil, bytesTransferred: Int = 0,
        datagramsTransferred: Int = 0
    ) {
        self.code = code
        self.errno = errno
        self.operation = operation
        self.subject = subject
        self.bytesTransferred = bytesTransferred
        self.datagramsTransferred = datagramsTransferred
    }

    public var description: String {
        let target = subject.map { " \($0)" } ?? ""
        let cause = errno.map { "\($0)" } ?? "\(code)"
        let progress =
            datagramsTransferred > 0
            ? " after \(datagramsTransferred) datagrams" : bytesTransferred > 0 ? " after \(bytesTransferred) bytes" : ""
        return "\(operation)\(target): \(cause)\(progress)\(remedy)"
    }

    private var remedy: String {
        switch code {
        case .addressInUse: "; stop the other listener, choose another port (0 for any free one), or remove a stale socket file"
        case .notPermitted where operation == "bind" && subject?.hasPrefix("unix:") != true: "; ports below 1024 need CAP_NET_BIND_SERVICE"
        case .notPermitted where isSend && subject?.hasPrefix("unix:") == true:
            errno == .notPermitted ? "; the receiver is connected to another socket, and takes datagrams from that alone" : ""
        case .notPermitted where isSend && errno == .permissionDenied: "; for a broadcast address set SocketOption.broadcast"
        case .tooLarge where isSend:
            "; a datagram carries at most 65,507 bytes over IPv4, 65,527 over IPv6, and on a Unix socket a little less than SocketOption.sendBufferSize: send less, or use a stream"
        case .system where isSend && (errno == .addressRequired || errno == .socketNotConnected):
            "; say where to send, or connect the socket first"
        case .system where operation == "bind" && errno == .invalidArgument && subject?.hasSuffix(" with reusePort") == true:
            "; the system might choose a port that other programs share: bind the first socket without reusePort, set SocketOption.reusePort on it, and bind the others to its address"
        case .system where errno == .badFileDescriptor && subject?.hasPrefix("descriptor -") == true:
            "; a descriptor is never negative: look at the error of the call that returned it"
        case .resources where errno == .tooManyOpenFiles: "; raise the limit on open files (ulimit -n)"
        case .closed: "; it was closed on this side"
        default: ""
        }
    }

    /// Sends of datagrams; for streams the operation is called `write`.
    private var isSend: Bool { operation == "send" || operation == "send to" }
}
