// SPDX-License-Identifier: Apache-2.0

// What "Calls that block" shows.

import FiberNet
import Fibers
import Glibc
import Testing

private func readFile(_ path: String) throws -> [UInt8] {
    guard let file = fopen(path, "r") else { throw TestError(text: "\(path): error \(errno)") }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    while case let byte = fgetc(file), byte >= 0 { bytes.append(UInt8(byte)) }
    return bytes
}

extension NetTests {
    struct CallsThatBlockGuide {
        @Test func otherFibers_goOn_whileACallBlocks() throws {
            try inRuntime {
                // snippet.show
                let ticks = try Fiber.spawnLocal {
                    var count = 0
                    while count < 5 {
                        try Fiber.sleep(for: .milliseconds(2))
                        count += 1
                    }
                    return count
                }
                let slept = try withBlockingThread { usleep(50_000) }
                // slept is 0, and ticks has gone on meanwhile
                // snippet.hide
                expect(slept == 0)
                expect(try ticks.join() == 5)
            }
        }

        @Test func calls_runAtTheSameTime() throws {
            try inRuntime {
                // snippet.show
                let lengths = try withFiberGroup(of: Int.self) { group in
                    for path in ["/etc/passwd", "/etc/group"] {
                        try group.spawnLocal { try withBlockingThread { try readFile(path).count } }
                    }
                    var lengths: [Int] = []
                    while let length = try group.next() { lengths.append(length) }
                    return lengths
                }
                // two lengths, in the order in which the calls ended
                // snippet.hide
                expect(lengths.sorted() == [try readFile("/etc/passwd").count, try readFile("/etc/group").count].sorted())
            }
        }

        @Test func fiber_goesOn_whenADeadlineEndsItsWait() throws {
            try inRuntime {
                var notes: [String] = []
                let gate = Gate()
                defer { gate.open() }
                // snippet.show
                do {
                    try withTimeout(.milliseconds(5)) { try withBlockingThread(name: "slow call") { gate.wait() } }
                } catch is TimeoutError {
                    notes.append("the fiber goes on")
                }
                // snippet.hide
                expect(notes == ["the fiber goes on"])
            }
        }

        @Test func names_areLookedUp() throws {
            try inRuntime {
                let listener = try Listener.bind(to: .loopback(port: 0))
                let port = listener.address.port!
                let accepted = try Fiber.spawnLocal { try listener.accept().read(upTo: 5) }
                // snippet.show
                let stream = try Connection.connect(host: "localhost", port: port)
                try stream.writeAll("hello")
                // snippet.hide
                expect(try accepted.join() == Array("hello".utf8))
                stream.close()
                listener.close()
            }
        }

        @Test func file_isReadByLines() throws {
            let path = freshPath()
            defer { unlink(path) }
            try inRuntime {
                // snippet.show
                let file = try File.open(path, .readWrite, options: [.create, .truncate])
                try file.writeAll("first\nsecond\n")
                try file.seek(to: 0)
                var read: [String] = []
                let lines = file.lines()
                while let line = try lines.next() { read.append(line) }
                try file.close()
                // read is ["first", "second"]
                // snippet.hide
                expect(read == ["first", "second"])
            }
        }

        @Test func otherPrograms_areRun() throws {
            try inRuntime {
                // snippet.show
                let sorted = try Subprocess.run(.init("sort", ["-r"]), input: Array("a\nc\nb\n".utf8))
                // sorted.output is "c\nb\na\n", sorted.status.isSuccess
                // snippet.hide
                expect(sorted.output == Array("c\nb\na\n".utf8) && sorted.status.isSuccess)
            }
        }
    }
}
