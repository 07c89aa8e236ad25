// SPDX-License-Identifier: Apache-2.0

// Files: what is read and written, what happens to calls that are ended from outside, and that no descriptor is lost.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import Synchronization
import SystemPackage
import Testing

extension NetTests {
    struct FileTests {
        // Reading and writing.

        @Test func bytes_areReadAsTheyWereWritten() throws {
            let path = freshPath()
            defer { unlink(path) }
            try inRuntime {
                let bytes = pattern(3_000_001)
                let file = try File.open(path, .readWrite, options: [.create, .exclusive], permissions: 0o600)
                try file.writeAll(bytes)
                expect(try file.position() == bytes.count && file.size() == bytes.count)
                try file.seek(to: 0)
                expect(same(try file.read(upTo: 1_000_000), Array(bytes[..<1_000_000])))
                expect(same(try file.read(upTo: 1 << 30), Array(bytes[1_000_000...])))
                expect(try file.read(upTo: 1).isEmpty && file.read(upTo: 0).isEmpty)
                try file.close()
                expect(same(try File.readAll(path), bytes))
            }
            var info = stat()
            stat(path, &info)
            #expect(info.st_mode & 0o777 == 0o600)
        }

        @Test func callsWithOffset_leaveThePosition() throws {
            let path = try makeFile(Array("0123456789".utf8))
            defer { unlink(path) }
            try inRuntime {
                let file = try File.open(path, .readWrite)
                expect(try file.read(upTo: 3) == Array("012".utf8))
                expect(try file.read(upTo: 100, at: 8) == Array("89".utf8))
                expect(try file.read(upTo: 100, at: 10).isEmpty && file.read(upTo: 100, at: 1000).isEmpty)
                try file.writeAll(Array("xy".utf8), at: 4)
                expect(try file.position() == 3)
                expect(try file.read(upTo: 4) == Array("3xy6".utf8))
                expect(try file.seekToEnd() == 10)
                try file.truncate(to: 5)
                expect(try file.size() == 5)
                try file.truncate(to: 7)
                try file.sync()
                try file.sync(dataOnly: true)
            }
            #expect(try content(of: path) == Array("0123x\0\0".utf8))
        }

        @Test func options_areObeyed() throws {
            let path = freshPath(), link = freshPath()
            defer {
                unlink(path)
                unlink(link)
            }
            try inRuntime {
                expect(.notFound) { _ = try File.open(path) }
                expect(.notFound) { _ = try File.open(path + "/below") }
                try File.write(Array("one".utf8), to: path)
                expect(.exists) { _ = try File.open(path, .write, options: [.create, .exclusive]) }
                let log = try File.open(path, .write, options: .append)
                try log.writeAll("two")
                try File.open(path, .write, options: .append).writeAll("three")
                try log.writeAll("four")
                expect(try File.readAll(path) == Array("onetwothreefour".utf8))
                expect(try File.open(path, .write, options: .truncate).size() == 0)
                expect(symlink(path, link) == 0)
                expect(try File.open(link).size() == 0)
                expect(.system) { _ = try File.open(link, options: .noFollow) }
                // What it was opened for.
                expect(.system) { try File.open(path).writeAll("x") }
                expect(.system) { _ = try File.open(path, .write).read(upTo: 1) }
                expect(.system) { _ = try File.open("/tmp", .write) }
                expect(.system) { _ = try File.open("/tmp").read(upTo: 1) }
                let error = expect(.system) { _ = try File.open("/tmp\0/x") }
                expect(error?.errno == .invalidArgument)
            }
        }

        @Test func errors_sayWhatFailed() throws {
            try inRuntime {
                let error = expect(.notFound) { _ = try File.open("/nowhere/file") }
                expect(error?.operation == "open" && error?.subject == "/nowhere/file" && error?.errno == .noSuchFileOrDirectory)
                expect("\(error!)".contains("open /nowhere/file: No such file or directory"), "\(error!)")
                let full = expect(.resources) { try File.open("/dev/full", .write).writeAll("x") }
                expect(full?.errno == .noSpace && full?.bytesTransferred == 0)
            }
        }

