// SPDX-License-Identifier: Apache-2.0

// What holds for every call that may wait: a cancelled fiber's calls are refused without effect, also when they need not wait, and let others run.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

/// What a fiber knows to be over when it makes a call.
enum Known: Sendable, CaseIterable, CustomTestStringConvertible {
    case cancelled, group, deadline, outerDeadline

    var testDescription: String {
        switch self {
        case .cancelled: "its fiber is cancelled"
        case .group: "its group is cancelled"
        case .deadline: "the deadline around it has passed"
        case .outerDeadline: "a deadline further out has passed"
        }
    }

    /// Runs a body in a fiber that knows it.
    func run(_ body: @escaping () -> Void) throws {
        switch self {
        case .cancelled:
            try Fiber.spawnLocal {
                Fiber.current?.cancel()
                body()
            }.join()
        case .group:
            try withFiberGroup { group in
                try group.spawnLocal { body() }
                group.cancel()
            }
        case .deadline:
            try withTimeout(.zero) {
                expect(Fiber.isCancelled)
                body()
            }
        case .outerDeadline:
            try withTimeout(.zero) {
                expect(Fiber.isCancelled)
                try withTimeout(.seconds(1_000)) { body() }
            }
        }
    }
}

extension NetTests {
    struct CancelIOTests {
        @Test(arguments: Transport.all, Known.allCases)
        func everyCall_isRefused_withoutEffect_andLetsOthersRun(transport: Transport, known: Known) throws {
            try withNet(transport) { net in
                let sockets = try ReadySockets(net)
                var errors: [(String, Failure?)] = []
                var turns = 0
                var running = true
                defer { running = false }
                let other = try Fiber.spawnLocal {
                    while running {
                        turns += 1
                        Fiber.yield()
                    }
                }
                try known.run {
                    for (name, call) in sockets.calls {
                        let before = turns
                        errors.append((name, failure(call)))
                        expect(turns > before, "\(name): nobody else ran")
                    }
                }
                running = false
                try other.join()
                expect(errors.count > 15)
                for (name, error) in errors {
                    let isDirectlyInside = known == .deadline && !name.hasSuffix("with a timeout")
                    expect(error?.code == (isDirectlyInside ? .timedOut : .cancelled), "\(name): \(String(describing: error))")
                    expect(error?.timeout?.limit == (isDirectlyInside ? .zero : nil), "\(name): \(String(describing: error))")
                }
                try sockets.expectUntouched()
            }
        }

        @Test(arguments: Transport.all)
        func cancelledFibersThatIgnoreIt_starveNobody(transport: Transport) throws {
            try withNet(transport) { net in
                let sockets = try ReadySockets(net)
                let calls = sockets.calls
                var running = true
                var failures = 0
                let loops = try (0..<3).map { first in
                    try Fiber.spawnLocal {
                        var i = first
                        while running {
                            if failure(calls[i % calls.count].1) != nil { failures += 1 }
                            i += 1
                        }
                    }
                }
                for loop in loops { loop.cancel() }
                // A call is a turn: with every one of ours each of them makes one, sooner or later.
                Fiber.yield()
                var before = failures
                for _ in 0..<1_000 { Fiber.yield() }
                expect((2_500...3_100).contains(failures - before), "\(failures - before) calls in 1,000 turns")
                // Neighbours that need events, and timers.
                before = failures
                let neighbours = try (0..<5).map { _ in
                    let (a, b) = try net.pair()
                    try Fiber.spawnLocal { while try b.readAvailable({ try b.writeAll($0) }) {} }
                    return try Fiber.spawnLocal {
                        for _ in 0..<20 {
                            try a.writeAll("x")
                            expect(try a.read(upTo: 1).count == 1)
                            try Fiber.sleep(for: .microseconds(100))
                        }
                        a.close()
                    }
                }
                for neighbour in neighbours { try neighbour.join() }
                expect(failures > before)
                running = false
                for loop in loops { expect(thrown { try loop.join() } == nil) }
                try sockets.expectUntouched()
            }
        }

