// SPDX-License-Identifier: Apache-2.0

// The echo server as a program of its own, and clients that know nothing of fibers: Python's sockets and socat.

import CFiber
import FiberNet
import Glibc
import Testing

extension NetTests {
    struct IndependentClientTests {
        @Test func manyMegabytes_comeBackWithTheSameHash() throws {
            try python(
                against: EchoServer(), with: "\(scaled(64, sanitized: 8))",
                """
                import hashlib, os, threading
                size = int(sys.argv[3]) << 20
                s = connect()
                sent, back = hashlib.sha256(), hashlib.sha256()
                def send():
                    for _ in range(size >> 20):
                        block = os.urandom(1 << 20)
                        sent.update(block)
                        s.sendall(block)
                    s.shutdown(socket.SHUT_WR)
                sender = threading.Thread(target=send)
                sender.start()
                count = 0
                while block := s.recv(1 << 18):
                    back.update(block)
                    count += len(block)
                sender.join()
                assert count == size, f"{count} of {size} bytes came back"
                assert sent.digest() == back.digest(), "other bytes came back"
                """)
        }

        @Test func aThousandConnections_eachGetTheirOwnBytes() throws {
            // Fewer than 1,024 descriptors, so that it works with the usual limit.
            let server = try EchoServer()
            try python(
                against: server, with: "\(scaled(1_000, sanitized: 200))",
                """
                import random
                count = int(sys.argv[3])
                open_ones = [connect() for _ in range(count)]
                for round in range(3):
                    order = list(range(count))
                    random.Random(round).shuffle(order)
                    for i in order: open_ones[i].sendall(b"%d of round %d;" % (i, round) * 20)
                    random.Random(round + 100).shuffle(order)
                    for i in order:
                        wanted = b"%d of round %d;" % (i, round) * 20
                        got = exactly(open_ones[i], len(wanted))
                        assert got == wanted, f"connection {i} got {got!r}"
                """)
            let (status, output) = try server.end(SIGTERM)
            #expect(status == 0)
            #expect(output.contains("served \(scaled(1_000, sanitized: 200)) connections, "))
        }

        @Test func everythingComesBack_andThenTheEnd_afterAHalfClose() throws {
            try python(
                against: EchoServer(),
                """
                for size in (0, 1, 100_000, 3_000_000):
                    s = connect()
                    data = os.urandom(size)
                    sender = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
                    sender.start()
                    assert exactly(s, size) == data, size
                    assert s.recv(1) == b"", "no end"
                    sender.join()
                    s.close()
                """)
        }

        @Test func server_goesOn_whenClientsResetTheirConnections() throws {
            let server = try EchoServer()
            try python(
                against: server,
                """
                import struct
                for i in range(100):
                    s = connect()
                    s.sendall(b"x" * 10_000)
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    s.close()
                s = connect()
                s.sendall(b"still there")
                assert exactly(s, 11) == b"still there"
                """)
            let (status, output) = try server.end(SIGTERM)
            #expect(status == 0)
            #expect(output.contains("served 101 connections, "), "\(output)")
        }

        @Test func silentConnection_isClosed_whenThereIsAnIdleTimeout() throws {
            try python(
                against: EchoServer("--idle-timeout", "1"),
                """
                s = connect()
                s.sendall(b"x")
                assert exactly(s, 1) == b"x"
                assert s.recv(1) == b""
                """)
        }

        @Test func silentConnection_staysOpen_whenThereIsNone() throws {
            try python(
                against: EchoServer(),
                """
                s = connect()
                s.settimeout(1.5)
                try:
                    s.recv(1)
                    assert False, "it was closed"
                except TimeoutError:
                    pass
                s.settimeout(20)
                s.sendall(b"x")
                assert exactly(s, 1) == b"x"
                """)
        }

        @Test(arguments: [SIGTERM, SIGINT])
        func server_letsConnectionsFinish_andCounts_atTheFirstSignal(signal: Int32) throws {
            let server = try EchoServer("--drain", "1000")
            // Two connections that are over, and one that is open when the signal comes.
            try python(
                against: server,
                """
                for _ in range(2):
                    s = connect()
                    s.sendall(b"12345")
                    assert exactly(s, 5) == b"12345"
                    s.shutdown(socket.SHUT_WR)
                    assert s.recv(1) == b""
                """)
            let client = try server.connect()
            try expectEcho(of: 3, on: client)
            try server.signal(signal, expecting: signal == SIGTERM ? "SIGTERM: draining" : "SIGINT: draining")
            // Nobody new is let in, and who is in is served.
            #expect(throws: TestError.self) { try server.connect() }
            try expectEcho(of: 4, on: client)
            close(client)
            let (status, output) = try server.end()
            #expect(status == 0)
            #expect(output == "served 3 connections, 17 bytes\n")
        }

