// SPDX-License-Identifier: Apache-2.0

import CFiber
package import Fibers
import Glibc

/// A connection: TCP, or a Unix stream socket, depending on the address.
///
/// One fiber may read while another writes. Several readers are served in order; the bytes of several writers that use `writeAll` never
/// mix. A stream belongs to the worker that made it. It is closed by ``Endpoint/close()`` or by the release of the last reference.
public final class Connection: Endpoint {
    /// The peer's address of a connection over IP, saved when the connection is made, because the kernel forgets it on a reset. Nil where
    /// the kernel knows the address for as long as the socket is open (Unix), or was not asked. It is stored inline, since a connection has
    /// few other bytes.
    private(set) var peer: SocketAddress?

    /// Connects to a listener.
    ///
    /// `TCP_NODELAY` is on. If the queue of a Unix listener is full, the call retries until there is room.
    ///
    /// The system gives up on a silent TCP peer after about two minutes. To give up earlier, connect inside `withTimeout`.
    ///
    /// - Parameter address: the address of a listener.
    /// - Throws: ``IOError`` with `refused`, `unreachable`, `timedOut`, `resources`, `notPermitted`, `addressNotAvailable` or `system`;
    ///   `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public static func connect(to address: SocketAddress) throws -> Connection {
        let worker = Worker.here("Connection.connect")
        if worker.refusesOperation() { throw worker.running.cancellation }
        let driver = worker.driver
        let fd = driver.call(.socket(domain: address.domain, type: Int32(SOCK_STREAM.rawValue)))
        if fd < 0 {
            worker.chargeOperation()
            throw IOError(fd, "socket for", subject: address.description)
        }
        let stream = try Connection(Int32(fd), exact: address.family == .unix, driver: driver, "connect")
        if address.family != .unix { try stream.setOption(.noDelay, to: true) }
        let result = address.withSockaddr { driver.connect(stream.descriptor, $0, $1) }
        if result < 0 { throw failure(result, "connect to", subject: address.description) }
        if address.family == .unix { return stream }
        stream.peer = (try? stream.peerAddress()) ?? address
        guard stream.isItsOwnPeer else { return stream }
        // A reset leaves no trace in the kernel. After a normal close the old connection would keep listeners from binding the port for a
        // while.
        stream.reset()
        throw IOError(-Int(ECONNREFUSED), "connect to", subject: address.description)
    }

    /// Takes ownership of `fd`, and closes it on failure.
    package init(_ fd: Int32, peer: SocketAddress? = nil, exact: Bool, driver: Driver, _ operation: String) throws(IOError) {
        self.peer = peer
        try super.init(fd, exact: exact, driver: driver, operation)
    }

    /// Creates two streams connected to each other.
    /// - Throws: ``IOError`` with `resources`.
    public static func pair() throws(IOError) -> (Connection, Connection) {
        let driver = Worker.here("Connection.pair").driver
        let (one, other) = try driver.makePair(Int32(SOCK_STREAM.rawValue))
        let first: Connection
        do { first = try Connection(one, exact: true, driver: driver, "socketpair") } catch {
            _ = driver.call(.close(other))
            throw error
        }
        return (first, try Connection(other, exact: true, driver: driver, "socketpair"))
    }

    /// The address of the peer, even after the peer has closed or reset the connection.
    /// - Throws: ``IOError`` with `closed`.
    public func peerAddress() throws(IOError) -> SocketAddress {
        guard isOpen, let peer else { return try address("getpeername") { .peerAddress($0, $1, $2) } }
        return peer
    }

    /// True when the connection is connected to itself. If no socket listens on a port of this machine, the system may choose that very
    /// port for the connecting socket, and TCP then connects it to itself.
    package var isItsOwnPeer: Bool {
        guard let local = try? localAddress() else { return false }
        return local == (try? peerAddress())
    }

    // Reading.

    /// Reads some bytes: waits for at least one, and takes as many as have arrived and fit. Returns 0 at the end of the stream, and at once
    /// for an empty span.
    ///
    /// - Throws: ``IOError`` with `reset`, `closed`, `timedOut`, `system`; `CancellationError` or `TimeoutError` when the fiber is
    ///   cancelled, and then no byte is lost.
    /// - Note: parks
    public func read(into span: inout MutableRawSpan) throws -> Int {
        let result = span.withUnsafeMutableBytes { bytes in
            bytes.count == 0 ? 0 : driver.receive(descriptor, bytes.baseAddress!, bytes.count)
        }
        if result < 0 { throw failure(result, "read") }
        return result
    }

    /// Reads some bytes into the caller's memory; otherwise like ``read(into:)-(MutableRawSpan)``.
    /// - Note: parks
    public func read(into memory: UnsafeMutableRawBufferPointer) throws -> Int {
        guard let base = memory.baseAddress, memory.count > 0 else { return 0 }
        let result = driver.receive(descriptor, base, memory.count)
        if result < 0 { throw failure(result, "read") }
        return result
    }

    /// Reads some bytes, at most `limit` and at most 1 MiB per call; returns an empty array at the end of the stream.
    /// - Note: parks
    public func read(upTo limit: Int) throws -> [UInt8] {
        var failure = 0
        let limit = min(max(0, limit), 1 << 20)
        let bytes = [UInt8](unsafeUninitializedCapacity: limit) { buffer, count in
            guard limit > 0 else { return }
            let result = driver.receive(descriptor, buffer.baseAddress!, limit)
            if result < 0 { failure = result } else { count = result }
        }
        if failure < 0 { throw FiberNet.failure(failure, "read") }
        return bytes
    }

    /// Waits for bytes without holding a buffer, then passes the bytes that have arrived to `body` in a pooled buffer of the worker.
    ///
    /// Servers with many connections should read this way: an idle connection holds no buffer.
    ///
    /// ```swift
    /// while try stream.readAvailable({ try stream.writeAll($0) }) {}
    /// ```
    ///
    /// - Parameter body: receives at least one byte, at most `FiberRuntime.Configuration.readBufferSize`. It may park; the bytes stay valid
    ///   until it returns.
    /// - Returns: false at the end of the stream; `body` was not called then.
    /// - Throws: the errors of ``read(upTo:)``, and those of `body`.
    /// - Note: parks
    @inline(__always)
    public func readAvailable(_ body: (RawSpan) throws -> Void) throws -> Bool {
        var buffer: UnsafeMutableRawPointer?
        let count = driver.receiveLent(descriptor, &buffer)
        guard let buffer else {
            if count < 0 { throw failure(count, "read") }
            return false
        }
        defer { driver.giveBack(buffer) }
        let bytes = UnsafeRawBufferPointer(start: buffer, count: count)
        try body(bytes.bytes)
        return true
    }

    // Writing.

    /// Writes all bytes without mixing them with the bytes of other fibers. Returns when the kernel has taken them.
    ///
    /// - Throws: ``IOError`` with `reset`, `closed`, `timedOut`, `system`; `CancellationError` or `TimeoutError` when the fiber is
    ///   cancelled. Some of the bytes may have been written by then: ``writeAll(_:written:)-(RawSpan,_)`` reports how many.
    /// - Note: parks
    public func writeAll(_ span: RawSpan) throws {
        var written = 0
        try writeAll(span, written: &written)
    }

    /// Writes all bytes, and reports how many of them the kernel has taken, however the call ends.
    ///
    /// ```swift
    /// var written = 0
    /// do { try stream.writeAll(page, written: &written) } catch { log("sent \(written) of \(page.count) bytes: \(error)") }
    /// ```
    ///
    /// - Parameter written: set to the number of bytes, even when this throws.
    /// - Throws: as ``writeAll(_:)-(RawSpan)``.
    /// - Note: parks
    public func writeAll(_ span: RawSpan, written: inout Int) throws {
        var sent = 0
        let result = span.withUnsafeBytes { bytes in
            bytes.count == 0
                ? (descriptor.isOpen ? 0 : driver.refuseClosed())
                : driver.sendAll(descriptor, bytes.baseAddress!, bytes.count, sent: &sent)
        }
        written = sent
        if result < 0 { throw failure(result, "write", bytesTransferred: sent) }
    }

    /// Writes the bytes of an array.
    /// - Note: parks
    public func writeAll(_ bytes: [UInt8]) throws { try writeAll(bytes.span.bytes) }

    /// Writes the bytes of an array, and reports how many of them the kernel has taken, however the call ends.
    /// - Note: parks
    public func writeAll(_ bytes: [UInt8], written: inout Int) throws { try writeAll(bytes.span.bytes, written: &written) }

    /// Writes the UTF-8 of a string.
    /// - Note: parks
    public func writeAll(_ text: String) throws { try writeAll(Array(text.utf8)) }

    /// Writes the UTF-8 of a string, and reports how many bytes of it the kernel has taken, however the call ends.
    /// - Note: parks
    public func writeAll(_ text: String, written: inout Int) throws { try writeAll(Array(text.utf8), written: &written) }

    /// Writes several pieces as if they were one, without copying them into one buffer.
    /// - Note: parks
    public func writeAll(pieces: [[UInt8]]) throws {
        var written = 0
        try writeAll(pieces: pieces, written: &written)
    }

    /// Writes several pieces as if they were one, and reports how many bytes of them the kernel has taken, however the call ends.
    /// - Note: parks
    public func writeAll(pieces: [[UInt8]], written: inout Int) throws {
        try writing(isEmpty: pieces.allSatisfy(\.isEmpty), &written) { sent in
            var rest = pieces[...]
            var result = 0
            // The memory of an array is accessible only inside a closure, so each piece takes a stack frame. Batches of 32 bound the stack.
            while !rest.isEmpty && result == 0 {
                result = withUnsafeTemporaryAllocation(of: iovec.self, capacity: 32) { vectors in
                    lend(rest.prefix(32), vectors, 0) { driver.send(descriptor, $0, sent: &sent) }
                }
                rest = rest.dropFirst(32)
            }
            return result
        }
    }

    /// Writes two pieces, for example a header and a body, as if they were one.
    /// - Note: parks
    public func writeAll(_ first: RawSpan, _ second: RawSpan) throws {
        var written = 0
        try writeAll(first, second, written: &written)
    }

    /// Writes two pieces as if they were one, and reports how many bytes of both the kernel has taken, however the call ends.
    /// - Note: parks
    public func writeAll(_ first: RawSpan, _ second: RawSpan, written: inout Int) throws {
        try writing(isEmpty: first.isEmpty && second.isEmpty, &written) { sent in
            first.withUnsafeBytes { a in
                second.withUnsafeBytes { b in
                    withUnsafeTemporaryAllocation(of: iovec.self, capacity: 2) { vectors in
                        vectors.initializeElement(at: 0, to: iovec(a))
                        vectors.initializeElement(at: 1, to: iovec(b))
                        return driver.send(descriptor, vectors, sent: &sent)
                    }
                }
            }
        }
    }

    /// Runs `body` while no other fiber can send. An empty message needs no exclusion.
    private func writing(isEmpty: Bool, _ written: inout Int, _ body: (inout Int) -> Int) throws {
        var sent = 0
        var result = descriptor.isOpen ? 0 : driver.refuseClosed()
        if result == 0 && !isEmpty {
            result = driver.beginSending(descriptor)
            if result == 0 {
                result = body(&sent)
                driver.endSending(descriptor)
            }
        }
        written = sent
        if result < 0 { throw failure(result, "write", bytesTransferred: sent) }
    }

    private func lend(
        _ rest: ArraySlice<[UInt8]>, _ vectors: UnsafeMutableBufferPointer<iovec>, _ count: Int,
        _ body: (UnsafeMutableBufferPointer<iovec>) -> Int
    ) -> Int {
        guard let first = rest.first else { return body(UnsafeMutableBufferPointer(rebasing: vectors[..<count])) }
        return first.withUnsafeBytes { bytes in
            vectors.initializeElement(at: count, to: iovec(bytes))
            return lend(rest.dropFirst(), vectors, count + 1, body)
        }
    }

    // Closing.

    /// The half of a connection to shut down, or both.
    public enum Half: Sendable {
        case read, write, both
    }

    /// Shuts down a half: after `.write` the peer reads the end of the stream and can still send.
    ///
    /// Fibers that wait for that half continue at once: readers see the end of the stream, writers throw `reset`.
    ///
    /// Over TCP the peer does not learn of `.read`. On a Unix stream the peer's later writes throw `reset`, but the system does not wake a
    /// peer that already waits for room: it waits until there is room, or until this end is closed.
    ///
    /// - Throws: ``IOError`` with `closed`, or `system` when the connection no longer exists.
    public func shutdown(_ half: Half) throws(IOError) {
        let how: Int =
            switch half {
            case .read: Int(SHUT_RD)
            case .write: Int(SHUT_WR)
            case .both: Int(SHUT_RDWR)
            }
        let status = driver.shutdown(descriptor, Int32(how))
        if status < 0 { throw IOError(status, "shutdown") }
    }

    /// Closes at once by resetting the connection: the peer gets an error, and written bytes that were not delivered are lost.
    ///
    /// This is for TCP. A Unix stream has no reset, so this does the same as ``Endpoint/close()`` there: the peer reads the written bytes,
    /// and then the end of the stream.
    public func reset() {
        _ = driver.call(on: descriptor) { .linger($0, on: 1, seconds: 0) }
        close()
    }
}

extension Driver {
    /// Creates two connected Unix sockets.
    func makePair(_ type: Int32) throws(IOError) -> (Int32, Int32) {
        var (first, second): (Int32, Int32) = (-1, -1)
        let status = withUnsafeMutablePointer(to: &first) { first in
            withUnsafeMutablePointer(to: &second) { call(.socketPair(first, $0, type: type)) }
        }
        if status < 0 { throw IOError(status, "socketpair") }
        return (first, second)
    }
}

extension iovec {
    fileprivate init(_ bytes: UnsafeRawBufferPointer) {
        self.init(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
    }
}
