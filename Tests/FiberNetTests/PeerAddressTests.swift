// SPDX-License-Identifier: Apache-2.0

// Who was at the other end, also when it has gone.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct PeerAddressTests {
        @Test(arguments: Transport.tcp)
        func peerAddress_isTheClients_whenItResetBeforeItWasAccepted(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let client = net.keep(try Connection.connect(to: listener.address))
                let address = try client.localAddress()
                client.reset()
                let server = net.keep(try listener.accept())
                expect(.reset) { _ = try server.read(upTo: 1) }
                expect(try server.peerAddress() == address)
                expect(try server.localAddress() == listener.address)
            }
        }

        @Test(arguments: Transport.tcp)
        func peerAddress_isTheClients_whenItResetsLater(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let address = try client.localAddress()
                let local = try server.localAddress()
                expect(try server.peerAddress() == address)
                let reader = try Fiber.spawnLocal { failure { _ = try server.read(upTo: 1) } }
                letOthersRun()
                client.reset()
                expect(try reader.join()?.code == .reset)
                expect(try server.peerAddress() == address)
                expect(try server.localAddress() == local)
            }
        }

        @Test(arguments: Transport.tcp)
        func peerAddress_isTheServers_whenItHasReset(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let address = try server.localAddress()
                server.reset()
                expect(.reset) { _ = try client.read(upTo: 1) }
                expect(try client.peerAddress() == address)
            }
        }

        @Test func peerAddress_isTheClientsName_whenItHasClosedAUnixStream() throws {
            try inRuntime {
                let path = freshPath()
                let listener = try Listener.bind(to: .unix(path: freshPath()))
                let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
                defer { unlink(path) }
                expect(try SocketAddress.unix(path: path).withSockaddr { bind(fd, $0, $1) } == 0)
                expect(listener.address.withSockaddr { connect(fd, $0, $1) } == 0)
                close(fd)
                let server = try listener.accept()
                expect(try server.peerAddress() == .unix(path: path))
                expect(try server.read(upTo: 1).isEmpty)
                expect(try server.peerAddress() == .unix(path: path))
            }
        }

        @Test(arguments: [1, 2, 4], Transport.tcp)
        func handler_knowsWhoResetEarly_onWhicheverWorkerItRuns(workers: Int, transport: Transport) throws {
            try withNet(transport, .init(workers: workers)) { net in
                let server = try TCPServer.bind(to: transport.freshAddress)
                let seen = SharedSet<SocketAddress>()
                let serving = try Fiber.spawnLocal {
                    try server.serve { stream in
                        // The address is asked for when the reset has been seen.
                        while let bytes = try? stream.read(upTo: 10), !bytes.isEmpty {}
                        seen.insert(try stream.peerAddress())
                    }
                }
                // Those who stay make the worker that the kernel gives most to hand the others over.
                let held = try (0..<scaled(120, sanitized: 60)).map { _ in try Connection.connect(to: server.address) }
                try waitUntil { server.connections.reduce(0) { $0 + $1.open } == held.count }
                let clients = try held.map { try $0.localAddress() }
                for client in held { client.reset() }
                try waitUntil { seen.count == held.count }
                server.close()
                _ = try serving.join()
                expect(seen.values == Set(clients))
            }
        }

        @Test(arguments: Transport.tcp)
        func peerAddress_goesAlong_whenAConnectionIsHandedToAnotherWorker(transport: Transport) throws {
            try withNet(transport, .init(workers: 2)) { net in
                let server = try TCPServer.bind(to: transport.freshAddress)
                let seen = SharedSet<SocketAddress>()
                let serving = try Fiber.spawnLocal {
                    try server.serve { stream in
                        while let bytes = try? stream.read(upTo: 10), !bytes.isEmpty {}
                        seen.insert(try stream.peerAddress())
                    }
                }
                // The kernel chooses the listener by the client's port, so those that one worker got are those that are kept; then it hands over.
                var kept: [Connection] = []
                var clients: Set<SocketAddress> = []
                while server.connections.reduce(0, { $0 + $1.handedOver }) < 20 {
                    let before = server.connections[0].accepted
                    let all = server.connections.reduce(0) { $0 + $1.accepted }
                    let client = try Connection.connect(to: server.address)
                    clients.insert(try client.localAddress())
                    try waitUntil { server.connections.reduce(0) { $0 + $1.accepted } > all }
                    if server.connections[0].accepted > before { kept.append(client) } else { client.reset() }
                }
                for client in kept { client.reset() }
                try waitUntil { seen.count == clients.count }
                server.close()
                _ = try serving.join()
                expect(seen.values == clients)
            }
        }
    }
}

/// What handlers of several workers have seen.
private final class SharedSet<Element: Hashable & Sendable>: Sendable {
    private let elements = Guarded<Set<Element>>([])
    var values: Set<Element> { elements.withLock { $0 } }
    var count: Int { elements.withLock { $0.count } }
    func insert(_ element: Element) { elements.withLock { _ = $0.insert(element) } }
}
