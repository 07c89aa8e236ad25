// SPDX-License-Identifier: Apache-2.0

// Documentation/Waiting.md, row by row: each call waits, and then throws what the table says when its fiber is cancelled, when its time is over, and when the world fails.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct WaitingTableTests {
        @Test func table_hasEveryCallThatWaits_andNoOther() throws {
            let calls = try Set(sourceFiles(below: "Sources/").flatMap { try callsThatWait(in: $0) })
            #expect(calls.count > 70)
            #expect(try Set(rows().map(\.call)) == calls)
        }

        @Test(.onlyOn(.epoll, because: "others end a cancelled call some time later and not at once"))
        func everyCall_waits_andThrowsTheRightError_howeverItIsEnded() throws {
            var seen: Set<String> = []
            for ending in [Ending.cancel, .cancelledBefore, .deadline, .outerDeadline] {
                func check(_ calls: [(name: String, body: () throws -> Void)]) throws {
                    for (name, body) in calls {
                        seen.insert(name)
                        // A piece that is being sent is sent to its end; the wait for the peer comes after it.
                        let error = try end(ending, meanwhile: { if name == "Connection.send" { try letPoolSettle() } }, body)
                        expect(error != nil && [.cancelled, .timedOut].contains(error?.code), "\(name): \(String(describing: error))")
                    }
                }
                try inRuntime {
                    // Ends the fibers that hold what the calls wait for.
                    defer { FiberRuntime.shutDown() }
                    try check(try callsOfFibers())
                }
                // One worker: a server on several takes a moment to end on all of them.
                var configuration = FiberRuntime.Configuration()
                configuration.workers = 1
                try withNet(.ipv4, configuration) { net in
                    let names = NameService(), gate = names.hold("slow")
                    defer { gate.open() }
                    try check(try callsOfSockets(net, names.resolver(.init(timeout: .seconds(1_000)))))
                }
                let files = try Files()
                try withBusyPool { _ in try check(files.calls) }
            }
            // The one that the table excepts.
            seen.insert("File.close")
            let missing = try seen.symmetricDifference(rows().map(\.call))
            #expect(missing.isEmpty, "\(missing)")
        }

        @Test func closeOfAFile_throwsNothing_inACancelledFiber() throws {
            let files = try Files()
            try inRuntime {
                let closing = try Fiber.spawnLocal {
                    Fiber.current?.cancel()
                    try files.file.close()
                }
                try closing.join()
                expect(!files.file.isOpen)
            }
        }

        @Test(.onlyOn(.epoll, because: "it is about what the system refuses"))
        func everyCall_throwsWhatItsRowSays_whenTheWorldFails() throws {
            let rows = try Dictionary(uniqueKeysWithValues: rows().map { ($0.call, $0.world) })
            func check(_ failures: [(name: String, errors: [String], body: () throws -> Void)]) {
                for (name, errors, body) in failures {
                    guard let error = thrown(body) else {
                        expect(false, "\(name) throws nothing")
                        continue
                    }
                    let code = (error as? IOError)?.code.description ?? (error as? ResolveError)?.code.description ?? ""
                    expect("\(type(of: error)) \(code)".hasPrefix(errors.joined(separator: " ")), "\(name): \(error)")
                    // "out of resources" is `resources`, "not found" is `notFound`.
                    for word in [errors[0]] + errors.dropFirst().map({ codeNames[$0] ?? $0 }) {
                        expect(rows[name]?.contains("`\(word)`") == true, "\(name): \(word) is not in the table")
                    }
                }
            }
            try withNet(.ipv4) { net in
                check(try failuresOfSockets(net))
                check(try failuresOfFiles())
            }
            try inRuntime { check(try failuresOfFibers()) }
        }
    }
}

private let codeNames = [
    "not found": "notFound", "reset by peer": "reset", "too large": "tooLarge", "system error": "system", "limit exceeded": "limitExceeded",
]

// MARK: The table and the sources

private struct Row {
    var call: String
    var world: String
}

