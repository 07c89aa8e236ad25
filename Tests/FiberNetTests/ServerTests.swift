// SPDX-License-Identifier: Apache-2.0

// Serving on all workers.

import CFaults
import FiberNet
import Fibers
import Glibc
import Synchronization
import Testing

extension NetTests {
    @Suite struct ServerTests {
        final class Totals: Sendable {
            let served = Atomic<Int>(0)
            let workers = Atomic<UInt>(0)
        }

        /// Serves until `clients` returns, on so many workers.
        private func withServer(
            _ workers: Int, _ transport: Transport = .ipv4, most: Int? = nil, _ handler: @escaping @Sendable (Connection) throws -> Void,
            clients: (TCPServer) throws -> Void
        ) throws -> ServeReport {
            try inRuntime(.init(workers: workers)) {
                let server = try TCPServer.bind(to: try transport.freshAddress)
                return try withFiberGroup(of: ServeReport.self) { group in
                    try group.spawnLocal { try server.serve(maxConnections: most, draining: .seconds(60), handler) }
                    try clients(server)
                    server.close()
                    return try group.next()!
                }
            }
        }

        @Test(arguments: [1, 2, 4], Transport.all)
        func server_servesOnEveryWorker(workers: Int, transport: Transport) throws {
            let totals = Totals()
            var counts: [TCPServer.WorkerConnections] = []
            let report = try withServer(workers, transport) { stream in
                totals.workers.bitwiseOr(1 << UInt(FiberRuntime.currentWorker!), ordering: .relaxed)
                while try stream.readAvailable({ try stream.writeAll($0) }) {}
                totals.served.add(1, ordering: .relaxed)
            } clients: { server in
                let streams = try (0..<60).map { _ in try Connection.connect(to: server.address) }
                for (i, stream) in streams.enumerated() { try stream.writeAll([UInt8(i)]) }
                for (i, stream) in streams.enumerated() { expect(try stream.read(upTo: 2) == [UInt8(i)]) }
                counts = server.connections
                for stream in streams { stream.close() }
            }
            #expect(report.connections == 60 && report.cancelled == 0)
            #expect(totals.served.load(ordering: .relaxed) == 60)
            #expect(totals.workers.load(ordering: .relaxed) == (1 << UInt(workers)) - 1)
            #expect(counts.map(\.open).reduce(0, +) == 60 && counts.map(\.accepted).reduce(0, +) == 60)
        }

        @Test(arguments: [2, 4])
        func connections_areSpreadEvenly(workers: Int) throws {
            let count = 1_000
            var counts: [TCPServer.WorkerConnections] = []
            _ = try withServer(workers) { stream in
                while try stream.readAvailable({ try stream.writeAll($0) }) {}
            } clients: { server in
                let streams = try (0..<count).map { _ in
                    let stream = try Connection.connect(to: server.address)
                    try stream.writeAll("x")
                    return stream
                }
                for stream in streams { expect(try stream.read(upTo: 1).count == 1) }
                counts = server.connections
                for stream in streams { stream.close() }
            }
            let even = count / workers
            #expect(counts.allSatisfy { abs($0.open - even) <= even / 10 }, "\(counts)")
        }

        @Test(arguments: [2, 4])
        func limit_isKeptByAllWorkersTogether(workers: Int) throws {
            let (open, most) = (SharedCounter(), SharedCounter())
            let report = try withServer(workers, most: workers * 2) { stream in
                open.add()
                most.raise(to: open.value)
                while try stream.readAvailable({ try stream.writeAll($0) }) {}
                open.add(-1)
            } clients: { server in
                try withFiberGroup { group in
                    for _ in 0..<40 {
                        try group.spawnLocal {
                            let stream = try Connection.connect(to: server.address)
                            try stream.writeAll("x")
                            expect(try stream.read(upTo: 1).count == 1)
                            stream.close()
                        }
                    }
                }
            }
            #expect(report.connections == 40)
            #expect(most.value <= workers * 2)
        }

