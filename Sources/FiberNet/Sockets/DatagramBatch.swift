// SPDX-License-Identifier: Apache-2.0

// Several datagrams in reusable memory, in the layout that the kernel reads and writes.
//
//     headers   [ h0 ][ h1 ][ h2 ]…   a message header for the kernel each, pointing to
//     pieces    [ p0 ][ p1 ][ p2 ]…     the address and the number of its bytes,
//     names     [ n0 ][ n1 ][ n2 ]…     and the address of its sender or receiver
//     memory    [ datagramSize ][ datagramSize ]…
//
// Invariants:
//   * for the datagrams below `count`, `pieces` holds the bytes, `names` and the header's `msg_namelen` (0: none) the address, and
//     `lengths` the length with which it was sent;
//   * the pointers never change. While a call on a socket uses the batch, even if it is parked, no other code changes the rest.
// Used by one fiber at a time.

import CFiber
import Fibers
import Glibc

/// Datagrams to be received or sent together, by ``DatagramSocket/receiveBatch(into:max:)`` and ``DatagramSocket/sendBatch(_:from:)``.
///
/// It keeps its memory for its whole lifetime, so a loop that reuses it allocates nothing:
///
/// ```swift
/// let batch = DatagramBatch(capacity: 64, datagramSize: 1500)
/// while true {
///     try socket.receiveBatch(into: batch)
///     try socket.sendBatch(batch)             // back to the senders
/// }
/// ```
public final class DatagramBatch {
    /// The maximum number of datagrams.
    public let capacity: Int
    /// The maximum bytes of a datagram: longer datagrams are truncated when they are received, and refused when they are appended.
    public let datagramSize: Int
    /// The number of datagrams in the batch.
    public private(set) var count = 0

    private let headers: UnsafeMutablePointer<cfiber_datagram>
    private let pieces: UnsafeMutablePointer<iovec>
    private let names: UnsafeMutablePointer<sockaddr_storage>
    private let lengths: UnsafeMutablePointer<Int>
    private let memory: UnsafeMutableRawPointer
    /// True while a call on a socket uses the batch. That call may be parked.
    private var isLent = false

    /// - Parameters:
    ///   - capacity: the number of datagrams, 1 to 1,024, which is the kernel's limit for one call.
    ///   - datagramSize: bytes for each, at least 1; at most 1 GiB for all datagrams together. ``DatagramSocket/maximumSize`` is enough for
    ///     UDP over IPv4. Unused memory takes only address space.
    public init(capacity: Int, datagramSize: Int) {
        require(1...1024 ~= capacity, "a DatagramBatch holds 1 to 1,024 datagrams, not \(capacity)")
        require(1...(1 << 30) ~= datagramSize, "datagramSize of a DatagramBatch is 1 byte to 1 GiB, not \(datagramSize)")
        require(
            capacity * datagramSize <= 1 << 30,
            "a DatagramBatch takes at most 1 GiB, and \(capacity) datagrams of \(datagramSize) bytes take more: make it for fewer, or for shorter ones"
        )
        self.capacity = capacity
        self.datagramSize = datagramSize
        headers = .allocate(capacity: capacity)
        pieces = .allocate(capacity: capacity)
        names = .allocate(capacity: capacity)
        lengths = .allocate(capacity: capacity)
        memory = .allocate(byteCount: capacity * datagramSize, alignment: 64)
        for i in 0..<capacity {
            (pieces + i).initialize(to: iovec(iov_base: memory + i * datagramSize, iov_len: datagramSize))
            (names + i).initialize(to: sockaddr_storage())
            (lengths + i).initialize(to: 0)
            (headers + i).initialize(to: cfiber_datagram())
            headers[i].header.msg_name = UnsafeMutableRawPointer(names + i)
            headers[i].header.msg_iov = pieces + i
            headers[i].header.msg_iovlen = 1
        }
    }

    deinit {
        headers.deallocate()
        pieces.deallocate()
        names.deallocate()
        lengths.deallocate()
        memory.deallocate()
    }

    // Filling.

    /// True when there is no room for another datagram.
    public var isFull: Bool { count == capacity }

    /// Removes all datagrams and keeps the memory.
    public func removeAll() {
        checkIsFree()
        count = 0
    }