        @Test(arguments: Transport.all)
        func everyWaitingCall_isCancelled_whenMainThrows(transport: Transport) throws {
            var codes: [String: Failure.Code] = [:]
            var fibers = 0
            var endpoints: [Endpoint] = []
            let error = thrown {
                try inRuntime {
                    // Not closed by the test itself, so that it is the cancellation that ends the calls.
                    let net = Net(transport)
                    func wait(_ name: String, _ call: @escaping () throws -> Void) throws {
                        fibers += 1
                        try Fiber.spawnLocal { codes[name] = failure(call)?.code }
                    }
                    for way in ReadWay.allCases {
                        let (client, server) = try net.pair()
                        endpoints += [client, server]
                        try wait("read \(way)") { _ = try way.read(server) }
                        try wait("read \(way) in line") { _ = try way.read(server) }
                    }
                    for way in WriteWay.allCases {
                        let (client, server) = try net.narrowPair()
                        endpoints += [client, server]
                        try wait("write \(way)") { try way.write(letters(500_000), to: client) }
                        try wait("write \(way) in line") { try way.write(letters(500), to: client) }
                    }
                    let (client, server) = try net.pair()
                    endpoints += [client, server]
                    try wait("waitReadable") { try server.waitReadable() }
                    for i in 0..<2 { try wait("foreign waitReadable \(i)") { try server.withFileDescriptor { try waitReadable($0) } } }
                    let listener = try net.listener()
                    let (full, _) = try fullListener(net)
                    endpoints += [listener, full]
                    try wait("accept") { _ = try listener.accept() }
                    try wait("accept in line") { _ = try listener.accept() }
                    try wait("next") { _ = try listener.next() }
                    try wait("connect") { _ = try Connection.connect(to: full.address) }
                    letOthersRun()
                    expect(codes.isEmpty, "some did not wait: \(codes)")
                    throw TestError(text: "main")
                }
            }
            #expect(error as? TestError == TestError(text: "main"))
            #expect(codes.count == fibers && fibers > 20)
            #expect(codes.allSatisfy { $0.value == .cancelled }, "\(codes)")
            #expect(!endpoints.contains { $0.isOpen })
        }
    }
}

/// Sockets on which every call would succeed at once, and what they hold.
private final class ReadySockets {
    private let net: Net
    private let client: Connection
    private let server: Connection
    private let listener: Listener
    private let pending: Connection
    private let foreign: [Int32]

    init(_ net: Net) throws {
        self.net = net
        (client, server) = try net.pair()
        try client.writeAll("there")
        listener = try net.listener()
        pending = net.keep(try Connection.connect(to: listener.address))
        try pending.writeAll("pending")
        foreign = try makePipe(nonBlocking: true)
        expect(write(foreign[1], "x", 1) == 1)
        // So that nothing is on its way any more.
        try server.waitReadable()
        try listener.waitReadable()
    }

    deinit { foreign.forEach { close($0) } }

    var calls: [(String, () throws -> Void)] {
        let (client, server, listener, foreign) = (client, server, listener, foreign)
        var calls: [(String, () throws -> Void)] = []
        for way in ReadWay.allCases {
            calls.append(("read \(way)", { _ = try way.read(server) }))
            calls.append(("read \(way) with a timeout", { _ = try withTimeout(.seconds(1)) { try way.read(server) } }))
        }
        for way in WriteWay.allCases { calls.append(("write \(way)", { try way.write(letters(100), to: client) })) }
        calls.append(("write with a timeout", { try withTimeout(.seconds(1)) { try client.writeAll("x") } }))
        calls.append(("accept", { _ = try listener.accept() }))
        calls.append(("next", { _ = try listener.next() }))
        calls.append(("connect", { _ = try Connection.connect(to: listener.address) }))
        calls.append(("waitReadable", { try server.waitReadable() }))
        calls.append(("waitReadable of a listener", { try listener.waitReadable() }))
        calls.append(("waitWritable", { try client.waitWritable() }))
        calls.append(("foreign waitReadable", { try waitReadable(FileDescriptor(rawValue: foreign[0])) }))
        calls.append(("foreign waitWritable", { try waitWritable(FileDescriptor(rawValue: foreign[1])) }))
        return calls
    }

    /// Everything is as it was.
    func expectUntouched() throws {
        expect(try server.read(upTo: 100) == Array("there".utf8), "bytes were taken")
        let accepted: Connection = net.keep(try withTimeout(.seconds(5)) { try listener.accept() })
        expect(try accepted.readExactly(7) == Array("pending".utf8), "the connection was lost")
        expect(.timedOut) { _ = try withTimeout(.zero) { try listener.accept() } }
        client.close()
        expect(try server.readToEnd().isEmpty, "bytes were written")
    }
}
