// SPDX-License-Identifier: Apache-2.0

// Fibers that never have to wait are ended all the same, and deadlines that never come cost nothing.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

/// Successful operations without a wait after which a fiber lets others run, and looks at its deadline.
private let budget = 32

extension NetTests {
    struct CancelFairnessTests {
        // Nothing to wait for.

        @Test(arguments: Transport.all, ReadWay.allCases)
        func readsThatNeverWait_areEndedByTheDeadline(transport: Transport, way: ReadWay) throws {
            var configuration = FiberRuntime.Configuration()
            configuration.readBufferSize = 512
            try withNet(transport, configuration) { net in
                let (client, server) = try net.pair()
                let sent = try fill(client, server)
                var received: [UInt8] = []
                for limit in [Duration.zero, .microseconds(50)] {
                    let clock = ContinuousClock()
                    let start = clock.now
                    var inner: Failure?
                    var reads = 0
                    let outside = thrown {
                        try withTimeout(limit) {
                            do {
                                // Fewer than are there: a read that had to wait would be the deadline's in another way.
                                while received.count < sent.count - 512 {
                                    received += try way.read(server, upTo: 1)
                                    reads += 1
                                }
                            } catch {
                                inner = Failure(error: error)
                                throw error
                            }
                        }
                    }
                    expect(clock.now - start >= limit)
                    expect(inner?.code == .timedOut && inner?.timeout?.limit == limit, "\(String(describing: inner)) after \(reads) reads")
                    expect((outside as? TimeoutError)?.limit == limit, "\(String(describing: outside))")
                    if limit == .zero { expect(reads <= budget, "\(reads) reads") }
                }
                client.close()
                received += try server.readToEnd()
                expect(same(received, sent))
            }
        }

        @Test(arguments: Transport.all, ReadWay.allCases)
        func readsThatNeverWait_areEndedByACancellation(transport: Transport, way: ReadWay) throws {
            var configuration = FiberRuntime.Configuration()
            configuration.readBufferSize = 512
            try withNet(transport, configuration) { net in
                let (client, server) = try net.pair()
                let sent = try fill(client, server)
                var received: [UInt8] = []
                var reads = 0
                let reader = try Fiber.spawnLocal {
                    failure {
                        while received.count < sent.count - 512 {
                            received += try way.read(server, upTo: 1)
                            reads += 1
                        }
                    }
                }
                // It lets us run, or this would come when it is through.
                Fiber.yield()
                let before = reads
                reader.cancel()
                expect(try reader.join()?.code == .cancelled)
                // The read that let us run had its bytes already.
                expect(before <= budget && reads <= before + 1, "\(before) reads, and \(reads - before) since")
                client.close()
                received += try server.readToEnd()
                expect(same(received, sent))
            }
        }

        @Test func readsThatNeverWait_areEndedByTheDeadline_whateverOthersDoInBetween() throws {
            try withNet(.unix) { net in
                // The operations of all fibers count together, so it must not matter in whose turn they come to the limit.
                for others in 1...2 * budget {
                    let (client, server) = try net.pair()
                    let (a, b) = try Connection.pair()
                    let sent = 50_000
                    try client.writeAll([UInt8](repeating: 1, count: sent))
                    try a.writeAll("x")
                    var running = true
                    defer { running = false }
                    let other = try Fiber.spawnLocal {
                        while running {
                            for _ in 0..<others { try b.waitReadable() }
                            Fiber.yield()
                        }
                    }
                    var reads = 0
                    let error = thrown {
                        try withTimeout(.zero) {
                            while reads < sent {
                                expect(try server.read(upTo: 1).count == 1)
                                reads += 1
                                Fiber.yield()
                            }
                        }
                    }
                    expect(error is TimeoutError, "with \(others) in between: \(reads) reads")
                    running = false
                    try other.join()
                    client.close()
                    server.close()
                }
            }
        }