        @Test(arguments: [(2, 5), (4, 8), (4, 3), (4, 1)], [Transport.ipv4, .unix])
        func limit_isUsedUp_howeverConnectionsAreSpread(size: (workers: Int, limit: Int), transport: Transport) throws {
            let (open, most) = (SharedCounter(), SharedCounter())
            let rounds = 4
            let report = try withServer(size.workers, transport, most: size.limit) { stream in
                open.add()
                most.raise(to: open.value)
                while try stream.readAvailable({ try stream.writeAll($0) }) {}
                open.add(-1)
            } clients: { server in
                var answered: [Connection] = []
                try withFiberGroup { group in
                    for _ in 0..<rounds * size.limit {
                        try group.spawnLocal {
                            let stream = try Connection.connect(to: server.address)
                            try stream.writeAll("x")
                            expect(try stream.read(upTo: 1).count == 1)
                            answered.append(stream)
                        }
                    }
                    // They stay open until as many as may be are served, so more than the part of any worker.
                    for _ in 0..<rounds {
                        try waitUntil { answered.count == size.limit }
                        for stream in answered { stream.close() }
                        answered = []
                    }
                }
            }
            #expect(report.connections == rounds * size.limit)
            #expect(most.value == size.limit)
        }

        @Test(arguments: [false, true])
        func serve_ends_whileWorkersWaitForRoom(isCancelled: Bool) throws {
            var report: ServeReport?
            try inRuntime(.init(workers: 4)) {
                let server = try TCPServer.bind(to: .loopback(port: 0))
                let serving = try Fiber.spawnLocal {
                    try server.serve(maxConnections: 1, draining: .milliseconds(20)) { while try $0.readAvailable({ _ in }) {} }
                }
                // One is served; the others are in the queues of all workers.
                let clients = try (0..<40).map { _ in try Connection.connect(to: server.address) }
                try waitUntil { server.connections.map(\.accepted).reduce(0, +) == 1 }
                try Fiber.sleep(for: .milliseconds(5))
                if isCancelled {
                    serving.cancel()
                    expect(thrown { _ = try serving.join() } is CancellationError)
                } else {
                    server.close()
                    // The one that is served does not end by itself, and is cancelled; the others are reset.
                    report = try serving.join()
                    for client in clients { expect([nil, .reset].contains(failure { expect(try client.read(upTo: 1).isEmpty) }?.code)) }
                }
                for client in clients { client.close() }
            }
            #expect(isCancelled || report == ServeReport(connections: 1, finished: 0, cancelled: 1), "\(String(describing: report))")
        }

        /// Fibers of all workers take and give as they like, and some give up: if a slot or a wake-up were lost they would not end.
        @Test(arguments: [1, 3])
        func slots_areNeitherLostNorGivenTwice(count: Int) throws {
            let workers = 4
            let held = SharedCounter()
            try inRuntime(.init(workers: workers), seconds: 60) {
                let slots = ConnectionSlots(count, workers: workers)
                try withFiberGroup { group in
                    for worker in 0..<workers {
                        try group.spawn(on: worker) {
                            for round in 0..<scaled(3_000, sanitized: 500) {
                                let hasSlot: Bool
                                switch (round &+ worker) % 5 {
                                case 0:
                                    hasSlot = (try? withTimeout(.microseconds(20)) { try slots.take(worker) { true } }) == true
                                case 1:
                                    slots.lookAgain(worker)
                                    hasSlot = try slots.take(worker) { false }
                                default:
                                    hasSlot = try slots.take(worker) { true }
                                    expect(hasSlot)
                                }
                                guard hasSlot else { continue }
                                held.add()
                                expect(held.value <= count)
                                if round % 3 == 0 { Fiber.yield() }
                                held.add(-1)
                                slots.give()
                            }
                        }
                    }
                }
                // All are there again.
                for _ in 0..<count { expect(try slots.take(0) { false }) }
                expect(try !slots.take(0) { false })
            }
        }