private func rows() throws -> [Row] {
    try text(of: "Documentation/Waiting.md").split(separator: "\n").compactMap { line in
        let cells = line.split(separator: "|", omittingEmptySubsequences: false)
        guard line.hasPrefix("| `"), cells.count == 5 else { return nil }
        return Row(call: cells[1].filter { $0 != "`" && $0 != " " }, world: String(cells[3]))
    }
}

private func sourceFiles(below folder: String) throws -> [String] {
    let directory = try #require(opendir(sourceRoot + folder), "\(folder) cannot be read")
    defer { closedir(directory) }
    var files: [String] = []
    while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        if name.hasPrefix(".") { continue }
        if name.hasSuffix(".swift") {
            files.append(folder + name)
        } else if !name.contains(".") {
            files += try sourceFiles(below: folder + name + "/")
        }
    }
    return files
}

/// The declarations whose documentation says that they park, each with the type that it belongs to.
private func callsThatWait(in path: String) throws -> [String] {
    var calls: [String] = []
    var type = ""
    var parks = false
    for line in try text(of: path).split(separator: "\n") {
        let words = line.split { " (<:{".contains($0) }
        if !line.hasPrefix(" "), let at = words.firstIndex(where: { ["class", "struct", "enum", "extension"].contains($0) }) {
            type = String(words[at + 1])
        }
        if line.hasSuffix("- Note: parks") {
            parks = true
        } else if parks, let at = words.firstIndex(where: { ["func", "var"].contains($0) }) {
            calls.append(line.hasPrefix(" ") ? "\(type).\(words[at + 1])" : String(words[at + 1]))
            parks = false
        }
    }
    return calls
}

// MARK: Calls that wait