        @Test func server_cutsConnectionsOff_atTheSecondSignal() throws {
            let server = try EchoServer("--drain", "1000")
            let client = try server.connect()
            defer { close(client) }
            try expectEcho(of: 3, on: client)
            try server.signal(SIGTERM, expecting: "SIGTERM: draining")
            try server.signal(SIGINT, expecting: "SIGINT: ending")
            var byte: UInt8 = 0
            #expect(recv(client, &byte, 1, 0) == 0)
            let (status, output) = try server.end()
            #expect(status == 3)
            #expect(output == "served 1 connections, 3 bytes\n")
        }

        @Test func server_cutsConnectionsOff_whenTheTimeToFinishIsOver() throws {
            let server = try EchoServer("--drain", "0")
            let client = try server.connect()
            defer { close(client) }
            try expectEcho(of: 3, on: client)
            let (status, output) = try server.end(SIGTERM)
            #expect(status == 3)
            #expect(output.hasSuffix("served 1 connections, 3 bytes\n"))
            var byte: UInt8 = 0
            #expect(recv(client, &byte, 1, 0) == 0)
        }

        @Test func server_listensWhereItIsTold() throws {
            let server = try EchoServer("--host", "::1")
            #expect(server.address.hasPrefix("[::1]:"))
            try python(against: server, "s = connect(); s.sendall(b'six'); assert exactly(s, 3) == b'six'")
        }

        // socat.

        @Test func socat_getsBackWhatItSends_overTCP() throws {
            let server = try EchoServer()
            try expectEchoToSocat("TCP:" + server.address)
        }

        @Test func socat_getsBackWhatItSends_overAUnixSocket() throws {
            let path = freshPath()
            let server = try EchoServer("--unix", path)
            #expect(server.address == "unix:" + path)
            try expectEchoToSocat("UNIX-CONNECT:" + path)
            let (status, output) = try server.end(SIGTERM)
            #expect(status == 0)
            #expect(output.contains("served 1 connections, 1000000 bytes"), "\(output)")
            #expect(access(path, F_OK) != 0, "the file was left behind")
        }

        // The command line.

        @Test(arguments: [
            ["--frob"], ["--port"], ["--port", "65536"], ["--port", "x"], ["--host", "localhost"], ["--stack-size", "100"],
            ["--stack-size", "384"], ["--idle-timeout", "0"], ["--unix", ""], ["extra"],
        ])
        func wrongOption_isOneLineOnStandardError_andStatus2(arguments: [String]) throws {
            let echo = try Child(echoPath, arguments)
            let (status, output, errors) = try echo.wait()
            #expect(status == 2)
            #expect(output.isEmpty)
            #expect(errors.hasPrefix("Echo: ") && errors.split(separator: "\n").count == 1, "\(errors)")
        }

        @Test func usedPort_isOneLineOnStandardError_andStatus1() throws {
            let server = try EchoServer()
            let port = server.address.split(separator: ":").last.map(String.init) ?? ""
            let second = try Child(echoPath, ["--port", port])
            let (status, output, errors) = try second.wait()
            #expect(status == 1)
            #expect(output.isEmpty)
            #expect(errors.split(separator: "\n").count == 1 && errors.contains("bind 127.0.0.1:\(port)"), "\(errors)")
        }

        @Test func help_isPrinted_withStatus0() throws {
            let (status, output, errors) = try Child(echoPath, ["--help"]).wait()
            #expect(status == 0)
            #expect(output.contains("usage: Echo") && errors.isEmpty)
        }
    }
}

// MARK: The server

private var echoPath: String { examplePath("Echo") }

/// An example, which lies beside the test program.
func examplePath(_ name: String) -> String {
    var path = [UInt8](repeating: 0, count: 4096)
    let n = readlink("/proc/self/exe", &path, path.count)
    let program = String(decoding: path[..<max(0, n)], as: UTF8.self)
    return program[..<(program.lastIndex(of: "/") ?? program.startIndex)] + "/\(name)"
}

/// The Echo server on a port of its own, ended with the last reference.
private final class EchoServer {
    private let child: Child
    /// What it says it listens on.
    let address: String