        @Test(arguments: [1, 3])
        func openConnections_finishOrAreCancelled_whenTheServerIsClosed(workers: Int) throws {
            let heard = SharedCounter()
            let report = try FiberRuntime.run(.init(workers: workers)) {
                let server = try TCPServer.bind(to: .loopback(port: 0))
                return try withFiberGroup(of: ServeReport.self) { group in
                    try group.spawnLocal {
                        try server.serve(draining: .milliseconds(50), onError: { _ in heard.add() }) { stream in
                            while try stream.readAvailable({ try stream.writeAll($0) }) {}
                        }
                    }
                    let streams = try (0..<20).map { _ in
                        let stream = try Connection.connect(to: server.address)
                        try stream.writeAll("x")
                        expect(try stream.read(upTo: 1).count == 1)
                        return stream
                    }
                    server.close()
                    server.close()
                    for stream in streams.prefix(8) { stream.close() }
                    // The others are still served, until their time is over.
                    try streams[19].writeAll("y")
                    expect(try streams[19].read(upTo: 1).count == 1)
                    expect(failure { _ = try Connection.connect(to: server.address) }?.code == .refused)
                    let report = try group.next()!
                    // Until here, also where the optimiser would let go of them after their last use.
                    for stream in streams { stream.close() }
                    return report
                }
            }
            #expect(report == ServeReport(connections: 20, finished: 8, cancelled: 12))
            #expect(heard.value == 0)
        }

        @Test func handlersErrors_areReported_andEndTheirConnectionAlone() throws {
            let heard = SharedCounter()
            try FiberRuntime.run(.init(workers: 2)) {
                let server = try TCPServer.bind(to: .loopback(port: 0))
                try withFiberGroup { group in
                    try group.spawnLocal {
                        try server.serve(onError: { _ in heard.add() }) { stream in
                            if try stream.read(upTo: 1) == [0] { throw TestError(text: "zero") }
                            try stream.writeAll("ok")
                        }
                    }
                    for i in 0..<20 {
                        let stream = try Connection.connect(to: server.address)
                        try stream.writeAll([UInt8(i % 2)])
                        expect(try stream.read(upTo: 2).isEmpty == (i % 2 == 0))
                        stream.close()
                    }
                    server.close()
                }
            }
            #expect(heard.value == 10)
        }

        @Test func server_leavesNoSockets_howeverItEnds() throws {
            let before = openSockets
            try FiberRuntime.run(.init(workers: 3)) {
                do { _ = try TCPServer.bind(to: .loopback(port: 0)) }
                let unused = try TCPServer.bind(to: .loopback(port: 0))
                unused.close()
                expect(try unused.serve { _ in }.connections == 0)
                let server = try TCPServer.bind(to: .loopback(port: 0))
                let serving = try Fiber.spawnLocal { try server.serve { _ = try $0.read(upTo: 1) } }
                let clients = try (0..<20).map { _ in try Connection.connect(to: server.address) }
                letOthersRun()
                serving.cancel()
                do {
                    _ = try serving.join()
                    expect(false, "it was cancelled")
                } catch { expect(error is CancellationError) }
                for client in clients { client.close() }
            }
            #expect(openSockets == before)
        }

        @Test(arguments: Transport.all)
        func clients_areRefused_whenServingHasFailed_beforeAllWorkersBegan(transport: Transport) throws {
            try inRuntime(.init(workers: 3)) {
                let server = try TCPServer.bind(to: try transport.freshAddress)
                let waiting = try Connection.connect(to: server.address)
                let serving = try Fiber.spawnLocal { try server.serve { _ in } }
                serving.cancel()
                expect(thrown { _ = try serving.join() } is CancellationError)
                // Neither served nor left to wait.
                let error = failure { expect(try waiting.read(upTo: 1).isEmpty) }
                expect(error == nil || error?.code == .reset)
                expect(failure { _ = try Connection.connect(to: server.address) } != nil)
                expect(try server.serve { _ in } == ServeReport(connections: 0, finished: 0, cancelled: 0))
                // The address is free.
                try TCPServer.bind(to: server.address).close()
                waiting.close()
            }
        }

