// SPDX-License-Identifier: Apache-2.0

// Datagrams over UDP, or over Unix datagram sockets, by the family of the address, as `Connection` is either kind of stream.
//
// Invariants:
//   * a datagram is received or sent whole, or not at all; what does not fit into the receiver's memory is cut off, and said to be;
//   * a socket file that `bind` made is removed at the end, unless something else has taken its path;
//   * nothing that a datagram or its absence does ends the socket: an empty one is not an end, and an error is of one call.
// Owner worker only.

import CFiber
import Fibers
import Glibc

/// Sends and receives datagrams: UDP, or a Unix datagram socket, depending on the address.
///
/// ```swift
/// let socket = try DatagramSocket.bind(to: .loopback(port: 5353))
/// while true {
///     let question = try socket.receive(upTo: 1500)
///     try socket.send(answer(question.bytes), to: question.sender!)
/// }
/// ```
///
/// Datagrams keep their borders, and there is no connection: over UDP they may be lost, doubled or overtaken; over Unix sockets they are not. Several fibers that receive
/// are served in the order in which they came, one datagram (or batch) each.
///
/// A socket has no end: a datagram without bytes is received as one, and an error concerns one call. After ``connect(to:)-swift.type.method`` a datagram to a port where
/// nobody listens makes the next call throw `refused`, once; the socket is as good as before.
///
/// It belongs to the worker that made it. It is closed by ``close()`` or when the last reference goes.
public final class DatagramSocket: Endpoint {
    /// Where it receives: what it was bound to, with the port that the system chose for port 0, or what the system chose when it was connected. A socket that is neither
    /// gets an address when it sends for the first time, which ``Endpoint/localAddress()`` tells.
    public private(set) var address: SocketAddress
    /// The file to remove at the end, for Unix sockets.
    private var file: SocketFile?

    /// The greatest number of bytes in a datagram of UDP over IPv4. Over IPv6 it is 20 more; a Unix socket takes a little less than its
    /// ``SocketOption/sendBufferSize``.
    public static var maximumSize: Int { 65_507 }

    private init(_ fd: Int32, _ address: SocketAddress, _ driver: Driver, _ operation: String) throws(IOError) {
        self.address = address
        // The kernel never tells by a short count that there is no more.
        try super.init(fd, exact: true, driver: driver, operation)
    }

    deinit { file?.remove() }

    // Making one.

    /// A socket that receives at an address.
    ///
    /// - Parameters:
    ///   - address: where; port 0 lets the system choose. A Unix path must not exist yet. `unix:` without a name lets Linux
    ///     choose an abstract one, so that a client of a Unix server can be answered.
    ///   - reusePort: let other sockets share the port, each getting a part of the senders. Not with port 0: the system might choose one that sockets of other programs share. For
    ///     several sockets at a port of the system's choice bind the first without `reusePort`, set ``SocketOption/reusePort`` on it, and bind the others to its ``address``.
    ///   - removesFile: of a Unix socket: whether closing it removes its file, and no other, as in ``Listener/bind(to:backlog:reusePort:removesFile:)``.
    /// - Throws: ``IOError`` with `addressInUse`, `addressNotAvailable`, `notPermitted`, `resources` or `system` (also `reusePort` with port 0).
    public static func bind(to address: SocketAddress, reusePort: Bool = false, removesFile: Bool = true) throws(IOError) -> DatagramSocket
    {
        if reusePort && address.port == 0 { throw IOError(-Int(EINVAL), "bind", subject: "\(address) with reusePort") }
        let socket = try open(address.family)
        if reusePort && address.family != .unix { try socket.setOption(.reusePort, to: true) }
        let (status, file) = SocketFile.bind(socket.descriptor, of: socket.driver, to: address)
        if status < 0 { throw IOError(status, "bind", subject: address.description) }
        if removesFile { socket.file = file }
        socket.address = try socket.localAddress()
        return socket
    }