    init(_ arguments: String...) throws {
        guard access(echoPath, X_OK) == 0 else { throw TestError(text: "\(echoPath) was not built: swift build --build-tests") }
        child = try Child(echoPath, arguments.contains("--unix") ? arguments : ["--port", "0"] + arguments)
        let line = try child.readLine()
        guard line.hasPrefix("listening on ") else { throw TestError(text: "Echo said: \(line)") }
        address = String(line.dropFirst("listening on ".count))
    }

    /// A connection of this process, for IPv4 servers.
    func connect() throws -> Int32 {
        let fd = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | O_CLOEXEC, 0)
        let status = try SocketAddress(parsing: address).withSockaddr { Glibc.connect(fd, $0, $1) }
        guard status == 0 else {
            close(fd)
            throw TestError(text: "no connection to \(address): error \(errno)")
        }
        return fd
    }

    /// Sends a signal and waits for the line that it prints then.
    func signal(_ number: Int32, expecting words: String) throws {
        child.signal(number)
        let line = try child.readLine()
        #expect(line.hasPrefix(words))
    }

    /// Sends a signal, and returns the exit status and what else it printed.
    func end(_ signal: Int32) throws -> (status: Int32, output: String) {
        child.signal(signal)
        return try end()
    }

    func end() throws -> (status: Int32, output: String) {
        let (status, output, errors) = try child.wait()
        #expect(errors.isEmpty, "\(errors)")
        return (status, output)
    }
}

private func expectEcho(of count: Int, on client: Int32, sourceLocation: SourceLocation = #_sourceLocation) throws {
    let sent = [UInt8](repeating: UInt8(count), count: count)
    var echo = [UInt8](repeating: 0, count: count)
    #expect(send(client, sent, count, 0) == count, sourceLocation: sourceLocation)
    #expect(recv(client, &echo, count, Int32(MSG_WAITALL)) == count && echo == sent, sourceLocation: sourceLocation)
}

// MARK: The clients

/// Runs a Python script; `connect()` there is a connection to the server, `exactly(s, n)` reads n bytes.
private func python(
    against server: EchoServer, with argument: String = "", _ script: String, sourceLocation: SourceLocation = #_sourceLocation
) throws {
    try require("python3")
    let (host, port) = try { () throws -> (String, Int) in
        let address = try SocketAddress(parsing: server.address)
        return (address.host ?? "", address.port ?? 0)
    }()
    let prelude = """
        import os, socket, sys, threading
        def connect():
            s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
            return s
        def exactly(s, n):
            data = b""
            while len(data) < n:
                block = s.recv(min(n - len(data), 1 << 18))
                if not block: break
                data += block
            return data

        """
    let (status, output, errors) = try Child("python3", ["-c", prelude + script, host, "\(port)", argument]).wait()
    #expect(status == 0, "\(output)\(errors)", sourceLocation: sourceLocation)
}

/// Sends a megabyte through socat and compares what it prints.
private func expectEchoToSocat(_ target: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
    try require("socat")
    let sent = pattern(1_000_000)
    let client = try Child("socat", ["-t", "20", "-", target], input: sent)
    let (status, output, errors) = try client.waitForBytes()
    #expect(status == 0, "\(String(decoding: errors, as: UTF8.self))", sourceLocation: sourceLocation)
    #expect(same(output, sent), "\(output.count) bytes came back", sourceLocation: sourceLocation)
}

func require(_ program: String) throws {
    let path = getenv("PATH").map { String(cString: $0) } ?? ""
    if path.split(separator: ":").contains(where: { access("\($0)/\(program)", X_OK) == 0 }) { return }
    throw TestError(text: "\(program) is not installed: apt-get install \(program) (Scripts/test does it)")
}

// MARK: Child processes

/// A program with pipes to its three standard descriptors; killed if nobody waited for its end.
final class Child {
    private var pid = pid_t()
    private var input: Int32
    private let output: Int32
    private let errors: Int32
    private let toSend: [UInt8]
    private var isReaped = false
    /// Output that was read and not yet handed out.
    private var buffered: [UInt8] = []
    private static var patience: Int32 { isSanitized ? 60_000 : 30_000 }