        @Test func devicesThatNeverWait_areFiles() throws {
            try inRuntime {
                let null = try File.open("/dev/null", .readWrite)
                expect(try null.read(upTo: 100).isEmpty)
                try null.writeAll("gone")
                expect(try File.open("/dev/zero").read(upTo: 3_000_000).count == 3_000_000)
                // Files of unknown size.
                expect(try File.readAll("/proc/self/status").count > 100)
            }
        }

        @Test func readAll_throws_whenThereIsMoreThanTheLimit() throws {
            let path = try makeFile(pattern(1000))
            defer { unlink(path) }
            try inRuntime {
                expect(try File.readAll(path, limit: 1000).count == 1000)
                expect(.limitExceeded) { _ = try File.readAll(path, limit: 999) }
                expect(try File.readAll(path, limit: .max).count == 1000)
                expect(.limitExceeded) { _ = try File.readAll("/dev/zero", limit: 100_000) }
            }
        }

        @Test func severalReaders_shareTheBytes_eachOnce() throws {
            let bytes = pattern(1 << 20)
            let path = try makeFile(bytes)
            defer { unlink(path) }
            let pieces: [[UInt8]] = try inRuntime {
                let file = try File.open(path)
                let readers: [FiberHandle<[[UInt8]]>] = try (0..<8).map { _ in
                    try Fiber.spawnLocal {
                        var mine: [[UInt8]] = []
                        while case let piece = try file.read(upTo: 1024), !piece.isEmpty { mine.append(piece) }
                        return mine
                    }
                }
                return try readers.flatMap { (reader: FiberHandle<[[UInt8]]>) -> [[UInt8]] in try reader.join() }
            }
            #expect(pieces.count == 1024)
            let wanted = Set((0..<1024).map { Array(bytes[$0 * 1024..<($0 + 1) * 1024]) })
            #expect(Set(pieces) == wanted)
        }

        @Test func file_isUsed_byTwoRuntimesAtATime() throws {
            let bytes = pattern(1 << 20)
            let path = try makeFile(bytes)
            defer { unlink(path) }
            let file = try inRuntime { try File.open(path) }
            let sum = Atomic<Int>(0)
            let threads = (0..<2).map { _ in
                Thread {
                    let count = try? FiberRuntime.run {
                        var count = 0
                        while case let piece = try file.read(upTo: 1000), !piece.isEmpty { count += piece.count }
                        return count
                    }
                    sum.add(count ?? 1 << 40, ordering: .acquiringAndReleasing)
                }
            }
            threads.forEach { $0.join() }
            #expect(sum.load(ordering: .acquiring) == bytes.count)
        }

        // Lines.

        @Test(arguments: [
            ("", []), ("\n", [""]), ("a", ["a"]), ("a\n", ["a"]), ("a\nb", ["a", "b"]), ("a\n\nb\n\n", ["a", "", "b", ""]),
            ("a\r\nb\r", ["a\r", "b\r"]),
            ("ä\nö", ["ä", "ö"]),
        ])
        func lines_areThoseOfTheFile(text: String, wanted: [String]) throws {
            let path = try makeFile(Array(text.utf8))
            defer { unlink(path) }
            try inRuntime {
                let lines = try File.open(path).lines()
                var found: [String] = []
                while let line = try lines.next() { found.append(line) }
                expect(found.map { Array($0.utf8) } == wanted.map { Array($0.utf8) }, "\(found)")
                expect(try lines.next() == nil)
            }
        }

        @Test func lines_haveAnyLength_upToTheLimit() throws {
            // Some longer than what is read at once.
            let lengths = [0, 1, 65_535, 65_536, 65_537, 200_000, 3, 0, 131_072]
            var bytes: [UInt8] = []
            for length in lengths { bytes += letters(length, seed: UInt64(length)) + [10] }
            let path = try makeFile(bytes)
            defer { unlink(path) }
            try inRuntime {
                let lines = try File.open(path).lines(limit: 200_000)
                for length in lengths { expect(same(try lines.nextBytes() ?? [0], letters(length, seed: UInt64(length))), "\(length)") }
                expect(try lines.nextBytes() == nil)
                let short = try File.open(path).lines(limit: 65_536)
                for _ in 0..<4 { _ = try short.next() }
                let error = expect(.limitExceeded) { _ = try short.next() }
                expect(error?.subject?.contains("line 5 is longer than 65536 bytes") == true, "\(String(describing: error))")
                expect(.limitExceeded) { _ = try short.next() }
            }
        }