/// Calls of `Fibers` that would wait for ever.
private func callsOfFibers() throws -> [(name: String, body: () throws -> Void)] {
    let sleeper = try Fiber.spawnLocal { try Fiber.sleep(for: .seconds(1_000)) }
    let (sender, receiver) = makeLocalChannel(of: Int.self, .rendezvous)
    let empty = makeLocalChannel(of: Int.self, .unbounded)
    let broadcast = makeLocalBroadcast(of: Int.self, capacity: 1, .wait)
    let subscriber = broadcast.subscribe(), quiet = makeLocalBroadcast(of: Int.self, capacity: 1, .wait)
    try broadcast.send(1)
    let unheard = quiet.subscribe()
    let watch = makeLocalWatch(1)
    let (shot, reply) = makeOneShot(of: Int.self), (localShot, localReply) = makeLocalOneShot(of: Int.self)
    let locks = HeldLocks()
    try locks.hold()
    let once = FiberOnce { try Fiber.sleep(for: .seconds(1_000)) }, localOnce = LocalOnce { try Fiber.sleep(for: .seconds(1_000)) }
    for make in [{ _ = try? once.value }, { _ = try? localOnce.value }] { try Fiber.spawnLocal(make) }
    letOthersRun()
    let event = FiberEvent(), ticker = Ticker(every: .seconds(1_000))
    let barrier = Barrier(parties: 2), localBarrier = LocalBarrier(parties: 2)
    let todo = WaitGroup(), localTodo = LocalWaitGroup()
    todo.add()
    localTodo.add()
    func inFullGroup(_ body: (FiberGroup<Void>) throws -> Void) throws {
        try withFiberGroup(limit: 1) { group in
            try group.spawnLocal { try Fiber.sleep(for: .seconds(1_000)) }
            try body(group)
        }
    }
    return [
        ("Fiber.sleep", { try Fiber.sleep(for: .seconds(1_000)) }),
        ("Fiber.sleep", { try Fiber.sleep(until: .now + .seconds(1_000)) }),
        ("FiberHandle.join", { try sleeper.join() }),
        ("withFiberGroup", { try inFullGroup { _ in } }),
        ("FiberGroup.spawnLocal", { try inFullGroup { try $0.spawnLocal {} } }),
        ("FiberGroup.spawn", { try inFullGroup { try $0.spawn {} } }),
        ("FiberGroup.next", { try inFullGroup { _ = try $0.next() } }),
        ("FiberGroup.waitForAll", { try inFullGroup { try $0.waitForAll() } }),
        ("Ticker.next", { _ = try ticker.next() }),
        ("ChannelSender.send", { try withExtendedLifetime(receiver) { try sender.send(1) } }),
        ("BroadcastSendingEnd.send", { try withExtendedLifetime(subscriber) { try broadcast.send(2) } }),
        ("BroadcastReceivingEnd.receive", { try withExtendedLifetime(quiet) { _ = try unheard.receive() } }),
        ("WatchReceivingEnd.changed", { try withExtendedLifetime(watch.0) { _ = try watch.1.changed() } }),
        ("OneShotReceiver.receive", { try withExtendedLifetime(shot) { _ = try reply.receive() } }),
        ("LocalOneShotReceiver.receive", { try withExtendedLifetime(localShot) { _ = try localReply.receive() } }),
        ("select", { try select { empty.1.onReceive { _ in } } }),
        ("ChannelReceiver.receive", { try withExtendedLifetime(empty.0) { _ = try empty.1.receive() } }),
        ("FiberMutex.withLock", { try locks.mutex.withLock { _ in } }),
        ("FiberMutex.lock", { try locks.mutex.lock() }),
        ("LocalMutex.withLock", { try locks.localMutex.withLock { _ in } }),
        ("LocalMutex.lock", { try locks.localMutex.lock() }),
        ("FiberRWLock.withReadLock", { try locks.rwLock.withReadLock { _ in } }),
        ("FiberRWLock.withWriteLock", { try locks.rwLock.withWriteLock { _ in } }),
        ("LocalRWLock.withReadLock", { try locks.localRWLock.withReadLock { _ in } }),
        ("LocalRWLock.withWriteLock", { try locks.localRWLock.withWriteLock { _ in } }),
        ("FiberCondition.wait", { try locks.waitOnCondition() }),
        ("LocalCondition.wait", { try locks.waitOnLocalCondition() }),
        ("FiberSemaphore.acquire", { try locks.semaphore.acquire() }),
        ("FiberSemaphore.withPermits", { try locks.semaphore.withPermits {} }),
        ("LocalSemaphore.acquire", { try locks.localSemaphore.acquire() }),
        ("LocalSemaphore.withPermits", { try locks.localSemaphore.withPermits {} }),
        ("FiberOnce.value", { try once.value }),
        ("LocalOnce.value", { try localOnce.value }),
        ("FiberEvent.wait", { try event.wait() }),
        ("Barrier.wait", { try barrier.wait() }),
        ("LocalBarrier.wait", { try localBarrier.wait() }),
        ("WaitGroup.wait", { try todo.wait() }),
        ("LocalWaitGroup.wait", { try localTodo.wait() }),
    ]
}

/// Locks that a fiber holds for ever, and one of each kind that is free, for conditions.
private final class HeldLocks {
    let mutex = FiberMutex(), localMutex = LocalMutex()
    let rwLock = FiberRWLock(0), localRWLock = LocalRWLock(0)
    let semaphore = FiberSemaphore(0), localSemaphore = LocalSemaphore(0)
    private let free = FiberMutex(), localFree = LocalMutex()
    private let condition = FiberCondition(), localCondition = LocalCondition()

    func hold() throws {
        try Fiber.spawnLocal { [self] in try mutex.withLock { _ in try Fiber.sleep(for: .seconds(1_000)) } }
        try Fiber.spawnLocal { [self] in try localMutex.withLock { _ in try Fiber.sleep(for: .seconds(1_000)) } }
        try Fiber.spawnLocal { [self] in try rwLock.withWriteLock { _ in try Fiber.sleep(for: .seconds(1_000)) } }
        try Fiber.spawnLocal { [self] in try localRWLock.withWriteLock { _ in try Fiber.sleep(for: .seconds(1_000)) } }
    }

    func waitOnCondition() throws {
        try free.lock()
        defer { free.unlock() }
        try condition.wait(free)
    }

    func waitOnLocalCondition() throws {
        try localFree.lock()
        defer { localFree.unlock() }
        try localCondition.wait(localFree)
    }
}