    init(_ program: String, _ arguments: [String], input bytes: [UInt8] = []) throws {
        var pipes = try (0..<2).map { _ in try makePipe() }
        // A socket, since writing to a pipe that nobody reads raises a signal.
        var pair: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | O_CLOEXEC, 0, &pair) == 0 else {
            throw TestError(text: "no sockets: error \(errno)")
        }
        pipes.insert(pair, at: 0)
        input = pipes[0][1]
        output = pipes[1][0]
        errors = pipes[2][0]
        toSend = bytes
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, pipes[0][0], 0)
        posix_spawn_file_actions_adddup2(&actions, pipes[1][1], 1)
        posix_spawn_file_actions_adddup2(&actions, pipes[2][1], 2)
        // Threads of the test library block all signals, and a child would inherit that.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
        var argv: [UnsafeMutablePointer<CChar>?] = ([program] + arguments).map { strdup($0) }
        argv.append(nil)
        defer { argv.forEach { free($0) } }
        let status = posix_spawnp(&pid, program, &actions, &attributes, argv, environ)
        for fd in [pipes[0][0], pipes[1][1], pipes[2][1]] { close(fd) }
        _ = fcntl(input, F_SETFL, O_NONBLOCK)
        guard status == 0 else {
            isReaped = true
            throw TestError(text: "\(program) could not be started: error \(status)")
        }
    }

    deinit {
        if !isReaped {
            kill(pid, SIGKILL)
            waitpid(pid, nil, 0)
        }
        for fd in [input, output, errors] where fd >= 0 { close(fd) }
    }

    func signal(_ number: Int32) { kill(pid, number) }

    /// The next line of its output.
    func readLine() throws -> String {
        while true {
            if let end = buffered.firstIndex(of: UInt8(ascii: "\n")) {
                let line = String(decoding: buffered[..<end], as: UTF8.self)
                buffered.removeFirst(end + 1)
                return line
            }
            var query = pollfd(fd: output, events: Int16(POLLIN), revents: 0)
            guard poll(&query, 1, Self.patience) > 0, let bytes = Self.read(output), !bytes.isEmpty else {
                // It may be alive, with nothing to read.
                _ = fcntl(errors, F_SETFL, O_NONBLOCK)
                throw TestError(text: "it said nothing; on standard error: \(String(decoding: Self.read(errors) ?? [], as: UTF8.self))")
            }
            buffered += bytes
        }
    }

    /// Waits until it has said something on standard error.
    func waitForErrors() throws {
        var query = pollfd(fd: errors, events: Int16(POLLIN), revents: 0)
        guard poll(&query, 1, Self.patience) > 0, query.revents & Int16(POLLIN) != 0 else { throw TestError(text: "it said nothing") }
    }

    /// Its exit status, or minus the signal that ended it, and what it printed.
    func wait() throws -> (status: Int32, output: String, errors: String) {
        let (status, output, errors) = try waitForBytes()
        return (status, String(decoding: output, as: UTF8.self), String(decoding: errors, as: UTF8.self))
    }

    func waitForBytes() throws -> (status: Int32, output: [UInt8], errors: [UInt8]) {
        var all = (output: buffered, errors: [UInt8]())
        var open = (output: true, errors: true)
        var sent = 0
        // What is written to a program that reads no more is lost, not fatal.
        while open.output || open.errors {
            if sent == toSend.count, input >= 0 {
                close(input)
                input = -1
            }
            var queries = [
                pollfd(fd: open.output ? output : -1, events: Int16(POLLIN), revents: 0),
                pollfd(fd: open.errors ? errors : -1, events: Int16(POLLIN), revents: 0),
                pollfd(fd: input, events: Int16(POLLOUT), revents: 0),
            ]
            guard poll(&queries, 3, Self.patience) > 0 else { throw TestError(text: "process \(pid) neither ended nor said anything") }
            if queries[0].revents != 0 {
                let bytes = Self.read(output) ?? []
                all.output += bytes
                open.output = !bytes.isEmpty
            }
            if queries[1].revents != 0 {
                let bytes = Self.read(errors) ?? []
                all.errors += bytes
                open.errors = !bytes.isEmpty
            }
            if queries[2].revents != 0 {
                let n = toSend[sent...].withUnsafeBytes { send(input, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
                sent = n > 0 ? sent + n : toSend.count
            }
        }
        var status: Int32 = 0
        waitpid(pid, &status, 0)
        isReaped = true
        return (status & 0x7f == 0 ? (status >> 8) & 0xff : -(status & 0x7f), all.output, all.errors)
    }

    private static func read(_ fd: Int32) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: 65_536)
        let n = Glibc.read(fd, &bytes, bytes.count)
        return n < 0 ? nil : Array(bytes[..<n])
    }
}
