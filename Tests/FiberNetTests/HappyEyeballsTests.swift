// SPDX-License-Identifier: Apache-2.0

// Connecting to a host that has several addresses: which is tried when, which wins, what is left of the others, and what the caller hears when none answers.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct HappyEyeballsTests {
        // MARK: Order

        @Test func families_takeTurns_beginningWithTheFirst() throws {
            let v4 = (1...4).map { address("192.0.2.\($0)", 80) }
            let v6 = (1...4).map { address("2001:db8::\($0)", 80) }
            let cases: [([SocketAddress], [SocketAddress])] = [
                ([v4[0]], [v4[0]]),
                ([v6[0], v6[1], v4[0], v4[1]], [v6[0], v4[0], v6[1], v4[1]]),
                ([v4[0], v4[1], v4[2], v6[0]], [v4[0], v6[0], v4[1], v4[2]]),
                ([v6[0], v4[0], v4[1], v4[2]], [v6[0], v4[0], v4[1], v4[2]]),
                ([v6[0], v4[0], v6[1], v6[2], v6[3]], [v6[0], v4[0], v6[1], v6[2], v6[3]]),
                ([v4[2], v4[0], v4[1]], [v4[2], v4[0], v4[1]]),
            ]
            for (given, expected) in cases { #expect(interleaved(given) == expected, "\(given)") }
        }

        @Test func firstAddress_isTaken_andNoOtherIsTried_whenItAnswers() throws {
            try withNet(.ipv4) { net in
                let listeners = try listeners(net, on: ["127.0.0.2", "127.0.0.3"])
                let resolver = knowing(["127.0.0.2", "127.0.0.3"])
                for _ in 0..<20 {
                    let stream = net.keep(try Connection.connect(host: "example.org", port: listeners[0].address.port!, resolver: resolver))
                    expect(try stream.peerAddress() == listeners[0].address)
                    _ = net.keep(try listeners[0].accept())
                }
                expect(.timedOut) { try withTimeout(.zero) { try listeners[1].waitReadable() } }
            }
        }

        @Test func addresses_areTriedInTurn_andTheErrorNamesThemAll_whenAllRefuse() throws {
            try withNet(.ipv4) { net in
                let port = try closedPort(net)
                let hosts = ["127.0.0.2", "127.0.0.3", "::1", "127.0.0.4"]
                let error = connectFailure {
                    _ = try withTimeout(.seconds(1_000)) {
                        try Connection.connect(host: "Example.org", port: port, resolver: knowing(hosts), attemptDelay: .seconds(1_000))
                    }
                }
                let order = ["127.0.0.2", "::1", "127.0.0.3", "127.0.0.4"].map { address($0, port) }
                expect(error?.attempts.map(\.address) == order, "\(String(describing: error))")
                expect(error?.host == "Example.org" && error?.port == port)
                for attempt in error?.attempts ?? [] {
                    expect(attempt.error.subject == attempt.address.description, "\(attempt)")
                    // Some containers have no ::1.
                    if attempt.address.family == .ipv4 { expect(attempt.error.code == .refused, "\(attempt)") }
                    expect(error!.description.contains(attempt.address.description), "\(error!)")
                }
                expect(error?.code == .refused)
            }
        }

        @Test func next_isTriedAtOnce_whenOneRefuses() throws {
            try withNet(.ipv4) { net in
                // Nobody listens at the first two.
                let listener = try listeners(net, on: ["127.0.0.4"])[0]
                let stream = try Connection.connect(
                    host: "example.org", port: listener.address.port!, resolver: knowing(["127.0.0.2", "127.0.0.3", "127.0.0.4"]),
                    attemptDelay: .seconds(1_000))
                expect(try net.keep(stream).peerAddress() == listener.address)
            }
        }

        @Test func silentAddress_isOvertaken_afterTheDelay() throws {
            try withNet(.ipv4) { net in
                let listeners = try listeners(net, on: ["127.0.0.2", "127.0.0.3"], silent: 1)
                let clock = ContinuousClock()
                let start = clock.now
                let stream = try Connection.connect(
                    host: "example.org", port: listeners[0].address.port!, resolver: knowing(["127.0.0.2", "127.0.0.3"]),
                    attemptDelay: .milliseconds(30))
                expect(clock.now - start >= .milliseconds(30))
                expect(try net.keep(stream).peerAddress() == listeners[1].address)
            }
        }

        @Test func delay_isTenMilliseconds_whenLessIsAskedFor() throws {
            try withNet(.ipv4) { net in
                let listeners = try listeners(net, on: ["127.0.0.2", "127.0.0.3"], silent: 1)
                for delay in [Duration.zero, .seconds(-1), .milliseconds(9)] {
                    let clock = ContinuousClock()
                    let start = clock.now
                    let stream = try Connection.connect(
                        host: "example.org", port: listeners[0].address.port!, resolver: knowing(["127.0.0.2", "127.0.0.3"]),
                        attemptDelay: delay)
                    expect(clock.now - start >= .milliseconds(10), "\(delay)")
                    expect(try net.keep(stream).peerAddress() == listeners[1].address)
                }
            }
        }

        @Test func silentAddress_wins_whenItAnswersInTheEndAndOthersRefuse() throws {
            try withNet(.ipv4) { net in
                let listeners = try listeners(net, on: ["127.0.0.2"], silent: 1)
                let resolver = knowing(["127.0.0.2", "127.0.0.3", "127.0.0.4"], warm: true)
                let connecting = try Fiber.spawnLocal {
                    try Connection.connect(
                        host: "example.org", port: listeners[0].address.port!,
                        resolver: resolver, attemptDelay: .milliseconds(10))
                }
                letOthersRun()
                expect(!connecting.fiber.isFinished)
                // Room in its queue lets the kernel's next try through, a second later.
                while !connecting.fiber.isFinished {
                    if let stream = try? withTimeout(.milliseconds(10), { try listeners[0].accept() }) { _ = net.keep(stream) }
                }
                expect(try net.keep(connecting.join()).peerAddress() == listeners[0].address)
            }
        }

        // MARK: Ways in

        @Test(arguments: Transport.tcp)
        func numericHost_isConnectedTo_withoutTheResolver(transport: Transport) throws {
            let service = NameService()
            let resolver = service.resolver()
            try withNet(transport) { net in
                let listener = try net.listener()
                let host = listener.address.host!
                for host in transport == .ipv6 ? [host, "[\(host)]"] : [host] {
                    let stream = net.keep(try Connection.connect(host: host, port: listener.address.port!, resolver: resolver))
                    try stream.writeAll("hello")
                    expect(try net.keep(listener.accept()).readExactly(5) == Array("hello".utf8))
                }
            }
            #expect(service.hosts == [])
        }

        @Test func localhost_isConnectedTo_byTheRuntimesResolver() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                // Where ::1 comes first, nobody listens there.
                let stream: Connection = net.keep(
                    try withTimeout(.seconds(10)) { try Connection.connect(host: "localhost", port: listener.address.port!) })
                expect(try stream.peerAddress() == listener.address)
                expect(Resolver.default.statistics.entries == 1)
            }
        }

        @Test func oneAddress_thatRefuses_isReportedLikeSeveral() throws {
            try withNet(.ipv4) { net in
                let port = try closedPort(net)
                let error = connectFailure { _ = try Connection.connect(host: "127.0.0.1", port: port) }
                expect(error?.code == .refused && error?.attempts.count == 1, "\(String(describing: error))")
                expect(error?.attempts.first?.error.errno == .connectionRefused)
            }
        }

        @Test func errorsOfTheLookUp_passThrough() throws {
            let service = NameService()
            service.know("shaky", .failure(status: EAI_AGAIN))
            let resolver = service.resolver()
            try inRuntime {
                expectNoAddresses(.notFound) { _ = try Connection.connect(host: "nobody", port: 80, resolver: resolver) }
                expectNoAddresses(.temporary) { _ = try Connection.connect(host: "shaky", port: 80, resolver: resolver) }
                expectNoAddresses(.invalid) { _ = try Connection.connect(host: "", port: 80, resolver: resolver) }
                expectNoAddresses(.invalid) { _ = try Connection.connect(host: "127.0.0.1", port: 65_536, resolver: resolver) }
            }
        }

        // MARK: Ends

        @Test func timeout_endsTheLookUp() throws {
            let service = NameService()
            let gate = service.hold("dead")
            let resolver = service.resolver(.init(timeout: .seconds(1_000)))
            try inRuntime {
                defer { gate.open() }
                let clock = ContinuousClock()
                let start = clock.now
                let error = thrown {
                    _ = try withTimeout(.milliseconds(10)) { try Connection.connect(host: "dead", port: 80, resolver: resolver) }
                }
                expect(clock.now - start >= .milliseconds(10))
                expect((error as? TimeoutError)?.limit == .milliseconds(10), "\(String(describing: error))")
            }
        }

        @Test(arguments: [1, 2, 3])
        func timeout_endsTheAttempts(count: Int) throws {
            try withNet(.ipv4) { net in
                let hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
                let listeners = try listeners(net, on: hosts, silent: 3)
                let addresses = listeners.map(\.address)
                let clock = ContinuousClock()
                let start = clock.now
                let error = thrown {
                    _ = try withTimeout(.milliseconds(60)) {
                        try Connection.connect(
                            host: "example.org", port: addresses[0].port!,
                            resolver: knowing(Array(hosts[..<count]), warm: true),
                            attemptDelay: .milliseconds(10))
                    }
                }
                expect(clock.now - start >= .milliseconds(60))
                expect((error as? TimeoutError)?.limit == .milliseconds(60), "\(String(describing: error))")
            }
        }

        @Test(arguments: [1, 3])
        func call_isEndedBySomebodyElse_withTheRightErrors(count: Int) throws {
            try withNet(.ipv4) { net in
                let hosts = Array(["127.0.0.2", "127.0.0.3", "127.0.0.4"][..<count])
                let addresses = try listeners(net, on: hosts, silent: count).map(\.address)
                let resolver = knowing(hosts, warm: true)
                var errors: [any Error] = []
                func connect() throws {
                    do {
                        let stream = try Connection.connect(
                            host: "example.org", port: addresses[0].port!, resolver: resolver, attemptDelay: .milliseconds(10))
                        _ = net.keep(stream)
                    } catch {
                        errors.append(error)
                        throw error
                    }
                }
                func expectLast(_ code: Failure.Code, _ timeout: Duration?) {
                    let failure = errors.last.map { Failure(error: $0) }
                    expect(failure?.code == code && failure?.timeout?.limit == timeout, "\(errors)")
                }
                let limit = Duration.milliseconds(60)
                // The scope directly around it, and one further out.
                let own = thrown { try withTimeout(limit) { try connect() } } as? TimeoutError
                expect(own?.limit == limit && own?.operation.hasPrefix("connect") == true, "\(String(describing: own))")
                expectLast(.timedOut, limit)
                let outer = thrown { try withTimeout(limit) { try withTimeout(.seconds(1_000)) { try connect() } } } as? TimeoutError
                expect(outer?.limit == limit)
                expectLast(.cancelled, nil)
                // Its fiber, and its group.
                let fiber = try Fiber.spawnLocal { try connect() }
                letOthersRun()
                fiber.cancel()
                expect(thrown { try fiber.join() } is CancellationError)
                expectLast(.cancelled, nil)
                try withFiberGroup { group in
                    try group.spawnLocal { try connect() }
                    letOthersRun()
                    group.cancel()
                }
                expectLast(.cancelled, nil)
                expect(errors.count == 4)
                // Before it begins.
                let late = try Fiber.spawnLocal { try connect() }
                late.cancel()
                expect(thrown { try late.join() } is CancellationError)
                expectLast(.cancelled, nil)
            }
        }

        // MARK: What is left

        #if compiler(>=6.2)
            @Test func races_leaveNoDescriptor_whoeverWins() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withNet(.ipv4, seconds: 120) { net in
                            let listeners = try listeners(net, on: ["127.0.0.2", "127.0.0.3"])
                            let addresses = listeners.map(\.address)
                            try listeners.forEach(holdConnections)
                            let before = openSockets
                            for round in 0..<scaled(3_000, sanitized: 300) {
                                // No delay: both are under way at once, and mostly answer in the same look at the kernel.
                                let stream = try Connection.connect(
                                    host: "example.org", port: 1, to: round % 2 == 0 ? addresses : addresses.reversed(),
                                    attemptDelay: .zero)
                                stream.reset()
                            }
                            try waitUntil { openSockets <= before }
                            expect(openSockets == before)
                        }
                    }
                }
            }

            @Test(arguments: seeds)
            func cancelledRaces_leaveNoDescriptor_wheneverTheyAreCancelled(seed: UInt64) async {
                await #expect(processExitsWith: .success) { [seed] in
                    reportingErrors {
                        print("seed \(seed)")
                        try withNet(.ipv4, seconds: 120) { net in
                            let listeners = try listeners(net, on: ["127.0.0.2", "127.0.0.3", "127.0.0.4"], silent: 1)
                            let closed = address("127.0.0.9", listeners[0].address.port!)
                            try listeners.dropFirst().forEach(holdConnections)
                            var random = SeededGenerator(seed: seed)
                            let before = openSockets
                            var connected = 0
                            var cancelled = 0
                            for _ in 0..<scaled(2_000, sanitized: 200) {
                                let addresses = (listeners.map(\.address) + [closed]).shuffled(using: &random)
                                let caller = try Fiber.spawnLocal {
                                    do {
                                        let stream = try Connection.connect(
                                            host: "example.org", port: 1, to: addresses, attemptDelay: .zero)
                                        connected += 1
                                        stream.close()
                                    } catch {
                                        expect(error is CancellationError, "\(error)")
                                        throw error
                                    }
                                }
                                // Some backends connect on a thread of their own, which takes its time.
                                let turns = Int.random(in: 0..<(1 << Int.random(in: 1...12, using: &random)), using: &random)
                                for _ in 0..<turns where !caller.fiber.isFinished { Fiber.yield() }
                                caller.cancel()
                                if thrown({ try caller.join() }) is CancellationError { cancelled += 1 }
                            }
                            expect(connected > 0 && cancelled > 0, "\(connected) were connected, \(cancelled) cancelled")
                            try waitUntil { openSockets <= before }
                            expect(openSockets == before)
                        }
                    }
                }
            }

            @Test func failures_leaveNoDescriptor() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withNet(.ipv4, seconds: 120) { net in
                            let hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
                            let port = try listeners(net, on: hosts, silent: 3)[0].address.port!
                            let closed = try closedPort(net)
                            let resolver = knowing(hosts, warm: true)
                            let before = openSockets
                            for _ in 0..<20 {
                                let silent = failure {
                                    _ = try withTimeout(.milliseconds(15)) {
                                        try Connection.connect(
                                            host: "example.org", port: port, resolver: resolver,
                                            attemptDelay: .milliseconds(10))
                                    }
                                }
                                expect(silent?.code == .timedOut)
                                let refused = connectFailure {
                                    _ = try Connection.connect(host: "example.org", port: closed, resolver: resolver)
                                }
                                expect(refused?.code == .refused && refused?.attempts.count == 3)
                            }
                            expect(openSockets == before)
                        }
                    }
                }
            }

            @Test func connect_throwsResources_whenDescriptorsAreShortForAHostByName() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withNet(.ipv4) { net in
                            let listeners = try listeners(net, on: ["127.0.0.2", "127.0.0.3"])
                            let port = listeners[0].address.port!
                            let resolver = knowing(["127.0.0.2", "127.0.0.3"], warm: true)
                            let taken = takeAllDescriptors()
                            let error = connectFailure { _ = try Connection.connect(host: "example.org", port: port, resolver: resolver) }
                            expect(error?.code == .resources && error?.attempts.count == 2, "\(String(describing: error))")
                            expect(error?.description.contains("ulimit -n") == true, "\(String(describing: error))")
                            expectNoAddresses(.resources) { _ = try Connection.connect(host: "localhost", port: port) }
                            taken.forEach { close($0) }
                            _ = net.keep(try Connection.connect(host: "example.org", port: port, resolver: resolver))
                        }
                    }
                }
            }
        #endif
    }
}

