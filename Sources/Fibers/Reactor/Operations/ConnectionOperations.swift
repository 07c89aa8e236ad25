// SPDX-License-Identifier: Apache-2.0

// Connections: accepting, connecting, shutting down.

package import CFiber
import Glibc

extension Driver {
    /// Accepts a connection and returns its descriptor, non-blocking. Connections that were aborted before they were accepted are skipped.
    /// While descriptors are short it tries again after pauses, and calls `onShortage` with the error number the first time. Where no
    /// connection is pending, it waits for one, or returns `IOCode.nothing` if `waits` is false. Parks.
    ///
    /// `peer`, unless nil, receives the address of the other end; over TCP the kernel forgets that address once the connection is reset.
    package func accept(
        _ d: Descriptor, from peer: UnsafeMutablePointer<sockaddr_storage>?, waits: Bool, onShortage: (Int32) -> Void
    ) -> Int {
        withoutActuallyEscaping(onShortage) { onShortage in
            var operation = Accept(peer: peer, waits: waits, onShortage: onShortage)
            return perform(&operation, on: d)
        }
    }

    /// Connects. Returns 0 once connected. If the queue of a Unix listener is full, it tries again after pauses, since no event reports
    /// room there. Parks.
    package func connect(_ d: Descriptor, _ address: UnsafePointer<sockaddr>, _ length: socklen_t) -> Int {
        var operation = Connect(address: address, length: length)
        return perform(&operation, on: d)
    }
}

extension Driver {
    /// Ends one half of a connection, or both (`SHUT_RD`, `SHUT_WR`, `SHUT_RDWR`), and wakes the fibers that wait for it: their operations
    /// see the end, or fail. Never parks.
    package func shutdown(_ d: Descriptor, _ how: Int32) -> Int {
        let status = call(on: d) { .shutdown($0, how: how) }
        if status == 0 && how != Int32(SHUT_RD) { noteSendingEnded(d) }
        // The end of the receiving half raises an event.
        return status
    }
}

private struct Accept: Operation {
    static var direction: Direction { .read }
    static var reason: WaitReason.Kind { .accept }
    static var makesDescriptor: Bool { true }
    let peer: UnsafeMutablePointer<sockaddr_storage>?
    let waits: Bool
    let onShortage: (Int32) -> Void
    private var backoff = Backoff.patient
    private var givenUp = 0

    init(peer: UnsafeMutablePointer<sockaddr_storage>?, waits: Bool, onShortage: @escaping (Int32) -> Void) {
        self.peer = peer
        self.waits = waits
        self.onShortage = onShortage
    }

    mutating func attempt(_ slot: RegistrationPointer) -> Int { note(Int(cfiber_accept(slot.pointee.fd, peer)), slot) }
    mutating func submission(_ fd: Int32) -> Submission { .accept(fd, peer, waits: waits) }
    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int { note(result, slot) }
    mutating func nextPause() -> Int64 { backoff.next() }

    @inline(__always)
    private mutating func note(_ result: Int, _ slot: RegistrationPointer) -> Int {
        _fastPath(result >= 0) ? result : noteError(result, slot)
    }

    private mutating func noteError(_ result: Int, _ slot: RegistrationPointer) -> Int {
        switch Int32(-result) {
        case EAGAIN:
            slot.pointee.flags.remove(.short)
            return waits ? IOCode.notReady : IOCode.nothing
        case ECONNABORTED, EPROTO, EPERM, ENETDOWN, ENOPROTOOPT, EHOSTDOWN, ENONET, EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH:
            // Linux returns pending network errors of the new connection here; the listener itself is well. If they never stop, the call
            // itself is being refused.
            givenUp += 1
            return givenUp == 1000 ? result : IOCode.again
        case EMFILE, ENFILE, ENOBUFS, ENOMEM:
            if !slot.pointee.flags.contains(.short) {
                slot.pointee.flags.insert(.short)
                onShortage(Int32(-result))
            }
            return IOCode.pause
        case EINVAL:
            // The socket has been shut down and does not listen any more.
            return IOCode.closed
        default:
            return result
        }
    }
}

private struct Connect: Operation {
    static var direction: Direction { .write }
    static var reason: WaitReason.Kind { .connect }
    static var takesTurn: Bool { false }
    static var trustsReadiness: Bool { false }
    let address: UnsafePointer<sockaddr>
    let length: socklen_t
    private var hasBegun = false
    private var backoff = Backoff.brief

    init(address: UnsafePointer<sockaddr>, length: socklen_t) {
        self.address = address
        self.length = length
    }

    mutating func attempt(_ slot: RegistrationPointer) -> Int {
        if hasBegun { return outcome(slot.pointee.fd) }
        let status = cfiber_connect(slot.pointee.fd, address, length)
        hasBegun = status == -EINPROGRESS
        return hasBegun ? IOCode.notReady : note(Int(status))
    }

    mutating func submission(_ fd: Int32) -> Submission { .connect(fd, address, length) }
    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int { note(result) }
    mutating func nextPause() -> Int64 { backoff.next() }

    /// On a Unix socket the result is immediate, and EAGAIN means that the listener's queue is full.
    private func note(_ status: Int) -> Int { status == -Int(EAGAIN) ? IOCode.pause : status }

    /// A socket that is writable without an error is connected, unless the event was premature: then there is no peer yet.
    private func outcome(_ fd: Int32) -> Int {
        var error: Int32 = 0
        let got = cfiber_get_option(fd, SOL_SOCKET, SO_ERROR, &error)
        if got < 0 || error != 0 { return Int(got < 0 ? got : -error) }
        var peer = sockaddr_storage()
        var size = socklen_t(MemoryLayout<sockaddr_storage>.size)
        return cfiber_peer_address(fd, &peer, &size) == 0 ? 0 : IOCode.notReady
    }
}
