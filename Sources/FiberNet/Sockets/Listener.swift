// SPDX-License-Identifier: Apache-2.0

import CFiber
import Fibers
import Glibc

/// Waits for connections: TCP, or a Unix stream socket, depending on the address.
///
/// ```swift
/// let listener = try Listener.bind(to: .loopback(port: 0))
/// print("port \(listener.address.port!)")
/// try listener.serve { stream in try session(stream) }
/// ```
public final class Listener: Endpoint {
    /// Where it listens, with the port that the system chose if it was bound to port 0.
    public private(set) var address = SocketAddress.any(port: 0)
    /// The file to remove at the end, for Unix sockets.
    private(set) var file: SocketFile?
    /// The groups of ``serve(maxConnections:draining:onError:_:)`` that spawn connections, which may be waiting for room.
    var serving: [ObjectIdentifier: FiberGroup<Void>] = [:]

    /// Starts to listen. Connections that arrive from now on wait in the kernel's queue until they are accepted.
    ///
    /// - Parameters:
    ///   - address: where; port 0 lets the system choose. A Unix path must not exist yet.
    ///   - backlog: length of the kernel's queue, at most `net.core.somaxconn`.
    ///   - reusePort: let other listeners share the port, each getting a part of the connections. With port 0 the system chooses one that nobody uses; the others then bind to
    ///     ``address``.
    ///   - removesFile: of a Unix socket: whether closing the listener removes its file. It removes its own and no other: what has taken the path since, be it the socket of another
    ///     process or a regular file, stays, as does its own file under a name that it was given later. False for a program that leaves the socket to its successor. A file that is
    ///     left must be removed before the path can be bound again.
    /// - Throws: ``IOError`` with `addressInUse`, `addressNotAvailable`, `notPermitted`, `resources` or `system`.
    public static func bind(
        to address: SocketAddress, backlog: Int = 4096, reusePort: Bool = false, removesFile: Bool = true
    ) throws(IOError) -> Listener {
        let driver = Worker.here("Listener.bind").driver
        let fd = driver.call(.socket(domain: address.domain, type: Int32(SOCK_STREAM.rawValue)))
        if fd < 0 { throw IOError(fd, "socket for", subject: address.description) }
        let listener = try Listener(Int32(fd), exact: true, driver: driver, "bind")
        if address.family != .unix {
            try listener.setOption(.reuseAddress, to: true)
            if reusePort { try listener.setOption(.reusePort, to: true) }
            // Linux hands it on to the streams that are accepted, which saves each of them a system call.
            try listener.setOption(.noDelay, to: true)
        }
        let (status, file) = SocketFile.bind(listener.descriptor, of: driver, to: address)
        if status < 0 { throw IOError(status, "bind", subject: address.description) }
        if removesFile { listener.file = file }
        let listening = driver.call(on: listener.descriptor) { .listen($0, backlog: Int32(clamping: backlog)) }
        if listening < 0 { throw IOError(listening, "listen", subject: address.description) }
        listener.address = try listener.localAddress()
        return listener
    }

    /// Goes on with a descriptor that listens already; takes it over, and closes it when that fails.
    static func adopt(_ fd: Int32, _ address: SocketAddress) throws(IOError) -> Listener {
        let listener = try Listener(fd, exact: true, driver: Worker.here("Listener").driver, "listen")
        listener.address = address
        return listener
    }

    /// As `close`, but leaves the descriptor open.
    func giveBack() {
        _ = try? relinquish()
        for group in serving.values { group.endReserving() }
    }

    /// Also the file that it would remove, which is the caller's to look after.
    override func relinquish() throws(IOError) -> Int32 {
        let fd = try super.relinquish()
        file = nil
        return fd
    }

    deinit { file?.remove() }

    /// Stops listening. Fibers that wait in ``accept()`` throw `closed`, ``next()`` returns nil, ``serve(maxConnections:draining:onError:_:)`` begins to drain; connections in the kernel's queue are reset.
    /// The file of a Unix socket goes, if it is still the one that was bound.
    public override func close() {
        // First, while the socket keeps its inode.
        file?.remove()
        super.close()
        for group in serving.values { group.endReserving() }
    }

    /// Accepts one connection.
    ///
    /// A connection that its client gave up before is passed over. While the process has no descriptor left the call waits: other fibers run, and it tries
    /// again up to ten times a second; `FiberRuntime.Configuration.onWarning` hears of it.
    ///
    /// - Throws: ``IOError`` with `closed` or `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled, and then no connection is lost.
    /// - Note: parks
    public func accept() throws -> Connection {
        let (result, peer) = accept(waits: true)
        return try stream(result, peer)
    }

    /// Accepts a connection that is there; nil where none is. Parks only while descriptors are short.
    func acceptNow() throws -> Connection? {
        let (result, peer) = accept(waits: false)
        return result == IOCode.nothing ? nil : try stream(result, peer)
    }

    /// A descriptor or an error, and the address of the other end. For a Unix socket it is not asked for: there the kernel knows it for as
    /// long as the socket is open.
    private func accept(waits: Bool) -> (Int, SocketAddress?) {
        var peer = sockaddr_storage()
        return withUnsafeMutablePointer(to: &peer) { peer in
            let place = address.family == .unix ? nil : peer
            let result = driver.accept(descriptor, from: place, waits: waits, onShortage: warnOfShortage)
            return (result, result < 0 || place == nil ? nil : SocketAddress(ip: peer))
        }
    }

    private func stream(_ result: Int, _ peer: SocketAddress?) throws -> Connection {
        if result < 0 { throw failure(result, "accept") }
        // Over Unix sockets the address is not asked for.
        return try Connection(Int32(result), peer: peer, exact: peer == nil, driver: driver, "accept")
    }

    /// Accepts one connection, or returns nil once the listener has been closed: `while let stream = try listener.next() { … }`.
    /// - Note: parks
    public func next() throws -> Connection? {
        do { return try accept() } catch let error as IOError where error.code == .closed { return nil }
    }

    private func warnOfShortage(_ errno: Int32) {
        Worker.here("accept").warn(
            "accept on \(address): \(errorText(errno)) (limit \(cfiber_descriptor_limit())); connections wait until descriptors come free. Raise the limit on open files (ulimit -n)."
        )
    }
}
