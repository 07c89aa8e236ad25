// SPDX-License-Identifier: Apache-2.0

// Datagrams over UDP or over Unix datagram sockets; the family of the address decides, as for `Connection`.
//
// Invariants:
//   * a datagram is received or sent whole, or not at all. If it does not fit into the receiver's memory, it is truncated and reported as
//     such;
//   * a socket file that `bind` made is removed when the socket closes, unless another file has taken its path;
//   * neither a datagram nor its absence ends the socket: an empty datagram is not an end of stream, and an error concerns one call.
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
/// Datagrams keep their boundaries, and there is no connection. UDP may lose, duplicate or reorder datagrams; Unix sockets do not. Several
/// fibers that receive are served in order of arrival, one datagram (or batch) each.
///
/// A socket has no end of stream: an empty datagram is received like any other, and an error concerns one call. After
/// ``connect(to:)-swift.type.method`` a datagram to a port without a receiver makes the next call throw `refused`, once; the socket stays
/// usable.
///
/// It belongs to the worker that made it. It is closed by ``close()`` or by the release of the last reference.
public final class DatagramSocket: Endpoint {
    /// The address at which it receives: the address to which it was bound, with the port that the system chose for port 0, or the address
    /// that the system chose when it was connected. A socket that was neither bound nor connected gets an address with its first send;
    /// ``Endpoint/localAddress()`` returns it.
    public private(set) var address: SocketAddress
    /// The file to remove when the socket closes, for Unix sockets.
    private var file: SocketFile?

    /// The maximum number of bytes in a UDP datagram over IPv4. Over IPv6 it is 20 more; for a Unix socket it is a little less than its
    /// ``SocketOption/sendBufferSize``.
    public static var maximumSize: Int { 65_507 }

    private init(_ fd: Int32, _ address: SocketAddress, _ driver: Driver, _ operation: String) throws(IOError) {
        self.address = address
        // Exact: a short count from the kernel never means that no more datagrams have arrived.
        try super.init(fd, exact: true, driver: driver, operation)
    }

    deinit { file?.remove() }

    // Creation.

    /// Creates a socket that receives at an address.
    ///
    /// - Parameters:
    ///   - address: the address to bind; port 0 lets the system choose. A Unix path must not exist yet. `unix:` without a name lets Linux
    ///     choose an abstract name, so that a server can answer a Unix client.
    ///   - reusePort: lets other sockets share the port; each receives from a part of the senders. Not allowed with port 0: the system
    ///     might choose a port that sockets of other programs share. For several sockets on a port that the system chooses, bind the first
    ///     without `reusePort`, set ``SocketOption/reusePort`` on it, and bind the others to its ``address``.
    ///   - removesFile: for a Unix socket: whether closing it removes its file, and no other file, as in
    ///     ``Listener/bind(to:backlog:reusePort:removesFile:)``.
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

    /// Creates a client's socket: it sends to one peer, receives only from that peer, and has an address that the system chooses.
    ///
    /// The peer need not exist yet, except for a Unix socket. A Unix socket made this way has no name, so the peer cannot answer it: for
    /// answers, bind a socket and connect that.
    ///
    /// - Throws: ``IOError`` with `unreachable`, `refused` (Unix only), `notPermitted` (Unix: the peer is connected to another socket), `resources` or `system`;
    ///   `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public static func connect(to peer: SocketAddress) throws -> DatagramSocket {
        let socket = try open(peer.family)
        try socket.connect(to: peer)
        return socket
    }

    /// Creates a socket without an address, for sending and for receiving the answers. Its first send over UDP gives it an address on a
    /// free port.
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

    /// Creates two Unix sockets connected to each other. Neither has a name; each receives the datagrams that the other sends.
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

    // The peer.

    /// Sets the peer: from now on only its datagrams are received, and `send` without an address sends to it.
    ///
    /// The next call throws the errors that the network reports about datagrams sent to the peer. Datagrams of other senders that have
    /// already arrived can still be received. A later call sets another peer.
    ///
    /// - Throws: ``IOError`` with `unreachable`, `refused` (Unix only), `notPermitted` (Unix: the peer is connected to another socket),
    ///   `closed` or `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public func connect(to peer: SocketAddress) throws {
        let result = peer.withSockaddr { driver.connect(descriptor, $0, $1) }
        if result < 0 { throw failure(result, "connect to", subject: peer.description) }
        address = try localAddress()
    }

    /// The peer that ``connect(to:)-swift.method`` has set.
    /// - Throws: ``IOError`` with `closed`, or `system` (`ENOTCONN`) when the socket has no peer.
    public func peerAddress() throws(IOError) -> SocketAddress {
        try address("getpeername") { .peerAddress($0, $1, $2) }
    }

    /// Receives datagrams sent to a multicast group too, for example `224.0.0.251` or `ff02::fb`.
    ///
    /// The port of the group is ignored: the port is the one to which this socket is bound.
    ///
    /// - Parameters:
    ///   - group: a multicast address of the socket's family.
    ///   - interface: the index of the network interface; 0 lets the system choose.
    /// - Throws: ``IOError`` with `addressInUse` when the socket is already a member, `closed`, `resources` or `system`.
    public func join(_ group: SocketAddress, interface: Int = 0) throws(IOError) {
        try change(group, interface, joins: true, "join")
    }

    /// Ends the membership that ``join(_:interface:)`` began.
    /// - Throws: ``IOError`` with `addressNotAvailable` when the socket is not a member, `closed` or `system`.
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

    // Closing.

    /// Closes the socket. Every fiber that waits on it throws an ``IOError`` with the code `closed` at once, and so does every later call.
    ///
    /// Datagrams that were not received are lost. The file of a Unix socket is removed if it is still the file that was bound. A second
    /// close does nothing.
    public override func close() {
        // First: the kernel keeps the socket's inode only until the socket closes.
        file?.remove()
        super.close()
    }
}
