// SPDX-License-Identifier: Apache-2.0

// Receiving and sending datagrams, one at a time and in batches.

import CFiber
import Fibers
import Glibc

extension DatagramSocket {
    // Receiving.

    /// Receives one datagram into the caller's memory. Bytes that do not fit are lost, and ``DatagramInfo/isTruncated`` is then true; an
    /// empty span takes the datagram without its bytes.
    ///
    /// - Throws: ``IOError`` with `refused` or `unreachable` (about a datagram sent earlier; only on a connected socket), `closed`,
    ///   `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled. No datagram is lost then.
    /// - Note: parks
    public func receive(into span: inout MutableRawSpan) throws -> DatagramInfo {
        let (result, info) = span.withUnsafeMutableBytes { receive($0.baseAddress, $0.count) }
        guard let info else { throw failure(result, "receive") }
        return info
    }

    /// Receives one datagram into the caller's memory; otherwise like ``receive(into:)-(MutableRawSpan)``.
    /// - Note: parks
    public func receive(into memory: UnsafeMutableRawBufferPointer) throws -> DatagramInfo {
        let (result, info) = receive(memory.baseAddress, memory.count)
        guard let info else { throw failure(result, "receive") }
        return info
    }

    /// Receives one datagram and keeps at most `limit` bytes of it; otherwise like ``receive(into:)-(MutableRawSpan)``.
    ///
    /// - Parameter limit: bytes. No UDP datagram is longer than 65,535; for a Unix socket it is at most 1 GiB, since memory for the whole
    ///   limit is allocated.
    /// - Note: parks
    public func receive(upTo limit: Int) throws -> Datagram {
        let isUnix = address.family == .unix
        require(
            !isUnix || limit <= 1 << 30,
            "DatagramSocket.receive(upTo:) takes memory for the whole limit, and \(limit) bytes are more than 1 GiB: give it the length that the senders keep to"
        )
        let limit = max(0, isUnix ? limit : min(limit, 65_535))
        var received: (result: Int, info: DatagramInfo?) = (0, nil)
        let bytes = [UInt8](unsafeUninitializedCapacity: limit) { buffer, count in
            received = receive(buffer.baseAddress, limit)
            count = received.info?.byteCount ?? 0
        }
        guard let info = received.info else { throw failure(received.result, "receive") }
        return Datagram(bytes, info)
    }

    /// Waits for a datagram without holding a buffer, then passes it to `body` in a pooled buffer of the worker.
    ///
    /// Programs with many sockets should receive this way: an idle socket holds no buffer.
    ///
    /// ```swift
    /// try socket.receiveAvailable { bytes, info in
    ///     if let sender = info.sender { try socket.send(bytes, to: sender) }
    /// }
    /// ```
    ///
    /// - Parameter body: receives the bytes, at most `FiberRuntime.Configuration.readBufferSize` of them, and the rest of the information
    ///   about the datagram. It may park; the bytes stay valid until it returns.
    /// - Returns: the result of `body`.
    /// - Throws: ``IOError`` as ``receive(upTo:)``, and any error that `body` throws.
    /// - Note: parks
    public func receiveAvailable<R>(_ body: (RawSpan, DatagramInfo) throws -> R) throws -> R {
        var envelope = cfiber_envelope()
        var room = 0
        let (result, buffer, info) = withUnsafeMutablePointer(to: &envelope) { envelope in
            let datagram = cfiber_seal(envelope, nil, 0)!
            let result = driver.receiveDatagramLent(descriptor, datagram)
            guard result > 0 else { return (result, nil as UnsafeMutableRawPointer?, nil as DatagramInfo?) }
            room = envelope.pointee.piece.iov_len
            return (result, envelope.pointee.piece.iov_base, DatagramInfo(datagram.pointee, room: room))
        }
        guard let buffer, let info else { throw failure(result, "receive") }
        defer { driver.giveBack(buffer) }
        let bytes = UnsafeRawBufferPointer(start: buffer, count: info.byteCount)
        return try body(bytes.bytes, info)
    }

    /// Returns 1 and the information about the datagram, or an error.
    private func receive(_ memory: UnsafeMutableRawPointer?, _ count: Int) -> (Int, DatagramInfo?) {
        var envelope = cfiber_envelope()
        return withUnsafeMutablePointer(to: &envelope) { envelope in
            let datagram = cfiber_seal(envelope, memory, count)!
            let result = driver.receiveDatagrams(descriptor, datagram, 1)
            return (result, result > 0 ? DatagramInfo(datagram.pointee, room: count) : nil)
        }
    }

    // Sending.

    /// Sends one datagram to an address, whole or not at all. Returns when the kernel has taken it.
    ///
    /// Waits while the socket's buffer is full. It also waits for a Unix receiver whose queue is full: it retries at growing intervals of
    /// up to 50 ms, since the kernel does not report when there is room. To send often to one Unix socket, connect to it: then the kernel
    /// reports it.
    ///
    /// - Throws: ``IOError`` with `tooLarge`, `refused` (Unix: no socket receives there; UDP: only on a connected socket, about a datagram
    ///   sent earlier), `unreachable`, `notPermitted` (a broadcast without ``SocketOption/broadcast``, a firewall, a Unix receiver that is
    ///   connected to another socket), `closed`, `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled. The datagram
    ///   was not sent then.
    /// - Note: parks
    public func send(_ bytes: RawSpan, to receiver: SocketAddress) throws {
        let result = receiver.withSockaddr { send(bytes, UnsafeMutableRawPointer(mutating: $0), $1) }
        if result < 0 { throw failure(result, "send to", subject: receiver.description) }
    }

