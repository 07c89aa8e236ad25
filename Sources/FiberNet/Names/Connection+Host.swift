// SPDX-License-Identifier: Apache-2.0

// Connecting to a host by name: several addresses are tried side by side, and the first connection wins (RFC 8305).
//
// Invariants:
//   * all attempts are children of a group in the call, on the caller's worker, and have ended when it returns: a socket that lost is closed by then;
//   * the next attempt begins when the delay since the last one is over, or when any has failed; none begins once there is a connection.

import Fibers

extension Connection {
    /// Connects to a host, by whichever of its addresses answers first: "Happy Eyeballs", version 2 (Schinazi & Pauly, RFC 8305).
    ///
    /// The addresses are tried in the system's order (RFC 6724), but with the families taking turns. Where one does not answer within `attemptDelay` the next is
    /// tried besides, and where one fails, at once; the first connection is taken and the other attempts are closed. What the RFC says about answers for IPv4 and
    /// IPv6 that come one after the other does not apply: `getaddrinfo` gives them together.
    ///
    /// ```swift
    /// let stream = try Connection.connect(host: "localhost", port: 7777)
    /// ```
    ///
    /// - Parameters:
    ///   - host: a name or an address, as in ``Resolver/resolve(_:port:)``.
    ///   - port: 0 to 65535.
    ///   - resolver: looks the host up; nil for that of the runtime.
    ///   - attemptDelay: after how long the next address is tried while others have not answered. 250 ms by default; the RFC advises against less than 100 ms, and less than its
    ///     absolute minimum of 10 ms counts as that.
    /// - Throws: ``ResolveError`` when the host has no addresses; ``ConnectError``, with the errors of all of them, when none answers; `ResourceError` when memory is short; `CancellationError` or
    ///   `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public static func connect(
        host: String, port: Int, resolver: Resolver? = nil, attemptDelay: Duration = .milliseconds(250)
    ) throws -> Connection {
        let addresses = try (resolver ?? .default).resolve(host, port: port)
        return try connect(host: host, port: port, to: interleaved(addresses), attemptDelay: max(attemptDelay, .milliseconds(10)))
    }

    /// Connects to whichever of the addresses answers first; they are tried in this order, any delay apart.
    package static func connect(
        host: String, port: Int, to addresses: [SocketAddress], attemptDelay: Duration
    ) throws -> Connection {
        try ConnectionRace(host: host, port: port, to: addresses, delay: attemptDelay).run()
    }
}

/// The addresses with their families taking turns, in their order otherwise, beginning with the first (RFC 8305, section 4, with a "First Address Family Count" of 1).
package func interleaved(_ addresses: [SocketAddress]) -> [SocketAddress] {
    let first = addresses.filter { $0.family == addresses[0].family }
    let second = addresses.filter { $0.family != addresses[0].family }
    let both = min(first.count, second.count)
    return zip(first, second).flatMap { [$0, $1] } + first.dropFirst(both) + second.dropFirst(both)
}

/// One call of `connect`. Its worker only.
private final class ConnectionRace {
    private let host: String
    private let port: Int
    private let addresses: [SocketAddress]
    private let delay: Duration
    private var winner: Connection?
    /// One for each attempt that has begun; nil while it goes on.
    private var errors: [IOError?] = []

    init(host: String, port: Int, to addresses: [SocketAddress], delay: Duration) {
        self.host = host
        self.port = port
        self.addresses = addresses
        self.delay = delay
    }

    func run() throws -> Connection {
        do {
            if addresses.count > 1 {
                try withFiberGroup(of: Bool.self, waitingFor: WaitReason(.connect, -1)) { try attempt(in: $0) }
            } else {
                errors.append(nil)
                _ = try attempt(0)
            }
        } catch {
            // A connection that was won in the moment of a cancellation is closed before the caller hears of that.
            winner?.close()
            throw error
        }
        if let winner { return winner }
        // Without a winner all attempts have ended, each with an error.
        let attempts = zip(addresses, errors).map { ConnectError.Attempt(address: $0, error: $1!) }
        throw ConnectError(attempts[0].error.code, host: host, port: port, attempts: attempts)
    }

    /// Begins one attempt after the other until one has won or all have failed.
    private func attempt(in group: FiberGroup<Bool>) throws {
        while errors.count < addresses.count && winner == nil {
            try begin(in: group)
            if errors.count == addresses.count { break }
            do {
                if try withTimeout(delay, { try group.next() }) == true { return group.cancel() }
            } catch is TimeoutError {}
        }
        while let hasWon = try group.next() {
            if hasWon { return group.cancel() }
        }
    }

    private func begin(in group: FiberGroup<Bool>) throws {
        let index = errors.count
        errors.append(nil)
        do {
            try group.spawnLocal(name: "connect \(addresses[index])") { [self] in try attempt(index) }
        } catch let error as ResourceError {
            errors[index] = IOError(-Int(error.errno), "connect to", subject: addresses[index].description)
        }
    }

    /// True when this attempt, or another in the same moment, has won.
    private func attempt(_ index: Int) throws -> Bool {
        do {
            let stream = try Connection.connect(to: addresses[index])
            if winner == nil { winner = stream } else { stream.close() }
            return true
        } catch let error as IOError {
            errors[index] = error
            return false
        }
    }
}
