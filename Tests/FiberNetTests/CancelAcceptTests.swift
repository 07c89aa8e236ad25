// SPDX-License-Identifier: Apache-2.0

// Accepting and connecting that is ended from outside: no descriptor leaks, no connection is lost.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

/// The two ways to accept.
private enum AcceptWay: CaseIterable {
    case accept, next

    func accept(_ listener: Listener) throws -> Connection {
        if self == .accept { return try listener.accept() }
        guard let stream = try listener.next() else { throw TestError(text: "next() returned nil, as if the listener had been closed") }
        return stream
    }
}

extension NetTests {
    struct CancelAcceptTests {
        // Accepting.

        @Test(arguments: Transport.all, Ending.allCases)
        func accept_takesNothing_whenItIsEnded(transport: Transport, ending: Ending) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                for way in AcceptWay.allCases {
                    try end(ending) { _ = try way.accept(listener) }
                    let client = net.keep(try Connection.connect(to: listener.address))
                    try client.writeAll("after")
                    let server = net.keep(try way.accept(listener))
                    expect(try server.readExactly(5) == Array("after".utf8))
                }
                expect(listener.isOpen)
            }
        }

        @Test(arguments: Transport.all, Ending.allCases)
        func acceptWaitingForItsTurn_leavesTheOthersInLine_whenItIsEnded(transport: Transport, ending: Ending) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                for way in AcceptWay.allCases {
                    let first = try Fiber.spawnLocal { net.keep(try way.accept(listener)) }
                    letOthersRun()
                    var third: FiberHandle<Connection>?
                    try end(
                        ending,
                        meanwhile: {
                            third = try Fiber.spawnLocal { net.keep(try way.accept(listener)) }
                            letOthersRun()
                        }
                    ) { _ = try way.accept(listener) }
                    expect(!first.fiber.isFinished && third?.fiber.isFinished == false)
                    for (i, acceptor) in [first, third!].enumerated() {
                        try net.keep(try Connection.connect(to: listener.address)).writeAll([UInt8(i)])
                        expect(try acceptor.join().readExactly(1) == [UInt8(i)])
                    }
                }
            }
        }

        @Test(arguments: Transport.all, Ending.allCases)
        func acceptorsBehindIt_haveTheirTurns_whenTheFirstIsEnded(transport: Transport, ending: Ending) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                for way in AcceptWay.allCases {
                    var others: [FiberHandle<Connection>] = []
                    try end(
                        ending,
                        meanwhile: {
                            for _ in 0..<3 { others.append(try Fiber.spawnLocal { net.keep(try way.accept(listener)) }) }
                            letOthersRun()
                        }
                    ) { _ = try way.accept(listener) }
                    for (i, acceptor) in others.enumerated() {
                        try net.keep(try Connection.connect(to: listener.address)).writeAll([UInt8(i)])
                        expect(try acceptor.join().readExactly(1) == [UInt8(i)])
                    }
                }
            }
        }

        @Test(arguments: Transport.all)
        func next_throwsCancellationError_andReturnsNil_onlyWhenItIsClosed(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                var ends: [String] = []
                let server = try Fiber.spawnLocal {
                    do {
                        while let stream = try listener.next() { _ = net.keep(stream) }
                        ends.append("nil")
                    } catch { ends.append("\(error)") }
                }
                letOthersRun()
                server.cancel()
                try server.join()
                expect(ends == ["CancellationError()"], "\(ends)")
                // Closed while its fiber is cancelled: then it has been closed.
                let late = try Fiber.spawnLocal {
                    Fiber.current?.cancel()
                    listener.close()
                    return try listener.next() == nil
                }
                expect(try late.join())
            }
        }

        #if compiler(>=6.2)
            @Test func acceptThatWaitsForDescriptors_isEnded_andTheConnectionIsNotLost() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var configuration = FiberRuntime.Configuration()
                        configuration.onWarning = { _ in }
                        for transport in Transport.all {
                            try withNet(transport, configuration) { net in
                                let listener = try net.listener()
                                for ending in Ending.allCases {
                                    for way in AcceptWay.allCases {
                                        let client = net.keep(try Connection.connect(to: listener.address))
                                        try client.writeAll("waited")
                                        let taken = takeAllDescriptors()
                                        try end(ending) { _ = try way.accept(listener) }
                                        // Behind another one that waits, too.
                                        let other = try Fiber.spawnLocal { net.keep(try way.accept(listener)) }
                                        letOthersRun()
                                        try end(ending) { _ = try way.accept(listener) }
                                        expect(!other.fiber.isFinished)
                                        taken.forEach { close($0) }
                                        expect(try other.join().readExactly(6) == Array("waited".utf8))
                                    }
                                }
                            }
                        }
                    }
                }
            }

            @Test func aMillionCancelledAccepts_leaveNoDescriptor_andLoseNoConnection() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let count = scaled(isDebugBuild ? 100_000 : 1_000_000, sanitized: 10_000)
                        for transport in Transport.all {
                            try withNet(transport, seconds: 120) { net in
                                let listener = try net.listener()
                                let before = openSockets
                                var (refused, accepted, later) = (0, 0, 0)
                                for i in 0..<count / Transport.all.count {
                                    if i % 256 == 0 {
                                        let error = thrown { try withTimeout(.nanoseconds(1)) { _ = try listener.accept() } }
                                        expect(error is TimeoutError)
                                    }
                                    // Caught right there: the test library notes where each error is thrown, and that takes longer than all the rest.
                                    let acceptor = try Fiber.spawnLocal { () -> Connection? in
                                        do { return try listener.accept() } catch {
                                            expect(error is CancellationError, "\(error)")
                                            return nil
                                        }
                                    }
                                    // Sometimes before it waits.
                                    if i % 4 != 0 { Fiber.yield() }
                                    let client = i % 500 < 4 ? try connectNow(to: listener.address, UInt8(i % 251)) : nil
                                    acceptor.cancel()
                                    if let stream = try acceptor.join() {
                                        // Only an event that came before the cancellation can have brought it.
                                        expect(client != nil)
                                        expect(try stream.readExactly(1) == [UInt8(i % 251)])
                                        accepted += 1
                                    } else {
                                        refused += 1
                                        if client != nil {
                                            expect(
                                                try withTimeout(.seconds(10)) { try listener.accept() }.readExactly(1) == [UInt8(i % 251)])
                                            later += 1
                                        }
                                    }
                                    if let client { close(client) }
                                    if i % 10_000 == 9_999 { expect(openSockets == before, "\(openSockets) and not \(before) after \(i)") }
                                }
                                expect(
                                    refused > count / Transport.all.count * 9 / 10 && later > 0, "\(refused) refused, \(accepted) accepted")
                                expect(openSockets == before, "\(openSockets) and not \(before)")
                                expect(.timedOut) { _ = try withTimeout(.zero) { try listener.accept() } }
                            }
                        }
                    }
                }
            }
        #endif

        // Connecting.

        @Test(arguments: Transport.all, Ending.allCases)
        func connect_throws_whenItIsEnded(transport: Transport, ending: Ending) throws {
            try withNet(transport) { net in
                let (listener, queued) = try fullListener(net)
                for _ in 0..<3 {
                    try end(ending) { _ = try Connection.connect(to: listener.address) }
                }
                // The listener is as it was: it has what is in its queue, and not one that was given up.
                for client in queued {
                    try client.writeAll("x")
                    expect(try net.keep(listener.accept()).readExactly(1) == Array("x".utf8))
                }
                expect(.timedOut) { _ = try withTimeout(.zero) { try listener.accept() } }
                let client = net.keep(try Connection.connect(to: listener.address))
                try client.writeAll("y")
                expect(try net.keep(listener.accept()).readExactly(1) == Array("y".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func otherConnects_goOn_whenOneIsCancelled(transport: Transport) throws {
            try withNet(transport) { net in
                let (listener, queued) = try fullListener(net)
                let connects = try (0..<3).map { _ in try Fiber.spawnLocal { net.keep(try Connection.connect(to: listener.address)) } }
                letOthersRun()
                connects[0].cancel()
                connects[2].cancel()
                for i in [0, 2] { expect(thrown { _ = try connects[i].join() } is CancellationError) }
                expect(!connects[1].fiber.isFinished)
                // A TCP client knocks again after a second.
                let acceptor = try Fiber.spawnLocal { try (0...queued.count).map { _ in net.keep(try listener.accept()) } }
                try connects[1].join().writeAll("x")
                expect(try acceptor.join().last?.readExactly(1) == Array("x".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func deadlineOfAConnect_andOneFurtherOut_areToldApart(transport: Transport) throws {
            try withNet(transport) { net in
                let (listener, _) = try fullListener(net)
                let own = thrown {
                    try withTimeout(.seconds(1_000)) {
                        _ = try withTimeout(.milliseconds(2)) { try Connection.connect(to: listener.address) }
                    }
                }
                expect((own as? TimeoutError)?.limit == .milliseconds(2), "\(String(describing: own))")
                var inner: Failure?
                let scope = thrown {
                    try withTimeout(.milliseconds(2)) {
                        inner = failure { _ = try withTimeout(.seconds(1_000)) { try Connection.connect(to: listener.address) } }
                        if let inner { throw inner.error }
                    }
                }
                expect((scope as? TimeoutError)?.limit == .milliseconds(2), "\(String(describing: scope))")
                expect(inner?.code == .cancelled, "\(String(describing: inner))")
            }
        }

        #if compiler(>=6.2)
            @Test func endedConnects_leaveNoDescriptor() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for transport in Transport.all {
                            try withNet(transport, seconds: 60) { net in
                                let (listener, _) = try fullListener(net)
                                let open = try net.listener()
                                let before = openSockets
                                for ending in Ending.allCases {
                                    for _ in 0..<5 {
                                        try end(ending, after: .milliseconds(1)) { _ = try Connection.connect(to: listener.address) }
                                    }
                                    expect(openSockets == before, "\(ending): \(openSockets) and not \(before)")
                                }
                                // Cancelled at the moment when it succeeds: a connection, or none.
                                for i in 0..<200 {
                                    let connect = try Fiber.spawnLocal { try Connection.connect(to: open.address) }
                                    for _ in 0..<i % 5 { Fiber.yield() }
                                    connect.cancel()
                                    let error = thrown { _ = try connect.join() }
                                    expect(error == nil || error is CancellationError, "\(String(describing: error))")
                                    while failure({ _ = try withTimeout(.milliseconds(1)) { try open.accept() } }) == nil {}
                                }
                                expect(openSockets == before, "\(openSockets) and not \(before)")
                            }
                        }
                    }
                }
            }
        #endif
    }
}

/// Connects without leaving the fiber, and sends a byte: a plain socket.
func connectNow(to address: SocketAddress, _ byte: UInt8) throws -> Int32 {
    let family: Int32 =
        switch address.family {
        case .unix: AF_UNIX
        case .ipv6: AF_INET6
        default: AF_INET
        }
    let fd = socket(family, Int32(SOCK_STREAM.rawValue) | O_CLOEXEC, 0)
    guard fd >= 0, address.withSockaddr({ connect(fd, $0, $1) }) == 0, send(fd, [byte], 1, Int32(MSG_NOSIGNAL)) == 1 else {
        throw TestError(text: "no connection to \(address): error \(errno)")
    }
    return fd
}