        @Test(arguments: Transport.all)
        func floodedReader_andFloodingWriter_areEndedByTheDeadline(transport: Transport) throws {
            for floods in [false, true] {
                try withNet(transport) { net in
                    let (client, server) = try net.pair()
                    // The other end belongs to a thread that never rests.
                    let fd = try client.withFileDescriptor { fcntl($0.rawValue, F_DUPFD_CLOEXEC, 100) }
                    _ = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK)
                    let peer = Thread {
                        var block = [UInt8](repeating: 1, count: 65_536)
                        if floods { while send(fd, block, block.count, Int32(MSG_NOSIGNAL)) > 0 {} }
                        if !floods { while recv(fd, &block, block.count, 0) > 0 {} }
                        close(fd)
                    }
                    let block = [UInt8](repeating: 2, count: 65_536)
                    let clock = ContinuousClock()
                    let begun = clock.now
                    var count = 0
                    // Again where the machine gave the other thread no time in between: without a flood nothing is shown.
                    while count <= 100_000 && clock.now - begun < .seconds(15) {
                        count = 0
                        let start = clock.now
                        let error = thrown {
                            try withTimeout(.milliseconds(30)) {
                                while true {
                                    if floods { _ = try server.readAvailable { count += $0.byteCount } }
                                    if !floods {
                                        try server.writeAll(block)
                                        count += block.count
                                    }
                                }
                            }
                        }
                        expect((error as? TimeoutError)?.limit == .milliseconds(30), "\(String(describing: error))")
                        expect(clock.now - start >= .milliseconds(30) && clock.now - start < .seconds(15))
                    }
                    expect(count > 100_000, "\(count) bytes")
                    // Then by a cancellation.
                    let flooded = try Fiber.spawnLocal {
                        failure { while true { if floods { _ = try server.readAvailable { _ in } } else { try server.writeAll(block) } } }
                    }
                    try Fiber.sleep(for: .milliseconds(5))
                    expect(!flooded.fiber.isFinished)
                    flooded.cancel()
                    expect(try flooded.join()?.code == .cancelled)
                    server.close()
                    client.close()
                    peer.join()
                }
            }
        }

