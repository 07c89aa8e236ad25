public import Fibers

/// A host to which no connection could be made: every address that was tried, with what happened there.
public struct ConnectError: Error, Hashable, Sendable, CustomStringConvertible {
    /// One address that was tried.
    public struct Attempt: Hashable, Sendable, CustomStringConvertible {
        public let address: SocketAddress
        /// `timedOut` or `cancelled` where the attempt was still going on at the end.
        public let error: IOError

        public var description: String { error.subject == nil ? "\(address): \(error)" : "\(error)" }
    }

    /// What happened: `timedOut` or `cancelled` where that ended the attempts, else what is the matter with the first address, which is the one that the system prefers.
    public let code: IOError.Code
    /// The host and port as given.
    public let host: String
    public let port: Int
    /// The addresses that were tried, in that order.
    public let attempts: [Attempt]
    /// The addresses whose turn had not come when time or a cancellation ended it.
    public let untried: [SocketAddress]
    /// The scope whose deadline ended the call, when that was what ended it.
    public let timeout: TimeoutError?

    package init(
        _ code: IOError.Code, host: String, port: Int, attempts: [Attempt], untried: [SocketAddress] = [], timeout: TimeoutError? = nil
    ) {
        self.code = code
        self.host = host
        self.port = port
        self.attempts = attempts
        self.untried = untried
        self.timeout = timeout
    }

    public var description: String {
        let cause = timeout.map { "timed out after \($0.limit)" } ?? "\(code)"
        var list = attempts.map { "\($0)" }
        if !untried.isEmpty { list.append("not tried: \(untried.map(\.description).joined(separator: ", "))") }
        return "connect to \(host.debugDescription) (port \(port)): \(cause) (\(list.joined(separator: "; ")))"
    }
}

extension ConnectError: OperationError {
    package var isCancellation: Bool { code == .cancelled || timeout != nil }
}