    /// Sends the bytes of an array to an address, as one datagram.
    /// - Note: parks
    public func send(_ bytes: [UInt8], to receiver: SocketAddress) throws {
        try send(bytes.span.bytes, to: receiver)
    }

    /// Sends the UTF-8 of a string to an address, as one datagram.
    /// - Note: parks
    public func send(_ text: String, to receiver: SocketAddress) throws {
        try send(Array(text.utf8), to: receiver)
    }

    /// Sends one datagram to the peer, whole or not at all. Returns when the kernel has taken it; waits while the socket's buffer, or the
    /// queue of a Unix peer, is full.
    ///
    /// - Throws: ``IOError`` with `tooLarge`, `refused` or `unreachable` (about this datagram on a Unix socket, about an earlier one over
    ///   UDP), `closed`, `system` (also when the socket has no peer); `CancellationError` or `TimeoutError` when the fiber is cancelled.
    ///   The datagram was not sent then.
    /// - Note: parks
    public func send(_ bytes: RawSpan) throws {
        let result = send(bytes, nil, 0)
        if result < 0 { throw failure(result, "send") }
    }

    /// Sends the bytes of an array to the peer, as one datagram.
    /// - Note: parks
    public func send(_ bytes: [UInt8]) throws {
        try send(bytes.span.bytes)
    }

    /// Sends the UTF-8 of a string to the peer, as one datagram.
    /// - Note: parks
    public func send(_ text: String) throws {
        try send(Array(text.utf8))
    }

    private func send(_ bytes: RawSpan, _ name: UnsafeMutableRawPointer?, _ nameLength: socklen_t) -> Int {
        bytes.withUnsafeBytes { bytes in
            var envelope = cfiber_envelope()
            return withUnsafeMutablePointer(to: &envelope) { envelope in
                let datagram = cfiber_seal(envelope, bytes.baseAddress, bytes.count)!
                datagram.pointee.header.msg_name = name
                datagram.pointee.header.msg_namelen = nameLength
                var sent = 0
                return driver.sendDatagrams(descriptor, datagram, 1, sent: &sent)
            }
        }
    }

    // Batches.

    /// Receives the datagrams that have arrived, at least one, in one system call (`recvmmsg`). They replace the contents of the batch.
    ///
    /// - Parameters:
    ///   - batch: the destination; it is empty when this throws.
    ///   - max: the maximum number of datagrams; nil for as many as the batch has room for.
    /// - Returns: the number of datagrams received, also in ``DatagramBatch/count``.
    /// - Throws: ``IOError`` as ``receive(upTo:)``.
    /// - Note: parks
    @discardableResult
    public func receiveBatch(into batch: DatagramBatch, max: Int? = nil) throws -> Int {
        let result = batch.fill(max) { driver.receiveDatagrams(descriptor, $0, $1) }
        if result < 0 { throw failure(result, "receive") }
        return result
    }

    /// Sends the datagrams of a batch in order, in one system call (`sendmmsg`) where the kernel takes them at once.
    ///
    /// A datagram that was appended with an address goes to that address, a received datagram goes back to its sender, and a datagram
    /// without an address goes to the peer.
    ///
    /// An error ends the call at the datagram that caused it; ``IOError/datagramsTransferred`` is the number of datagrams sent before it.
    /// To skip that datagram, continue after it. If the kernel stops in the middle because of an *earlier* datagram (`refused`), that error
    /// is not reported, and the rest is sent anyway.
    ///
    /// - Parameters:
    ///   - batch: the datagrams to send. It stays unchanged.
    ///   - first: the index of the first datagram to send.
    /// - Throws: ``IOError`` as ``send(_:to:)-(RawSpan,_)``, with the address of the datagram that caused it and the number of datagrams
    ///   sent before.
    /// - Note: parks
    public func sendBatch(_ batch: DatagramBatch, from first: Int = 0) throws {
        var written = 0
        try sendBatch(batch, from: first, written: &written)
    }

    /// Sends the datagrams of a batch in order, and reports how many of them the kernel has taken, however the call ends; otherwise like
    /// ``sendBatch(_:from:)``.
    ///
    /// - Parameter written: set to the number of datagrams, even when this throws.
    /// - Note: parks
    public func sendBatch(_ batch: DatagramBatch, from first: Int = 0, written: inout Int) throws {
        var sent = 0
        let result = batch.lend(from: first) { datagrams, count in
            count == 0
                ? (descriptor.isOpen ? 0 : driver.refuseClosed())
                : driver.sendDatagrams(descriptor, datagrams, count, sent: &sent)
        }
        written = sent
        guard result < 0 else { return }
        let failed = first + sent
        throw failure(
            result, batch.address(at: failed) == nil ? "send" : "send to", subject: batch.address(at: failed)?.description,
            bytesTransferred: batch.byteCount(of: first..<failed), datagramsTransferred: sent)
    }
}
