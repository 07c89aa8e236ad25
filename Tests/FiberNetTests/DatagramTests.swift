// SPDX-License-Identifier: Apache-2.0

// One datagram: what arrives of it and from whom, and what comes of one that cannot arrive.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct DatagramTests {
        // What arrives.

        @Test(arguments: Transport.all)
        func datagram_arrivesWhole_withItsSender(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.receiver()
                for receiving in ReceiveWay.allCases {
                    for sending in SendWay.allCases {
                        let sent = letters(77)
                        try sending.send(sent, client, to: server.address)
                        let received = try receiving.receive(server)
                        expect(received.bytes == sent && received.length == 77 && !received.isTruncated, "\(receiving), \(sending)")
                        expect(received.sender == client.address, "\(String(describing: received.sender)) and not \(client.address)")
                        // Where it came from is where an answer goes.
                        try sending.send(letters(5), server, to: received.sender)
                        expect(try receiving.receive(client).sender == server.address)
                    }
                }
            }
        }

        @Test(arguments: Transport.all)
        func datagram_arrives_betweenConnectedSockets(transport: Transport) throws {
            try withNet(transport) { net in
                let (first, second) = try net.datagramPair()
                expect(try first.peerAddress() == second.address && second.peerAddress() == first.address)
                for receiving in ReceiveWay.allCases {
                    for sending in SendWay.allCases {
                        try sending.send(letters(9), first)
                        expect(try receiving.receive(second).bytes == letters(9))
                        try sending.send(letters(8), second)
                        expect(try receiving.receive(first).sender == second.address)
                    }
                }
            }
        }

        @Test(arguments: Transport.all)
        func datagrams_keepTheirBorders_andTheirOrder(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                // Fewer than the queue of a Unix socket holds.
                for size in 1...8 { try client.send([UInt8](repeating: UInt8(size), count: size)) }
                for size in 1...8 { expect(try server.receive(upTo: 100).bytes == [UInt8](repeating: UInt8(size), count: size)) }
            }
        }

        @Test(arguments: Transport.all)
        func emptyDatagram_isReceivedAsOne_andIsNoEnd(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                for receiving in ReceiveWay.allCases {
                    for sending in SendWay.allCases {
                        try sending.send([], client)
                        try sending.send(Array("behind".utf8), client)
                        let received = try receiving.receive(server)
                        expect(received.bytes.isEmpty && received.length == 0 && !received.isTruncated, "\(receiving), \(sending)")
                        expect(received.sender == client.address)
                        expect(try receiving.receive(server).bytes == Array("behind".utf8))
                    }
                }
            }
        }

        @Test(arguments: Transport.all)
        func longerDatagram_isCutOff_andSaysHowLongItWas(transport: Transport) throws {
            try withNet(transport, .init(readBufferSize: 512)) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                for way in ReceiveWay.allCases {
                    try client.send(letters(600))
                    try client.send(letters(512))
                    try client.send(letters(511))
                    let long = try way.receive(server, upTo: 512)
                    expect(long.bytes == Array(letters(600).prefix(512)), "\(way)")
                    expect(long.isTruncated && long.length == 600 && long.sender == client.address, "\(way): \(long.length)")
                    // The rest of it is not the next one's beginning.
                    let fitting = try way.receive(server, upTo: 512), short = try way.receive(server, upTo: 512)
                    expect(fitting.bytes == letters(512) && !fitting.isTruncated && fitting.length == 512, "\(way)")
                    expect(short.bytes == letters(511) && !short.isTruncated && short.length == 511, "\(way)")
                }
            }
        }

        @Test(arguments: Transport.all)
        func datagramForNoMemory_isTaken_withoutItsBytes(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                for way in [ReceiveWay.intoSpan, .intoMemory, .upTo] {
                    try client.send("four")
                    try client.send("next")
                    let received = try way.receive(server, upTo: 0)
                    expect(received.bytes.isEmpty && received.length == 4 && received.isTruncated, "\(way)")
                    expect(try way.receive(server).bytes == Array("next".utf8))
                }
            }
        }

        @Test(arguments: Transport.all)
        func largestDatagram_arrives_andOneMoreByteIsTooLarge(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                let largest =
                    switch transport {
                    case .ipv4: DatagramSocket.maximumSize
                    case .ipv6: DatagramSocket.maximumSize + 20
                    // The kernel keeps 32 bytes to itself.
                    case .unix: try client.option(.sendBufferSize) - 32
                    }
                let sent = letters(largest + 1)
                for sending in SendWay.allCases {
                    for address in [nil, server.address] {
                        let error = expect(.tooLarge) { try sending.send(sent, client, to: address) }
                        expect(error?.errno == .messageTooLong && error?.bytesTransferred == 0)
                        let text = error?.description ?? ""
                        expect(text.contains("65,507") && text.contains("sendBufferSize"), text)
                        expect(error?.subject == address?.description)
                    }
                }
                // On Unix sockets memory for it may be short in one piece.
                let size = transport == .unix ? 100_000 : largest
                try client.send(Array(sent.prefix(size)))
                let received = try server.receive(upTo: 200_000)
                expect(same(received.bytes, Array(sent.prefix(size))) && !received.isTruncated)
            }
        }

        @Test(arguments: Transport.tcp)
        func receive_takesAnyLimit_overUDP(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                for limit in [Int.max, 3, -1] {
                    try client.send("bytes")
                    let received = try server.receive(upTo: limit)
                    expect(received.bytes == Array("bytes".utf8.prefix(max(0, limit))) && received.isTruncated == (limit < 5), "\(limit)")
                }
            }
        }

        // Senders.

        @Test func sender_isNil_whenTheUnixSocketHasNoName() throws {
            try withNet(.unix) { net in
                let server = try net.receiver()
                let nameless = [net.keep(try DatagramSocket.open(.unix)), net.keep(try DatagramSocket.connect(to: server.address))]
                for way in ReceiveWay.allCases {
                    for client in nameless {
                        try client.send("x", to: server.address)
                        let received = try way.receive(server)
                        expect(received.sender == nil && received.bytes == Array("x".utf8), "\(way)")
                    }
                    let (first, second) = try DatagramSocket.pair()
                    try first.send("y")
                    expect(try way.receive(second).sender == nil)
                }
            }
        }

        @Test func sender_hasItsWholeName_whenThePathIsAsLongAsItMayBe() throws {
            try withNet(.unix) { net in
                let path = freshPath()
                let longest = path + String(repeating: "x", count: 108 - path.utf8.count)
                let client = net.keep(try DatagramSocket.bind(to: .unix(path: longest))), server = try net.receiver()
                for way in ReceiveWay.allCases {
                    try client.send("x", to: server.address)
                    expect(try way.receive(server).sender == .unix(path: longest), "\(way)")
                }
                // Also as the receiver of an answer in a batch.
                let batch = DatagramBatch(capacity: 1, datagramSize: 10)
                try client.send("again", to: server.address)
                try server.receiveBatch(into: batch)
                try server.sendBatch(batch)
                expect(try client.receive(upTo: 10).bytes == Array("again".utf8))
            }
        }

        @Test func sender_isAnAbstractName_whenItIsBoundToNone() throws {
            try withNet(.unix) { net in
                let server = try net.receiver(), client = net.keep(try DatagramSocket.bind(to: SocketAddress(parsing: "unix:")))
                expect("\(client.address)".hasPrefix("unix:@"), "\(client.address)")
                try client.send("x", to: server.address)
                let sender = try #require(server.receive(upTo: 1).sender)
                expect(sender == client.address)
                try server.send("y", to: sender)
                expect(try client.receive(upTo: 1).bytes == Array("y".utf8))
            }
        }

        @Test(arguments: Transport.tcp)
        func unboundSocket_getsAnAddress_withItsFirstDatagram(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = net.keep(try DatagramSocket.open(transport == .ipv4 ? .ipv4 : .ipv6))
                expect(client.address.port == 0)
                try client.send("x", to: server.address)
                let sender = try #require(server.receive(upTo: 1).sender)
                expect(try sender.port == client.localAddress().port && sender.port != 0)
                try server.send("y", to: sender)
                expect(try client.receive(upTo: 1).sender == server.address)
            }
        }

        @Test(arguments: Transport.tcp)
        func connectedSocket_receivesFromItsPeerAlone(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), stranger = try net.receiver()
                let client = net.keep(try DatagramSocket.connect(to: server.address))
                expect(client.address.port != 0 && client.address.host == server.address.host, "\(client.address)")
                try stranger.send("stranger", to: client.address)
                try server.send("server", to: client.address)
                expect(try client.receive(upTo: 100).bytes == Array("server".utf8))
                // Until it chooses another.
                try client.connect(to: stranger.address)
                try server.send("server", to: client.address)
                try stranger.send("stranger", to: client.address)
                expect(try client.receive(upTo: 100).bytes == Array("stranger".utf8))
                expect(try client.peerAddress() == stranger.address)
            }
        }

        @Test func connectedUnixSocket_isNotToBeSentTo_byOthers() throws {
            try withNet(.unix) { net in
                let (first, _) = try net.datagramPair(), stranger = try net.receiver()
                let error = expect(.notPermitted) { try stranger.send("x", to: first.address) }
                expect(error?.description.contains("connected to another socket") == true, "\(String(describing: error))")
                expect(.notPermitted) { try stranger.connect(to: first.address) }
            }
        }

        // What cannot arrive.

        @Test(.onlyOn(.epoll, because: "with no time at all others may end before their first system call"), arguments: Transport.tcp)
        func refusal_isThrownOnce_andTheSocketStaysUsable(transport: Transport) throws {
            try withNet(transport) { net in
                let gone = try net.receiver(), client = try net.client(of: gone)
                gone.close()
                var calls: [(String, () throws -> Void)] = []
                for way in ReceiveWay.allCases { calls.append(("receive", { _ = try withTimeout(.zero) { try way.receive(client) } })) }
                for way in SendWay.allCases { calls.append(("send", { try way.send([1], client) })) }
                for (name, call) in calls {
                    try client.send("nobody there")
                    // Of the datagram before; the next call knows nothing of it.
                    let error = expect(.refused, call)
                    expect(error?.operation == name && error?.errno == .connectionRefused, "\(String(describing: error))")
                    expect(.timedOut) { _ = try withTimeout(.zero) { try client.receive(upTo: 1) } }
                }
                let back = net.keep(try DatagramSocket.bind(to: gone.address))
                try client.send("somebody there")
                expect(try back.receive(upTo: 100).bytes == Array("somebody there".utf8))
                try back.send("yes", to: client.address)
                expect(try client.receive(upTo: 100).bytes == Array("yes".utf8))
            }
        }

        @Test(arguments: Transport.tcp)
        func waitingReceiver_throwsRefused_whenTheNewsComes(transport: Transport) throws {
            try withNet(transport) { net in
                let gone = try net.receiver(), client = try net.client(of: gone)
                gone.close()
                for way in ReceiveWay.allCases {
                    let waiting = try Fiber.spawnLocal { failure { _ = try way.receive(client) } }
                    letOthersRun()
                    expect(!waiting.fiber.isFinished)
                    try client.send("nobody there")
                    expect(try waiting.join()?.code == .refused, "\(way)")
                }
                expect(client.isOpen)
            }
        }

        @Test(arguments: Transport.tcp)
        func refusal_isNotTold_whenTheSocketIsNotConnected(transport: Transport) throws {
            try withNet(transport) { net in
                let gone = try net.receiver(), client = try net.receiver()
                gone.close()
                for _ in 0..<3 { try client.send("nobody there", to: gone.address) }
                expect(.timedOut) { _ = try withTimeout(.zero) { try client.receive(upTo: 1) } }
            }
        }

        @Test func unixReceiverThatIsGone_refuses_theDatagramItself() throws {
            try withNet(.unix) { net in
                let gone = net.keep(try DatagramSocket.bind(to: .unixAbstract(name: "fibernet-\(getpid())-gone")))
                let client = try net.client(of: gone), other = net.keep(try DatagramSocket.open(.unix))
                gone.close()
                let error = expect(.refused) { try other.send("x", to: gone.address) }
                expect(error?.subject == gone.address.description && error?.operation == "send to")
                expect(.refused) { try client.send("x") }
                expect(.refused) { _ = try DatagramSocket.connect(to: gone.address) }
                expect(other.isOpen && client.isOpen)
            }
        }

        @Test(arguments: Transport.all)
        func sendWithoutAddress_saysWhatToDo_whenThereIsNoPeer(transport: Transport) throws {
            try withNet(transport) { net in
                let socket = try net.receiver()
                for way in SendWay.allCases {
                    let error = expect(.system) { try way.send([1], socket) }
                    expect([.addressRequired, .socketNotConnected].contains(error?.errno))
                    expect(
                        error?.description.hasSuffix("say where to send, or connect the socket first") == true,
                        "\(String(describing: error))")
                }
                expect(.system) { _ = try socket.peerAddress() }
            }
        }

        @Test func broadcast_isNotPermitted_withoutTheOption() throws {
            try withNet(.ipv4) { net in
                let socket = net.keep(try DatagramSocket.bind(to: .any(port: 0)))
                let everybody = try SocketAddress(host: "127.255.255.255", port: socket.address.port!)
                expect(try !socket.option(.broadcast))
                let error = expect(.notPermitted) { try socket.send("all", to: everybody) }
                expect(error?.description.contains("SocketOption.broadcast") == true)
                try socket.setOption(.broadcast, to: true)
                try socket.send("all", to: everybody)
                expect(try socket.receive(upTo: 3).bytes == Array("all".utf8))
            }
        }
    }
}