        @Test(arguments: [1, 2, 3, 4, 5, 6])
        func lastLine_isHeldAgainstTheLimit_too(limit: Int) throws {
            let path = try makeFile(Array("a\nabcd".utf8))
            defer { unlink(path) }
            try inRuntime {
                let lines = try File.open(path).lines(limit: limit)
                expect(try lines.next() == "a")
                if limit >= 4 { expect(try lines.next() == "abcd") } else { expect(.limitExceeded) { _ = try lines.next() } }
            }
        }

        @Test func linesInTheBuffer_areRefused_inACancelledFiber() throws {
            let path = try makeFile(Array("a\nb\nc\n".utf8))
            defer { unlink(path) }
            try inRuntime {
                let lines = try File.open(path).lines()
                expect(try lines.next() == "a")
                let reading = try Fiber.spawnLocal {
                    Fiber.current?.cancel()
                    expect(.cancelled) { _ = try lines.next() }
                }
                try? reading.join()
                expect(try lines.next() == "b")
            }
        }

        // What is no file.

        @Test func fifo_isRefused_withoutBeingOpened() throws {
            let path = try makeFIFO()
            defer { unlink(path) }
            try inRuntime {
                // Of the only thread nothing is lost.
                for access in [File.Access.read, .write, .readWrite] {
                    let error = expect(.unsupported) { _ = try File.open(path, access) }
                    expect("\(error!)".contains("DescriptorStream.open"), "\(error!)")
                }
                expect(FiberRuntime.blockingStatistics.threads <= 1)
            }
            // Nobody was there.
            #expect(open(path, O_WRONLY | O_NONBLOCK) == -1 && errno == ENXIO)
        }

        @Test(.enabled(if: access("/dev/ptmx", R_OK | W_OK) == 0)) func terminal_isRefused() throws {
            let (master, path) = try makeTerminal()
            defer { close(master) }
            try inRuntime { _ = expect(.unsupported) { _ = try File.open(path, .readWrite) } }
        }

        @Test func open_waits_whenSomebodyHasALease() throws {
            let path = try makeFile([1, 2, 3])
            defer { unlink(path) }
            let fd = open(path, O_RDWR | O_CLOEXEC)
            defer { close(fd) }
            // Macros that Swift does not read; SIGURG, in place of SIGIO, is ignored. Not every file system has leases.
            let (setLease, getLease, setSignal): (Int32, Int32, Int32) = (1024, 1025, 10)
            guard fcntl(fd, setSignal, SIGURG) == 0 && fcntl(fd, setLease, Int32(F_WRLCK)) == 0 else { return }
            try inRuntime {
                defer { _ = fcntl(fd, setLease, Int32(F_UNLCK)) }
                let opening = try Fiber.spawnLocal { try File.open(path).size() }
                try waitUntil { fcntl(fd, getLease) != Int32(F_WRLCK) }
                letOthersRun()
                expect(!opening.fiber.isFinished)
                expect(fcntl(fd, setLease, Int32(F_UNLCK)) == 0)
                expect(try opening.join() == 3)
            }
        }

        // Ends.

        @Test func callsAfterClose_throwClosed() throws {
            let path = try makeFile([1, 2, 3])
            defer { unlink(path) }
            try inRuntime {
                let file = try File.open(path, .readWrite)
                try file.close()
                try file.close()
                expect(!file.isOpen)
                expect(.closed) { _ = try file.read(upTo: 1) }
                expect(.closed) { _ = try file.read(upTo: 1, at: 0) }
                expect(.closed) { try file.writeAll([1]) }
                expect(.closed) { try file.writeAll([1], at: 0) }
                expect(.closed) { try file.sync() }
                expect(.closed) { _ = try file.size() }
                expect(.closed) { _ = try file.position() }
                expect(.closed) { try file.truncate(to: 0) }
                expect(.closed) { _ = try file.lines().next() }
            }
            #expect(try content(of: path) == [1, 2, 3])
        }

