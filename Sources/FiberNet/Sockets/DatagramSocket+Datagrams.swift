// SPDX-License-Identifier: Apache-2.0

// Receiving and sending datagrams, one at a time and in batches.

import CFiber
import Fibers
import Glibc

extension DatagramSocket {
    // Receiving.

    /// Receives one datagram into memory of the caller's. What does not fit is cut off, which ``DatagramInfo/isTruncated`` tells; an empty span takes the datagram
    /// without its bytes.
    ///
    /// - Throws: ``IOError`` with `refused` or `unreachable` (what became of a datagram sent earlier; only once it is connected), `closed`, `system`; `CancellationError` or `TimeoutError` when the
    ///   fiber is cancelled. No datagram is lost then.
    /// - Note: parks
    public func receive(into span: inout MutableRawSpan) throws -> DatagramInfo {
        let (result, info) = span.withUnsafeMutableBytes { receive($0.baseAddress, $0.count) }
        guard let info else { throw failure(result, "receive") }
        return info
    }

    /// Receives one datagram into memory of the caller's; otherwise as ``receive(into:)-(MutableRawSpan)``.
    /// - Note: parks
    public func receive(into memory: UnsafeMutableRawBufferPointer) throws -> DatagramInfo {
        let (result, info) = receive(memory.baseAddress, memory.count)
        guard let info else { throw failure(result, "receive") }
        return info
    }

    /// Receives one datagram, of which it keeps at most `limit` bytes; otherwise as ``receive(into:)-(MutableRawSpan)``.
    ///
    /// - Parameter limit: bytes. None over UDP is longer than 65,535; for a Unix socket it is at most 1 GiB, since memory for so many is taken.
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

    /// Waits for a datagram without holding a buffer, then lends it to `body`, in a buffer of the worker's pool: the way for programs with many sockets.
    ///
    /// ```swift
    /// try socket.receiveAvailable { bytes, info in
    ///     if let sender = info.sender { try socket.send(bytes, to: sender) }
    /// }
    /// ```
    ///
    /// - Parameter body: gets the bytes, at most `FiberRuntime.Configuration.readBufferSize` of them, and what else is known. It may park; the bytes are its own until it returns.
    /// - Returns: what `body` returns.
    /// - Throws: ``IOError`` as ``receive(upTo:)``, and whatever `body` throws.
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

    /// 1 and what is known of the datagram, or an error.
    private func receive(_ memory: UnsafeMutableRawPointer?, _ count: Int) -> (Int, DatagramInfo?) {
        var envelope = cfiber_envelope()
        return withUnsafeMutablePointer(to: &envelope) { envelope in
            let datagram = cfiber_seal(envelope, memory, count)!
            let result = driver.receiveDatagrams(descriptor, datagram, 1)
            return (result, result > 0 ? DatagramInfo(datagram.pointee, room: count) : nil)
        }
    }

    // Sending.

    /// Sends one datagram to an address, whole or not at all. Returns when the kernel has it.
    ///
    /// Waits while the socket's buffer is full. A Unix receiver whose queue is full is waited for, too, by trying again at growing intervals of up to 50 ms, since nothing
    /// tells when there is room; whoever sends often to one Unix socket should connect to it, which makes the kernel tell.
    ///
    /// - Throws: ``IOError`` with `tooLarge`, `refused` (Unix only: nobody receives there; over UDP only once it is connected, of a datagram sent earlier), `unreachable`,
    ///   `notPermitted` (a broadcast without ``SocketOption/broadcast``, a firewall, a Unix receiver that is connected to another socket), `closed`, `system`; `CancellationError` or
    ///   `TimeoutError` when the fiber is cancelled. The datagram was not sent then.
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

    /// Sends one datagram to the peer, whole or not at all. Returns when the kernel has it; waits while the socket's buffer, or the queue of a Unix peer, is full.
    ///
    /// - Throws: ``IOError`` with `tooLarge`, `refused` or `unreachable` (of this datagram on a Unix socket, of an earlier one over UDP), `closed`, `system`, also when there is no peer;
    ///   `CancellationError` or `TimeoutError` when the fiber is cancelled. The datagram was not sent then.
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

    /// Receives the datagrams that are there, at least one, in one system call (`recvmmsg`). They replace what was in the batch.
    ///
    /// - Parameters:
    ///   - batch: where to; it is empty when this throws.
    ///   - max: how many at most; nil for as many as the batch has room for.
    /// - Returns: how many came, also in ``DatagramBatch/count``.
    /// - Throws: ``IOError`` as ``receive(upTo:)``.
    /// - Note: parks
    @discardableResult
    public func receiveBatch(into batch: DatagramBatch, max: Int? = nil) throws -> Int {
        let result = batch.fill(max) { driver.receiveDatagrams(descriptor, $0, $1) }
        if result < 0 { throw failure(result, "receive") }
        return result
    }

    /// Sends the datagrams of a batch in order, in one system call (`sendmmsg`) where the kernel takes them at once: those that were appended with an address go there,
    /// those that were received go back to their senders, and those without an address to the peer.
    ///
    /// An error ends it at the datagram that it happened to; ``IOError/datagramsTransferred`` says how many went before it. To leave that one out, go on behind it.
    /// Where the kernel stops in the middle because of what became of an *earlier* datagram (`refused`), it says so to nobody, and the rest goes all the same.
    ///
    /// - Parameters:
    ///   - batch: what to send. It stays as it is.
    ///   - first: the datagram to begin with.
    /// - Throws: ``IOError`` as ``send(_:to:)-(RawSpan,_)``, with the address of the datagram that it happened to, and how many went.
    /// - Note: parks
    public func sendBatch(_ batch: DatagramBatch, from first: Int = 0) throws {
        var written = 0
        try sendBatch(batch, from: first, written: &written)
    }

    /// Sends the datagrams of a batch in order, and tells how many of them the kernel has, however the call ends; otherwise as ``sendBatch(_:from:)``.
    ///
    /// - Parameter written: set to the number of datagrams, also when this throws.
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
