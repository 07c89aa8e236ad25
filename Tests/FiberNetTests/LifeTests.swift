// SPDX-License-Identifier: Apache-2.0

// Sockets and the life of the runtime: nothing leaks, nothing outlives its welcome.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

#if compiler(>=6.2)
    extension NetTests {
        struct LifeTests {
            // What must survive.

            @Test func fiveHundredRuntimes_leaveNoDescriptor() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        func round(_ transport: Transport) throws {
                            try withNet(transport) { net in
                                let (client, server) = try net.pair()
                                let echo = try Fiber.spawnLocal { while try server.readAvailable({ try server.writeAll($0) }) {} }
                                try client.writeAll("x")
                                expect(try client.read(upTo: 1).count == 1)
                                try client.shutdown(.write)
                                try echo.join()
                                // Neither is closed by hand here.
                                _ = try Connection.pair()
                                _ = try Signals.of(.user1)
                            }
                        }
                        for transport in Transport.all { try round(transport) }
                        let before = openSockets
                        let count = scaled(500, sanitized: 60)
                        for i in 0..<count { try round(Transport.all[i % Transport.all.count]) }
                        expect(openSockets == before)
                    }
                }
            }

            @Test func stream_isHarmless_whenItOutlivesItsRuntime() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let before = openSockets
                        try {
                            var escaped: [Endpoint] = []
                            var peer: Int32 = -1
                            try inRuntime {
                                let (a, b) = try Connection.pair()
                                peer = try b.withFileDescriptor { dup($0.rawValue) }
                                b.close()
                                escaped = [a, try Listener.bind(to: .loopback(port: 0)), try Connection.pair().0]
                            }
                            // Closed with it, so that the peer sees the end.
                            var byte: UInt8 = 0
                            let n = recv(peer, &byte, 1, 0)
                            expect(n == 0, "the peer read \(n)")
                            close(peer)
                            expect(openSockets == before, "\(openSockets) and not \(before)")
                            expect(!escaped.contains { $0.isOpen }, "one is open")
                            expect(.closed) { try escaped[0].waitReadable() }
                            escaped[1].close()
                            // Also while another runtime runs on the thread.
                            try inRuntime {
                                let (c, d) = try Connection.pair()
                                escaped[2].close()
                                try c.writeAll("x")
                                expect(try d.read(upTo: 1).count == 1)
                            }
                            escaped = []
                        }()
                        expect(openSockets == before)
                    }
                }
            }

            @Test func stream_stopsTheProgram_whenAnotherRuntimesFiberUsesIt() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try inRuntime {
                            let pair = Box(try Connection.pair())
                            Thread {
                                try? FiberRuntime.run { _ = try pair.value.0.read(upTo: 1) }
                            }.join()
                        }
                    }
                }
                expectMessage(
                    result,
                    "which belongs to worker 0 of the runtime that made it: use a socket, and let go of it, in fibers of its own worker")
            }

            @Test func errorsOfFibers_leaveNoDescriptor() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        // What an error unwinds is closed.
                        let before = openSockets
                        try inRuntime {
                            let handle = try Fiber.spawnLocal {
                                let (a, b) = try Connection.pair()
                                b.close()
                                let listener = try Listener.bind(to: .loopback(port: 0))
                                try a.writeAll("x")
                                _ = listener
                            }
                            expect(failure { try handle.join() }?.code == .reset)
                        }
                        expect(openSockets == before)
                    }
                }
            }

            @Test func stream_canBeUsed_inADeinit() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        // What must survive.
                        try inRuntime {
                            let (a, b) = try Connection.pair()
                            do { _ = Farewell(a) }
                            expect(try b.readExactly(8) == Array("farewell".utf8))
                        }
                    }
                }
            }

            // What must survive.

            @Test func descriptorZero_worksAsASocket() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for transport in Transport.all {
                            for who in 0..<3 {
                                try withNet(transport) { net in
                                    let listener = who == 0 ? try zero { try net.listener() } : try net.listener()
                                    let client =
                                        try who == 1
                                        ? zero { net.keep(try Connection.connect(to: listener.address)) }
                                        : net.keep(Connection.connect(to: listener.address))
                                    let server = who == 2 ? try zero { net.keep(try listener.accept()) } : net.keep(try listener.accept())
                                    expect(try [listener.fd, client.fd, server.fd].contains(0))
                                    let reader = try Fiber.spawnLocal { try server.read(upTo: 10) }
                                    letOthersRun()
                                    try client.writeAll("zero")
                                    expect(try reader.join() == Array("zero".utf8))
                                    server.close()
                                    expect(try client.readToEnd().isEmpty)
                                }
                            }
                        }
                    }
                }
            }

            @Test func descriptorZero_worksForTheRuntimeItself() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        close(0)
                        try withNet(.ipv4) { net in
                            let (client, server) = try net.pair()
                            let reader = try Fiber.spawnLocal { try server.read(upTo: 10) }
                            letOthersRun()
                            try client.writeAll("zero")
                            expect(try reader.join() == Array("zero".utf8))
                        }
                    }
                }
            }
        }
    }

    /// Runs a body that opens a descriptor while 0 is the lowest free one.
    private func zero<E: Endpoint>(_ body: () throws -> E) throws -> E {
        close(0)
        let endpoint = try body()
        expect(try endpoint.withFileDescriptor { $0.rawValue } == 0)
        return endpoint
    }

    private final class Farewell {
        private let stream: Connection
        init(_ stream: Connection) { self.stream = stream }
        deinit { try? stream.writeAll("farewell") }
    }
#endif

// MARK: Allocation

extension NetTests {
    @Suite(
        .enabled(
            if: cfaults_available() != 0 && !isDebugBuild, "sanitizers interpose malloc themselves, and unoptimised code boxes closures"))
    struct AllocationTests {
        @Test(arguments: Transport.all)
        func aHundredThousandEchoes_allocateNothing(transport: Transport) throws {
            let rounds = 100_000
            var allocations = -1
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                try Fiber.spawnLocal { while try server.readAvailable({ try server.writeAll($0) }) {} }
                let message = [UInt8](repeating: 1, count: 100)
                let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1_000, alignment: 1)
                defer { buffer.deallocate() }
                func echo(_ count: Int) throws {
                    for _ in 0..<count {
                        try client.writeAll(message)
                        guard try client.read(into: buffer) == 100 else { throw TestError(text: "a short echo") }
                    }
                }
                try makeTwoBuffers()
                try echo(100)
                cfaults_allocations_begin()
                try echo(rounds)
                allocations = Int(cfaults_allocations_end())
                try client.shutdown(.write)
            }
            #expect(allocations == 0)
        }

        @Test func callsWithinATimeout_allocateNothing() throws {
            var allocations = -1
            try inRuntime {
                let (a, b) = try Connection.pair()
                try Fiber.spawnLocal {
                    func answer(_ bytes: RawSpan) throws { try withTimeout(.seconds(60)) { try b.writeAll(bytes) } }
                    while try withTimeout(.seconds(60), { try b.readAvailable(answer) }) {}
                }
                let message = [UInt8](repeating: 1, count: 100)
                func echo(_ count: Int) throws {
                    for _ in 0..<count {
                        try withTimeout(.seconds(60)) { try a.writeAll(message) }
                        guard try withTimeout(.seconds(60), { try a.readAvailable({ _ in }) }) else { throw TestError(text: "the end") }
                    }
                }
                try makeTwoBuffers()
                try echo(100)
                cfaults_allocations_begin()
                try echo(10_000)
                allocations = Int(cfaults_allocations_end())
                a.close()
            }
            #expect(allocations == 0)
        }
    }
}
