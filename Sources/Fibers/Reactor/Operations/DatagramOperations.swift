// SPDX-License-Identifier: Apache-2.0

// Datagrams. A short count is no evidence here: the kernel keeps an error after the first few datagrams for the next call, and raises no
// event for the remaining ones. So only EAGAIN means that nothing is available.

package import CFiber
import Glibc

extension Driver {
    /// Receives up to `count` datagrams, at least one and as many as are available. Returns their number. An empty datagram counts. Parks.
    package func receiveDatagrams(
        _ d: Descriptor, _ datagrams: UnsafeMutablePointer<cfiber_datagram>, _ count: Int
    ) -> Int {
        var operation = ReceiveDatagrams(datagrams: datagrams, count: count)
        return perform(&operation, on: d)
    }

    /// Waits for a datagram without a buffer, then receives it into a pooled buffer, which it stores in the single piece of `datagram`. The
    /// caller returns the buffer by `giveBack`. Returns 1, or an error and no buffer. Parks.
    package func receiveDatagramLent(_ d: Descriptor, _ datagram: UnsafeMutablePointer<cfiber_datagram>) -> Int {
        var operation = ReceiveDatagramLent(datagram: datagram, buffers: buffers)
        return perform(&operation, on: d)
    }

    /// Sends `count` datagrams in order, each whole or not at all. Returns 0 once all are sent; `sent` is the number sent in any case.
    /// Parks.
    ///
    /// If the socket's own buffer, or the queue of the Unix socket that it is connected to, is full, the fiber waits while it holds the
    /// lock for sending: an event reports room. The queue of a Unix socket to which a datagram is addressed raises no event. Such a
    /// datagram is tried again after pauses, without the lock, so that a receiver that does not read blocks no other fiber.
    package func sendDatagrams(
        _ d: Descriptor, _ datagrams: UnsafeMutablePointer<cfiber_datagram>, _ count: Int, sent: inout Int
    ) -> Int {
        while true {
            var operation = SendDatagrams(datagrams: datagrams, count: count, sent: sent)
            var result: Int
            if operation.isAddressedToUnix {
                var addressed = SendAddressedDatagrams(base: operation)
                result = perform(&addressed, on: d)
                operation = addressed.base
            } else {
                result = perform(&operation, on: d)
            }
            sent = operation.sent
            if result != SendDatagrams.otherKind { return result }
        }
    }
}

private struct ReceiveDatagrams: Operation {
    static var direction: Direction { .read }
    static var reason: WaitReason.Kind { .read }
    let datagrams: UnsafeMutablePointer<cfiber_datagram>
    let count: Int

    mutating func attempt(_ slot: RegistrationPointer) -> Int {
        Int(cfiber_receive_datagrams(slot.pointee.fd, datagrams, UInt32(count)))
    }
    mutating func submission(_ fd: Int32) -> Submission { .receiveDatagrams(fd, datagrams, count) }
}

private struct ReceiveDatagramLent: Operation {
    static var direction: Direction { .read }
    static var reason: WaitReason.Kind { .read }
    let datagram: UnsafeMutablePointer<cfiber_datagram>
    let buffers: UnsafeMutablePointer<BufferPool>
    /// As in `ReceiveLent`.
    private var isReady = false
    private var hasBuffer = false

    init(datagram: UnsafeMutablePointer<cfiber_datagram>, buffers: UnsafeMutablePointer<BufferPool>) {
        self.datagram = datagram
        self.buffers = buffers
    }

    mutating func attempt(_ slot: RegistrationPointer) -> Int {
        guard takeBuffer() else { return -Int(ENOMEM) }
        return keepIfReceived(Int(cfiber_receive_datagrams(slot.pointee.fd, datagram, 1)))
    }

    mutating func submission(_ fd: Int32) -> Submission {
        isReady && takeBuffer() ? .receiveDatagrams(fd, datagram, 1) : .ready(fd, .read)
    }

    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int {
        if hasBuffer { return keepIfReceived(result) }
        if result == 0 && isReady { return -Int(ENOMEM) }
        isReady = true
        return result == 0 ? IOCode.again : result
    }

    mutating func noteLate(_ result: Int) { if hasBuffer { _ = keepIfReceived(-Int(ECANCELED)) } }

    private mutating func takeBuffer() -> Bool {
        guard let buffer = buffers.pointee.take() else { return false }
        datagram.pointee.header.msg_iov.pointee = iovec(iov_base: buffer, iov_len: buffers.pointee.size)
        hasBuffer = true
        return true
    }

    private mutating func keepIfReceived(_ n: Int) -> Int {
        if n < 0 {
            buffers.pointee.put(datagram.pointee.header.msg_iov.pointee.iov_base)
            hasBuffer = false
        }
        return n
    }
}

/// Datagrams to the connected peer, or over IP.
private struct SendDatagrams: Operation {
    static var direction: Direction { .write }
    static var reason: WaitReason.Kind { .write }
    /// The next datagram needs the other kind of operation.
    static var otherKind: Int { -10_020 }

    let datagrams: UnsafeMutablePointer<cfiber_datagram>
    let count: Int
    var sent: Int
    private var wasAddressedToUnix: Bool

    init(datagrams: UnsafeMutablePointer<cfiber_datagram>, count: Int, sent: Int) {
        self.datagrams = datagrams
        self.count = count
        self.sent = sent
        wasAddressedToUnix = false
        wasAddressedToUnix = isAddressedToUnix
    }

    /// Whether the next datagram is addressed to a Unix socket.
    @inline(__always)
    var isAddressedToUnix: Bool {
        let header = datagrams[sent].header
        guard let name = header.msg_name, header.msg_namelen >= MemoryLayout<sa_family_t>.size else { return false }
        return Int32(name.loadUnaligned(as: sa_family_t.self)) == AF_UNIX
    }

    mutating func attempt(_ slot: RegistrationPointer) -> Int {
        note(Int(cfiber_send_datagrams(slot.pointee.fd, datagrams + sent, UInt32(count - sent))))
    }

    mutating func submission(_ fd: Int32) -> Submission { .sendDatagrams(fd, datagrams + sent, count - sent) }
    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int { note(result) }
    mutating func noteLate(_ result: Int) { _ = note(result) }

    private mutating func note(_ n: Int) -> Int {
        guard n >= 0 else { return n }
        // Fewer than all: the next attempt returns the reason.
        sent += n
        if sent == count { return 0 }
        return isAddressedToUnix == wasAddressedToUnix ? IOCode.again : Self.otherKind
    }
}

/// Datagrams that are addressed to Unix sockets.
private struct SendAddressedDatagrams: Operation {
    static var direction: Direction { .write }
    static var reason: WaitReason.Kind { .write }
    static var takesTurn: Bool { false }
    static var trustsReadiness: Bool { false }
    var base: SendDatagrams
    private var backoff = Backoff.brief

    init(base: SendDatagrams) { self.base = base }

    mutating func attempt(_ slot: RegistrationPointer) -> Int { note(base.attempt(slot)) }
    mutating func submission(_ fd: Int32) -> Submission { base.submission(fd) }
    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int { note(base.complete(result, slot)) }
    mutating func noteLate(_ result: Int) { base.noteLate(result) }
    mutating func nextPause() -> Int64 { backoff.next() }

    private mutating func note(_ result: Int) -> Int {
        if result == IOCode.notReady { return IOCode.pause }
        if result == IOCode.again { backoff = .brief }
        return result
    }
}
