// SPDX-License-Identifier: Apache-2.0

import CFiber
import Fibers
import Glibc

/// Accepts connections: TCP, or a Unix stream socket, depending on the address.
///
/// ```swift
/// let listener = try Listener.bind(to: .loopback(port: 0))
/// print("port \(listener.address.port!)")
/// try listener.serve { stream in try session(stream) }
/// ```
public final class Listener: Endpoint {
    /// The address on which it listens, with the port that the system chose if it was bound to port 0.
    public private(set) var address = SocketAddress.any(port: 0)
    /// The file to remove when the listener closes, for Unix sockets.
    private(set) var file: SocketFile?
    /// The groups in which ``serve(maxConnections:draining:onError:_:)`` spawns connections. They may be waiting for room.
    var serving: [ObjectIdentifier: FiberGroup<Void>] = [:]

    /// Starts to listen. Connections that arrive from now on wait in the kernel's queue until they are accepted.
    ///
    /// - Parameters:
    ///   - address: the address to bind; port 0 lets the system choose. A Unix path must not exist yet.
    ///   - backlog: length of the kernel's queue, at most `net.core.somaxconn`.
    ///   - reusePort: lets other listeners share the port; each gets a part of the connections. With port 0 the system chooses an unused
    ///     port; the others then bind to ``address``.
    ///   - removesFile: for a Unix socket: whether closing the listener removes its file. It removes only its own file. Another file that
    ///     has taken the path since stays, whether it is the socket of another process or a regular file. So does its own file under a name
    ///     that it was given later. Pass false in a program that leaves the socket to its successor. A file that is left must be removed
    ///     before the path can be bound again.
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
            // On Linux accepted streams inherit the option, which saves each of them a system call.
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

    /// Takes ownership of a descriptor that already listens, and closes it on failure.
    static func adopt(_ fd: Int32, _ address: SocketAddress) throws(IOError) -> Listener {
        let listener = try Listener(fd, exact: true, driver: Worker.here("Listener").driver, "listen")
        listener.address = address
        return listener
    }

    /// Like `close`, but leaves the descriptor open.
    func giveBack() {
        _ = try? relinquish()
        for group in serving.values { group.endReserving() }
    }

    /// Also transfers the file that the listener would remove: from here on the caller must remove it.
    override func relinquish() throws(IOError) -> Int32 {
        let fd = try super.relinquish()
        file = nil
        return fd
    }

    deinit { file?.remove() }

    /// Stops listening.
    ///
    /// Fibers that wait in ``accept()`` throw `closed`, ``next()`` returns nil, and ``serve(maxConnections:draining:onError:_:)`` begins to
    /// drain; connections in the kernel's queue are reset. The file of a Unix socket is removed if it is still the file that was bound.
    public override func close() {
        // First: the kernel keeps the socket's inode only until the socket closes.
        file?.remove()
        super.close()
        for group in serving.values { group.endReserving() }
    }

    /// Accepts one connection.
    ///
    /// A connection that its client has already given up is skipped. While the process has no descriptor left, the call waits: other fibers
    /// run, it retries up to ten times a second, and it reports the shortage to `FiberRuntime.Configuration.onWarning`.
    ///
    /// - Throws: ``IOError`` with `closed` or `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled, and then no connection is lost.
    /// - Note: parks
    public func accept() throws -> Connection {
        let (result, peer) = accept(waits: true)
        return try stream(result, peer)
    }

    /// Accepts a connection that has already arrived; returns nil if none has. Parks only while descriptors are short.
    func acceptNow() throws -> Connection? {
        let (result, peer) = accept(waits: false)
        return result == IOCode.nothing ? nil : try stream(result, peer)
    }

    /// Returns a descriptor or an error, and the address of the peer. A Unix socket is not asked for that address: the kernel knows it for
    /// as long as the socket is open.
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
        // No peer address means a Unix socket, which is not asked for it.
        return try Connection(Int32(result), peer: peer, exact: peer == nil, driver: driver, "accept")
    }

    /// Accepts one connection; returns nil once the listener has been closed: `while let stream = try listener.next() { … }`.
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