    /// A client's socket: it sends to one peer and receives from it alone, at an address that the system chooses. The peer need not be there, except for a Unix socket.
    ///
    /// A Unix socket made so has no name, and cannot be answered: bind one, and connect that.
    ///
    /// - Throws: ``IOError`` with `unreachable`, `refused` (Unix only), `notPermitted` (Unix: the peer is connected to another socket), `resources` or `system`;
    ///   `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public static func connect(to peer: SocketAddress) throws -> DatagramSocket {
        let socket = try open(peer.family)
        try socket.connect(to: peer)
        return socket
    }

    /// A socket without an address: for sending, and for the answers. With the first datagram that it sends over UDP it gets an address on a port that is free.
    /// - Throws: ``IOError`` with `resources` or `system`.
    public static func open(_ family: SocketAddress.Family = .ipv4) throws(IOError) -> DatagramSocket {
        let driver = Worker.here("DatagramSocket.open").driver
        let nowhere: SocketAddress =
            switch family {
            case .ipv4: .any(port: 0)
            case .ipv6: .anyV6(port: 0)
            case .unix: SocketAddress(.unixUnnamed)
            }
        let fd = driver.call(.socket(domain: nowhere.domain, type: Int32(SOCK_DGRAM.rawValue)))
        if fd < 0 { throw IOError(fd, "socket") }
        return try DatagramSocket(Int32(fd), nowhere, driver, "socket")
    }

    /// Two Unix sockets connected to each other. Neither has a name; each receives what the other sends.
    /// - Throws: ``IOError`` with `resources`.
    public static func pair() throws(IOError) -> (DatagramSocket, DatagramSocket) {
        let driver = Worker.here("DatagramSocket.pair").driver
        let (one, other) = try driver.makePair(Int32(SOCK_DGRAM.rawValue))
        let nowhere = SocketAddress(.unixUnnamed)
        let first: DatagramSocket
        do { first = try DatagramSocket(one, nowhere, driver, "socketpair") } catch {
            _ = driver.call(.close(other))
            throw error
        }
        return (first, try DatagramSocket(other, nowhere, driver, "socketpair"))
    }

    // Its peer.

    /// Chooses the peer: from now on only its datagrams are received, `send` without an address sends to it, and errors that the network reports of datagrams sent there
    /// are thrown by the next call. Datagrams of others that have arrived before stay to be received. A later call chooses another peer.
    ///
    /// - Throws: ``IOError`` with `unreachable`, `refused` (Unix only), `notPermitted` (Unix: the peer is connected to another socket), `closed` or `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public func connect(to peer: SocketAddress) throws {
        let result = peer.withSockaddr { driver.connect(descriptor, $0, $1) }
        if result < 0 { throw failure(result, "connect to", subject: peer.description) }
        address = try localAddress()
    }

    /// The peer that was chosen by ``connect(to:)-swift.method``.
    /// - Throws: ``IOError`` with `closed`, or `system` (`ENOTCONN`) when there is none.
    public func peerAddress() throws(IOError) -> SocketAddress {
        try address("getpeername") { .peerAddress($0, $1, $2) }
    }

    /// Receives what is sent to a multicast group, too: `224.0.0.251` or `ff02::fb`, say; its port plays no part, that is the one to which this socket is bound.
    ///
    /// - Parameters:
    ///   - group: a multicast address of the socket's family.
    ///   - interface: the index of the network interface; 0 lets the system choose.
    /// - Throws: ``IOError`` with `addressInUse` when it is a member already, `closed`, `resources` or `system`.
    public func join(_ group: SocketAddress, interface: Int = 0) throws(IOError) {
        try change(group, interface, joins: true, "join")
    }

    /// Ends what ``join(_:interface:)`` began.
    /// - Throws: ``IOError`` with `addressNotAvailable` when it is no member, `closed` or `system`.
    public func leave(_ group: SocketAddress, interface: Int = 0) throws(IOError) {
        try change(group, interface, joins: false, "leave")
    }

    private func change(_ group: SocketAddress, _ interface: Int, joins: Bool, _ operation: String) throws(IOError) {
        guard let index = UInt32(exactly: interface) else { throw IOError(-Int(ENODEV), operation, subject: "interface \(interface)") }
        let status = group.withSockaddr { address, length in
            driver.call(on: descriptor) { .multicast($0, address, length, interface: index, join: joins ? 1 : 0) }
        }
        if status < 0 { throw IOError(status, operation, subject: group.description) }
    }

    // Ending.

    /// Closes the socket. Everyone who waits on it throws an ``IOError`` with the code `closed` at once, as does every later call. Datagrams that were not received are
    /// lost, and the file of a Unix socket goes, if it is still the one that was bound. A second close does nothing.
    public override func close() {
        // First, while the socket keeps its inode.
        file?.remove()
        super.close()
    }
}