/// The `ConnectError` that a call throws, nil when it throws none or another kind of error.
private func connectFailure(_ body: () throws -> Void) -> ConnectError? { thrown(body) as? ConnectError }

/// A resolver that knows the addresses of "example.org"; a warm one remembers them already.
private func knowing(_ hosts: [String], warm: Bool = false) -> Resolver {
    let service = NameService()
    service.know("example.org", .addresses(hosts.map { address($0, 0) }))
    let resolver = service.resolver()
    if warm { _ = try? resolver.resolve("example.org", port: 0) }
    return resolver
}

/// Listeners on several addresses and one port. The first few are silent: their queues are full.
private func listeners(_ net: Net, on hosts: [String], silent: Int = 0) throws -> [Listener] {
    for _ in 0..<50 {
        let first = net.keep(try Listener.bind(to: address(hosts[0], 0), backlog: silent > 0 ? 0 : 128))
        do {
            let others = try hosts.indices.dropFirst().map { i in
                net.keep(try Listener.bind(to: address(hosts[i], first.address.port!), backlog: i < silent ? 0 : 128))
            }
            let all = [first] + others
            for listener in all.prefix(silent) { try fill(listener, net) }
            return all
        } catch let error as IOError where error.code == .addressInUse { first.close() }
    }
    throw TestError(text: "no port is free on \(hosts)")
}

/// Connects until the kernel answers no more.
private func fill(_ listener: Listener, _ net: Net) throws {
    for _ in 0..<20 {
        let error = failure { _ = net.keep(try withTimeout(.milliseconds(20)) { try Connection.connect(to: listener.address) }) }
        if error?.code == .timedOut { return }
        if let error { throw error.error }
    }
    throw TestError(text: "a listener with a backlog of 0 took 20 connections")
}

/// Accepts connections, and closes each once its client has.
private func holdConnections(_ listener: Listener) throws {
    try Fiber.spawnLocal {
        while let stream = try listener.next() {
            try Fiber.spawnLocal {
                _ = try? stream.read(upTo: 1)
                stream.reset()
            }
        }
    }
}

/// A port at which nobody listens on any address.
private func closedPort(_ net: Net) throws -> Int {
    let listener = try Listener.bind(to: .any(port: 0))
    defer { listener.close() }
    return listener.address.port!
}
