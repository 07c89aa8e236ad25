// SPDX-License-Identifier: Apache-2.0

// Files that are sent over connections without a copy in between.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct SendFileTests {
        @Test(arguments: Transport.all)
        func file_arrives_wholeOrInPart(transport: Transport) throws {
            let bytes = pattern(3_000_001)
            let path = try makeFile(bytes)
            defer { unlink(path) }
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let file = try File.open(path)
                try file.seek(to: 7)
                let sending = try Fiber.spawnLocal {
                    expect(try client.send(file) == bytes.count)
                    expect(try client.send(file, range: 1_000..<2_000) == 1_000)
                    expect(try client.send(file, range: 3_000_000..<4_000_000) == 1)
                    expect(try client.send(file, range: 5_000_000..<5_000_001) == 0)
                    expect(try client.send(file, range: 5..<5) == 0)
                    try client.writeAll("end")
                    try client.shutdown(.write)
                    expect(try file.position() == 7)
                }
                let all = try server.readToEnd()
                try sending.join()
                expect(same(all, bytes + Array(bytes[1_000..<2_000]) + Array(bytes[3_000_000...]) + Array("end".utf8)))
            }
        }

        @Test func whatOthersWrite_isNotMixedIn() throws {
            let piece = [UInt8](repeating: UInt8(ascii: "f"), count: 2_000_000)
            let path = try makeFile(piece)
            defer { unlink(path) }
            try withNet(.ipv4) { net in
                let (client, server) = try net.pair()
                let file = try File.open(path)
                for i in 0..<3 {
                    try Fiber.spawnLocal { try client.send(file) }
                    try Fiber.spawnLocal { try client.writeAll([UInt8](repeating: UInt8(i), count: 500_000)) }
                }
                var wanted: [UInt8] = []
                for i in 0..<3 { wanted += piece + [UInt8](repeating: UInt8(i), count: 500_000) }
                expect(same(try server.readExactly(wanted.count), wanted))
            }
        }

        @Test(
            .onlyOn(.epoll, because: "others end a cancelled call some time later and not at once"), arguments: Transport.all,
            Ending.allCases)
        func sending_saysHowFarItCame_whenItIsEnded(transport: Transport, ending: Ending) throws {
            let bytes = pattern(4 << 20)
            let path = try makeFile(bytes)
            defer { unlink(path) }
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let file = try File.open(path)
                let error = try end(
                    ending, after: .milliseconds(200), meanwhile: { try letPoolSettle() }, writing: { try client.send(file, written: &$0) })
                // Others go on behind it.
                let writing = try Fiber.spawnLocal {
                    try client.writeAll("behind")
                    try client.shutdown(.write)
                }
                let all = try server.readToEnd()
                try writing.join()
                let sent = error?.written ?? -1
                expect(all.count == sent + 6, "\(all.count) came, \(sent) went")
                // A deadline may pass before a busy machine has begun.
                let hasBegun = [.cancel, .group, .sibling].contains(ending)
                expect(hasBegun ? sent > 0 : ending != .cancelledBefore || sent == 0, "\(sent) went")
                expect(same(all, Array(bytes[..<max(0, sent)]) + Array("behind".utf8)))
            }
        }

        @Test(arguments: seeds)
        func sendsThatAreCancelled_sayExactlyHowFarTheyCame(seed: UInt64) throws {
            let bytes = pattern(4 << 20, seed: seed)
            let path = try makeFile(bytes)
            defer { unlink(path) }
            var random = SeededGenerator(seed: seed)
            try withNet(.ipv4, seconds: 120) { net in
                let (client, server) = try net.pair()
                let file = try File.open(path)
                let reading = try Fiber.spawnLocal { try server.readToEnd() }
                var wanted: [UInt8] = []
                var cancelled = 0
                for i in 0..<scaled(40, sanitized: 10) {
                    var count = 0
                    let sending = try Fiber.spawnLocal {
                        do { try client.send(file, written: &count) } catch is CancellationError { cancelled += 1 }
                        // Whoever comes next may begin at once.
                        try withCancellationShield { try client.writeAll([UInt8(i)]) }
                    }
                    let turns = Int.random(in: 0..<(1 << Int.random(in: 1...12, using: &random)), using: &random)
                    for _ in 0..<turns where !sending.fiber.isFinished { Fiber.yield() }
                    sending.cancel()
                    try? sending.join()
                    wanted += bytes[..<count] + [UInt8(i)]
                }
                try client.shutdown(.write)
                expect(same(try reading.join(), wanted))
                expect(cancelled > 0)
            }
        }

        @Test func smallFile_takesOneCallOfThePool() throws {
            let path = try makeFile(pattern(1000))
            defer { unlink(path) }
            try withNet(.ipv4) { net in
                let (client, server) = try net.pair()
                let file = try File.open(path)
                for range in [nil, 0..<1000, 0..<2000, 10..<20] {
                    try letPoolSettle()
                    let before = FiberRuntime.blockingStatistics.completed
                    let count = try client.send(file, range: range)
                    try letPoolSettle()
                    expect(FiberRuntime.blockingStatistics.completed - before == 1, "\(String(describing: range))")
                    expect(try server.readExactly(count).count == count)
                }
            }
        }

        @Test func deadline_endsASend_whichSaysHowFarItCame() throws {
            let path = try makeFile(pattern(16 << 20))
            defer { unlink(path) }
            try withNet(.ipv4) { net in
                let (client, server) = try net.narrowPair()
                let file = try File.open(path)
                var sent = 0
                expect(.timedOut) { try withTimeout(.milliseconds(50)) { try client.send(file, written: &sent) } }
                try client.shutdown(.write)
                expect(try server.readToEnd().count == sent)
            }
        }

        @Test(arguments: Transport.all)
        func sending_throwsReset_whenThePeerGoes(transport: Transport) throws {
            let path = try makeFile(pattern(16 << 20))
            defer { unlink(path) }
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let file = try File.open(path)
                let sending = try Fiber.spawnLocal { failure { try client.send(file) } }
                letOthersRun()
                try letPoolSettle()
                server.close()
                let error = try sending.join()
                expect(error?.code == .reset && (error?.bytesTransferred ?? 0) > 0, "\(String(describing: error))")
                expect(.reset) { try client.send(file) }
            }
        }

        @Test func closingTheStream_endsTheSend() throws {
            let path = try makeFile(pattern(16 << 20))
            defer { unlink(path) }
            try withNet(.ipv4) { net in
                let (client, server) = try net.narrowPair()
                let file = try File.open(path)
                let sending = try (0..<3).map { _ in try Fiber.spawnLocal { failure { try client.send(file) } } }
                letOthersRun()
                try letPoolSettle()
                client.close()
                let errors = try sending.map { try $0.join() }
                expect(errors.allSatisfy { $0?.code == .closed } && errors[1]?.bytesTransferred == 0, "\(errors)")
                expect(try server.readToEnd().count == errors[0]?.bytesTransferred)
                expect(.closed) { try client.send(file) }
            }
        }

        @Test func whatCannotBeSent_isSaid() throws {
            let path = try makeFile([1, 2, 3])
            defer { unlink(path) }
            try withNet(.ipv4) { net in
                let (client, _) = try net.pair()
                let file = try File.open(path)
                try file.close()
                expect(.closed) { try client.send(file) }
                let directory = expect(.system) { try client.send(try File.open("/tmp")) }
                expect(directory?.subject == "/tmp")
                expect(.system) { try client.send(try File.open(path, .write)) }
                expect(try client.send(try File.open(path)) == 3)
            }
        }

        @Test func fileOfProc_isSent_thoughLinuxCannotSendItDirectly() throws {
            try withNet(.ipv4) { net in
                let (client, server) = try net.narrowPair()
                // Their sizes are said to be 0. The last one, where it may be read, is larger than what the kernel takes at once.
                for path in ["/proc/version", "/proc/self/cmdline", "/proc/self/limits", "/proc/kallsyms"] {
                    let bytes = try File.readAll(path)
                    let file = try File.open(path)
                    let reading = try Fiber.spawnLocal { try server.readExactly(bytes.count) }
                    expect(try client.send(file) == bytes.count, path)
                    expect(same(try reading.join(), bytes), path)
                    if bytes.count < 10 { continue }
                    expect(try client.send(file, range: 2..<6) == 4, path)
                    expect(try server.readExactly(4) == Array(bytes[2..<6]), path)
                    expect(try client.send(file, range: bytes.count..<bytes.count + 10) == 0, path)
                }
                try client.shutdown(.write)
                expect(try server.readToEnd().isEmpty)
            }
        }

        @Test func fileThatShrinks_isSentAsFarAsItGoes() throws {
            let bytes = pattern(4 << 20)
            let path = try makeFile(bytes)
            defer { unlink(path) }
            try withNet(.ipv4) { net in
                let (client, server) = try net.narrowPair()
                let file = try File.open(path, .readWrite)
                let sending = try Fiber.spawnLocal {
                    let count = try client.send(file)
                    try client.shutdown(.write)
                    return count
                }
                letOthersRun()
                try letPoolSettle()
                try file.truncate(to: 3 << 20)
                let all = try server.readToEnd()
                expect(try sending.join() == all.count && all.count == 3 << 20, "\(all.count)")
            }
        }

        #if compiler(>=6.2)
            @Test func sends_leaveNoDescriptor() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let path = try makeFile(pattern(1 << 20))
                        defer { unlink(path) }
                        let before = openFilesAndPipes()
                        try withNet(.ipv4) { net in
                            let (client, server) = try net.pair()
                            let file = try File.open(path)
                            let reading = try Fiber.spawnLocal { try server.readToEnd() }
                            for i in 0..<50 {
                                let sending = try Fiber.spawnLocal { try client.send(file) }
                                for _ in 0..<i * 20 { Fiber.yield() }
                                if i % 2 == 0 { sending.cancel() }
                                _ = try? sending.join()
                            }
                            try client.shutdown(.write)
                            _ = try reading.join()
                        }
                        expect(openFilesAndPipes() == before, "\(openDescriptors())")
                    }
                }
            }
        #endif
    }
}
