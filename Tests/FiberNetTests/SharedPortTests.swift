// SPDX-License-Identifier: Apache-2.0

// Ports that several sockets share, and strangers that must not come among them.

import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct SharedPortTests {
        /// Linux gives such a socket a port that others share, of any program of the user, once in about twenty times.
        @Test(arguments: Transport.tcp)
        func datagramSocket_isRefused_whenTheSystemIsToChooseThePortToShare(transport: Transport) throws {
            try inRuntime {
                let error = expect(.system) { _ = try DatagramSocket.bind(to: transport.freshAddress, reusePort: true) }
                expect(error?.errno == .invalidArgument && error?.operation == "bind")
                expect(error?.description.contains("SocketOption.reusePort") == true, "\(String(describing: error))")
            }
        }

        @Test(arguments: Transport.tcp)
        func datagramSockets_shareAPortThatTheSystemChose_whenTheFirstTookItAlone(transport: Transport) throws {
            try withNet(transport) { net in
                let first = net.keep(try DatagramSocket.bind(to: transport.freshAddress))
                expect(.addressInUse) { _ = try DatagramSocket.bind(to: first.address, reusePort: true) }
                try first.setOption(.reusePort, to: true)
                let second = net.keep(try DatagramSocket.bind(to: first.address, reusePort: true))
                var counts = [0, 0]
                for _ in 0..<64 { try net.receiver().send("x", to: first.address) }
                for (i, socket) in [first, second].enumerated() {
                    while failure({ _ = try withTimeout(.zero) { try socket.receive(upTo: 1) } }) == nil { counts[i] += 1 }
                }
                expect(counts[0] + counts[1] == 64 && !counts.contains(0), "\(counts)")
            }
        }

        /// `reusePort` says nothing about a Unix socket, which has no port.
        @Test func unixDatagramSocket_isBound_whateverItSaysOfPorts() throws {
            try inRuntime {
                let socket = try DatagramSocket.bind(to: Transport.unix.freshAddress, reusePort: true)
                expect(socket.address.path != nil)
            }
        }

        @Test(arguments: Transport.tcp)
        func listeners_haveAPortEach_whenTheSystemChoosesThem(transport: Transport) throws {
            try withNet(transport) { net in
                let listeners = try (0..<200).map { _ in net.keep(try Listener.bind(to: transport.freshAddress, reusePort: true)) }
                expect(Set(listeners.map { $0.address.port }).count == listeners.count)
            }
        }

        @Test(arguments: [1, 2, 4], Transport.tcp)
        func server_isRefused_whereAStrangerSharesThePort(workers: Int, transport: Transport) throws {
            try withNet(transport, .init(workers: workers)) { net in
                let stranger = net.keep(try Listener.bind(to: transport.freshAddress, reusePort: true))
                let error = expect(.addressInUse) { _ = try TCPServer.bind(to: stranger.address) }
                expect(error?.operation == "bind" && error?.subject == stranger.address.description)
            }
        }

        @Test(arguments: [1, 2, 4], Transport.tcp)
        func serversPort_isItsAlone_forThoseWhoDoNotShare(workers: Int, transport: Transport) throws {
            try withNet(transport, .init(workers: workers)) { net in
                let server = try TCPServer.bind(to: transport.freshAddress)
                expect(.addressInUse) { _ = try Listener.bind(to: server.address) }
                server.close()
                // Nothing of it is left.
                net.keep(try Listener.bind(to: server.address)).close()
            }
        }
    }
}
