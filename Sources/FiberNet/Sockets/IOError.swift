// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// Something that a socket, a descriptor or a file could not do: what happened, to what, and after how many bytes.
///
/// It says what the outside world did. A cancelled fiber gets a `CancellationError` or a `TimeoutError` instead, from these calls as from all others that wait.
public struct IOError: Error, Hashable, Sendable, CustomStringConvertible {
    /// What happened, for deciding what to do next. More may be added; compare with `==` and keep a default.
    public struct Code: Hashable, Sendable, CustomStringConvertible {
        public let description: String

        /// The socket was closed on this side, before the call or while it waited.
        public static let closed = Code(description: "closed")
        /// The system gave up, since the peer did not answer for minutes (`ETIMEDOUT`). A `withTimeout` that ends the call throws a `TimeoutError` instead.
        public static let timedOut = Code(description: "timed out")
        /// Nobody listens, or receives datagrams, there.
        public static let refused = Code(description: "refused")
        /// The peer is gone: it reset the connection, or it was written to after the end.
        public static let reset = Code(description: "reset by peer")
        /// There is no way to the peer.
        public static let unreachable = Code(description: "unreachable")
        /// Somebody listens on this address already.
        public static let addressInUse = Code(description: "address in use")
        /// The address is none of this machine's.
        public static let addressNotAvailable = Code(description: "address not available")
        /// Not allowed: a port below 1024, a file, a sandbox.
        public static let notPermitted = Code(description: "not permitted")
        /// A datagram is larger than its way to the receiver can carry; none of it went.
        public static let tooLarge = Code(description: "too large")
        /// Descriptors, memory or kernel buffers have run out.
        public static let resources = Code(description: "out of resources")
        /// The descriptor is of a kind that cannot be waited for, for instance a regular file.
        public static let unsupported = Code(description: "unsupported")
        /// Anything else; see ``IOError/errno``.
        public static let system = Code(description: "system error")
    }

    public let code: Code
    /// The system's error, where it came from there.
    public let errno: Errno?
    /// The call that failed: `read`, `accept`, `connect`…
    public let operation: String
    /// What it was done to: an address, where there is one.
    public let subject: String?
    /// Bytes that had been written when it happened; 0 for everything but writes.
    public let bytesTransferred: Int
    /// Datagrams of a batch that had been sent when it happened: the next one is what it happened to.
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

    /// Of datagrams; what streams do is called `write`.
    private var isSend: Bool { operation == "send" || operation == "send to" }
}
