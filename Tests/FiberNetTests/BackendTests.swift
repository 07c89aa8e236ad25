// SPDX-License-Identifier: Apache-2.0

// What every backend must do, and what is particular to those that perform requests: memory and descriptors belong to them until a request completes.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import TestBackends
import Testing

extension NetTests {
    struct BackendTests {
        /// A backend without a way to be woken would come to the signal when it looks again by itself: never, here.
        @Test(arguments: TestBackend.allCases)
        func sleepingWorker_isWoken_byAnotherThread(backend: TestBackend) throws {
            try inRuntime(backend.configure(.init(workers: 1))) {
                let (there, back) = (FiberEvent(), Box(0))
                let rounds = scaled(200, sanitized: 50)
                let thread = Thread {
                    for _ in 0..<rounds {
                        there.signal()
                        while Atomics.load(back) == 0 { sched_yield() }
                        Atomics.store(back, 0)
                    }
                }
                for _ in 0..<rounds {
                    try there.wait()
                    Atomics.store(back, 1)
                }
                thread.join()
            }
        }

        @Test(arguments: TestBackend.allCases)
        func echo_isTheSame_onEveryBackend(backend: TestBackend) throws {
            try inRuntime(backend.configure()) {
                let listener = try Listener.bind(to: .loopback(port: 0))
                let server = try Fiber.spawnLocal {
                    try listener.serve { stream in
                        while try stream.readAvailable({ try stream.writeAll($0) }) {}
                    }
                }
                let sent = pattern(300_000)
                try withFiberGroup { group in
                    for _ in 0..<20 {
                        try group.spawnLocal {
                            let client = try Connection.connect(to: listener.address)
                            let writer = try Fiber.spawnLocal {
                                try client.writeAll(sent)
                                try client.shutdown(.write)
                            }
                            expect(same(try client.readToEnd(), sent))
                            try writer.join()
                        }
                    }
                }
                listener.close()
                expect(try server.join().connections == 20)
            }
        }

        @Test(arguments: TestBackend.allCases)
        func waits_endAtTheirDeadline_andWhenTheyAreCancelled(backend: TestBackend) throws {
            try inRuntime(backend.configure()) {
                let (a, b) = try Connection.pair()
                expect(.timedOut) { _ = try withTimeout(.milliseconds(2)) { try a.read(upTo: 1) } }
                let reader = try Fiber.spawnLocal { failure { _ = try a.read(upTo: 1) } }
                letOthersRun()
                reader.cancel()
                expect(try reader.join()?.code == .cancelled)
                let closed = try Fiber.spawnLocal { failure { _ = try a.read(upTo: 1) } }
                letOthersRun()
                a.close()
                expect(try closed.join()?.code == .closed)
                expect(try b.read(upTo: 1).isEmpty)
            }
        }

        /// What arrives while a read gives up is had by the next one.
        @Test(arguments: TestBackend.allCases)
        func noByteIsLost_whenReadsGiveUpAgainAndAgain(backend: TestBackend) throws {
            try inRuntime(backend.configure()) {
                let (a, b) = try Connection.pair()
                let sent = pattern(scaled(200_000, sanitized: 20_000))
                let writer = try Fiber.spawnLocal {
                    for start in stride(from: 0, to: sent.count, by: 100) {
                        try b.writeAll(Array(sent[start..<min(start + 100, sent.count)]))
                        try Fiber.sleep(for: .microseconds(20))
                    }
                    b.close()
                }
                var received: [UInt8] = []
                while true {
                    do {
                        let bytes = try withTimeout(.microseconds(30)) { try a.read(upTo: 64) }
                        if bytes.isEmpty { break }
                        received += bytes
                    } catch is TimeoutError {}
                }
                try writer.join()
                expect(same(received, sent))
            }
        }

        // Backends that perform requests.

        /// The call waits for the completion before it returns, so nobody writes into the memory afterwards.
        @Test(arguments: [TestBackend.completing, .simulated])
        func memory_isLeftAlone_afterItsReadWasCancelled(backend: TestBackend) throws {
            try inRuntime(backend.configure()) {
                for _ in 0..<scaled(200, sanitized: 50) {
                    let (a, b) = try Connection.pair()
                    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 16)
                    defer { memory.deallocate() }
                    memory.initializeMemory(as: UInt8.self, repeating: 7)
                    let reader = try Fiber.spawnLocal { failure { _ = try a.read(into: memory) } }
                    letOthersRun()
                    reader.cancel()
                    expect(try reader.join()?.code == .cancelled)
                    try b.writeAll([UInt8](repeating: 1, count: 4096))
                    letOthersRun()
                    expect(memory.allSatisfy { $0 == 7 })
                    expect(try a.readExactly(4096) == [UInt8](repeating: 1, count: 4096))
                    a.close()
                    b.close()
                }
            }
        }

