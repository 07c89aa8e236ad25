// SPDX-License-Identifier: Apache-2.0

// Clients of the servers: orderly ones, who get back every byte, and others, who leave without a word.

import FiberNet
import Fibers

extension Account {
    static let bytesOut = Account("bytes of orderly clients", "sent by clients", "received by the server")
    static let bytesBack = Account("bytes to orderly clients", "sent by the server", "verified by clients")
}

extension Kind {
    /// One fiber sends and says that it is done, another verifies what comes back, up to the server's end of the stream.
    static let echo = Kind("echo", weight: 20, descriptors: 2, accounts: [.bytesOut, .bytesBack]) { job in
        let (stream, connection) = try job.open(isOrderly: true)
        let total = job.size(upTo: 500_000)
        let writer = try job.spawn { writer in
            try writer.send(total, on: stream, connection)
            try stream.shutdown(.write)
        }
        var received = 0
        while let count = try job.receive(on: stream, at: received) {
            received += count
            Account.bytesBack.right += count
            if job.chance(8) { try job.pause() }
        }
        try writer.join()
        try Violation.unless(received == total, "the echo of \(total) bytes has \(received)")
        job.hangUp(stream)
        Count.echoes += 1
    }

    /// Sends some, reads some or none, and resets or closes the connection, sometimes while another fiber waits on it.
    static let hangUp = Kind("hanging-up", weight: 10, descriptors: 3) { job in
        let (stream, connection) = try job.open(isOrderly: false)
        let writer = try job.spawn { writer in
            do {
                try writer.send(writer.size(upTo: 200_000), on: stream, connection)
            } catch let error as IOError where error.code == .closed {
                Count.expectedErrors += 1
            }
        }
        let reader = try job.spawn { reader in
            var received = 0
            do {
                while let count = try reader.receive(on: stream, at: received) { received += count }
                throw Violation("the server ended a connection that its client had not ended")
            } catch let error as IOError where error.code == .closed {
                Count.expectedErrors += 1
            }
            try Violation.unless(
                received <= connection.sentByClient.value, "\(received) bytes came back of \(connection.sentByClient.value)")
        }
        try job.pause()
        job.step("hang up")
        job.hangUp(stream, reset: job.chance(2))
        try writer.join()
        try reader.join()
    }
}

extension Job {
    /// Sends bytes of the pattern in pieces of all sizes.
    func send(_ total: Int, on stream: Connection, _ connection: Visit) throws {
        var sent = 0
        while sent < total {
            let count = min(size(upTo: 60_000), total - sent)
            let bytes = Pattern.bytes(serial, at: sent, count: count)
            connection.sentByClient += count
            if connection.isOrderly { Account.bytesOut.left += count }
            step("write")
            let middle = random(0...count)
            switch random(0...2) {
            case 0: try stream.writeAll(bytes)
            case 1: try stream.writeAll(bytes.span.bytes.extracting(..<middle), bytes.span.bytes.extracting(middle...))
            default: try stream.writeAll(pieces: [Array(bytes[..<middle]), [], Array(bytes[middle...])])
            }
            sent += count
            if chance(8) { try pause() }
        }
    }

    /// Reads some bytes in one of the ways to do so and verifies them; returns how many, nil at the end.
    func receive(on stream: Connection, at position: Int) throws -> Int? {
        step("read")
        var count = 0
        func verify(_ bytes: UnsafeRawBufferPointer) throws {
            count = bytes.count
            try Violation.unless(
                Pattern.matches(serial, at: position, bytes), "wrong bytes came back within \(bytes.count) from position \(position) on")
        }
        switch random(0...2) {
        case 0:
            _ = try stream.readAvailable { data in try data.withUnsafeBytes { try verify($0) } }
        case 1:
            try stream.read(upTo: size(upTo: 40_000)).withUnsafeBytes { try verify($0) }
        default:
            var memory = [UInt8](repeating: 0, count: size(upTo: 40_000))
            try memory.withUnsafeMutableBytes { memory in
                let count = try stream.read(into: memory)
                try verify(UnsafeRawBufferPointer(rebasing: memory[..<count]))
            }
        }
        return count == 0 ? nil : count
    }
}