        /// The refused connections are given up though the fibers that have all the stacks there go on.
        @Test(.enabled(if: cfaults_available() != 0))
        func connectionsThatAreHandedOver_giveTheirSlotsBack_whenThereIsNoStackForThem() throws {
            let (refusals, isFull, mayEnd) = (SharedCounter(), FiberEvent(), FiberEvent())
            var configuration = FiberRuntime.Configuration(workers: 2)
            configuration.onUnhandledError = { if $0.error is ResourceError { refusals.add() } }
            let watchdog = Watchdog(seconds: 30, "\(#function)")
            defer { watchdog.stop() }
            try FiberRuntime.run(configuration) {
                // Connections of a Unix socket are accepted by whoever is there, so not only by the worker that has no stacks.
                let server = try TCPServer.bind(to: try Transport.unix.freshAddress)
                let serving = try Fiber.spawnLocal {
                    try server.serve(maxConnections: 20, draining: .zero) { while try $0.readAvailable({ _ in }) {} }
                }
                // Both listen.
                while server.connections.contains(where: { $0.accepted == 0 }) {
                    try Connection.connect(to: server.address).close()
                    Fiber.yield()
                }
                try waitUntil { server.connections.allSatisfy { $0.open == 0 } }
                let hoarder = try Fiber.spawn(on: 1) {
                    cfaults_arm(CFAULTS_MMAP, 1, ENOMEM, 1)
                    var hoard: [FiberHandle<Void>] = []
                    while let fiber = try? Fiber.spawnLocal({ try Fiber.sleep(for: .seconds(1_000)) }) { hoard.append(fiber) }
                    isFull.signal()
                    try mayEnd.wait()
                    for fiber in hoard { fiber.cancel() }
                    for fiber in hoard { _ = try? fiber.join() }
                    cfaults_disarm()
                }
                try isFull.wait()
                let before = server.connections[0].handedOver
                var clients: [Connection] = []
                // More than there are slots, which come back with each refusal.
                try withTimeout(.seconds(20)) {
                    while server.connections[0].handedOver < before + 40 {
                        clients.append(try Connection.connect(to: server.address))
                        try Fiber.sleep(for: .microseconds(100))
                    }
                }
                try waitUntil { server.connections[1].open == 0 }
                expect(server.connections[0].open <= 20)
                mayEnd.signal()
                try hoarder.join()
                // To tell of them takes a fiber.
                try waitUntil { refusals.value >= 40 }
                server.close()
                _ = try serving.join()
                for client in clients { client.close() }
            }
        }

        @Test func secondServer_isRefused_atTheSameAddress() throws {
            try FiberRuntime.run(.init(workers: 2)) {
                let server = try TCPServer.bind(to: .loopback(port: 0))
                expect(failure { _ = try TCPServer.bind(to: server.address) }?.code == .addressInUse)
                expect(failure { _ = try Listener.bind(to: server.address) }?.code == .addressInUse)
                server.close()
                try TCPServer.bind(to: server.address).close()
            }
        }

        #if compiler(>=6.2)
            @Test func bind_leavesNothing_whenThereAreTooFewDescriptors() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 8)) {
                            let before = openSockets
                            var limit = rlimit()
                            getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                            let usual = limit.rlim_cur
                            for address in [SocketAddress.loopback(port: 0), try .unix(path: freshPath())] {
                                // Enough for the first of the eight listeners.
                                let next = dup(0)
                                close(next)
                                limit.rlim_cur = rlim_t(next + 3)
                                setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                                let error = failure { _ = try TCPServer.bind(to: address) }
                                limit.rlim_cur = usual
                                setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                                #expect(error?.code == .resources && error?.description.contains("ulimit -n") == true)
                                #expect(openSockets == before)
                                try TCPServer.bind(to: address).close()
                            }
                        }
                    }
                }
            }
        #endif
    }
}
