// SPDX-License-Identifier: Apache-2.0

// What the tests of datagrams share: sockets that know each other, and the ways to receive and to send.

import CFiber
import FiberNet
import Fibers
import Glibc
import Testing

extension Net {
    /// A socket to which others can send.
    func receiver() throws -> DatagramSocket { keep(try DatagramSocket.bind(to: try transport.freshAddress)) }

    /// A socket with an address of its own that is connected to another.
    func client(of server: DatagramSocket) throws -> DatagramSocket {
        let client = try receiver()
        try client.connect(to: server.address)
        return client
    }

    /// Two sockets, each connected to the other.
    func datagramPair() throws -> (DatagramSocket, DatagramSocket) {
        let first = try receiver(), second = try client(of: first)
        try first.connect(to: second.address)
        return (first, second)
    }
}

/// A Unix socket that takes nothing more, and one that sends to it.
final class FullReceiver {
    let receiver: DatagramSocket
    let sender: DatagramSocket
    let isConnected: Bool
    /// How many datagrams fitted, each with its number in it.
    private(set) var count = 0

    init(_ net: Net, isConnected: Bool) throws {
        self.isConnected = isConnected
        receiver = try net.receiver()
        sender = isConnected ? try net.client(of: receiver) : net.keep(try DatagramSocket.open(.unix))
        while try fits("\(count)") { count += 1 }
        expect(count > 0)
    }

    func send(_ text: String, timeout: Duration? = nil) throws {
        if isConnected {
            try withTimeout(timeout) { try sender.send(text) }
        } else {
            try withTimeout(timeout) { try sender.send(text, to: receiver.address) }
        }
    }

    func fits(_ text: String) throws -> Bool {
        let error = failure { try withTimeout(.zero) { try send(text) } }
        expect(error == nil || error?.code == .timedOut, "\(String(describing: error))")
        return error == nil
    }

    func receiveAll() throws {
        for i in 0..<count { expect(try receiver.receive(upTo: 100).bytes == Array("\(i)".utf8)) }
        count = 0
    }
}

// MARK: Ways

struct Received {
    var bytes: [UInt8]
    var length: Int
    var sender: SocketAddress?
    var isTruncated: Bool

    init(_ bytes: [UInt8], _ info: DatagramInfo) {
        self.bytes = bytes
        (length, sender, isTruncated) = (info.length, info.sender, info.isTruncated)
        expect(bytes.count == info.byteCount)
    }

    init(_ datagram: Datagram) {
        bytes = datagram.bytes
        (length, sender, isTruncated) = (datagram.length, datagram.sender, datagram.isTruncated)
    }
}

enum ReceiveWay: Sendable, CaseIterable {
    case intoSpan, intoMemory, upTo, lent, batch

    /// One datagram, of which at most `limit` bytes are kept; `lent` keeps as many as a buffer of the worker's pool holds.
    func receive(_ socket: DatagramSocket, upTo limit: Int = 100, timeout: Duration? = nil) throws -> Received {
        switch self {
        case .intoSpan:
            var array = [UInt8](repeating: 0, count: limit)
            var span = array.mutableSpan
            var bytes = span.mutableBytes
            let info = try withTimeout(timeout) { try socket.receive(into: &bytes) }
            return Received(Array(array.prefix(info.byteCount)), info)
        case .intoMemory:
            let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: limit, alignment: 1)
            defer { memory.deallocate() }
            let info = try withTimeout(timeout) { try socket.receive(into: memory) }
            return Received(Array(memory.prefix(info.byteCount)), info)
        case .upTo:
            return Received(try withTimeout(timeout) { try socket.receive(upTo: limit) })
        case .lent:
            return try withTimeout(timeout) {
                try socket.receiveAvailable { span, info in
                    Received(span.withUnsafeBytes { Array($0) }, info)
                }
            }
        case .batch:
            let batch = DatagramBatch(capacity: 3, datagramSize: limit)
            let count = try withTimeout(timeout) { try socket.receiveBatch(into: batch, max: 1) }
            expect(count == 1 && batch.count == 1)
            return Received(batch[0])
        }
    }
}

enum SendWay: Sendable, CaseIterable {
    case span, array, string, batch

    /// Sends bytes, which are ASCII, to an address, or to the peer for nil.
    func send(_ bytes: [UInt8], _ socket: DatagramSocket, to address: SocketAddress? = nil, timeout: Duration? = nil) throws {
        switch (self, address) {
        case (.span, let address?): try withTimeout(timeout) { try socket.send(bytes.span.bytes, to: address) }
        case (.span, nil): try withTimeout(timeout) { try socket.send(bytes.span.bytes) }
        case (.array, let address?): try withTimeout(timeout) { try socket.send(bytes, to: address) }
        case (.array, nil): try withTimeout(timeout) { try socket.send(bytes) }
        case (.string, let address?): try withTimeout(timeout) { try socket.send(String(decoding: bytes, as: UTF8.self), to: address) }
        case (.string, nil): try withTimeout(timeout) { try socket.send(String(decoding: bytes, as: UTF8.self)) }
        case (.batch, _):
            let batch = DatagramBatch(capacity: 2, datagramSize: max(1, bytes.count))
            try batch.append(bytes, to: address)
            try withTimeout(timeout) { try socket.sendBatch(batch) }
        }
    }
}
