// SPDX-License-Identifier: Apache-2.0

// Readiness: waiting for it, on our descriptors and on others', and the short reads from which it is inferred.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct ReadinessTests {
        // Our streams.

        @Test(arguments: Transport.all)
        func waitReadable_returns_whenBytesCome_andLeavesThem(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                var ready = false
                let waiter = try Fiber.spawnLocal {
                    try server.waitReadable()
                    ready = true
                }
                letOthersRun()
                expect(!ready)
                try client.writeAll("x")
                try waiter.join()
                try withTimeout(.zero) { try server.waitReadable() }
                expect(try withTimeout(.zero) { try server.read(upTo: 10) } == Array("x".utf8))
                expect(.timedOut) { try withTimeout(.milliseconds(1)) { try server.waitReadable() } }
            }
        }

        @Test(arguments: Transport.all)
        func waitReadable_returns_atTheEnd(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let waiter = try Fiber.spawnLocal { try server.waitReadable() }
                letOthersRun()
                client.close()
                try waiter.join()
                try server.waitReadable()
                expect(try server.read(upTo: 10).isEmpty)
            }
        }

        @Test(arguments: Transport.all)
        func waitWritable_waits_whileTheBufferIsFull(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                try withTimeout(.zero) { try client.waitWritable() }
                let sent = try fillUp(client)
                let waiter = try Fiber.spawnLocal { try client.waitWritable() }
                letOthersRun()
                expect(!waiter.fiber.isFinished)
                expect(try server.readExactly(sent).count == sent)
                try waiter.join()
            }
        }

        @Test(arguments: Transport.all)
        func waitReadable_asksTheKernel_whenBytesWereReadByOtherMeans(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                for i in 0..<50 {
                    try client.writeAll("\(i)")
                    try server.waitReadable()
                    let read = try server.withFileDescriptor { fd in
                        var buffer = [UInt8](repeating: 0, count: 64)
                        return recv(fd.rawValue, &buffer, buffer.count, 0)
                    }
                    expect(read == "\(i)".utf8.count)
                    expect(.timedOut) { try withTimeout(.zero) { try server.waitReadable() } }
                }
                let reader = try Fiber.spawnLocal { try server.read(upTo: 10) }
                letOthersRun()
                try client.writeAll("last")
                expect(try reader.join() == Array("last".utf8), "our own reads go on")
            }
        }

        @Test(arguments: Transport.all)
        func waits_ofBothKinds_areIndependent(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let readable = try Fiber.spawnLocal { try server.waitReadable() }
                let writable = try Fiber.spawnLocal { try server.waitWritable() }
                try writable.join()
                letOthersRun()
                expect(!readable.fiber.isFinished)
                try client.writeAll("x")
                try readable.join()
            }
        }

        // Other people's descriptors.

        @Test func pipe_isWaitedFor() throws {
            try inRuntime {
                let fds = try makePipe(nonBlocking: true)
                defer { fds.forEach { close($0) } }
                let (input, output) = (FileDescriptor(rawValue: fds[0]), FileDescriptor(rawValue: fds[1]))
                expect(.timedOut) { try withTimeout(.milliseconds(1)) { try waitReadable(input) } }
                try waitWritable(output)
                let waiter = try Fiber.spawnLocal { try waitReadable(input) }
                letOthersRun()
                expect(!waiter.fiber.isFinished)
                expect(write(fds[1], "x", 1) == 1)
                try waiter.join()
                // Full: writing waits until somebody reads.
                let block = [UInt8](repeating: 0, count: 65_536)
                while write(fds[1], block, block.count) > 0 {}
                expect(.timedOut) { try withTimeout(.milliseconds(1)) { try waitWritable(output) } }
                let writer = try Fiber.spawnLocal { try waitWritable(output) }
                letOthersRun()
                var sink = block
                while read(fds[0], &sink, sink.count) > 0 {}
                try writer.join()
            }
        }

        @Test func pipe_isReadable_whenItsWriterGoes() throws {
            try inRuntime {
                let fds = try makePipe(nonBlocking: true)
                let waiter = try Fiber.spawnLocal { try waitReadable(FileDescriptor(rawValue: fds[0])) }
                letOthersRun()
                close(fds[1])
                try waiter.join()
                close(fds[0])
            }
        }

        @Test func eventfd_isWaitedFor_againAndAgain() throws {
            try inRuntime {
                let fd = makeEventfd()
                defer { close(fd) }
                for _ in 0..<100 {
                    let waiter = try Fiber.spawnLocal { try waitReadable(FileDescriptor(rawValue: fd)) }
                    Fiber.yield()
                    expect(!waiter.fiber.isFinished)
                    expect(write(fd, [1 as UInt64], 8) == 8)
                    try waiter.join()
                    var count: UInt64 = 0
                    expect(read(fd, &count, 8) == 8)
                }
            }
        }

        @Test func foreignDescriptor_staysOpen_andAsItWas() throws {
            try inRuntime {
                let fds = try makePipe()
                defer { fds.forEach { close($0) } }
                expect(.timedOut) { try withTimeout(.milliseconds(1)) { try waitReadable(FileDescriptor(rawValue: fds[0])) } }
                expect(fcntl(fds[0], F_GETFL) & O_NONBLOCK == 0)
                expect(write(fds[1], "x", 1) == 1)
                try waitReadable(FileDescriptor(rawValue: fds[0]))
                var byte: UInt8 = 0
                expect(read(fds[0], &byte, 1) == 1)
            }
        }

        @Test func wait_throwsUnsupported_forARegularFile() throws {
            try inRuntime {
                let fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC)
                defer { close(fd) }
                let error = expect(.unsupported) { try waitReadable(FileDescriptor(rawValue: fd)) }
                expect(error?.subject == "descriptor \(fd)")
                expect(.unsupported) { try waitWritable(FileDescriptor(rawValue: fd)) }
            }
        }

        @Test func filesThatAreLocked_stayLocked_whenAWaitForThemIsRefused() throws {
            let path = try makeFile([1, 2, 3])
            defer { unlink(path) }
            try inRuntime {
                let fd = open(path, O_RDWR | O_CLOEXEC)
                defer { close(fd) }
                var lock = flock()
                lock.l_type = Int16(F_WRLCK)
                expect(fcntl(fd, F_SETLK, &lock) == 0)
                expect(.unsupported) { try waitReadable(FileDescriptor(rawValue: fd)) }
                expect(.unsupported) { try waitWritable(FileDescriptor(rawValue: fd)) }
                // A lock of a description (F_OFD_GETLK, which Glibc has for C alone), unlike one of the process, is refused where this process has one of its own.
                let other = open(path, O_RDWR | O_CLOEXEC)
                defer { close(other) }
                var query = flock()
                query.l_type = Int16(F_WRLCK)
                expect(fcntl(other, 36, &query) == 0)
                expect(query.l_type == Int16(F_WRLCK) && query.l_pid == getpid(), "the lock is gone")
            }
        }

        /// Some of those that the kernel makes up can be waited for.
        @Test func fileThatEpollTakes_isWaitedFor() throws {
            try inRuntime {
                let fd = open("/proc/self/mounts", O_RDONLY | O_CLOEXEC)
                defer { close(fd) }
                try waitReadable(FileDescriptor(rawValue: fd))
            }
        }

        @Test func wait_throwsUnsupported_forADirectory() throws {
            try inRuntime {
                let fd = open("/tmp", O_RDONLY | O_CLOEXEC)
                defer { close(fd) }
                expect(.unsupported) { try waitReadable(FileDescriptor(rawValue: fd)) }
            }
        }

        @Test func wait_throws_forANumberThatIsNotOpen() throws {
            try inRuntime {
                let error = expect(.system) { try withTimeout(.milliseconds(1)) { try waitReadable(FileDescriptor(rawValue: 9_999)) } }
                expect(error?.errno == .badFileDescriptor)
            }
        }

        @Test func waiters_areAllWoken_whenSeveralWaitForTheSameForeignDescriptor() throws {
            try inRuntime {
                let fd = makeEventfd()
                defer { close(fd) }
                let waiters = try (0..<3).map { _ in try Fiber.spawnLocal { try waitReadable(FileDescriptor(rawValue: fd)) } }
                letOthersRun()
                expect(.timedOut) { try withTimeout(.milliseconds(1)) { try waitReadable(FileDescriptor(rawValue: fd)) } }
                // It can be written to all the while.
                try waitWritable(FileDescriptor(rawValue: fd))
                expect(write(fd, [1 as UInt64], 8) == 8)
                for waiter in waiters { try waiter.join() }
            }
        }

        @Test(arguments: Transport.all)
        func stream_isUsedAsUsual_whileAnotherFiberWaitsForItsNumber(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let waiter = try Fiber.spawnLocal {
                    try server.withFileDescriptor { try waitReadable($0) }
                }
                letOthersRun()
                let reader = try Fiber.spawnLocal { try server.read(upTo: 1) }
                letOthersRun()
                expect(!waiter.fiber.isFinished && !reader.fiber.isFinished)
                try client.writeAll("xy")
                expect(try reader.join() == Array("x".utf8))
                try waiter.join()
                expect(try server.read(upTo: 1) == Array("y".utf8))
            }
        }

        @Test func wait_goesOn_whenTheDescriptorIsClosedMeanwhile() throws {
            try inRuntime {
                let fds = try makePipe(nonBlocking: true)
                let waiter = try Fiber.spawnLocal { try waitReadable(FileDescriptor(rawValue: fds[0])) }
                letOthersRun()
                close(fds[0])
                letOthersRun()
                expect(!waiter.fiber.isFinished)
                // It is open still.
                expect(write(fds[1], "x", 1) == 1)
                try waiter.join()
                close(fds[1])
            }
        }

        #if compiler(>=6.2)
            @Test func foreignDescriptor_staysOpen_whenItsWaiterIsAbandoned() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        // What an abandoned fiber owns leaks.
                        cfaults_leaks_begin()
                        defer { cfaults_leaks_end() }
                        let fds = try makePipe(nonBlocking: true)
                        var configuration = FiberRuntime.Configuration()
                        configuration.onWarning = { _ in }
                        try? FiberRuntime.run(configuration) {
                            try Fiber.spawnLocal {
                                withCancellationShield { try? waitReadable(FileDescriptor(rawValue: fds[0])) }
                            }
                            letOthersRun()
                            FiberRuntime.shutDown(within: .milliseconds(10))
                        }
                        #expect(fcntl(fds[0], F_GETFD) >= 0)
                        #expect(write(fds[1], "x", 1) == 1)
                    }
                }
            }

            @Test func wait_saysWhatToDo_whenNoDescriptorIsLeft() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try FiberRuntime.run {
                            let fds = try makePipe(nonBlocking: true)
                            var limit = rlimit()
                            getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                            let usual = limit.rlim_cur
                            let next = dup(0)
                            close(next)
                            limit.rlim_cur = rlim_t(next)
                            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                            let error = failure { try waitWritable(FileDescriptor(rawValue: fds[1])) }
                            limit.rlim_cur = usual
                            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                            #expect(error?.code == .resources && error?.description.contains("ulimit -n") == true)
                            try waitWritable(FileDescriptor(rawValue: fds[1]))
                        }
                    }
                }
            }
        #endif

        @Test func wait_throws_whenTheKernelRefusesToWatch() throws {
            guard cfaults_available() != 0 else { return }
            try inRuntime {
                let (a, b) = try Connection.pair()
                cfaults_arm(CFAULTS_EPOLL_CTL, 1, ENOSPC, 1)
                let error = expect(.resources) { _ = try a.read(upTo: 1) }
                cfaults_disarm()
                expect(error?.errno == .noSpace)
                try b.writeAll("x")
                expect(try a.read(upTo: 1) == Array("x".utf8), "the next wait works")
            }
        }

        // Short reads say that nothing more is there, except where they do not.

        @Test(arguments: Transport.all)
        func bytesBehindAShortRead_areNotMissed(transport: Transport) throws {
            // Every read is short, and the next bytes come before, during and after the wait for them.
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let rounds = scaled(3_000, sanitized: 500)
                var received = 0
                let reader = try Fiber.spawnLocal {
                    while try server.readAvailable({ received += $0.byteCount }) {}
                }
                for i in 0..<rounds {
                    try client.writeAll([1, 2, 3])
                    for _ in 0..<i % 4 { Fiber.yield() }
                }
                client.close()
                try reader.join()
                expect(received == 3 * rounds)
            }
        }

        @Test(arguments: Transport.tcp)
        func bytesBehindOutOfBandData_arrive_whenAllIsThereBeforeTheRead(transport: Transport) throws {
            try withNet(transport) { net in
                for _ in 0..<20 {
                    let (client, server) = try net.pair()
                    try client.writeAll("before")
                    expect(try send(client.fd, "!", 1, Int32(MSG_OOB)) == 1)
                    try client.writeAll("behind")
                    expect(try server.readExactly(12) == Array("beforebehind".utf8))
                    client.close()
                    server.close()
                }
            }
        }

        @Test(arguments: Transport.tcp)
        func bytesBehindOutOfBandData_arrive_whenTheReaderWaits(transport: Transport) throws {
            try withNet(transport) { net in
                for i in 0..<40 {
                    let (client, server) = try net.pair()
                    let reader = try Fiber.spawnLocal { try server.readExactly(17) }
                    letOthersRun()
                    try client.writeAll("first")
                    if i % 2 == 0 { letOthersRun() }
                    try client.writeAll("before")
                    if i % 3 == 0 { letOthersRun() }
                    expect(try send(client.fd, "!", 1, Int32(MSG_OOB)) == 1)
                    if i % 5 == 0 { letOthersRun() }
                    try client.writeAll("behind")
                    expect(try reader.join() == Array("firstbeforebehind".utf8))
                    client.close()
                    server.close()
                }
            }
        }

        @Test func bytesBehindMessagesWithDescriptors_arrive() throws {
            // Such a message ends a read on a Unix socket although more is there.
            try inRuntime {
                for waits in [false, true] {
                    let (a, b) = try Connection.pair()
                    let reader = try Fiber.spawnLocal { try b.readExactly(50 * 7) }
                    if waits { letOthersRun() }
                    for _ in 0..<50 {
                        try a.writeAll("abc")
                        expect(sendWithDescriptor(try a.fd, byte: UInt8(ascii: "d")) == 1)
                        try a.writeAll("efg")
                    }
                    expect(try reader.join() == (0..<50).flatMap { _ in Array("abcdefg".utf8) })
                    a.close()
                }
            }
        }
    }
}