/// Calls on sockets, names, signals and a child that would wait for ever.
private func callsOfSockets(_ net: Net, _ resolver: Resolver) throws -> [(name: String, body: () throws -> Void)] {
    let (client, server) = try net.narrowPair()
    _ = try fill(client)
    let listener = try net.listener(), (full, _) = try fullListener(net)
    let quiet = net.keep(try DatagramSocket.bind(to: .loopback(port: 0)))
    let unix = Net(.unix)
    let receiver = try FullReceiver(unix, isConnected: true)
    func batch() throws -> DatagramBatch {
        let batch = DatagramBatch(capacity: 2, datagramSize: 10)
        try batch.append([1])
        return batch
    }
    let path = try makeFile([UInt8](repeating: 0, count: 1 << 16))
    let file = try File.open(path)
    unlink(path)
    let (input, output) = try FileDescriptor.pipe()
    let signals = try Signals.of(.user2)
    let child = try Subprocess.spawn(.init("sleep", ["1000"]))
    return [
        ("Subprocess.wait", { try child.wait() }),
        ("Connection.connect", { _ = try Connection.connect(to: full.address) }),
        ("Connection.connect", { _ = try Connection.connect(host: "127.0.0.1", port: full.address.port!) }),
        ("Connection.read", { try withExtendedLifetime(server) { _ = try client.read(upTo: 1) } }),
        ("Connection.readAvailable", { _ = try client.readAvailable { _ in } }),
        ("Connection.writeAll", { try client.writeAll("x") }),
        ("Connection.send", { try client.send(file) }),
        ("Listener.accept", { _ = try listener.accept() }),
        ("Listener.next", { _ = try listener.next() }),
        ("Listener.serve", { _ = try Listener.bind(to: .loopback(port: 0)).serve { _ in } }),
        ("TCPServer.serve", { _ = try TCPServer.bind(to: .loopback(port: 0)).serve { _ in } }),
        ("DatagramSocket.receive", { _ = try quiet.receive(upTo: 1) }),
        ("DatagramSocket.receiveAvailable", { try quiet.receiveAvailable { _, _ in } }),
        ("DatagramSocket.receiveBatch", { _ = try quiet.receiveBatch(into: batch()) }),
        ("DatagramSocket.send", { try withExtendedLifetime(unix) { try receiver.send("x") } }),
        ("DatagramSocket.sendBatch", { try receiver.sender.sendBatch(batch()) }),
        ("Endpoint.waitReadable", { try listener.waitReadable() }),
        ("Endpoint.waitWritable", { try client.waitWritable() }),
        ("waitReadable", { try withExtendedLifetime(output) { try waitReadable(input) } }),
        ("waitWritable", { try client.withFileDescriptor { try waitWritable($0) } }),
        ("Resolver.resolve", { _ = try resolver.resolve("slow", port: 1) }),
        ("Signals.next", { _ = try signals.next() }),
        ("DatagramSocket.connect", { try waitThenConnect(quiet) }),
    ]
}

/// A datagram socket has its peer at once, so the fiber is made to wait before.
private func waitThenConnect(_ socket: DatagramSocket) throws {
    try? Fiber.sleep(for: .seconds(1_000))
    try socket.connect(to: socket.address)
}

/// Writes until there is no room.
private func fill(_ stream: Connection) throws -> Int {
    var all = 0
    while true {
        var written = 0
        defer { all += written }
        do {
            try withTimeout(.milliseconds(250)) { try stream.writeAll([UInt8](repeating: 0, count: 1 << 20), written: &written) }
        } catch is TimeoutError { return all + written }
    }
}

/// Calls on files and programs, which wait while the pool has no thread for them.
private final class Files {
    let path: String
    let file: File

    init() throws {
        path = try makeFile(Array("content\n".utf8))
        let path = path
        file = try inRuntime { try File.open(path, .readWrite) }
    }

    deinit { unlink(path) }

