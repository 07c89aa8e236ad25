// SPDX-License-Identifier: Apache-2.0

// The UDP echo server as a program of its own, and clients that know nothing of fibers: Python's sockets.

import CFiber
import FiberNet
import Glibc
import Testing

extension NetTests {
    struct EchoUDPTests {
        @Test(arguments: [nil, "::1"])
        func datagrams_comeBackAsTheyWere_toManyClients(host: String?) throws {
            if host != nil && !Transport.all.contains(.ipv6) { return }
            let server = try EchoUDPServer(host.map { ["--host", $0] } ?? [])
            try python(
                against: server,
                """
                # Little enough at a time that it fits into the server's buffer: what does not would be lost.
                import random
                clients = [client() for _ in range(50)]
                for round in range(20):
                    sizes = [random.Random(round * 50 + i).choice([0, 1, 7, 100, 300]) for i in range(50)]
                    for i, s in enumerate(clients): s.send(bytes([i]) * sizes[i])
                    for i, s in enumerate(clients): assert s.recv(65536) == bytes([i]) * sizes[i], (round, i)
                s = client()
                for size in (1472, 9000, 65507):
                    s.send(b"x" * size)
                    assert s.recv(65536) == b"x" * size, size
                """)
            let (status, output) = try server.end(SIGTERM)
            #expect(status == 0)
            #expect(output.contains("SIGTERM: ending") && output.contains("served 1003 datagrams, "), "\(output)")
        }

        @Test func server_goesOn_whenClientsAreGone() throws {
            let server = try EchoUDPServer()
            try python(
                against: server,
                """
                for _ in range(100):
                    s = client()
                    s.send(b"nobody waits for the answer")
                    s.close()
                s = client()
                s.send(b"still there")
                assert s.recv(100) == b"still there"
                """)
            let (status, output) = try server.end(SIGINT)
            #expect(status == 0)
            #expect(output.contains("served 101 datagrams, "), "\(output)")
        }

        // The command line.

        @Test(arguments: [["--frob"], ["--port"], ["--port", "65536"], ["--port", "x"], ["--host", "localhost"], ["extra"]])
        func wrongOption_isOneLineOnStandardError_andStatus2(arguments: [String]) throws {
            let (status, output, errors) = try Child(examplePath("EchoUDP"), arguments).wait()
            #expect(status == 2 && output.isEmpty)
            #expect(errors.hasPrefix("EchoUDP: ") && errors.split(separator: "\n").count == 1, "\(errors)")
        }

        @Test func usedPort_isOneLineOnStandardError_andStatus1() throws {
            let server = try EchoUDPServer()
            let port = server.address.split(separator: ":").last.map(String.init) ?? ""
            let (status, output, errors) = try Child(examplePath("EchoUDP"), ["--port", port]).wait()
            #expect(status == 1 && output.isEmpty)
            #expect(errors.split(separator: "\n").count == 1 && errors.contains("bind 127.0.0.1:\(port)"), "\(errors)")
        }

        @Test func help_isPrinted_withStatus0() throws {
            let (status, output, errors) = try Child(examplePath("EchoUDP"), ["--help"]).wait()
            #expect(status == 0 && output.contains("usage: EchoUDP") && errors.isEmpty)
        }
    }
}

/// The server on a port of its own, ended with the last reference.
private final class EchoUDPServer {
    private let child: Child
    /// What it says it listens on.
    let address: String

    init(_ arguments: [String] = []) throws {
        let path = examplePath("EchoUDP")
        guard access(path, X_OK) == 0 else { throw TestError(text: "\(path) was not built: swift build --build-tests") }
        child = try Child(path, ["--port", "0"] + arguments)
        let line = try child.readLine()
        guard line.hasPrefix("listening on ") else { throw TestError(text: "EchoUDP said: \(line)") }
        address = String(line.dropFirst("listening on ".count))
    }

    /// Sends a signal, and returns the exit status and what else it printed.
    func end(_ signal: Int32) throws -> (status: Int32, output: String) {
        child.signal(signal)
        let (status, output, errors) = try child.wait()
        #expect(errors.isEmpty, "\(errors)")
        return (status, output)
    }
}

/// Runs a Python script; `client()` there is a socket that is connected to the server.
private func python(against server: EchoUDPServer, _ script: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
    try require("python3")
    let address = try SocketAddress(parsing: server.address)
    let prelude = """
        import socket, sys
        def client():
            host, port = sys.argv[1], int(sys.argv[2])
            s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
            s.settimeout(20)
            s.connect((host, port))
            return s

        """
    let (status, output, errors) = try Child("python3", ["-c", prelude + script, address.host ?? "", "\(address.port ?? 0)"]).wait()
    #expect(status == 0, "\(output)\(errors)", sourceLocation: sourceLocation)
}