        /// Its number stays until the request on it has completed: nobody else's bytes go where it reads.
        @Test(arguments: [TestBackend.completing, .simulated])
        func closedStream_readsNobodyElsesBytes(backend: TestBackend) throws {
            try inRuntime(backend.configure()) {
                for _ in 0..<scaled(200, sanitized: 50) {
                    let (a, b) = try Connection.pair()
                    let reader = try Fiber.spawnLocal { failure { _ = try a.read(upTo: 100) } }
                    letOthersRun()
                    a.close()
                    let (c, d) = try Connection.pair()
                    try c.writeAll("c")
                    try d.writeAll("d")
                    expect(try reader.join()?.code == .closed)
                    expect(try c.read(upTo: 9) == Array("d".utf8))
                    expect(try d.read(upTo: 9) == Array("c".utf8))
                    for stream in [b, c, d] { stream.close() }
                }
            }
        }

        /// The peer of a connection that was accepted too late sees its end, so it was not lost.
        @Test(arguments: [TestBackend.completing, .simulated])
        func lateConnection_isClosed_whenItsListenerWasClosed(backend: TestBackend) throws {
            try inRuntime(backend.configure()) {
                for _ in 0..<scaled(100, sanitized: 30) {
                    let listener = try Listener.bind(to: .loopback(port: 0))
                    let server = try Fiber.spawnLocal { failure { _ = try listener.accept() } }
                    letOthersRun()
                    let client = try Connection.connect(to: listener.address)
                    // By the time the fiber runs it has a connection, or the backend has one that nobody wants.
                    listener.close()
                    if try server.join()?.code == .closed {
                        do { expect(try withTimeout(.seconds(10)) { try client.read(upTo: 1) }.isEmpty) } catch let error as IOError {
                            expect(error.code == .reset, "\(error)")
                        }
                    }
                    client.close()
                }
            }
        }

        /// At the end of a runtime fibers may be left behind whose requests have not completed; their stacks go after that.
        @Test(arguments: [TestBackend.completing, .simulated])
        func runtime_ends_whileRequestsOfFibersThatWereLeftBehindRun(backend: TestBackend) throws {
            let warnings = Box<[String]>([])
            var configuration = backend.configure(.init(workers: 1, shutdownLimit: .milliseconds(1)))
            configuration.onWarning = { warnings.value.append($0) }
            try toleratingLeaks {
                try inRuntime(configuration) {
                    let (a, b) = try Connection.pair()
                    let listener = try Listener.bind(to: .loopback(port: 0))
                    for _ in 0..<3 {
                        try Fiber.spawnLocal(name: "reader") { withCancellationShield { _ = try? a.read(upTo: 100) } }
                        try Fiber.spawnLocal(name: "accepter") { withCancellationShield { _ = try? listener.accept() } }
                    }
                    letOthersRun()
                    FiberRuntime.shutDown()
                    _ = b
                }
            }
            #expect(warnings.value.count == 1)
        }

        // The simulated world.

        @Test func hours_takeNoTime_inASimulatedWorld() throws {
            let begun = ContinuousClock.now
            let order = try inRuntime(TestBackend.simulated.configure()) {
                var order: [Int] = []
                let (a, b) = try Connection.pair()
                try withFiberGroup { group in
                    for hours in [3, 1, 2] {
                        try group.spawnLocal {
                            try Fiber.sleep(for: .seconds(3600 * hours))
                            order.append(hours)
                        }
                    }
                    try group.spawnLocal { expect(.timedOut) { _ = try withTimeout(.seconds(9000)) { try a.read(upTo: 1) } } }
                }
                b.close()
                return order
            }
            #expect(order == [1, 2, 3])
            #expect(begun.duration(to: .now) < .seconds(60))
        }

        /// Who runs next is made of the seed and of the steps that were taken, not of the time that they took.
        @Test func sameSeed_givesTheSameOrder_inASimulatedWorld() throws {
            func order(_ seed: UInt64) throws -> [Int] {
                var configuration = TestBackend.simulated.configure()
                configuration.randomSeed = seed
                return try inRuntime(configuration) {
                    var order: [Int] = []
                    let channels = (0..<4).map { _ in makeLocalChannel(of: Int.self, .unbounded) }
                    for _ in 0..<50 { for (i, channel) in channels.enumerated() { try channel.0.send(i) } }
                    for _ in 0..<200 {
                        try select {
                            channels[0].1.onReceive { order.append($0) }
                            channels[1].1.onReceive { order.append($0) }
                            channels[2].1.onReceive { order.append($0) }
                            channels[3].1.onReceive { order.append($0) }
                        }
                    }
                    return order
                }
            }
            let first = try order(1)
            #expect(try order(1) == first)
            #expect(try order(2) != first)
        }

        @Test func descriptorOfTheSystem_isRefused_inASimulatedWorld() throws {
            try inRuntime(TestBackend.simulated.configure()) {
                let pipe = try Pipe.make()
                expect(.unsupported) { _ = try pipe.reader.read(upTo: 1) }
            }
        }
    }
}

/// A number that a thread and a fiber hand to each other.
private enum Atomics {
    private static let lock = ThreadLock()
    static func load(_ box: Box<Int>) -> Int { lock.withLock { box.value } }
    static func store(_ box: Box<Int>, _ value: Int) { lock.withLock { box.value = value } }
}
