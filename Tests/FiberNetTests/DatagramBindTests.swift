// SPDX-License-Identifier: Apache-2.0

// Where a datagram socket receives, what it leaves behind, and the groups that it joins.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct DatagramBindTests {
        @Test(arguments: Transport.tcp)
        func address_hasThePortThatTheSystemChose(transport: Transport) throws {
            try withNet(transport) { net in
                let socket = try net.receiver()
                let port = try #require(socket.address.port)
                expect(port > 0)
                expect(try socket.localAddress() == socket.address)
                expect(socket.address == (transport == .ipv4 ? .loopback(port: port) : .loopbackV6(port: port)))
            }
        }

        @Test(arguments: Transport.all)
        func bind_throwsAddressInUse_whenSomebodyReceivesThere(transport: Transport) throws {
            try withNet(transport) { net in
                let first = try net.receiver()
                let error = expect(.addressInUse) { _ = try DatagramSocket.bind(to: first.address) }
                expect(error?.operation == "bind" && error?.subject == first.address.description)
                // The failure took nothing away from the first.
                try net.receiver().send("x", to: first.address)
                expect(try first.receive(upTo: 1).bytes == Array("x".utf8))
            }
        }

        @Test func bind_throwsAddressNotAvailable_whenItIsNoneOfThisMachine() throws {
            // TEST-NET-1 (RFC 5737).
            try inRuntime {
                let error = expect(.addressNotAvailable) { _ = try DatagramSocket.bind(to: try SocketAddress(host: "192.0.2.1", port: 0)) }
                expect(error?.subject == "192.0.2.1:0")
            }
        }

        @Test func bind_throws_whenTheDirectoryDoesNotExist() throws {
            try inRuntime {
                let error = expect(.system) { _ = try DatagramSocket.bind(to: .unix(path: freshPath() + "/socket")) }
                expect(error?.errno == .noSuchFileOrDirectory)
            }
        }

        @Test func unixFile_isThereWhileReceiving_andGoneAfterwards() throws {
            try inRuntime {
                let path = freshPath()
                let socket = try DatagramSocket.bind(to: .unix(path: path))
                expect(socket.address.path == path && access(path, F_OK) == 0)
                socket.close()
                expect(access(path, F_OK) != 0)
                // A second close does not remove the file of whoever came next.
                let second = try DatagramSocket.bind(to: .unix(path: path))
                socket.close()
                expect(access(path, F_OK) == 0)
                _ = consume second
                expect(access(path, F_OK) != 0, "it stays when the last reference goes")
            }
        }

        @Test func failedBind_leavesTheFileOfTheOther() throws {
            try inRuntime {
                let path = freshPath()
                let first = try DatagramSocket.bind(to: .unix(path: path))
                expect(.addressInUse) { _ = try DatagramSocket.bind(to: .unix(path: path)) }
                expect(access(path, F_OK) == 0)
                first.close()
            }
        }

        @Test func options_areKept() throws {
            try withNet(.ipv4) { net in
                let socket = try net.receiver()
                try socket.setOption(.receiveBufferSize, to: 50_000)
                try socket.setOption(.sendBufferSize, to: 40_000)
                expect(try socket.option(.receiveBufferSize) == 100_000 && socket.option(.sendBufferSize) == 80_000)
                try socket.setOption(.multicastLoopback, to: false)
                try socket.setOption(.multicastTimeToLive, to: 7)
                expect(try !socket.option(.multicastLoopback) && socket.option(.multicastTimeToLive) == 7)
            }
        }

        // Groups.

        @Test func multicast_arrives_whileTheSocketIsAMember() throws {
            try withNet(.ipv4) { net in
                let loopback = Int(if_nametoindex("lo"))
                let member = net.keep(try DatagramSocket.bind(to: .any(port: 0))), sender = try net.receiver()
                let group = try SocketAddress(host: "239.255.77.77", port: member.address.port!)
                // By the interface that `sender` is bound to.
                var address = in_addr(s_addr: UInt32(0x7F00_0001).bigEndian)
                let status = setsockopt(
                    try sender.fd, Int32(IPPROTO_IP), IP_MULTICAST_IF, &address, socklen_t(MemoryLayout<in_addr>.size))
                expect(status == 0)
                expect(.addressNotAvailable) { try member.leave(group, interface: loopback) }
                try member.join(group, interface: loopback)
                let error = expect(.addressInUse) { try member.join(group, interface: loopback) }
                expect(error?.operation == "join" && error?.subject == group.description)
                try sender.send("to the group", to: group)
                let received = try withTimeout(.seconds(20)) { try member.receive(upTo: 100) }
                expect(received.bytes == Array("to the group".utf8) && received.sender == sender.address)
                try member.leave(group, interface: loopback)
                try sender.send("without it", to: group)
                try sender.send("directly", to: .loopback(port: member.address.port!))
                expect(try member.receive(upTo: 100).bytes == Array("directly".utf8))
            }
        }

        @Test func join_throws_whenTheAddressIsNoGroup() throws {
            try withNet(.ipv4) { net in
                let socket = try net.receiver()
                expect(failure { try socket.join(.loopback(port: 1)) }?.errno == .invalidArgument)
                expect(.system) { try socket.join(SocketAddress(host: "239.1.1.1", port: 0), interface: -1) }
                socket.close()
                expect(.closed) { try socket.join(SocketAddress(host: "239.1.1.1", port: 0)) }
            }
        }
    }
}
