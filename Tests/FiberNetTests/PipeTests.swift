// SPDX-License-Identifier: Apache-2.0

// Pipes, FIFOs, terminals and standard input: bytes through descriptors of all kinds, which park fibers and never the worker.

import CFiber
import FiberNet
import Fibers
import Glibc
import Synchronization
import SystemPackage
import Testing

extension NetTests {
    struct PipeTests {
        // Pipes.

        @Test func bytes_comeInOrder_andThenTheEnd() throws {
            try inRuntime {
                let pipe = try Pipe.make()
                let bytes = pattern(3_000_000)
                let writing = try Fiber.spawnLocal {
                    try pipe.writer.writeAll(bytes)
                    pipe.writer.close()
                }
                expect(same(try pipe.reader.readToEnd(), bytes))
                try writing.join()
                expect(try pipe.reader.read(upTo: 1).isEmpty)
                expect(.closed) { try pipe.writer.writeAll("x") }
            }
        }

        @Test func everyWayToReadAndWrite_works() throws {
            try inRuntime {
                let pipe = try Pipe.make()
                try pipe.writer.writeAll("text")
                try pipe.writer.writeAll(Array("array".utf8))
                try pipe.writer.writeAll(Array("span".utf8).span.bytes)
                try pipe.writer.writeAll("")
                expect(try pipe.reader.read(upTo: 4) == Array("text".utf8))
                var array = [UInt8](repeating: 0, count: 9)
                do {
                    var span = array.mutableSpan
                    var raw = span.mutableBytes
                    expect(try pipe.reader.read(into: &raw) == 9)
                }
                expect(array == Array("arrayspan".utf8))
                expect(try pipe.reader.read(upTo: 0).isEmpty)
                expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try pipe.reader.read(upTo: 1) } }
                try pipe.writer.writeAll("one\ntwo")
                pipe.writer.close()
                let lines = pipe.reader.lines()
                expect(try lines.next() == "one" && lines.next() == "two" && lines.next() == nil)
            }
        }

        @Test func writers_areNeverMixed() throws {
            try inRuntime {
                let pipe = try Pipe.make()
                let size = 200_000
                for i in 0..<5 { try Fiber.spawnLocal { try pipe.writer.writeAll([UInt8](repeating: UInt8(i), count: size)) } }
                for i in 0..<5 {
                    var all: [UInt8] = []
                    while all.count < size { all += try pipe.reader.read(upTo: size - all.count) }
                    expect(same(all, [UInt8](repeating: UInt8(i), count: size)), "piece \(i)")
                }
            }
        }

        @Test func waiters_areWoken_whenAnEndIsClosed() throws {
            try inRuntime {
                for closesByLettingGo in [false, true] {
                    let empty = try Pipe.make(), full = try Pipe.make()
                    var other: DescriptorStream? = try Pipe.make().reader
                    let readers = try (0..<3).map { _ in try Fiber.spawnLocal { failure { _ = try empty.reader.read(upTo: 1) } } }
                    let writers = try (0..<3).map { _ in
                        try Fiber.spawnLocal { failure { try full.writer.writeAll(pattern(100_000)) } }
                    }
                    letOthersRun()
                    expect(!(readers + writers).contains { $0.fiber.isFinished })
                    if closesByLettingGo { other = nil }
                    empty.reader.close()
                    full.writer.close()
                    let errors = try (readers + writers).map { try $0.join() }
                    expect(errors.allSatisfy { $0?.code == .closed }, "\(errors)")
                    // Only the first had begun.
                    expect(errors[3]?.bytesTransferred == 65_536 && errors[4]?.bytesTransferred == 0, "\(errors)")
                    _ = other
                }
            }
        }

        @Test(arguments: Ending.allCases)
        func read_takesNothing_whenItIsEnded(ending: Ending) throws {
            try inRuntime {
                let pipe = try Pipe.make()
                for _ in 0..<2 {
                    try end(ending) { _ = try pipe.reader.read(upTo: 10) }
                    try pipe.writer.writeAll("later")
                    expect(try pipe.reader.read(upTo: 10) == Array("later".utf8))
                }
            }
        }

        @Test(arguments: Ending.allCases)
        func write_saysHowFarItCame_whenItIsEnded(ending: Ending) throws {
            try inRuntime {
                let pipe = try Pipe.make()
                let bytes = pattern(200_000)
                let error = try end(ending, writing: { try pipe.writer.writeAll(bytes, written: &$0) })
                pipe.writer.close()
                let all = try pipe.reader.readToEnd()
                // Of those that were cancelled before there are two.
                expect(all.count == error?.written, "\(all.count) and not \(String(describing: error?.written))")
                expect(all.count == (ending.comesLater ? 65_536 : 0))
                expect(same(all, Array(bytes[..<all.count])))
            }
        }

        @Test func readiness_canBeWaitedFor() throws {
            try inRuntime {
                let pipe = try Pipe.make()
                try pipe.writer.waitWritable()
                expect(.timedOut) { try withTimeout(.milliseconds(1)) { try pipe.reader.waitReadable() } }
                try pipe.writer.writeAll("x")
                try pipe.reader.waitReadable()
            }
        }

        @Test func floodedPipe_letsOthersRun() throws {
            try inRuntime {
                let pipe = try Pipe.make()
                let file = try DescriptorStream.open("/dev/zero")
                expect(try file.read(upTo: 100).count == 100)
                var turns = 0
                let other = try Fiber.spawnLocal { for _ in 0..<10 { Fiber.yield(); turns += 1 } }
                for _ in 0..<1000 {
                    try pipe.writer.writeAll("x")
                    _ = try pipe.reader.read(upTo: 1)
                }
                expect(turns == 10)
                try other.join()
            }
        }

        // FIFOs.

        @Test func fifoToRead_isOpenAtOnce_andWaitsForAWriter() throws {
            let path = try makeFIFO()
            defer { unlink(path) }
            try inRuntime {
                let stream = try DescriptorStream.open(path)
                let reading = try Fiber.spawnLocal { try stream.readToEnd() }
                expect(.timedOut) { _ = try withTimeout(.milliseconds(2)) { try stream.read(upTo: 1) } }
                letOthersRun()
                expect(!reading.fiber.isFinished, "there was an end before a beginning")
                let writer = try DescriptorStream.open(path, .write)
                try writer.writeAll("through")
                letOthersRun()
                expect(!reading.fiber.isFinished)
                writer.close()
                expect(try reading.join() == Array("through".utf8))
                expect(try stream.read(upTo: 1).isEmpty)
                // And another.
                let second = try DescriptorStream.open(path, .write)
                try second.writeAll("again")
                expect(try stream.read(upTo: 100) == Array("again".utf8))
            }
        }

        @Test func fifoToRead_comesToItsEnd_whenTheWriterWritesNothing() throws {
            let path = try makeFIFO()
            defer { unlink(path) }
            try inRuntime {
                let stream = try DescriptorStream.open(path)
                let reading = try Fiber.spawnLocal { try stream.read(upTo: 1) }
                letOthersRun()
                try DescriptorStream.open(path, .write).close()
                expect(try reading.join().isEmpty)
            }
        }

        @Test func fifoToWrite_waitsForAReader_andBlocksNoThread() throws {
            let path = try makeFIFO()
            defer { unlink(path) }
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = 1
            try inRuntime(configuration) {
                let opening = try (0..<10).map { _ in try Fiber.spawnLocal { try DescriptorStream.open(path, .write) } }
                // The only thread is free in between.
                for _ in 0..<20 { try withBlockingThread {} }
                expect(!opening.contains { $0.fiber.isFinished })
                expect(.timedOut) { _ = try withTimeout(.milliseconds(20)) { try DescriptorStream.open(path, .write) } }
                let reader = try DescriptorStream.open(path)
                let writers = try opening.map { try $0.join() }
                for writer in writers {
                    try writer.writeAll("x")
                    writer.close()
                }
                expect(try reader.readToEnd().count == 10)
            }
        }

        @Test(arguments: Ending.allCases)
        func openingAFIFO_ends_whenItIsEnded(ending: Ending) throws {
            let path = try makeFIFO()
            defer { unlink(path) }
            try inRuntime {
                try end(ending, after: .milliseconds(20), meanwhile: letTriesReturn) { _ = try DescriptorStream.open(path, .write) }
                expect(open(path, O_WRONLY | O_NONBLOCK) == -1)
            }
        }

        @Test func fifoForBoth_isAPipeByItself() throws {
            let path = try makeFIFO()
            defer { unlink(path) }
            try inRuntime {
                let stream = try DescriptorStream.open(path, .readWrite)
                try stream.writeAll("round")
                expect(try stream.read(upTo: 100) == Array("round".utf8))
                expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try stream.read(upTo: 1) } }
            }
        }

        // Whatever is there.

        @Test func opening_worksForFilesAndDevices() throws {
            let path = try makeFile(Array("a file".utf8))
            defer { unlink(path) }
            try inRuntime {
                let file = try DescriptorStream.open(path)
                expect(try file.read(upTo: 2) == Array("a ".utf8))
                expect(try file.readToEnd() == Array("file".utf8))
                expect(try withTimeout(.seconds(10)) { try file.read(upTo: 100) }.isEmpty)
                let error = expect(.unsupported) { try file.waitReadable() }
                expect(error != nil)
                try withTimeout(.seconds(10)) { try DescriptorStream.open(path, .write).writeAll("A FILE") }
                expect(try File.readAll(path) == Array("A FILE".utf8))
                let null = try DescriptorStream.open("/dev/null", .readWrite)
                expect(try null.read(upTo: 1).isEmpty)
                try null.writeAll("gone")
                null.close()
                expect(.closed) { _ = try null.read(upTo: 1) }
                expect(.closed) { try null.writeAll("x") }
                expect(.notFound) { _ = try DescriptorStream.open("/nowhere") }
                expect(.system) { _ = try DescriptorStream.open("/tmp").read(upTo: 1) }
                expect(try DescriptorStream.open("/dev/zero").read(upTo: 1 << 30).count == 1 << 20)
            }
        }

        @Test func socketFile_isNoFIFO() throws {
            let path = freshPath()
            try inRuntime {
                let listener = try Listener.bind(to: .unix(path: path))
                let error = expect(.system) { _ = try DescriptorStream.open(path, .readWrite) }
                expect(error?.subject == path)
                listener.close()
            }
        }

        @Test func fileStream_throwsTimedOut_whenThePoolIsBusy() throws {
            let path = try makeFile([1, 2, 3])
            defer { unlink(path) }
            let gate = Gate()
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = 1
            try inRuntime(configuration) {
                defer { gate.open() }
                let stream = try DescriptorStream.open(path, .readWrite)
                let busy = try Fiber.spawnLocal { try withBlockingThread { gate.wait() } }
                try waitUntil { gate.arrivals == 1 }
                expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try stream.read(upTo: 1) } }
                expect(.timedOut) { try withTimeout(.milliseconds(1)) { try stream.writeAll("xyz") } }
                gate.open()
                try busy.join()
                expect(try stream.read(upTo: 3) == [1, 2, 3])
            }
        }

        // Descriptors of others.

        @Test func adoptedPipe_staysBlockingForOthers_andOpen() throws {
            let fds = try makePipe()
            defer { fds.forEach { close($0) } }
            try inRuntime {
                let reader = try DescriptorStream.adopt(FileDescriptor(rawValue: fds[0]), closing: false)
                let writer = try DescriptorStream.adopt(FileDescriptor(rawValue: fds[1]), closing: false)
                expect(fcntl(fds[0], F_GETFL) & O_NONBLOCK == 0 && fcntl(fds[1], F_GETFL) & O_NONBLOCK == 0)
                expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try reader.read(upTo: 1) } }
                try writer.writeAll("x")
                expect(try reader.read(upTo: 1) == [120])
                writer.close()
                reader.close()
                expect(.closed) { _ = try reader.read(upTo: 1) }
                expect(fcntl(fds[0], F_GETFD) >= 0 && write(fds[1], "y", 1) == 1)
                let again = try DescriptorStream.adopt(FileDescriptor(rawValue: fds[0]), closing: false)
                expect(try again.read(upTo: 1) == [121])
            }
        }

        @Test func adoptedPipe_isClosed_whenItIsOwned() throws {
            let fds = try makePipe()
            try inRuntime {
                let reader = try DescriptorStream.adopt(FileDescriptor(rawValue: fds[0]), closing: true)
                let writer = try DescriptorStream.adopt(FileDescriptor(rawValue: fds[1]), closing: true)
                try writer.writeAll("x")
                writer.close()
                expect(try reader.readToEnd() == [120])
            }
        }

        @Test func whatCannotBeOpenedAgain_isBlockingAgain_afterwards() throws {
            let counter = cfiber_wake_create()
            try #require(counter >= 0 && fcntl(counter, F_SETFL, 0) == 0)
            defer { close(counter) }
            try inRuntime {
                for closes in [true, false] {
                    var stream: DescriptorStream? = try DescriptorStream.adopt(FileDescriptor(rawValue: counter), closing: false)
                    expect(fcntl(counter, F_GETFL) & O_NONBLOCK != 0)
                    expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try stream?.read(upTo: 8) } }
                    try stream?.writeAll([1, 0, 0, 0, 0, 0, 0, 0])
                    expect(try stream?.read(upTo: 8) == [1, 0, 0, 0, 0, 0, 0, 0])
                    if closes { stream?.close() } else { stream = nil }
                    expect(fcntl(counter, F_GETFL) & O_NONBLOCK == 0)
                }
            }
        }

        @Test func whatCannotBeOpenedAgain_staysNonBlocking_asLongAsAStreamUsesIt() throws {
            let counter = cfiber_wake_create()
            try #require(counter >= 0 && fcntl(counter, F_SETFL, 0) == 0)
            defer { close(counter) }
            try inRuntime {
                for third in [false, true] {
                    let first = try DescriptorStream.adopt(FileDescriptor(rawValue: counter), closing: false)
                    let number = third ? fcntl(counter, F_DUPFD_CLOEXEC, 0) : counter
                    let second = try DescriptorStream.adopt(FileDescriptor(rawValue: number), closing: third)
                    first.close()
                    expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try second.read(upTo: 8) } }
                    expect(fcntl(counter, F_GETFL) & O_NONBLOCK != 0)
                    second.close()
                    expect(fcntl(counter, F_GETFL) & O_NONBLOCK == 0)
                }
                // What somebody else has made so stays so.
                expect(fcntl(counter, F_SETFL, O_NONBLOCK) == 0)
                try DescriptorStream.adopt(FileDescriptor(rawValue: counter), closing: false).close()
                expect(fcntl(counter, F_GETFL) & O_NONBLOCK != 0)
            }
        }

        @Test func adoptedSocket_isReadAndWritten_andStaysAsItIs() throws {
            var pair: [Int32] = [-1, -1]
            try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &pair) == 0)
            defer { pair.forEach { close($0) } }
            try inRuntime {
                let a = try DescriptorStream.adopt(FileDescriptor(rawValue: pair[0]), closing: false)
                let b = try DescriptorStream.adopt(FileDescriptor(rawValue: pair[1]), closing: false)
                expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try a.read(upTo: 1) } }
                let bytes = pattern(2_000_000)
                let writing = try Fiber.spawnLocal {
                    try b.writeAll(bytes)
                    _ = shutdown(pair[1], Int32(SHUT_WR))
                }
                expect(same(try a.readToEnd(), bytes))
                try writing.join()
                expect(fcntl(pair[0], F_GETFL) & O_NONBLOCK == 0)
            }
        }

        @Test func adoptedFile_goesOnWhereItsOwnerIs_andMovesIt() throws {
            let path = try makeFile(Array("0123456789".utf8))
            defer { unlink(path) }
            let fd = open(path, O_RDWR | O_CLOEXEC)
            defer { close(fd) }
            lseek(fd, 3, SEEK_SET)
            try inRuntime {
                let stream = try DescriptorStream.adopt(FileDescriptor(rawValue: fd), closing: false)
                expect(try stream.read(upTo: 2) == Array("34".utf8))
                expect(lseek(fd, 0, SEEK_CUR) == 5)
                try stream.writeAll("xy")
                expect(lseek(fd, 0, SEEK_CUR) == 7)
            }
            #expect(fcntl(fd, F_GETFD) >= 0)
            #expect(try content(of: path) == Array("01234xy789".utf8))
        }

        @Test(.enabled(if: access("/dev/ptmx", R_OK | W_OK) == 0)) func terminal_givesLines_andItsEnd() throws {
            let (master, path) = try makeTerminal()
            defer { close(master) }
            let slave = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC)
            try #require(slave >= 0)
            defer { close(slave) }
            try inRuntime {
                let terminal = try DescriptorStream.adopt(FileDescriptor(rawValue: slave), closing: false)
                expect(fcntl(slave, F_GETFL) & O_NONBLOCK == 0)
                let keyboard = try DescriptorStream.adopt(FileDescriptor(rawValue: master), closing: false)
                let reading = try Fiber.spawnLocal { try terminal.read(upTo: 100) }
                letOthersRun()
                try keyboard.writeAll("typ")
                letOthersRun()
                expect(!reading.fiber.isFinished, "a line is whole when it ends")
                try keyboard.writeAll("ed\n")
                expect(try reading.join() == Array("typed\n".utf8))
                // Control-D.
                try keyboard.writeAll([4])
                expect(try terminal.read(upTo: 100).isEmpty)
                try terminal.writeAll("shown\n")
                var shown: [UInt8] = []
                while !shown.contains(UInt8(ascii: "w")) { shown += try keyboard.read(upTo: 100) }
                keyboard.close()
                // The master cannot be opened again, or it would be another terminal.
                expect(fcntl(master, F_GETFL) & O_NONBLOCK == 0)
            }
        }

        @Test func adopting_throws_whenThereIsNoSuchDescriptor() throws {
            try inRuntime {
                for closing in [false, true] {
                    let error = expect(.system) { _ = try DescriptorStream.adopt(FileDescriptor(rawValue: 1_000_000), closing: closing) }
                    expect(error?.errno == .badFileDescriptor)
                }
            }
        }

        #if compiler(>=6.2)
            @Test func writing_throwsReset_andRaisesNoSIGPIPE_whenNobodyReads() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        signal(SIGPIPE, SIG_DFL)
                        try inRuntime {
                            let pipe = try Pipe.make()
                            try pipe.writer.writeAll("unread")
                            let writing = try Fiber.spawnLocal { failure { try pipe.writer.writeAll(pattern(100_000)) } }
                            letOthersRun()
                            expect(!writing.fiber.isFinished)
                            pipe.reader.close()
                            let error = try writing.join()
                            expect(
                                error?.code == .reset && error?.errno == .brokenPipe && (error?.bytesTransferred ?? 0) > 0,
                                "\(String(describing: error))")
                            let next = expect(.reset) { try pipe.writer.writeAll("x") }
                            expect(next?.bytesTransferred == 0)
                            func isPending() -> Bool {
                                var pending = sigset_t()
                                sigpending(&pending)
                                return sigismember(&pending, SIGPIPE) == 1
                            }
                            func isBlocked() -> Bool {
                                var mask = sigset_t()
                                pthread_sigmask(SIG_BLOCK, nil, &mask)
                                return sigismember(&mask, SIGPIPE) == 1
                            }
                            expect(!isPending() && !isBlocked())
                            // One that the program has blocked, and not had yet, stays; none comes on top.
                            var set = sigset_t(), before = sigset_t()
                            sigemptyset(&set)
                            sigaddset(&set, SIGPIPE)
                            pthread_sigmask(SIG_BLOCK, &set, &before)
                            expect(.reset) { try pipe.writer.writeAll("x") }
                            expect(!isPending() && isBlocked())
                            raise(SIGPIPE)
                            expect(.reset) { try pipe.writer.writeAll("x") }
                            expect(isPending() && isBlocked())
                            var none = timespec()
                            expect(sigtimedwait(&set, nil, &none) == SIGPIPE)
                            pthread_sigmask(SIG_SETMASK, &before, nil)
                        }
                    }
                }
            }

            @Test func standardInput_isRead_whateverItIs() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        func become(_ fd: Int32) {
                            expect(fd >= 0 && dup2(fd, STDIN_FILENO) == STDIN_FILENO)
                            close(fd)
                        }
                        let path = try makeFile(Array("first\nsecond\nthird".utf8))
                        defer { unlink(path) }
                        try inRuntime {
                            become(open(path, O_RDONLY))
                            let lines = try StandardInput.open().lines()
                            expect(
                                try lines.next() == "first" && lines.next() == "second" && lines.next() == "third" && lines.next() == nil)

                            become(open("/dev/null", O_RDONLY))
                            expect(try StandardInput.open().read(upTo: 1).isEmpty)

                            let fds = try makePipe()
                            become(fds[0])
                            let input = try StandardInput.open()
                            let reading = try Fiber.spawnLocal { try input.readToEnd() }
                            letOthersRun()
                            expect(!reading.fiber.isFinished)
                            _ = write(fds[1], "piped", 5)
                            close(fds[1])
                            expect(try reading.join() == Array("piped".utf8))
                            expect(fcntl(STDIN_FILENO, F_GETFL) & O_NONBLOCK == 0)
                            // The writer has gone before it is looked at.
                            let gone = try makePipe()
                            become(gone[0])
                            _ = write(gone[1], "left", 4)
                            close(gone[1])
                            expect(try StandardInput.open().readToEnd() == Array("left".utf8))

                            var pair: [Int32] = [-1, -1]
                            expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair) == 0)
                            become(pair[0])
                            _ = write(pair[1], "sock", 4)
                            close(pair[1])
                            expect(try StandardInput.open().readToEnd() == Array("sock".utf8))

                            close(STDIN_FILENO)
                            let error = expect(.system) { _ = try StandardInput.open() }
                            expect(error?.errno == .badFileDescriptor && error?.subject == "standard input")
                        }
                    }
                }
            }

            @Test func standardOutput_isWritten_asAFileAndAsAPipe() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let path = try makeFile(Array("begun,".utf8))
                        defer { unlink(path) }
                        try inRuntime {
                            let file = open(path, O_WRONLY | O_APPEND)
                            dup2(file, STDOUT_FILENO)
                            try StandardOutput.open().writeAll("ended")
                            expect(try content(of: path) == Array("begun,ended".utf8))
                            let fds = try makePipe()
                            dup2(fds[1], STDOUT_FILENO)
                            close(fds[1])
                            let output = try StandardOutput.open()
                            let writing = try Fiber.spawnLocal { try output.writeAll(pattern(100_000)) }
                            letOthersRun()
                            expect(!writing.fiber.isFinished)
                            let reader = try DescriptorStream.adopt(FileDescriptor(rawValue: fds[0]), closing: true)
                            var count = 0
                            while count < 100_000 { count += try reader.read(upTo: 65_536).count }
                            try writing.join()
                            dup2(file, STDOUT_FILENO)
                        }
                    }
                }
            }

            @Test func streams_leaveNoDescriptor_howeverTheyEnd() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let fifo = try makeFIFO(), path = try makeFile([1])
                        defer {
                            unlink(fifo)
                            unlink(path)
                        }
                        let before = openFilesAndPipes()
                        for _ in 0..<scaled(100, sanitized: 20) {
                            var (escaped, files): (DescriptorStream?, DescriptorStream?)
                            try inRuntime {
                                let pipe = try Pipe.make()
                                _ = try Pipe.make()
                                let reader = try DescriptorStream.open(fifo)
                                let writer = try DescriptorStream.open(fifo, .write)
                                try writer.writeAll("x")
                                expect(try reader.read(upTo: 1).count == 1)
                                _ = try DescriptorStream.open(path)
                                try pipe.writer.withFileDescriptor { fd in
                                    _ = try DescriptorStream.adopt(fd, closing: false)
                                }
                                let opening = try Fiber.spawnLocal { _ = try DescriptorStream.open(path) }
                                Fiber.yield()
                                opening.cancel()
                                escaped = pipe.reader
                                files = try DescriptorStream.open(path)
                            }
                            expect(escaped?.isOpen == false && files?.isOpen == false)
                            try inRuntime { _ = expect(.closed) { _ = try files?.read(upTo: 1) } }
                        }
                        expect(openFilesAndPipes() == before, "\(openDescriptors())")
                    }
                }
            }
        #endif
    }
}

extension DescriptorStream {
    /// Everything up to the end of the stream.
    func readToEnd() throws -> [UInt8] {
        var all: [UInt8] = []
        while case let bytes = try read(upTo: 65_536), !bytes.isEmpty { all += bytes }
        return all
    }
}

/// Waits for a moment in which a fiber that tries something again and again, by threads of the pool, has taken the result of its last try.
private func letTriesReturn() throws {
    func isIdle() -> Bool {
        FiberRuntime.blockingStatistics.idle == FiberRuntime.blockingStatistics.threads && FiberRuntime.blockingStatistics.queued == 0
    }
    var isAlone = false
    while !isAlone {
        try letPoolSettle()
        let before = FiberRuntime.blockingStatistics.completed
        // Comes back behind the results of earlier calls.
        try withBlockingThread {}
        // No other fiber runs meanwhile, so none begins a call.
        while !isIdle() {}
        isAlone = FiberRuntime.blockingStatistics.completed == before + 1
    }
}
