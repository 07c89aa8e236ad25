// SPDX-License-Identifier: Apache-2.0

// The servers that the jobs talk to, those of all workers: one listener for each kind of address on each worker, and a session fiber for each connection that echoes until the end.

import FiberNet
import Fibers
import Glibc

/// What both ends know of one connection, so that each can check the other.
final class Visit: Sendable {
    /// The client will end it in an orderly way, so nothing may be missing at all.
    let isOrderly: Bool
    let sentByClient = Tally()
    let receivedByServer = Tally()

    init(isOrderly: Bool) { self.isOrderly = isOrderly }
}

final class Server {
    private unowned let round: Round
    private var listeners: [Listener] = []
    private var acceptors: [FiberHandle<Void>] = []

    /// The first bytes of each connection: its number.
    static let headerSize = 8

    init(_ round: Round, index: Int) throws {
        self.round = round
        let name = "swift-fibers-stress-\(getpid())-\(index)"
        let port = round.options.port == 0 ? 0 : round.options.port + index
        let first = try Listener.bind(to: .loopback(port: port))
        listeners = [first, try .bind(to: .unix(path: "/tmp/\(name).sock")), try .bind(to: .unixAbstract(name: name))]
        // A machine without IPv6 has no ::1.
        if let listener = try? Listener.bind(to: .loopbackV6(port: port)) { listeners.append(listener) }
        Account.sockets.left += listeners.count
        for listener in listeners {
            acceptors.append(try round.spawn(name: "acceptor") { try self.accept(listener) })
        }
    }

    var addresses: [SocketAddress] { listeners.map(\.address) }

    func stop() throws {
        for listener in listeners {
            listener.close()
            Account.sockets.right += 1
        }
        for acceptor in acceptors { try acceptor.join() }
    }

    private func accept(_ listener: Listener) throws {
        while true {
            do {
                let stream = try withTimeout(.milliseconds(50)) { try listener.accept() }
                let crew = round.crew
                try round.spawn(name: "session") { crew.serve(stream) }
            } catch is TimeoutError {
                Count.expectedErrors += 1
            } catch let error as IOError where error.code == .closed {
                return
            }
        }
    }
}

extension Crew {
    /// A session. On any worker.
    func serve(_ stream: Connection) {
        Account.sessions.left += 1
        defer { Account.sessions.right += 1 }
        var connection: Visit?
        do {
            var header: [UInt8] = []
            while header.count < Server.headerSize {
                let bytes = try stream.read(upTo: Server.headerSize - header.count)
                if bytes.isEmpty { break }
                header += bytes
            }
            if header.count == Server.headerSize {
                let number = header.reduce(0) { $0 << 8 | UInt64($1) }
                connection = connections.withLock { $0.removeValue(forKey: number) }
                try Violation.unless(connection != nil, "the server received the number \(number), which no client has sent")
            }
            while try stream.readAvailable({ data in
                if let connection { connection.receivedByServer += data.byteCount }
                if connection?.isOrderly == true { Account.bytesOut.right += data.byteCount }
                try stream.writeAll(data)
                if connection?.isOrderly == true { Account.bytesBack.left += data.byteCount }
                Count.bytes += data.byteCount
            }) {}
        } catch let error as IOError where error.code == .reset && connection?.isOrderly != true {
            Count.expectedErrors += 1
        } catch {
            Failures.record("a session of the server: \(error)")
        }
        if let connection, connection.receivedByServer.value > connection.sentByClient.value {
            Failures.record(
                "the server received \(connection.receivedByServer.value) bytes, of \(connection.sentByClient.value) that were sent")
        }
        stream.close()
    }
}

extension Job {
    /// Connects to the server and sends the number of the connection.
    func open(isOrderly: Bool) throws -> (Connection, Visit) {
        step("connect")
        let addresses = round.crew.addresses.value
        let stream = try connect(to: addresses[random(0...addresses.count - 1)])
        let connection = Visit(isOrderly: isOrderly)
        round.crew.connections.withLock { $0[serial] = connection }
        try stream.writeAll((0..<Server.headerSize).map { UInt8(truncatingIfNeeded: serial >> UInt64(56 - 8 * $0)) })
        return (stream, connection)
    }
}