        @Test(.enabled(if: cfaults_available() != 0)) func writeThatIsAbandoned_isOver_beforeLaterCallsBegin() throws {
            let path = try makeFile(Array("0123456789".utf8))
            defer { unlink(path) }
            try inRuntime {
                defer { cfaults_release_write() }
                let file = try File.open(path, .readWrite)
                let calls: [(String, () throws -> Void)] = [
                    ("new3456789", { try file.writeAll(Array("new".utf8), at: 0) }),
                    ("old", { try file.truncate(to: 3) }),
                    (
                        "NEW",
                        {
                            try file.seek(to: 0)
                            try file.writeAll("NEW")
                        }
                    ),
                    ("old", { try file.sync() }),
                ]
                for (content, call) in calls {
                    cfaults_hold_write()
                    let old = try Fiber.spawnLocal { try file.writeAll(Array("old".utf8), at: 0) }
                    try waitUntil { cfaults_holds_write() != 0 }
                    old.cancel()
                    expect(thrown { try old.join() } is CancellationError)
                    let later = try Fiber.spawnLocal { try call() }
                    try Fiber.sleep(for: .milliseconds(20))
                    expect(!later.fiber.isFinished, content)
                    // Reading does not wait, nor does a write that is taken back.
                    expect(try file.read(upTo: 1, at: 0).count == 1)
                    let takenBack = thrown { try withTimeout(.milliseconds(1)) { try file.writeAll([1], at: 1) } }
                    expect(takenBack is TimeoutError, "\(String(describing: takenBack))")
                    cfaults_release_write()
                    try later.join()
                    try letPoolSettle()
                    expect(try File.readAll(path) == Array(content.utf8), "\(content)")
                }
            }
        }

        @Test(.enabled(if: cfaults_available() != 0)) func writeThatIsAbandoned_keepsTheDescriptor_whenTheFileIsClosed() throws {
            let path = try makeFile(Array("0123456789".utf8)), other = try makeFile(Array("untouched".utf8))
            defer {
                unlink(path)
                unlink(other)
            }
            try inRuntime {
                defer { cfaults_release_write() }
                let file = try File.open(path, .readWrite)
                cfaults_hold_write()
                let writer = try Fiber.spawnLocal { try file.writeAll(Array("old".utf8), at: 0) }
                try waitUntil { cfaults_holds_write() != 0 }
                writer.cancel()
                expect(thrown { try writer.join() } is CancellationError)
                try file.close()
                expect(!file.isOpen && cfaults_holds_write() != 0, "closing does not wait")
                expect(.closed) { _ = try file.size() }
                // One of these would get the number, if it were free.
                let others = try (0..<8).map { _ in try File.open(other, .readWrite) }
                expect(openDescriptors().values.count { $0 == path } == 1)
                cfaults_release_write()
                try letPoolSettle()
                expect(openDescriptors().values.count { $0 == path } == 0)
                for other in others { try other.close() }
            }
            #expect(try content(of: path) == Array("old3456789".utf8))
            #expect(try content(of: other) == Array("untouched".utf8))
        }

        @Test(arguments: Ending.allCases)
        func callInLine_doesNothing_whenItIsEnded(ending: Ending) throws {
            let path = try makeFile(Array("content".utf8)), other = freshPath()
            defer { unlink(path) }
            let file = try inRuntime { try File.open(path, .readWrite) }
            try withBusyPool { free in
                let calls: [(String, () throws -> Void)] = [
                    ("open", { _ = try File.open(path) }),
                    ("open", { _ = try File.open(other, .write, options: .create) }),
                    ("read", { _ = try file.read(upTo: 3) }),
                    ("read", { _ = try file.read(upTo: 3, at: 1) }),
                    ("write", { try file.writeAll("changed") }),
                    ("write", { try file.writeAll([1, 2, 3], at: 0) }),
                    ("fstat", { _ = try file.size() }),
                    ("lseek", { try file.seek(to: 5) }),
                    ("ftruncate", { try file.truncate(to: 0) }),
                    ("fsync", { try file.sync() }),
                    ("read", { _ = try file.lines().next() }),
                    ("open", { _ = try DescriptorStream.open(path) }),
                    ("adopt", { _ = try StandardInput.open() }),
                    ("spawn", { _ = try Subprocess.spawn(.init("touch", [other])) }),
                ]
                for (_, call) in calls { try end(ending, call) }
                free()
                expect(try file.position() == 0)
                expect(try file.read(upTo: 100) == Array("content".utf8))
            }
            #expect(access(other, F_OK) != 0)
        }

