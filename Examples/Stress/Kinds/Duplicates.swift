// SPDX-License-Identifier: Apache-2.0

// Sockets that have waited here, are closed here, and go on elsewhere by a duplicate: nothing of them may be left with this worker.

import FiberNet
import Fibers
import Glibc
import SystemPackage

extension Account {
    static let duplicates = Account("bytes to duplicates of closed sockets", "written", "read")
}

extension Kind {
    static let duplicates = Kind("duplicates", weight: 4, descriptors: 5, accounts: [.duplicates]) { job in
        let (stream, peer) = try job.connectedPair()
        let reader = try job.spawn { reader in
            reader.step("wait on a socket that will be duplicated")
            return try stream.read(upTo: 1)
        }
        try job.pause()
        try peer.writeAll([1])
        try Violation.unless(try reader.join() == [1], "wrong bytes before a socket was duplicated")
        let duplicate = try stream.withFileDescriptor { descriptor in
            try job.patiently {
                let number = fcntl(descriptor.rawValue, F_DUPFD_CLOEXEC, 0)
                if number < 0 { throw IOError(-Int(errno), "duplicate") }
                return number
            }
        }
        Account.sockets.left += 1
        job.close(stream)
        let total = job.size(upTo: 200_000)
        let user = try job.spawn(on: job.somewhere()) { try $0.read(total, fromDuplicate: duplicate) }
        var sent = 0
        while sent < total {
            job.step("write to a duplicate")
            let count = min(total - sent, job.size(upTo: 20_000))
            try peer.writeAll(Pattern.bytes(job.serial, at: sent, count: count))
            Account.duplicates.left += count
            sent += count
            try job.pause()
        }
        // The duplicate is the last: its end is the end of the connection.
        job.step("wait for the end of a duplicate")
        try user.join()
        try Violation.unless(try peer.read(upTo: 1).isEmpty, "a duplicate was closed, and the connection did not end")
        job.close(peer)
        try Job.expectNoStaleEvents()
    }
}

extension Job {
    /// A pair over TCP or Unix sockets, both ends of which are this job's.
    fileprivate func connectedPair() throws -> (Connection, Connection) {
        guard chance(2) else { return try pair() }
        let listener = try listen(on: .loopback(port: 0))
        let client = try opened { try Connection.connect(to: listener.address) }
        let server = try opened { try listener.accept() }
        close(listener)
        return (client, server)
    }

    /// Reads so many bytes by one of the ways to work with a descriptor of somebody else's, and closes it.
    fileprivate func read(_ total: Int, fromDuplicate number: Int32) throws {
        let descriptor = FileDescriptor(rawValue: number)
        let stream = chance(2) ? try patiently { try DescriptorStream.adopt(descriptor, closing: false) } : nil
        var count = 0
        while count < total {
            step("read from a duplicate")
            let bytes = try stream.map { try $0.read(upTo: 20_000) } ?? receive(from: descriptor)
            try Violation.unless(!bytes.isEmpty, "a duplicate ends after \(count) bytes of \(total)")
            try Violation.unless(bytes.withUnsafeBytes { Pattern.matches(serial, at: count, $0) }, "wrong bytes from a duplicate")
            count += bytes.count
            Account.duplicates.right += bytes.count
            try pause()
        }
        stream?.close()
        try descriptor.close()
        Account.sockets.right += 1
        try Job.expectNoStaleEvents()
    }

    private func receive(from descriptor: FileDescriptor) throws -> [UInt8] {
        try patiently { try waitReadable(descriptor) }
        var buffer = [UInt8](repeating: 0, count: 20_000)
        let count = recv(descriptor.rawValue, &buffer, buffer.count, 0)
        try Violation.unless(count >= 0, "a duplicate that is readable has nothing: \(errno)")
        return Array(buffer[..<count])
    }

    /// An event of a socket that is closed here would mean that its registration was left behind.
    fileprivate static func expectNoStaleEvents() throws {
        let count = Worker.current?.pointee.statistics.staleEvents ?? 0
        try Violation.unless(count == 0, "\(count) events came for sockets that are closed here")
    }
}
