// SPDX-License-Identifier: Apache-2.0

// Calls that end by their deadline, never before it, and without an effect that is not told.

import FiberNet
import Fibers
import Glibc

extension Kind {
    static let timeouts = Kind("timeouts", weight: 10, descriptors: 3) { job in
        switch job.random(0...4) {
        case 0:
            let (a, b) = try job.pair()
            try job.timesOut("read with a timeout") { _ = try a.read(upTo: 10) }
            try job.timesOut("wait with a timeout") { try b.waitReadable() }
            job.close(a, b)
        case 1:
            let listener = try job.listen(on: .loopback(port: 0))
            try job.timesOut("accept with a timeout") { _ = try listener.accept() }
            job.close(listener)
            let (socket, address) = try job.bindOnly()
            try job.patiently {
                try job.expect(.refused, "connect to nobody") { _ = try withTimeout(.seconds(5)) { try Connection.connect(to: address) } }
            }
            Glibc.close(socket)
            Account.sockets.right += 1
        case 2:
            // A Unix listener that accepts nobody has room for one connection.
            let address = try SocketAddress.unixAbstract(name: "swift-fibers-stress-\(job.round.options.seed)-\(job.serial)")
            let listener = try job.listen(on: address, backlog: 0)
            let first = try job.opened { try Connection.connect(to: address) }
            try job.patiently { try job.timesOut("connect with a timeout") { _ = try Connection.connect(to: address) } }
            job.close(first, listener)
        case 3:
            // Connecting to a busy server, with so little time that it may or may not be enough.
            let addresses = job.round.crew.addresses.value
            let timeout = Duration.microseconds(job.random(0...300))
            do {
                job.step("connect with little time")
                job.hangUp(try withTimeout(timeout) { try job.connect(to: addresses[job.random(0...addresses.count - 1)]) })
            } catch is TimeoutError {
                Count.expectedErrors += 1
            }
        default:
            let (a, b) = try job.pair()
            let bytes = [UInt8](repeating: 7, count: 1_000_000)
            var written = 0
            try job.timesOut("write with a timeout") { try a.writeAll(bytes, written: &written) }
            job.close(a)
            var count = 0
            while try b.readAvailable({ count += $0.byteCount }) {}
            try Violation.unless(
                count == written, "a write that timed out reported \(written) bytes; \(count) arrived")
            job.close(b)
        }
    }
}

extension Job {
    /// A socket that keeps its port and does not listen: a port that was given back may be another's the next moment.
    fileprivate func bindOnly() throws -> (Int32, SocketAddress) {
        let fd = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        try Violation.unless(fd >= 0, "there is no socket to be had: \(errno)")
        Account.sockets.left += 1
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let status = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(fd, $0, length) == 0 ? getsockname(fd, $0, &length) : -1 }
        }
        try Violation.unless(status == 0, "a socket cannot be bound: \(errno)")
        return (fd, .loopback(port: Int(UInt16(bigEndian: address.sin_port))))
    }

    /// Runs a wait that nothing ends but a deadline.
    fileprivate func timesOut(_ what: StaticString, _ body: () throws -> Void) throws {
        let nanoseconds = random(0...Int64(20_000_000))
        let begun = Deadline.now
        step(what)
        do { try withTimeout(.nanoseconds(nanoseconds), body) } catch is TimeoutError {
            Count.expectedErrors += 1
            let waited = Deadline.now - begun
            return try Violation.unless(waited >= nanoseconds, "\(what): timed out after \(waited) ns instead of \(nanoseconds) ns")
        }
        throw Violation("\(what): it ended before its time was over")
    }
}