    /// Adds a datagram to be sent. The batch must have room for it (``isFull``).
    /// - Parameter receiver: the address of the receiver; nil for the peer of the socket.
    /// - Throws: ``IOError`` with `tooLarge` when the datagram has more than ``datagramSize`` bytes.
    public func append(_ bytes: RawSpan, to receiver: SocketAddress? = nil) throws(IOError) {
        checkIsFree()
        require(
            !isFull, "a datagram was appended to a DatagramBatch that is full (capacity \(capacity)): look at isFull, and send it first")
        guard bytes.byteCount <= datagramSize else {
            throw IOError(
                .tooLarge, operation: "append", subject: "\(bytes.byteCount) bytes to a batch for \(datagramSize) bytes each")
        }
        let i = count
        bytes.withUnsafeBytes { UnsafeMutableRawBufferPointer(start: pieces[i].iov_base, count: datagramSize).copyMemory(from: $0) }
        pieces[i].iov_len = bytes.byteCount
        lengths[i] = bytes.byteCount
        headers[i].header.msg_namelen = 0
        receiver?.withSockaddr { address, length in
            headers[i].header.msg_name.copyMemory(from: address, byteCount: Int(length))
            headers[i].header.msg_namelen = length
        }
        count += 1
    }

    /// Adds the bytes of an array as a datagram to be sent.
    public func append(_ bytes: [UInt8], to receiver: SocketAddress? = nil) throws(IOError) {
        try append(bytes.span.bytes, to: receiver)
    }

    // Reading.

    /// A copy of a datagram. Use ``withBytes(at:_:)`` to avoid the copy.
    public subscript(index: Int) -> Datagram {
        let info = info(at: index)
        return Datagram(Array(UnsafeRawBufferPointer(start: pieces[index].iov_base, count: info.byteCount)), info)
    }

    /// The length of a datagram and its sender or, if it was appended, its receiver.
    public func info(at index: Int) -> DatagramInfo {
        check(index)
        return DatagramInfo(headers[index].header, length: lengths[index], room: datagramSize)
    }

    /// Calls `body` with the bytes of a datagram. `body` must not receive into the batch.
    public func withBytes<R>(at index: Int, _ body: (RawSpan) throws -> R) rethrows -> R {
        check(index)
        let bytes = UnsafeRawBufferPointer(start: pieces[index].iov_base, count: pieces[index].iov_len)
        return try body(bytes.bytes)
    }

    // For sockets.

    /// Fills the batch by `receive`, and returns its result.
    ///
    /// `receive` gets the headers and the number of datagrams to receive at most; it returns the number it received, or an error.
    func fill(_ limit: Int?, _ receive: (UnsafeMutablePointer<cfiber_datagram>, Int) -> Int) -> Int {
        checkIsFree()
        require(limit ?? 1 > 0, "a batch of at least one datagram can be received, not of \(limit ?? 0)")
        count = 0
        let room = min(capacity, limit ?? capacity)
        for i in 0..<room {
            pieces[i].iov_len = datagramSize
            headers[i].header.msg_namelen = socklen_t(MemoryLayout<sockaddr_storage>.size)
        }
        isLent = true
        let result = receive(headers, room)
        isLent = false
        count = max(0, result)
        for i in 0..<count {
            lengths[i] = Int(headers[i].length)
            pieces[i].iov_len = min(lengths[i], datagramSize)
            // For a path that fills its field, the kernel reports a length with one NUL more than it accepts for sending.
            headers[i].header.msg_namelen = min(headers[i].header.msg_namelen, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
        return result
    }

    /// Calls `send` with the headers from `first` on.
    func lend(from first: Int, _ send: (UnsafeMutablePointer<cfiber_datagram>, Int) -> Int) -> Int {
        checkIsFree()
        require(0...count ~= first, "a batch of \(count) datagrams cannot be sent from datagram \(first) on")
        isLent = true
        defer { isLent = false }
        return send(headers + first, count - first)
    }

    /// The address of a datagram; nil if it has none.
    func address(at index: Int) -> SocketAddress? { index < count ? info(at: index).sender : nil }

    func byteCount(of range: Range<Int>) -> Int { range.reduce(0) { $0 + pieces[$1].iov_len } }

    private func check(_ index: Int) {
        require(0..<count ~= index, "there is no datagram \(index) in a batch of \(count)")
    }

    private func checkIsFree() {
        require(!isLent, "a DatagramBatch was used while another fiber receives into it or sends it: give each fiber one of its own")
    }
}
