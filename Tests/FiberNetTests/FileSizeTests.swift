// SPDX-License-Identifier: Apache-2.0

// Files as large as a file can be, and offsets at their end: sums that do not fit into an `Int` must not end the program.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct FileSizeTests {
        /// A file of `Int.max` bytes, all of them zero, which takes no memory, and its path.
        private static func makeHugeFile() throws -> (descriptor: Int32, path: String) {
            let descriptor = cfaults_memory_file()
            guard descriptor >= 0, ftruncate(descriptor, .max) == 0 else { throw TestError(text: "no huge file: error \(errno)") }
            return (descriptor, "/proc/self/fd/\(descriptor)")
        }

        #if compiler(>=6.2)
            @Test func reading_takesWhatIsAskedFor_ofTheLargestFile() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let (descriptor, path) = try Self.makeHugeFile()
                        defer { close(descriptor) }
                        try inRuntime {
                            let file = try File.open(path, .readWrite)
                            expect(try file.size() == .max)
                            expect(try file.read(upTo: 10) == [UInt8](repeating: 0, count: 10))
                            expect(try file.read(upTo: 10, at: .max - 4).count == 4)
                            expect(try file.read(upTo: 10, at: .max).isEmpty)
                            expect(try file.seekToEnd() == .max)
                            expect(try file.read(upTo: 10).isEmpty)
                            try file.seek(to: .max - 3)
                            expect(try file.read(upTo: 10).count == 3)
                            try file.seek(to: 0)
                            expect(.limitExceeded) { _ = try file.lines(limit: 100).nextBytes() }
                            expect(try DescriptorStream.open(path).read(upTo: 10).count == 10)
                        }
                    }
                }
            }

            @Test func reading_throwsResources_whereNoMemoryHoldsTheWholeFile() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let (descriptor, path) = try Self.makeHugeFile()
                        defer { close(descriptor) }
                        try inRuntime {
                            let file = try File.open(path)
                            let error = expect(.resources) { _ = try file.read(upTo: .max) }
                            expect(error?.errno == .noMemory && error?.subject == path, "\(String(describing: error))")
                            expect(try file.position() == 0)
                            expect(.resources) { _ = try file.read(upTo: .max, at: 0) }
                            expect(.resources) { _ = try file.read(upTo: .max - 1, at: 1) }
                            expect(.resources) { _ = try File.readAll(path, limit: .max) }
                            expect(.limitExceeded) { _ = try File.readAll(path, limit: 1000) }
                        }
                    }
                }
            }

            @Test func limitsAndOffsets_areHeeded_whateverTheyAre() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let path = try makeFile(Array("one\ntwo\n".utf8))
                        defer { unlink(path) }
                        try inRuntime {
                            let file = try File.open(path, .readWrite)
                            for limit in [Int.min, -1, 0] { expect(try file.read(upTo: limit).isEmpty) }
                            expect(try file.read(upTo: .max, at: 0).count == 8)
                            expect(try file.read(upTo: .max, at: .max).isEmpty)
                            expect(try file.lines(limit: .max).next() == "one")
                            for limit in [Int.min, -1] { expect(.limitExceeded) { _ = try File.readAll(path, limit: limit) } }
                            for size in [Int.min, .max] { expect(failure { try file.truncate(to: size) } != nil) }
                            expect(.system) { try file.seek(to: .min) }
                            // Nothing can be there, and the system says so.
                            let error = expect(.system) { try file.writeAll([1, 2], at: .max) }
                            expect(error?.errno == .fileTooLarge && error?.bytesTransferred == 0, "\(String(describing: error))")
                            expect(try file.size() == 8)
                            // Devices take any offset.
                            let zeros = try File.open("/dev/zero"), null = try File.open("/dev/null", .write)
                            expect(try zeros.read(upTo: 4 << 20, at: .max - 10).count == 10)
                            let late = expect(.system) { try null.writeAll(pattern(4 << 20), at: .max - 10) }
                            expect(late?.errno == .fileTooLarge && late?.bytesTransferred == 10, "\(String(describing: late))")
                            let output = try Subprocess.run(.init("echo", ["out"]), outputLimit: .max)
                            expect(output.output == Array("out\n".utf8))
                            expect(.limitExceeded) { _ = try Subprocess.run(.init("echo", ["out"]), outputLimit: .min) }
                        }
                    }
                }
            }

            @Test func sending_takesTheEnd_ofTheLargestFile() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let (descriptor, path) = try Self.makeHugeFile()
                        defer { close(descriptor) }
                        try withNet(.unix) { net in
                            let (client, server) = try net.pair()
                            let file = try File.open(path)
                            expect(try client.send(file, range: .max - 10 ..< .max) == 10)
                            expect(try client.send(file, range: .max ..< .max) == 0)
                            try client.shutdown(.write)
                            expect(try server.readToEnd().count == 10)
                        }
                    }
                }
            }
        #endif
    }
}