        @Test(arguments: Transport.all)
        func acceptsThatNeverWait_areEnded_andTheRestStaysInTheQueue(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let count = 3 * budget
                for i in 0..<count { close(try connectNow(to: listener.address, UInt8(i))) }
                var accepted = 0
                func acceptAll() throws {
                    while true {
                        let stream = try listener.accept()
                        expect(try stream.withFileDescriptor { takeByte($0.rawValue) } == UInt8(accepted))
                        accepted += 1
                    }
                }
                let error = thrown { try withTimeout(.zero) { try acceptAll() } }
                expect(error is TimeoutError && accepted <= budget, "\(accepted) accepted: \(String(describing: error))")
                let acceptor = try Fiber.spawnLocal { failure { try acceptAll() } }
                Fiber.yield()
                acceptor.cancel()
                expect(try acceptor.join()?.code == .cancelled)
                expect(accepted <= 2 * budget, "\(accepted) accepted")
                // In order, none left out.
                expect(thrown { try withTimeout(.milliseconds(50)) { try acceptAll() } } is TimeoutError)
                expect(accepted == count, "\(accepted) accepted")
            }
        }

        @Test func connectsThatNeverWait_areEnded_andLetOthersRun() throws {
            // On Unix sockets: a TCP connect always waits.
            try withNet(.unix) { net in
                let listener = try net.listener(backlog: 10 * budget)
                var connected = 0
                func connectOften() throws {
                    while connected < 8 * budget {
                        _ = net.keep(try Connection.connect(to: listener.address))
                        connected += 1
                    }
                }
                let error = thrown { try withTimeout(.zero) { try connectOften() } }
                expect(error is TimeoutError && connected <= budget, "\(connected) connected: \(String(describing: error))")
                let client = try Fiber.spawnLocal { failure { try connectOften() } }
                Fiber.yield()
                client.cancel()
                expect(try client.join()?.code == .cancelled)
                expect(connected <= 2 * budget + 1, "\(connected) connected")
                for _ in 0..<connected { _ = net.keep(try withTimeout(.zero) { try listener.accept() }) }
                expect(.timedOut) { _ = try withTimeout(.zero) { try listener.accept() } }
            }
        }

        @Test func waitsForWhatIsReady_areEnded() throws {
            try inRuntime {
                let (a, b) = try Connection.pair()
                try a.writeAll("x")
                let fds = try makePipe(nonBlocking: true)
                defer { fds.forEach { close($0) } }
                let waits: [() throws -> Void] = [
                    { try a.waitWritable() }, { try b.waitReadable() }, { try waitWritable(FileDescriptor(rawValue: fds[1])) },
                ]
                for (i, wait) in waits.enumerated() {
                    var count = 0
                    let error = thrown {
                        try withTimeout(.zero) {
                            while true {
                                try wait()
                                count += 1
                            }
                        }
                    }
                    expect(error is TimeoutError && count <= budget, "wait \(i): \(count) times, then \(String(describing: error))")
                    let waiter = try Fiber.spawnLocal { failure { while true { try wait() } } }
                    Fiber.yield()
                    waiter.cancel()
                    expect(try waiter.join()?.code == .cancelled)
                }
            }
        }

        @Test(arguments: Transport.all, ReadWay.allCases)
        func readsAtTheEnd_areEnded(transport: Transport, way: ReadWay) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                client.close()
                try expectEnded("read") { expect(try way.read(server, upTo: 10).isEmpty) }
            }
        }

        @Test(arguments: Transport.all)
        func callsThatFail_areEnded(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                client.reset()
                while failure({ try server.writeAll("x") }) == nil { Fiber.yield() }
                try expectEnded("write") { try server.writeAll("x") }
                try expectEnded("write of pieces") { try server.writeAll(pieces: [[1], [2]]) }
                let nobody = try net.listener().address
                net.closeAll()
                try expectEnded("connect") { _ = try Connection.connect(to: nobody) }
            }
        }

        @Test func datagramsThatFail_areEnded() throws {
            try inRuntime {
                let tooLarge = [UInt8](repeating: 0, count: 70_000)
                let receiver = try DatagramSocket.bind(to: .loopback(port: 0))
                let socket = try DatagramSocket.open(.ipv4)
                try expectEnded("send to") { try socket.send(tooLarge, to: receiver.address) }
                try socket.connect(to: receiver.address)
                try expectEnded("send") { try socket.send(tooLarge) }
                let path = try SocketAddress.unix(path: freshPath())
                try expectEnded("send to nobody") { try DatagramSocket.open(.unix).send("x", to: path) }
                let (a, b) = try DatagramSocket.pair()
                b.close()
                try expectEnded("send to who has gone") { try a.send("x") }
            }
        }

        @Test func pipes_areEnded_atTheirEndAndWithNobodyToRead() throws {
            try inRuntime {
                let (atEnd, broken) = (try Pipe.make(), try Pipe.make())
                atEnd.writer.close()
                try expectEnded("read") { expect(try atEnd.reader.read(upTo: 10).isEmpty) }
                broken.reader.close()
                try expectEnded("write") { try broken.writer.writeAll("x") }
            }
        }

        @Test func waitsForWhatCannotBeWaitedFor_areEnded() throws {
            try inRuntime {
                let file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC)
                defer { close(file) }
                try expectEnded("a file") { try waitReadable(FileDescriptor(rawValue: file)) }
                try expectEnded("nothing") { try waitReadable(FileDescriptor(rawValue: 9_999)) }
            }
        }

        @Test(arguments: Transport.all)
        func callsOnWhatIsClosed_letOthersRun(transport: Transport) throws {
            try withNet(transport) { net in
                let (stream, _) = try net.pair()
                let listener = try net.listener()
                let socket = try DatagramSocket.bind(to: .loopback(port: 0))
                let pipe = try Pipe.make()
                for endpoint in [stream, listener, socket, pipe.reader, pipe.writer] as [Endpoint] { endpoint.close() }
                let calls: [(String, () throws -> Void)] = [
                    ("read", { _ = try stream.read(upTo: 1) }), ("readAvailable", { _ = try stream.readAvailable { _ in } }),
                    ("write", { try stream.writeAll("x") }), ("write of nothing", { try stream.writeAll("") }),
                    ("write of pieces", { try stream.writeAll(pieces: [[1], [2]]) }), ("wait", { try stream.waitReadable() }),
                    ("accept", { _ = try listener.accept() }), ("receive", { _ = try socket.receive(upTo: 1) }),
                    ("send", { try socket.send("x") }), ("read of a pipe", { _ = try pipe.reader.read(upTo: 1) }),
                    ("write to a pipe", { try pipe.writer.writeAll("x") }),
                ]
                for (name, call) in calls {
                    var turns = 0
                    let neighbour = try Fiber.spawnLocal {
                        while true {
                            try Fiber.checkCancellation()
                            turns += 1
                            Fiber.yield()
                        }
                    }
                    for _ in 0..<4 * budget { expect(failure(call)?.code == .closed, name) }
                    neighbour.cancel()
                    _ = try? neighbour.join()
                    expect(turns >= 3, "\(name): the neighbour had \(turns) turns")
                }
            }
        }

        // Deadlines that never come.

        @Test func deadlinesThatAreSetAgainAndAgain_wakeTheWorkerForNothing() throws {
            // The timer queue keeps the entry of the first read, whose time comes every ten milliseconds although each read by then wants a later one.
            let rounds = 300
            var (sleeps, timeouts) = (0, 0)
            try inRuntime {
                let (a, b) = try Connection.pair()
                let fd = try a.withFileDescriptor { fcntl($0.rawValue, F_DUPFD_CLOEXEC, 100) }
                let peer = Thread {
                    for _ in 0..<rounds {
                        usleep(1_000)
                        send(fd, "x", 1, Int32(MSG_NOSIGNAL))
                    }
                    close(fd)
                }
                let before = Worker.current?.pointee.statistics.sleeps ?? 0
                var received = 0
                while received < rounds {
                    do { _ = try withTimeout(.milliseconds(10)) { try b.readAvailable { received += $0.byteCount } } } catch is TimeoutError
                    {
                        timeouts += 1
                    }
                }
                sleeps = (Worker.current?.pointee.statistics.sleeps ?? 0) - before
                peer.join()
            }
            // One for each byte and each real timeout, and some to give back stacks.
            #expect(sleeps <= rounds + timeouts + 8, "\(sleeps) sleeps, \(timeouts) timeouts")
        }
    }

    @Suite(
        .enabled(
            if: cfaults_available() != 0 && !isDebugBuild, "sanitizers interpose malloc themselves, and unoptimised code boxes closures"))
    struct DeadlineAllocationTests {
        /// How a server and its client bound each read.
        enum Bound: CaseIterable, Sendable {
            case timeout, scope, nestedScopes, scopeAroundAll
        }

        @Test(arguments: Transport.all, Bound.allCases)
        func readsUnderADeadline_allocateNothing_inTheSteadyState(transport: Transport, bound: Bound) throws {
            var allocations = -1
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let message = [UInt8](repeating: 1, count: 100)

                func serve() throws {
                    var isOpen = true
                    while isOpen {
                        switch bound {
                        case .timeout:
                            isOpen = try withTimeout(.seconds(60)) {
                                try server.readAvailable { bytes in try withTimeout(.seconds(60)) { try server.writeAll(bytes) } }
                            }
                        case .scope, .scopeAroundAll:
                            isOpen = try withTimeout(.seconds(60)) { try server.readAvailable { try server.writeAll($0) } }
                        case .nestedScopes:
                            isOpen = try withTimeout(.seconds(60)) {
                                try withTimeout(.seconds(90)) { try server.readAvailable { try server.writeAll($0) } }
                            }
                        }
                    }
                }
                try Fiber.spawnLocal { if bound == .scopeAroundAll { try withTimeout(.seconds(60), serve) } else { try serve() } }

                func receive() throws -> Bool {
                    switch bound {
                    case .timeout: try withTimeout(.seconds(60)) { try client.readAvailable { _ in } }
                    default: try withTimeout(.seconds(60)) { try client.readAvailable { _ in } }
                    }
                }
                func echo(_ count: Int) throws {
                    for _ in 0..<count {
                        try client.writeAll(message)
                        guard try receive() else { throw TestError(text: "the end") }
                    }
                }
                try makeTwoBuffers()
                try echo(100)
                cfaults_allocations_begin()
                try echo(10_000)
                allocations = Int(cfaults_allocations_end())
                try client.shutdown(.write)
            }
            #expect(allocations == 0)
        }
    }
}

