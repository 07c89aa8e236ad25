// SPDX-License-Identifier: Apache-2.0

// Descriptors of any kind: waiting for them, reading and writing descriptors that are not sockets, and calls that the caller supplies.

import CFiber
import Glibc

extension Driver {
    /// Waits until the kernel reports a descriptor readable or writable, for code that makes its own system calls. Returns 0 then. Parks.
    package func wait(_ d: Descriptor, _ direction: Direction) -> Int {
        guard d.isOpen else { return refuseClosed() }
        // First of all, so that a descriptor that cannot be watched is not mistaken for one that is ready.
        let watched = watchIfNew(d, direction)
        if watched < 0 {
            Worker.current?.chargeOperation()
            return watched
        }
        switch direction {
        case .read:
            var operation = WaitReadable()
            return perform(&operation, on: d)
        case .write:
            if d.registration.pointee.marks.contains(.sendEnded) { return performNothing() }
            var operation = WaitWritable()
            return perform(&operation, on: d)
        }
    }

    /// Calls `attempt` with the descriptor number whenever the descriptor may be readable, until `attempt` returns anything but `-EAGAIN`,
    /// and returns that. One fiber at a time, in the order of the calls. Readiness is edge-triggered: `attempt` may return `-EAGAIN` only
    /// after it has seen that nothing is available. Parks.
    package func receive(_ d: Descriptor, by attempt: (Int32) -> Int) -> Int {
        withoutActuallyEscaping(attempt) { attempt in
            var operation = ReceiveByCall(call: attempt)
            return perform(&operation, on: d)
        }
    }

    /// Reads some bytes from a descriptor that is not a socket; 0 at its end. `awaitsWriter`: a FIFO that has not been opened for writing
    /// yet is not at its end. Parks.
    package func read(
        _ d: Descriptor, _ memory: UnsafeMutableRawPointer, _ count: Int, kind: Int32, awaitsWriter: Bool
    ) -> Int {
        var operation = ReadBytes(memory: memory, count: count, kind: kind, awaitsWriter: awaitsWriter)
        return perform(&operation, on: d)
    }

    /// Writes everything to a descriptor that is not a socket; otherwise like `sendAll`. Parks.
    package func writeAll(
        _ d: Descriptor, _ memory: UnsafeRawPointer, _ count: Int, kind: Int32, sent: inout Int
    ) -> Int {
        var operation = WriteBytes(memory: memory, count: count, kind: kind)
        let result = perform(&operation, on: d)
        sent = operation.sent
        return result
    }
}

private struct WaitReadable: Operation {
    static var direction: Direction { .read }
    static var reason: WaitReason.Kind { .readable }
    static var takesTurn: Bool { false }
    // The driver does not see the results of the caller's own system calls.
    static var trustsReadiness: Bool { false }

    mutating func attempt(_ slot: RegistrationPointer) -> Int { outcome(cfiber_is_ready(slot.pointee.fd, 0)) }
    mutating func submission(_ fd: Int32) -> Submission { .ready(fd, .read) }
}

private struct WaitWritable: Operation {
    static var direction: Direction { .write }
    static var reason: WaitReason.Kind { .writable }
    static var takesTurn: Bool { false }
    static var trustsReadiness: Bool { false }

    mutating func attempt(_ slot: RegistrationPointer) -> Int {
        slot.pointee.marks.contains(.sendEnded) ? 0 : outcome(cfiber_is_ready(slot.pointee.fd, 1))
    }
    mutating func submission(_ fd: Int32) -> Submission { .ready(fd, .write) }
    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int {
        slot.pointee.marks.contains(.sendEnded) ? 0 : result
    }
}

private func outcome(_ ready: Int32) -> Int { ready == 0 ? IOCode.notReady : Int(min(ready, 0)) }

private struct ReceiveByCall: Operation {
    static var direction: Direction { .read }
    static var reason: WaitReason.Kind { .read }
    let call: (Int32) -> Int

    mutating func attempt(_ slot: RegistrationPointer) -> Int { call(slot.pointee.fd) }
    mutating func submission(_ fd: Int32) -> Submission { .ready(fd, .read) }
    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int { result < 0 ? result : call(slot.pointee.fd) }
}

private struct ReadBytes: Operation {
    static var direction: Direction { .read }
    static var reason: WaitReason.Kind { .read }
    let memory: UnsafeMutableRawPointer
    let count: Int
    let kind: Int32
    let awaitsWriter: Bool

    mutating func attempt(_ slot: RegistrationPointer) -> Int {
        let n = cfiber_read(slot.pointee.fd, memory, count, kind)
        return n == 0 && isTooEarly(slot.pointee.fd) ? IOCode.notReady : n
    }

    mutating func submission(_ fd: Int32) -> Submission {
        awaitsWriter && isTooEarly(fd) ? .ready(fd, .read) : .read(fd, memory, count, kind: kind)
    }

    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int {
        guard awaitsWriter, result >= 0 else { return result }
        // Either the request only waited, or the read may have returned the end that precedes the first writer.
        let n = cfiber_read(slot.pointee.fd, memory, count, kind)
        return result > 0 ? result : n == 0 && isTooEarly(slot.pointee.fd) ? IOCode.notReady : n
    }

    /// A FIFO without a writer reads as if it were at its end, but `poll` does not report it so.
    private func isTooEarly(_ fd: Int32) -> Bool { awaitsWriter && cfiber_is_ready(fd, 0) == 0 }
}

private struct WriteBytes: Operation {
    static var direction: Direction { .write }
    static var reason: WaitReason.Kind { .write }
    let memory: UnsafeRawPointer
    let count: Int
    let kind: Int32
    var sent = 0

    init(memory: UnsafeRawPointer, count: Int, kind: Int32) {
        self.memory = memory
        self.count = count
        self.kind = kind
    }

    mutating func attempt(_ slot: RegistrationPointer) -> Int { note(cfiber_write(slot.pointee.fd, memory + sent, count - sent, kind)) }
    mutating func submission(_ fd: Int32) -> Submission { .write(fd, memory + sent, count - sent, kind: kind) }
    mutating func complete(_ result: Int, _ slot: RegistrationPointer) -> Int { note(result) }
    mutating func noteLate(_ result: Int) { _ = note(result) }

    private mutating func note(_ n: Int) -> Int {
        guard n >= 0 else { return n }
        sent += n
        return sent == count ? 0 : IOCode.again
    }
}
