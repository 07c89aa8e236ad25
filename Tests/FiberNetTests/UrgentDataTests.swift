// SPDX-License-Identifier: Apache-2.0

// Urgent data while signals come. At the mark of urgent data `recv` says that nothing is there if a signal is pending, whatever is there, and no event follows.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct UrgentDataTests {
        /// A way to read that gets some bytes.
        enum Way: CaseIterable, Sendable {
            case read, readAvailable, descriptorStream
        }

        @Test(arguments: Transport.tcp, Way.allCases)
        func bytesBehindUrgentData_arrive_whileSignalsCome(transport: Transport, way: Way) throws {
            try withNet(transport, .init(workers: 1), seconds: 60) { net in
                let (client, server) = try net.pair()
                let stream: DescriptorStream = try server.withFileDescriptor { try DescriptorStream.adopt($0, closing: false) }
                let read: () throws -> [UInt8] = {
                    switch way {
                    case .read: return try withTimeout(.seconds(10)) { try server.read(upTo: 100) }
                    case .readAvailable:
                        var bytes: [UInt8] = []
                        _ = try withTimeout(.seconds(10)) {
                            try server.readAvailable { span in span.withUnsafeBytes { bytes = Array($0) } }
                        }
                        return bytes
                    case .descriptorStream: return try withTimeout(.seconds(10)) { try stream.read(upTo: 100) }
                    }
                }
                try whileSignalsCome {
                    for i in 0..<scaled(3_000, sanitized: 300) {
                        let reader = try Fiber.spawnLocal {
                            var bytes: [UInt8] = []
                            while bytes.count < 12 { bytes += try read() }
                            return bytes
                        }
                        if i % 2 == 0 { letOthersRun() }
                        try client.writeAll("before")
                        expect(try send(client.fd, "!", 1, Int32(MSG_OOB)) == 1)
                        try client.writeAll("behind")
                        expect(try reader.join() == Array("beforebehind".utf8))
                    }
                }
            }
        }

        /// Signals end no call early, and the urgent byte alone is nothing to read.
        @Test(arguments: Transport.tcp)
        func reader_waits_whileOnlyTheUrgentByteIsThere(transport: Transport) throws {
            try withNet(transport, .init(workers: 1)) { net in
                let (client, server) = try net.pair()
                try whileSignalsCome {
                    let reader = try Fiber.spawnLocal { try server.read(upTo: 10) }
                    letOthersRun()
                    expect(try send(client.fd, "!", 1, Int32(MSG_OOB)) == 1)
                    expect(.timedOut) { _ = try withTimeout(.milliseconds(20)) { try server.read(upTo: 10) } }
                    expect(!reader.fiber.isFinished)
                    try client.writeAll("behind")
                    expect(try reader.join() == Array("behind".utf8))
                }
            }
        }
    }
}

/// Runs `body` while the calling thread gets signals: often enough that some find it at the mark of urgent data, and seldom enough that it gets on.
private func whileSignalsCome(_ body: () throws -> Void) throws {
    expect(cfaults_signals_begin(SIGUSR2, 50_000) == 0)
    defer { expect(cfaults_signals_end() > 0, "no signal came") }
    try body()
}
