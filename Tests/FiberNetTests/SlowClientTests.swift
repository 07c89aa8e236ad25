// SPDX-License-Identifier: Apache-2.0

// Ten thousand clients that send a byte a second each: what they cost, and that those which fall silent are ended by their idle timeout, and only those.
//
// The clients are a program of their own, since both ends together need more descriptors than a process may have. The server is this process, or rather one that the
// test starts, in which nothing else takes memory or opens sockets.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

#if compiler(>=6.2)
    extension NetTests {
        struct SlowClientTests {
            @Test func tenThousandSlowClients_costLittle_andOnlyTheSilentOnesAreEnded() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let before = openSockets
                        let limit = raiseDescriptorLimit()
                        let server = SlowServer()
                        try inRuntime(seconds: 120) { try server.run(clients: min(scaled(10_000, sanitized: 1_000), limit - 200)) }
                        expect(openSockets == before, "\(openSockets) sockets are open, and not \(before)")
                    }
                }
            }
        }
    }

    /// How long a connection may be silent.
    private let idle = Duration.seconds(3)

    /// An echo server with one fiber per connection, and what it has seen.
    private final class SlowServer {
        private var accepted = 0
        private var bytes = 0
        /// How long each connection that was ended by its timeout had been silent.
        private var silences: [Duration] = []
        private var ended = 0
        private let clock = ContinuousClock()

        func run(clients count: Int) throws {
            let listener = try Listener.bind(to: .loopback(port: 0), backlog: 4096)
            let clients = try SlowClients(listener.address, count)
            let empty = residentBytes
            let acceptor = try Fiber.spawnLocal {
                while let stream = try listener.next() {
                    self.accepted += 1
                    let limitsReads = self.accepted % 2 == 0
                    try Fiber.spawnLocal { try self.serve(stream, limitsReads: limitsReads) }
                }
            }

            try clients.expectLine("connected")
            // A second, in which each of them has sent once more.
            try Fiber.sleep(for: .seconds(1))
            expect(accepted == count)
            var resident: [Int] = []
            let before = bytes
            for _ in 0..<6 {
                resident.append(residentBytes)
                try Fiber.sleep(for: .milliseconds(250))
            }
            expect(bytes - before >= count, "\(bytes - before) bytes in a second and a half")
            // A fiber's record and frames take a page, in unoptimised code two, and that is nearly all.
            let each = (resident[0] - empty) / count
            let growth = (resident.max() ?? 0) - resident[0]
            expect(isSanitized || each <= (isDebugBuild ? 13_000 : 7_000), "\(each) bytes for each connection")
            expect(isSanitized || growth / count < 64, "\(resident): it grew by \(growth) bytes while nothing changed")
            expect(silences.isEmpty, "\(silences) were no silences")

            // Every other client falls silent.
            try clients.tell("silence")
            try clients.expectLine("silent ended")
            expect(silences.count == count / 2, "\(silences.count) were ended")
            expect(
                silences.allSatisfy { $0 >= idle && $0 < idle + .seconds(10) },
                "\(String(describing: silences.min())) to \(String(describing: silences.max()))")
            expect(ended == 0)

            try clients.tell("stop")
            let report = try clients.end()
            expect(report["sent"] == report["echoed"], "\(report)")
            expect(report["sent"] == bytes, "\(report), and the server has had \(bytes) bytes")
            expect(report["silent ended"] == count / 2 && report["lively ended"] == 0, "\(report)")
            // By the clients' clock, from the last byte to the end of the stream.
            expect((report["shortest silence"] ?? 0) >= 3_000, "\(report)")
            expect((report["longest silence"] ?? 0) < 13_000, "\(report)")
            try waitUntil { self.ended == count - count / 2 }
            listener.close()
            try acceptor.join()
        }

        /// Echoes until the client is silent for too long, by a limit for each read or for each round.
        private func serve(_ stream: Connection, limitsReads: Bool) throws {
            var last = clock.now
            func echo(_ span: RawSpan) throws {
                bytes += span.byteCount
                try stream.writeAll(span)
            }
            do {
                if limitsReads {
                    while case let data = try withTimeout(idle, { try stream.read(upTo: 16) }), !data.isEmpty {
                        bytes += data.count
                        try stream.writeAll(data)
                        last = clock.now
                    }
                } else {
                    while try withTimeout(idle, { try stream.readAvailable(echo) }) { last = clock.now }
                }
                ended += 1
            } catch {
                guard (error as? TimeoutError)?.limit == idle else {
                    throw error
                }
                silences.append(clock.now - last)
            }
        }
    }

    /// The program with the clients.
    private final class SlowClients {
        private let control: Connection
        private let path: String
        private var pid = pid_t()
        private var unread: [UInt8] = []

        init(_ address: SocketAddress, _ count: Int) throws {
            let (ours, theirs) = try Connection.pair()
            control = ours
            path = freshPath() + ".py"
            let file = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0o600)
            guard write(file, script, script.utf8.count) == script.utf8.count else { throw TestError(text: "\(path): error \(errno)") }
            close(file)
            // Python's own files do not expect to be non-blocking.
            let fd = try theirs.fd
            _ = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK)
            var actions = posix_spawn_file_actions_t()
            posix_spawn_file_actions_init(&actions)
            defer { posix_spawn_file_actions_destroy(&actions) }
            for number in 0..<2 as Range<Int32> { posix_spawn_file_actions_adddup2(&actions, fd, number) }
            let words = ["python3", path, "\(address.port ?? 0)", "\(count)"]
            let arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
            defer { arguments.forEach { free($0) } }
            let status = posix_spawnp(&pid, "python3", &actions, nil, arguments, environ)
            theirs.close()
            guard status == 0 else { throw TestError(text: "python3 could not be started (apt-get install python3): error \(status)") }
        }

        deinit {
            if pid > 0 {
                kill(pid, SIGKILL)
                waitpid(pid, nil, 0)
            }
            unlink(path)
        }

        func tell(_ command: String) throws { try control.writeAll(command + "\n") }

        func expectLine(_ wanted: String) throws {
            let line = try readLine()
            if line != wanted { throw TestError(text: "the clients said \"\(line)\" and not \"\(wanted)\"") }
        }

        /// Reads the report, and waits for the end of the program.
        func end() throws -> [String: Int] {
            var report: [String: Int] = [:]
            while case let line = try readLine(), line != "end" {
                let parts = line.split(separator: ":")
                if parts.count == 2 { report[String(parts[0])] = Int(parts[1]) }
            }
            expect(try control.readToEnd().isEmpty)
            var status: Int32 = 0
            expect(waitpid(pid, &status, 0) == pid && status == 0, "exit status \(status)")
            pid = 0
            return report
        }

        private func readLine() throws -> String {
            while true {
                if let end = unread.firstIndex(of: UInt8(ascii: "\n")) {
                    defer { unread.removeFirst(end + 1) }
                    return String(decoding: unread[..<end], as: UTF8.self)
                }
                let bytes = try withTimeout(.seconds(60)) { try control.read(upTo: 1_000) }
                if bytes.isEmpty { throw TestError(text: "the clients are gone") }
                unread += bytes
            }
        }
    }

    private let script = """
        import collections, os, resource, select, socket, sys, time

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        port, count = int(sys.argv[1]), int(sys.argv[2])
        clients, index = [], {}
        sent, echoed, last, ended = [0] * count, [0] * count, [0.0] * count, [0.0] * count
        silent = False
        due = collections.deque()
        epoll = select.epoll()

        def is_silent(i):
            return silent and i % 2 == 1

        def send_what_is_due():
            now = time.monotonic()
            while due and due[0][0] <= now:
                when, i = due.popleft()
                if ended[i] or is_silent(i): continue
                last[i] = time.monotonic()
                clients[i].send(b"x")
                sent[i] += 1
                due.append((when + 1, i))

        def receive(seconds):
            for fd, _ in epoll.poll(seconds, 4096):
                if fd == 0: continue
                i = index[fd]
                try: data = clients[i].recv(1000)
                except ConnectionResetError: data = b""
                if data:
                    echoed[i] += len(data)
                else:
                    ended[i] = time.monotonic()
                    epoll.unregister(fd)
                    clients[i].close()

        def say(line):
            os.write(1, line.encode() + b"\\n")

        for i in range(count):
            client = socket.create_connection(("127.0.0.1", port))
            client.setblocking(False)
            clients.append(client)
            index[client.fileno()] = i
            epoll.register(client.fileno(), select.EPOLLIN)
            due.append((time.monotonic(), i))
            if i % 100 == 0:
                send_what_is_due()
                receive(0)
        say("connected")

        epoll.register(0, select.EPOLLIN)
        told = b""
        def commands():
            global told
            if select.select([0], [], [], 0)[0]: told += os.read(0, 100)
            return told

        while b"silence" not in commands():
            send_what_is_due()
            receive(0.005)
        silent = True
        while not all(ended[1::2]):
            send_what_is_due()
            receive(0.005)
        say("silent ended")
        while b"stop" not in commands():
            send_what_is_due()
            receive(0.005)
        lively = [i for i in range(count) if not is_silent(i)]
        lively_ended = sum(1 for i in lively if ended[i])
        limit = time.monotonic() + 20
        while sum(sent) != sum(echoed) and time.monotonic() < limit: receive(0.05)
        silences = [ended[i] - last[i] for i in range(1, count, 2)]
        say(f"sent:{sum(sent)}\\nechoed:{sum(echoed)}\\nlively ended:{lively_ended}\\nsilent ended:{len(silences)}")
        say(f"shortest silence:{int(min(silences) * 1000)}\\nlongest silence:{int(max(silences) * 1000)}\\nend")
        for i in lively: clients[i].close()
        """

    /// Raises the soft limit on descriptors to the hard one, and returns that.
    private func raiseDescriptorLimit() -> Int {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        limit.rlim_cur = limit.rlim_max
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        return Int(clamping: limit.rlim_cur)
    }

    /// Memory of this process's own that is in memory. Pages of code do not count: the kernel reads many of them at once, when one is first needed.
    private var residentBytes: Int {
        let fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return 0 }
        defer { close(fd) }
        var text = [UInt8](repeating: 0, count: 200)
        let count = read(fd, &text, text.count)
        let pages = String(decoding: text.prefix(max(0, count)), as: UTF8.self).split(separator: " ").compactMap { Int($0) }
        return pages.count > 2 ? (pages[1] - pages[2]) * sysconf(Int32(_SC_PAGESIZE)) : 0
    }
#endif
