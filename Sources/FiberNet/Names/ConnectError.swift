// SPDX-License-Identifier: Apache-2.0

/// A host to which no connection could be made: every address that was tried, with what happened there.
public struct ConnectError: Error, Hashable, Sendable, CustomStringConvertible {
    /// One address that was tried.
    public struct Attempt: Hashable, Sendable, CustomStringConvertible {
        public let address: SocketAddress
        public let error: IOError

        public var description: String { error.subject == nil ? "\(address): \(error)" : "\(error)" }
    }

    /// What happened to the attempt at the first address, which is the one that the system prefers.
    public let code: IOError.Code
    /// The host and port as given.
    public let host: String
    public let port: Int
    /// The addresses that were tried, in that order.
    public let attempts: [Attempt]

    package init(_ code: IOError.Code, host: String, port: Int, attempts: [Attempt]) {
        self.code = code
        self.host = host
        self.port = port
        self.attempts = attempts
    }

    public var description: String {
        let list = attempts.map(\.description).joined(separator: "; ")
        return "connect to \(host.debugDescription) (port \(port)): \(code) (\(list))"
    }
}
