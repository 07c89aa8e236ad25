// SPDX-License-Identifier: Apache-2.0

// Serving: one fiber per connection, in a group, so that none outlives the call.

import Fibers

/// How serving ended.
public struct ServeReport: Hashable, Sendable, CustomStringConvertible {
    /// Connections that were served in all.
    public let connections: Int
    /// Connections that were open when the listener was closed, and finished in time.
    public let finished: Int
    /// Connections that did not, and were cancelled: those that waited for a request that never came, too.
    public let cancelled: Int

    package init(connections: Int, finished: Int, cancelled: Int) {
        self.connections = connections
        self.finished = finished
        self.cancelled = cancelled
    }

    static func + (a: ServeReport, b: ServeReport) -> ServeReport {
        ServeReport(connections: a.connections + b.connections, finished: a.finished + b.finished, cancelled: a.cancelled + b.cancelled)
    }

    public var description: String {
        "\(connections) connections served; at the end \(finished) finished in time and \(cancelled) were cancelled"
    }
}

extension Listener {
    /// Accepts connections and runs `handler` in a fiber for each, until the listener is closed; then lets those that are open finish.
    ///
    /// ```swift
    /// try listener.serve { stream in
    ///     while try withTimeout(.seconds(60), { try stream.readAvailable { try stream.writeAll($0) } }) {}
    /// }
    /// ```
    ///
    /// To end it, close the listener from another fiber, on a signal for instance: nothing is accepted from then on, and the connections that are open may finish within
    /// the time for draining; what is left then is cancelled. When the calling fiber is cancelled, all connections are cancelled at once and it throws when they have ended. In
    /// any case no handler runs any more when it returns or throws.
    ///
    /// A connection whose client keeps it open without a request under way is open like any other: where handlers wait for the next request without a limit, one such client makes
    /// draining take its whole time, and is then counted as cancelled. A program knows which connections are idle and can end them when it closes the listener: it shuts down the reading
    /// half (`shutdown(.read)`) of those whose handlers wait for a request, which then read the end of the stream; the guide "Structured fibers" shows how. Or the wait for a request has a
    /// time limit of its own, shorter than that for draining.
    ///
    /// Handlers are children of a group: a deadline around this call binds them, and values of fiber-locals set around it are theirs. An error that a handler throws ends its
    /// connection and no other.
    ///
    /// - Parameters:
    ///   - maxConnections: how many connections are served at a time, at least 1; while there are so many, others wait in the kernel's queue, as long as that is (`backlog` of
    ///     ``bind(to:backlog:reusePort:removesFile:)``). Nil for any number, up to the limit on descriptors.
    ///   - limit: how long connections may take to finish once the listener was closed, idle ones included.
    ///   - onError: hears what handlers throw, in the fiber of the connection, and of connections that were closed because a fiber for them was not to be had. Nil reports all
    ///     of that to `FiberRuntime.Configuration.onUnhandledError`, except that the peer has reset its connection. An error by which a cancelled handler ends is not reported.
    ///   - handler: gets the connection, which is closed when it returns or throws; ``Endpoint/close()`` says when the peer may not get all that was written.
    /// - Returns: how many connections there were, and how they ended.
    /// - Throws: `CancellationError` or `TimeoutError` when the calling fiber is cancelled; ``IOError`` when the listener fails, and then all connections were cancelled.
    /// - Note: parks
    @discardableResult
    public func serve(
        maxConnections: Int? = nil, draining limit: Duration = .seconds(10), onError: ((any Error) -> Void)? = nil,
        _ handler: (Connection) throws -> Void
    ) throws -> ServeReport {
        require(
            maxConnections ?? 1 > 0, "serve(maxConnections:) takes at least 1, not \(maxConnections ?? 1): with none it would never accept")
        return try withoutActuallyEscaping(handler) { handler in
            let report = onError ?? reportUnhandled
            return try serve(maxConnections: maxConnections, draining: limit, report, next: next) { group, stream in
                // The stream is closed with its last reference if there is no fiber for it.
                try group.spawnReserved(name: "connection") { serveConnection(stream, report, handler) }
            }
        }
    }

    /// The same; `next` accepts a connection, or returns nil once the listener has been closed, and `spawn` makes a fiber of the group for it, in a slot that was reserved.
    func serve(
        maxConnections: Int?, draining limit: Duration, _ report: (any Error) -> Void, next: () throws -> Connection?,
        spawn: (FiberGroup<Void>, Connection) throws -> Void
    ) throws -> ServeReport {
        try withFiberGroup(limit: maxConnections) { group in
            let connections = try accept(into: group, report, next, spawn)
            let open = group.count
            do { try withTimeout(limit) { try group.waitForAll() } } catch is TimeoutError {}
            let left = group.count
            group.cancel()
            return ServeReport(connections: connections, finished: open - left, cancelled: left)
        }
    }

    /// Spawns a fiber for each connection until the listener is closed, and returns how many.
    private func accept(
        into group: FiberGroup<Void>, _ report: (any Error) -> Void, _ next: () throws -> Connection?,
        _ spawn: (FiberGroup<Void>, Connection) throws -> Void
    ) throws -> Int {
        serving[ObjectIdentifier(group)] = group
        defer { serving[ObjectIdentifier(group)] = nil }
        var connections = 0
        // A slot first: connections that there is no room for stay in the kernel's queue.
        while try group.reserve() {
            do {
                guard let stream = try accepted(by: next, orGiveUp: group.cancelReservation) else { break }
                connections += 1
                try spawn(group, stream)
            } catch let error where error is ResourceError || (error as? IOError)?.code == .resources {
                // Memory is short: this connection is lost, and those that are served may give some back.
                report(error)
                try Fiber.sleep(for: .milliseconds(10))
            }
        }
        return connections
    }
}

extension Listener {
    /// The next connection; otherwise calls `giveUp` before it returns nil or throws.
    private func accepted(by next: () throws -> Connection?, orGiveUp giveUp: () -> Void) throws -> Connection? {
        var isTaken = false
        defer { if !isTaken { giveUp() } }
        let stream = try next()
        isTaken = stream != nil
        return stream
    }
}

/// The life of a connection.
func serveConnection(_ stream: Connection, _ report: (any Error) -> Void, _ handler: (Connection) throws -> Void) {
    defer { stream.close() }
    do { try handler(stream) } catch {
        // That a cancelled handler ends is no news.
        if !(Fiber.isCancelled && error is CancellationError) { report(error) }
    }
}

@Sendable func reportUnhandled(_ error: any Error) {
    if (error as? IOError)?.code != .reset { Worker.here("serve").reportUnhandled(error) }
}