        @Test func close_closes_inACancelledFiber() throws {
            let path = try makeFile([1])
            defer { unlink(path) }
            try withBusyPool { free in
                let holder = Box<File?>(nil)
                let opening = try Fiber.spawnLocal { holder.value = try File.open(path) }
                letOthersRun()
                free()
                try opening.join()
                let closing = try Fiber.spawnLocal {
                    Fiber.current?.cancel()
                    try holder.value?.close()
                }
                closing.cancel()
                try? closing.join()
                expect(holder.value?.isOpen == false)
            }
        }

        @Test(arguments: seeds)
        func readsThatAreCancelled_takeNoBytes(seed: UInt64) throws {
            let bytes = pattern(1 << 20, seed: seed)
            let path = try makeFile(bytes)
            defer { unlink(path) }
            var random = SeededGenerator(seed: seed)
            let (all, cancelled): ([UInt8], Int) = try inRuntime(seconds: 60) {
                let file = try File.open(path)
                var (all, cancelled): ([UInt8], Int) = ([], 0)
                while all.count < bytes.count {
                    let length = Int.random(in: 1...4096, using: &random)
                    let reader = try Fiber.spawnLocal { try file.read(upTo: length) }
                    if Bool.random(using: &random) {
                        for _ in 0..<Int.random(in: 0..<200, using: &random) { Fiber.yield() }
                        reader.cancel()
                    }
                    do { all += try reader.join() } catch is CancellationError { cancelled += 1 }
                }
                return (all, cancelled)
            }
            #expect(same(all, bytes))
            #expect(cancelled > 0)
        }

        @Test func writeThatRuns_stopsAndSaysHowFarItCame_whenItsFiberIsCancelled() throws {
            let path = freshPath()
            defer { unlink(path) }
            let bytes = pattern(48 << 20)
            let error: Failure? = try inRuntime(seconds: 60) {
                let file = try File.open(path, .write, options: .create)
                var error: Failure?
                let writer = try Fiber.spawnLocal {
                    error = failure(writing: { try file.writeAll(bytes, written: &$0) })
                }
                let reader = try File.open(path)
                while try reader.size() == 0 { Fiber.yield() }
                writer.cancel()
                try? writer.join()
                try file.close()
                return error
            }
            // The runtime has waited for the thread. A fast disk may have taken it all before.
            let written = try content(of: path)
            if let error {
                #expect(
                    error.code == .cancelled && error.written <= written.count && written.count <= error.written + 2 << 20
                )
            } else {
                #expect(written.count == bytes.count)
            }
            #expect(same(written, Array(bytes[..<written.count])))
        }

        @Test func closeDuringReads_neverLetsThemReadAnotherFile() throws {
            let a = try makeFile([UInt8](repeating: UInt8(ascii: "a"), count: 1 << 20))
            let b = try makeFile([UInt8](repeating: UInt8(ascii: "b"), count: 1 << 20))
            defer {
                unlink(a)
                unlink(b)
            }
            let wanted = [UInt8](repeating: UInt8(ascii: "a"), count: 1 << 18)
            try inRuntime(seconds: 60) {
                var closed = 0
                for round in 0..<scaled(300, sanitized: 60) {
                    let file = try File.open(a)
                    let readers = try (0..<4).map { i in
                        try Fiber.spawnLocal {
                            let bytes = try file.read(upTo: 1 << 18, at: i << 18)
                            expect(same(bytes, wanted), "bytes of another file")
                        }
                    }
                    for _ in 0..<round % 20 { Fiber.yield() }
                    try file.close()
                    // Gets the number, if that is free.
                    let other = try File.open(b)
                    for reader in readers {
                        do { try reader.join() } catch let error as IOError where error.code == .closed { closed += 1 }
                    }
                    expect(try other.read(upTo: 1) == [UInt8(ascii: "b")])
                }
                expect(closed > 0, "no close came before a read")
            }
        }