    var calls: [(name: String, body: () throws -> Void)] {
        let (path, file) = (path, file)
        let pipe = Result { try Pipe.make() }
        let child = Subprocess.Command("sleep", ["1000"])
        return [
            ("File.open", { _ = try File.open(path) }),
            ("File.read", { _ = try file.read(upTo: 1) }),
            ("File.writeAll", { try file.writeAll("x") }),
            ("File.size", { _ = try file.size() }),
            ("File.truncate", { try file.truncate(to: 1) }),
            ("File.sync", { try file.sync() }),
            ("File.position", { _ = try file.position() }),
            ("File.seek", { try file.seek(to: 0) }),
            ("File.seekToEnd", { try file.seekToEnd() }),
            ("File.readAll", { _ = try File.readAll(path) }),
            ("File.write", { try File.write([], to: path) }),
            ("Lines.next", { _ = try file.lines().next() }),
            ("Lines.nextBytes", { _ = try file.lines().nextBytes() }),
            ("DescriptorStream.open", { _ = try DescriptorStream.open(path) }),
            ("DescriptorStream.adopt", { _ = try DescriptorStream.adopt(FileDescriptor(rawValue: dup(0)), closing: true) }),
            ("DescriptorStream.read", { _ = try pipe.get().reader.read(upTo: 1) }),
            ("DescriptorStream.writeAll", { try pipe.get().writer.writeAll([UInt8](repeating: 0, count: 1 << 20)) }),
            ("StandardInput.open", { _ = try StandardInput.open() }),
            ("StandardOutput.open", { _ = try StandardOutput.open() }),
            ("Subprocess.spawn", { _ = try Subprocess.spawn(child) }),
            ("Subprocess.run", { _ = try Subprocess.run(child) }),
            ("withSubprocess", { try withSubprocess(child) { _ in } }),
            ("withBlockingThread", { try withBlockingThread {} }),
        ]
    }
}

// MARK: Calls that fail

private func failuresOfSockets(_ net: Net) throws -> [(name: String, errors: [String], body: () throws -> Void)] {
    let (client, server) = try net.pair()
    client.close()
    let closed = net.keep(try Listener.bind(to: .loopback(port: 0)))
    closed.close()
    let socket = net.keep(try DatagramSocket.bind(to: .loopback(port: 0)))
    let gone = net.keep(try DatagramSocket.bind(to: .loopback(port: 0)))
    gone.close()
    let large = [UInt8](repeating: 0, count: 70_000)
    let batch = DatagramBatch(capacity: 1, datagramSize: 70_000)
    try batch.append(large, to: socket.address)
    let file = try File.open("/proc/self/exe")
    let signals = try Signals.of(.user2)
    signals.close()
    let bad = FileDescriptor(rawValue: -1)
    _ = server
    return [
        ("Connection.connect", ["IOError", "refused"], { _ = try Connection.connect(to: closed.address) }),
        ("Connection.connect", ["ConnectError"], { _ = try Connection.connect(host: "127.0.0.1", port: closed.address.port!) }),
        ("Connection.connect", ["ResolveError"], { _ = try Connection.connect(host: "", port: 1) }),
        ("Connection.read", ["IOError", "closed"], { _ = try client.read(upTo: 1) }),
        ("Connection.readAvailable", ["IOError", "closed"], { _ = try client.readAvailable { _ in } }),
        ("Connection.writeAll", ["IOError", "closed"], { try client.writeAll("x") }),
        ("Connection.send", ["IOError", "closed"], { try client.send(file) }),
        ("Listener.accept", ["IOError", "closed"], { _ = try closed.accept() }),
        ("DatagramSocket.receive", ["IOError", "closed"], { _ = try gone.receive(upTo: 1) }),
        ("DatagramSocket.receiveAvailable", ["IOError", "closed"], { try gone.receiveAvailable { _, _ in } }),
        ("DatagramSocket.receiveBatch", ["IOError", "closed"], { _ = try gone.receiveBatch(into: batch) }),
        ("DatagramSocket.send", ["IOError", "too large"], { try socket.send(large, to: socket.address) }),
        (
            "DatagramSocket.sendBatch", ["IOError", "too large"],
            {
                try batch.append(large, to: socket.address); try socket.sendBatch(batch)
            }
        ),
        ("DatagramSocket.connect", ["IOError", "closed"], { try gone.connect(to: socket.address) }),
        ("Endpoint.waitReadable", ["IOError", "closed"], { try client.waitReadable() }),
        ("Endpoint.waitWritable", ["IOError", "closed"], { try client.waitWritable() }),
        ("waitReadable", ["IOError", "system error"], { try waitReadable(bad) }),
        ("waitWritable", ["IOError", "system error"], { try waitWritable(bad) }),
        ("Resolver.resolve", ["ResolveError", "invalid"], { _ = try Resolver.default.resolve("no host", port: 1) }),
        ("Signals.next", ["IOError", "closed"], { _ = try signals.next() }),
    ]
}