/// Calls again and again, whatever comes of it but a cancellation, and expects that a deadline and a cancellation end it.
private func expectEnded(_ name: String, _ call: @escaping () throws -> Void, sourceLocation: SourceLocation = #_sourceLocation) throws {
    var count = 0
    func callOften() throws {
        while true {
            do { try call() } catch {
                if error is CancellationError || error is TimeoutError { throw error }
            }
            count += 1
        }
    }
    let error = thrown { try withTimeout(.zero) { try callOften() } }
    expect(
        error is TimeoutError && count <= budget, "\(name): \(count) times, then \(String(describing: error))",
        sourceLocation: sourceLocation)
    let caller = try Fiber.spawnLocal { failure { try callOften() } }
    Fiber.yield()
    caller.cancel()
    expect(try caller.join()?.code == .cancelled, name, sourceLocation: sourceLocation)
}

/// Writes as many letters as the connection holds, and returns them when all have arrived.
private func fill(_ client: Connection, _ server: Connection) throws -> [UInt8] {
    let letters = letters(1_000_000)
    let count =
        failure(writing: { written in try withTimeout(.zero) { try client.writeAll(letters, written: &written) } })?.written
        ?? letters.count
    expect(count > 100_000, "\(count) bytes are too few")
    return Array(letters.prefix(count))
}

private func takeByte(_ fd: Int32) -> UInt8? {
    var byte: UInt8 = 0
    return recv(fd, &byte, 1, 0) == 1 ? byte : nil
}
