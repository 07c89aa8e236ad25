// SPDX-License-Identifier: Apache-2.0

// Results of a datagram socket: a datagram as a value, and the information about a datagram whose bytes are elsewhere.
//
// Invariant: `byteCount` is at most `length`, and less exactly when the memory was too small.
// Thread rule: plain values, any thread.

import CFiber
import Glibc

/// The information about a datagram besides its bytes.
public struct DatagramInfo: Sendable, Hashable {
    /// The number of bytes received; 0 for an empty datagram, which is a datagram like any other.
    public let byteCount: Int
    /// The number of bytes sent, even if fewer were received.
    public let length: Int
    /// The address of the sender; nil for a Unix socket without a name, which cannot be answered.
    public let sender: SocketAddress?

    /// True when the memory was too small: bytes from ``byteCount`` on are lost.
    public var isTruncated: Bool { byteCount < length }

    init(_ datagram: cfiber_datagram, room: Int) {
        self.init(datagram.header, length: Int(datagram.length), room: room)
    }

    /// `header` is filled in as by the kernel, and its `msg_name` is memory of its own.
    init(_ header: msghdr, length: Int, room: Int) {
        byteCount = min(length, room)
        self.length = length
        let name = header.msg_name.map { SocketAddress($0.assumingMemoryBound(to: sockaddr.self), length: header.msg_namelen) } ?? nil
        sender = name?.storage == .unixUnnamed ? nil : name
    }
}

/// A datagram that was received.
public struct Datagram: Sendable, Hashable {
    public let bytes: [UInt8]
    /// The number of bytes sent, even if fewer were received.
    public let length: Int
    /// The address of the sender; nil for a Unix socket without a name, which cannot be answered.
    public let sender: SocketAddress?

    /// True when the memory was too small: the rest of the bytes is lost.
    public var isTruncated: Bool { bytes.count < length }

    init(_ bytes: [UInt8], _ info: DatagramInfo) {
        self.bytes = bytes
        length = info.length
        sender = info.sender
    }
}