private func failuresOfFiles() throws -> [(name: String, errors: [String], body: () throws -> Void)] {
    let path = try makeFile(Array("content\n".utf8))
    let file = try File.open(path, .readWrite)
    try file.close()
    let long = try File.open("/proc/self/exe")
    unlink(path)
    let pipe = try Pipe.make()
    pipe.reader.close()
    let nowhere = freshPath() + "/nothing"
    let missing = Subprocess.Command(nowhere)
    return [
        ("File.open", ["IOError", "not found"], { _ = try File.open(nowhere) }),
        ("File.read", ["IOError", "closed"], { _ = try file.read(upTo: 1) }),
        ("File.writeAll", ["IOError", "closed"], { try file.writeAll("x") }),
        ("File.size", ["IOError", "closed"], { _ = try file.size() }),
        ("File.truncate", ["IOError", "closed"], { try file.truncate(to: 1) }),
        ("File.sync", ["IOError", "closed"], { try file.sync() }),
        ("File.position", ["IOError", "closed"], { _ = try file.position() }),
        ("File.seek", ["IOError", "closed"], { try file.seek(to: 0) }),
        ("File.seekToEnd", ["IOError", "closed"], { try file.seekToEnd() }),
        ("File.readAll", ["IOError", "limit exceeded"], { _ = try File.readAll("/proc/self/exe", limit: 10) }),
        ("File.write", ["IOError", "not found"], { try File.write([], to: nowhere) }),
        ("Lines.next", ["IOError", "limit exceeded"], { while try long.lines(limit: 1).next() != nil {} }),
        ("Lines.nextBytes", ["IOError", "closed"], { _ = try file.lines().nextBytes() }),
        ("DescriptorStream.open", ["IOError", "not found"], { _ = try DescriptorStream.open(nowhere) }),
        (
            "DescriptorStream.adopt", ["IOError", "system error"],
            { _ = try DescriptorStream.adopt(FileDescriptor(rawValue: -1), closing: true) }
        ),
        ("DescriptorStream.read", ["IOError", "closed"], { _ = try pipe.reader.read(upTo: 1) }),
        ("DescriptorStream.writeAll", ["IOError", "reset by peer"], { try pipe.writer.writeAll("x") }),
        ("Subprocess.spawn", ["IOError", "not found"], { _ = try Subprocess.spawn(missing) }),
        ("Subprocess.run", ["IOError", "not found"], { _ = try Subprocess.run(missing) }),
    ]
}

private func failuresOfFibers() throws -> [(name: String, errors: [String], body: () throws -> Void)] {
    let (sender, receiver) = makeLocalChannel(of: Int.self, .unbounded)
    receiver.close()
    let broadcast = makeLocalBroadcast(of: Int.self, capacity: 1, .dropOldest), slow = broadcast.subscribe()
    for i in 1...3 { try broadcast.send(i) }
    return [
        ("ChannelSender.send", ["ChannelClosedError"], { try sender.send(1) }),
        ("BroadcastReceivingEnd.receive", ["LaggedError"], { _ = try slow.receive() }),
        ("OneShotReceiver.receive", ["OneShotUnsentError"], { _ = try makeOneShot(of: Int.self).1.receive() }),
        ("LocalOneShotReceiver.receive", ["OneShotUnsentError"], { _ = try makeLocalOneShot(of: Int.self).1.receive() }),
    ]
}
