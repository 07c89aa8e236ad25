// SPDX-License-Identifier: Apache-2.0

// Bytes through stream sockets.

package import CFiber
import Glibc

extension Driver {
    /// Receives some bytes; 0 at the end of the stream. Parks.
    package func receive(_ d: Descriptor, _ memory: UnsafeMutableRawPointer, _ count: Int) -> Int {
        var operation = Receive(memory: memory, count: count)
        return perform(&operation, on: d)
    }

    /// Waits for bytes without a buffer, then receives into a pooled buffer, which the caller returns by `giveBack`. Returns the count and
    /// sets `buffer`; at the end of the stream, or on an error, there is no buffer. Parks.
    package func receiveLent(_ d: Descriptor, _ buffer: inout UnsafeMutableRawPointer?) -> Int {
        var operation = ReceiveLent(buffers: buffers)
        let result = perform(&operation, on: d)
        buffer = operation.buffer
        return result
    }

    /// Sends everything while it holds the lock for sending, so that the bytes of two fibers are never mixed. Returns 0 once all is sent;
    /// `sent` is the number of bytes sent in any case. Parks.
    package func sendAll(_ d: Descriptor, _ memory: UnsafeRawPointer, _ count: Int, sent: inout Int) -> Int {
        var operation = Send(memory: memory, count: count)
        let result = perform(&operation, on: d)
        sent = operation.sent
        return result
    }

    /// Sends all of several pieces, which it modifies as it proceeds; the caller holds the lock for sending (`beginSending`). Adds to
    /// `sent`. Parks.
    package func send(_ d: Descriptor, _ pieces: UnsafeMutableBufferPointer<iovec>, sent: inout Int) -> Int {
        var operation = SendPieces(pieces: pieces)
        if operation.isDone { return 0 }
        let result = performInTurn(&operation, on: d)
        sent += operation.sent
        return result
    }
}

private struct Receive: Operation {
    static var direction: Direction { .read }
    static var reason: WaitReason.Kind { .read }
    let memory: UnsafeMutableRawPointer
    let count: Int

    @inline(__always)
    mutating func attempt(_ slot: RegistrationPointer) -> Int { slot.receive(memory, count) }
    mutating func submission(_ fd: Int32) -> Submission { .receive(fd, memory, count) }
}

private struct ReceiveLent: Operation {
    static var direction: Direction { .read }
    static var reason: WaitReason.Kind { .read }
    let buffers: UnsafeMutablePointer<BufferPool>
    var buffer: UnsafeMutableRawPointer?
    /// A completion backend is asked for readiness first, so that no buffer is held during the wait.
    private var isReady = false

    @inline(__always)
    init(buffers: UnsafeMutablePointer<BufferPool>) { self.buffers = buffers }

    @inline(__always)
    mutating func attempt(_ slot: RegistrationPointer) -> Int {
        guard let memory = buffers.pointee.take() else { return -Int(ENOMEM) }
        let n = slot.receive(memory, buffers.pointee.size)
        if _fastPath(n > 0) { buffer = memory } else { buffers.pointee.put(memory) }
        return n
    }

    mutating func submission(_ fd: Int32) -> Submission {
        buffer = isReady ? buffers.pointee.take() : nil
        guard let buffer else { return .ready(fd, .read) }
        return .receive(fd, buffer, buffers.pointee.size)
    }

    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int {
        if let memory = buffer {
            if result <= 0 {
                buffers.pointee.put(memory)
                buffer = nil
            }
            return result
        }
        if result == 0 && isReady { return -Int(ENOMEM) }
        isReady = true
        return result == 0 ? IOCode.again : result
    }

    mutating func noteLate(_ result: Int) {
        if let memory = buffer { buffers.pointee.put(memory) }
        buffer = nil
    }
}

extension UnsafeMutablePointer where Pointee == Registration {
    /// A short count means that the kernel's buffer was drained at that moment; later data raises an event.
    @inline(__always)
    fileprivate func receive(_ memory: UnsafeMutableRawPointer, _ count: Int) -> Int {
        let n = cfiber_recv(pointee.fd, memory, count)
        if n > 0 && n < count && pointee.flags.isDisjoint(with: [.hungUp, .exact]) { pointee.readable = false }
        return n
    }
}

private struct Send: Operation {
    static var direction: Direction { .write }
    static var reason: WaitReason.Kind { .write }
    let memory: UnsafeRawPointer
    let count: Int
    var sent = 0

    @inline(__always)
    init(memory: UnsafeRawPointer, count: Int) {
        self.memory = memory
        self.count = count
    }

    @inline(__always)
    mutating func attempt(_ slot: RegistrationPointer) -> Int {
        let n = cfiber_send(slot.pointee.fd, memory + sent, count - sent)
        if _slowPath(n >= 0 && n < count - sent) { slot.pointee.writable = false }
        return note(n)
    }

    mutating func submission(_ fd: Int32) -> Submission { .send(fd, memory + sent, count - sent) }
    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int { note(result) }
    mutating func noteLate(_ result: Int) { _ = note(result) }

    @inline(__always)
    private mutating func note(_ n: Int) -> Int {
        guard n >= 0 else { return n }
        sent += n
        return sent == count ? 0 : IOCode.again
    }
}

private struct SendPieces: Operation {
    static var direction: Direction { .write }
    static var reason: WaitReason.Kind { .write }
    let pieces: UnsafeMutableBufferPointer<iovec>
    var sent = 0
    private var first = 0

    init(pieces: UnsafeMutableBufferPointer<iovec>) {
        self.pieces = pieces
        skipEmpty()
    }

    /// The kernel takes at most this many pieces (UIO_MAXIOV).
    private var offered: Int { min(pieces.count - first, 1024) }
    var isDone: Bool { first == pieces.count }

    mutating func attempt(_ slot: RegistrationPointer) -> Int {
        note(cfiber_send_vector(slot.pointee.fd, pieces.baseAddress! + first, offered))
    }

    mutating func submission(_ fd: Int32) -> Submission { .sendPieces(fd, pieces.baseAddress! + first, offered) }

    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int { note(result) }
    mutating func noteLate(_ result: Int) { _ = note(result) }

    private mutating func skipEmpty() {
        while first < pieces.count && pieces[first].iov_len == 0 { first += 1 }
    }

    private mutating func note(_ n: Int) -> Int {
        guard n >= 0 else { return n }
        sent += n
        var left = n
        while first < pieces.count && left >= pieces[first].iov_len {
            left -= pieces[first].iov_len
            first += 1
        }
        if left > 0 {
            pieces[first].iov_base += left
            pieces[first].iov_len -= left
        }
        return isDone ? 0 : IOCode.again
    }
}