        // The worker is never held up.

        @Test(.enabled(if: cfaults_available() != 0)) func filesAreOpened_byOtherThreads() throws {
            let path = try makeFile([1])
            defer { unlink(path) }
            try inRuntime {
                let before = cfaults_calls(CFAULTS_OPEN)
                _ = try File.readAll(path)
                _ = try DescriptorStream.open(path)
                _ = try StandardInput.open()
                expect(try Subprocess.run(.init("true")).status.isSuccess)
                expect(cfaults_calls(CFAULTS_OPEN) == before)
                // It would have been counted here.
                close(open(path, O_RDONLY))
                expect(cfaults_calls(CFAULTS_OPEN) == before + 1)
            }
        }

        @Test func ticker_isHardlyLate_whileABigFileIsWrittenAndRead() throws {
            let path = freshPath()
            defer { unlink(path) }
            let bytes = pattern(scaled(64, sanitized: 8) << 20)
            let lateness: Duration = try inRuntime(seconds: 120) {
                try latenessOfATicker {
                    try File.write(bytes, to: path)
                    let file = try File.open(path)
                    var count = 0
                    while case let piece = try file.read(upTo: 1 << 20), !piece.isEmpty { count += piece.count }
                    expect(count == bytes.count)
                    try file.close()
                }
            }
            #expect(lateness < .seconds(2))
        }

        #if compiler(>=6.2)
            @Test func opensThatAreCancelled_leaveNoDescriptor() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let path = try makeFile([1])
                        defer { unlink(path) }
                        let seed = UInt64.random(in: 0...(.max))
                        print("seed \(seed)")
                        var random = SeededGenerator(seed: seed)
                        let before = openFilesAndPipes()
                        var cancelled = 0
                        try inRuntime(seconds: 60) {
                            for _ in 0..<scaled(5_000, sanitized: 500) {
                                let opening = try Fiber.spawnLocal { _ = try File.open(path) }
                                for _ in 0..<Int.random(in: 0..<100, using: &random) { Fiber.yield() }
                                opening.cancel()
                                do { try opening.join() } catch is CancellationError { cancelled += 1 }
                            }
                            try letPoolSettle()
                            expect(openFilesAndPipes() == before, "\(openDescriptors())")
                        }
                        expect(openFilesAndPipes() == before && cancelled > 0, "\(cancelled)")
                    }
                }
            }

            @Test func open_throwsResources_whenDescriptorsAreShort() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let path = try makeFile([1])
                        defer { unlink(path) }
                        try inRuntime {
                            let early = try File.open(path)
                            let taken = takeAllDescriptors()
                            let error = expect(.resources) { _ = try File.open(path) }
                            expect(error?.description.contains("ulimit -n") == true, "\(String(describing: error))")
                            expect(.resources) { _ = try Pipe.make() }
                            expect(.resources) { _ = try DescriptorStream.open(path) }
                            expect(.resources) { _ = try StandardInput.open() }
                            expect(.resources) { _ = try Subprocess.spawn(.init("true")) }
                            expect(.resources) { _ = try Subprocess.spawn(.init("true"), input: .pipe) }
                            expect(try early.read(upTo: 2) == [1])
                            // With one, what needs more fails halfway, and gives it back.
                            close(taken[0])
                            expect(.resources) { _ = try Pipe.make() }
                            expect(.resources) { _ = try DescriptorStream.open(path) }
                            expect(.resources) { _ = try Subprocess.spawn(.init("true"), input: .pipe) }
                            try File.open(path).close()
                            taken.dropFirst().forEach { close($0) }
                            _ = try Pipe.make()
                            expect(try Subprocess.run(.init("true")).status.isSuccess)
                        }
                    }
                }
            }
        #endif
    }
}