/// A non-blocking eventfd; Swift's Glibc module does not know of them.
private func makeEventfd() -> Int32 {
    let create = unsafeBitCast(dlsym(nil, "eventfd"), to: (@convention(c) (UInt32, Int32) -> Int32).self)
    return create(0, O_NONBLOCK | O_CLOEXEC)
}

/// Sends one byte and, with it, a duplicate of standard error.
private func sendWithDescriptor(_ fd: Int32, byte: UInt8) -> Int {
    let control = UnsafeMutableRawBufferPointer.allocate(byteCount: 24, alignment: 8)
    defer { control.deallocate() }
    control.storeBytes(of: 20, toByteOffset: 0, as: Int.self)
    control.storeBytes(of: SOL_SOCKET, toByteOffset: 8, as: Int32.self)
    control.storeBytes(of: 1, toByteOffset: 12, as: Int32.self)  // SCM_RIGHTS
    control.storeBytes(of: STDERR_FILENO, toByteOffset: 16, as: Int32.self)
    var byte = byte
    return withUnsafeMutablePointer(to: &byte) { byte in
        var piece = iovec(iov_base: byte, iov_len: 1)
        return withUnsafeMutablePointer(to: &piece) { piece in
            var message = msghdr()
            message.msg_iov = piece
            message.msg_iovlen = 1
            message.msg_control = control.baseAddress
            message.msg_controllen = control.count
            return sendmsg(fd, &message, 0)
        }
    }
}
