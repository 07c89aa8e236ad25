// SPDX-License-Identifier: Apache-2.0

// What "Structured fibers" shows.

import CFiber
import FiberNet
import Fibers
import Glibc
import Synchronization
import Testing

private let logged = Mutex<[String]>([])

private func log(_ line: String) { logged.withLock { $0.append(line) } }

extension NetTests {
    struct StructuredFibersGuide {
        @Test func group_returns_whenAllItsChildrenHaveEnded() throws {
            try inRuntime {
                // snippet.show
                var arrived: [String] = []
                try withFiberGroup { group in
                    for name in ["Ada", "Grace", "Edsger"] {
                        try group.spawnLocal(name: name) {
                            try Fiber.sleep(for: .milliseconds(5))
                            arrived.append(name)
                        }
                    }
                }
                // arrived has all three
                // snippet.hide
                expect(arrived.sorted() == ["Ada", "Edsger", "Grace"])
            }
        }

        @Test func firstError_cancelsTheOthers() throws {
            try inRuntime {
                var notes: [String] = []
                // snippet.show
                struct DiskFull: Error {}

                do {
                    try withFiberGroup { group in
                        try group.spawnLocal(name: "upload") {
                            defer { notes.append("the upload ends") }
                            try Fiber.sleep(for: .seconds(3600))
                        }
                        try group.spawnLocal(name: "journal") { throw DiskFull() }
                    }
                } catch is DiskFull {
                    notes.append("the disk is full")
                }
                // the upload ends, the disk is full
                // snippet.hide
                expect(notes == ["the upload ends", "the disk is full"])
            }
        }

        @Test func group_throwsAllErrors_whenThereAreSeveral() throws {
            try inRuntime {
                var errors: [String] = []
                // snippet.show
                struct DiskFull: Error {}
                struct CannotUndo: Error {}

                do {
                    try withFiberGroup { group in
                        try group.spawnLocal(name: "journal") { throw DiskFull() }
                        try group.spawnLocal(name: "upload") {
                            do { try Fiber.sleep(for: .seconds(3600)) } catch { throw CannotUndo() }
                        }
                    }
                } catch let error as FiberGroupError {
                    errors = ([error.first] + error.others).map { "\($0)" }
                }
                // DiskFull(), CannotUndo()
                // snippet.hide
                expect(errors == ["DiskFull()", "CannotUndo()"])
            }
        }

        @Test func results_comeInTheOrderInWhichTheChildrenEnd() throws {
            try inRuntime {
                // snippet.show
                let order = try withFiberGroup(of: Int.self) { group in
                    for steps in [30, 10, 20] {
                        try group.spawnLocal {
                            for _ in 0..<steps { Fiber.yield() }
                            return steps
                        }
                    }
                    var order: [Int] = []
                    while let steps = try group.next() { order.append(steps) }
                    return order
                }
                // 10, 20, 30
                // snippet.hide
                expect(order == [10, 20, 30])
            }
        }

        @Test func limit_isKept() throws {
            try inRuntime {
                // snippet.show
                var running = 0
                var most = 0
                try withFiberGroup(limit: 4) { group in
                    for _ in 0..<20 {
                        try group.spawnLocal {  // waits while four are running
                            running += 1
                            most = max(most, running)
                            try Fiber.sleep(for: .milliseconds(1))
                            running -= 1
                        }
                    }
                }
                // most is 4
                // snippet.hide
                expect(most == 4 && running == 0)
            }
        }

        @Test func child_waitsForEver_whenItSpawnsIntoItsOwnFullGroup() throws {
            try inRuntime {
                var outcome = ""
                // snippet.show
                do {
                    try withTimeout(.milliseconds(20)) {
                        try withFiberGroup(limit: 1) { group in
                            try group.spawnLocal {
                                try group.spawnLocal {}  // waits for the end of the one that spawns it
                            }
                            try group.waitForAll()
                        }
                    }
                } catch let error as TimeoutError {
                    outcome = "\(error)"
                }
                // timed out after 0.02 seconds (the fibers of a group)
                // snippet.hide
                expect(outcome == "timed out after 0.02 seconds (the fibers of a group)", outcome)
            }
        }

        @Test func daemon_ends_whenTheChildrenHaveEnded() throws {
            try inRuntime {
                // snippet.show
                var beats = 0
                try withFiberGroup { group in
                    try group.spawnDaemon(name: "statistics") {
                        let ticker = Ticker(every: .milliseconds(1))
                        while true {
                            _ = try ticker.next()
                            beats += 1
                        }
                    }
                    try group.spawnLocal { try Fiber.sleep(for: .milliseconds(20)) }
                }
                // the child has slept, and the daemon was cancelled
                // snippet.hide
                let end = beats
                expect(end > 0)
                try Fiber.sleep(for: .milliseconds(5))
                expect(beats == end)
            }
        }

        @Test func pool_sharesItsJobs() throws {
            try inRuntime {
                // snippet.show
                func forEach<Job>(of jobs: [Job], workers: Int, _ work: @escaping (Job) throws -> Void) throws {
                    var rest = jobs.makeIterator()
                    try withFiberGroup { group in
                        for number in 1...workers {
                            try group.spawnLocal(name: "worker \(number)") {
                                while let job = rest.next() { try work(job) }
                            }
                        }
                    }
                }
                // snippet.hide
                // snippet.show
                var done: [Int: String?] = [:]
                try forEach(of: Array(1...20), workers: 4) { number in
                    try Fiber.sleep(for: .milliseconds(1))
                    done[number] = Fiber.current?.name
                }
                // done has twenty numbers, and the names of four workers
                // snippet.hide
                expect(done.keys.sorted() == Array(1...20))
                expect(Set(done.values) == ["worker 1", "worker 2", "worker 3", "worker 4"], "\(done)")
            }
        }

        @Test func race_isWonByTheFirst() throws {
            try inRuntime {
                // snippet.show
                func connect(toFirstOf addresses: [SocketAddress], every delay: Duration = .milliseconds(250)) throws -> Connection? {
                    try withFiberGroup(of: Connection?.self) { group in
                        for (turn, address) in addresses.enumerated() {
                            try group.spawnLocal(name: "\(address)") {
                                try Fiber.sleep(for: delay * turn)
                                return try? Connection.connect(to: address)
                            }
                        }
                        while let attempt = try group.next() {
                            if let stream = attempt {
                                group.cancel()  // the others are not wanted any more
                                return stream
                            }
                        }
                        return nil
                    }
                }
                // snippet.hide
                let listener = try Listener.bind(to: .loopback(port: 0))
                let deaf = try Listener.bind(to: .loopback(port: 0))
                let silent = deaf.address
                deaf.close()
                // The first refuses; the third would be tried in an hour.
                let stream = try connect(toFirstOf: [silent, listener.address], every: .milliseconds(5))
                expect(try stream?.peerAddress() == listener.address)
                let quick = try connect(toFirstOf: [listener.address, silent, listener.address], every: .seconds(3600))
                expect(try quick?.peerAddress() == listener.address)
                expect(try connect(toFirstOf: [silent, silent], every: .milliseconds(1)) == nil)
                do {
                    _ = try withTimeout(.milliseconds(20)) { try connect(toFirstOf: [silent, silent], every: .seconds(3600)) }
                    expect(false, "it returned")
                } catch { expect(error is TimeoutError, "\(error)") }
            }
        }

        @Test func detachedFiber_outlivesTheScopeThatSpawnedIt() throws {
            try inRuntime {
                // snippet.show
                var isDone = false
                let detached = try withTimeout(.milliseconds(5)) {
                    try Fiber.spawnLocal(name: "audit") {
                        try Fiber.sleep(for: .milliseconds(20))
                        isDone = true
                    }
                }
                try detached.join()
                // isDone is true
                // snippet.hide
                expect(isDone)
            }
        }

        @Test func fiberLocal_isInherited() throws {
            try inRuntime {
                // snippet.show
                enum Request {
                    static let id = FiberLocal("-")
                }

                let ids = try Request.id.withValue("r42") {
                    let child = try Fiber.spawnLocal { Request.id.value }
                    return [Request.id.value, try child.join()]
                }
                // r42, r42; and Request.id.value is "-" again
                // snippet.hide
                expect(ids == ["r42", "r42"])
                expect(Request.id.value == "-")
            }
        }

        @Test func runtime_ends_whenItIsShutDown() throws {
            let watchdog = Watchdog(seconds: 30, #function)
            defer { watchdog.stop() }
            // snippet.show
            var flushes = 0
            let result = try FiberRuntime.run {
                try Fiber.spawnLocal(name: "cache") {
                    defer { flushes += 1 }
                    while true { try Fiber.sleep(for: .seconds(60)) }
                }
                FiberRuntime.shutDown(within: .seconds(5))
                return "main has ended"
            }
            // and so has the cache, which would have gone on for ever
            // snippet.hide
            #expect(result == "main has ended")
            #expect(flushes == 1)
        }

        @Test func idleConnections_endAtOnce_whenTheirServerStops() throws {
            // snippet.show
            func serve(_ listener: Listener, until stop: FiberEvent, _ answer: (Connection) throws -> Bool) throws -> ServeReport {
                var idle: [ObjectIdentifier: Connection] = [:]
                return try withFiberGroup { group in
                    try group.spawnDaemon(name: "stop") {
                        try stop.wait()
                        listener.close()
                        for stream in idle.values { try? stream.shutdown(.read) }
                    }
                    return try listener.serve(draining: .seconds(30)) { stream in
                        let id = ObjectIdentifier(stream)
                        defer { idle[id] = nil }
                        repeat {
                            idle[id] = stream
                            try stream.waitReadable()  // for a request, or the end
                            idle[id] = nil
                        } while try answer(stream) && listener.isOpen
                    }
                }
            }
            // snippet.hide
            try inRuntime(seconds: 20) {
                let listener = try Listener.bind(to: .loopback(port: 0))
                let stop = FiberEvent()
                let serving = try Fiber.spawnLocal {
                    try serve(listener, until: stop) { stream in
                        let request = try stream.read(upTo: 100)
                        try stream.writeAll(request)
                        return !request.isEmpty
                    }
                }
                let clients = try (0..<3).map { _ in try Connection.connect(to: listener.address) }
                for client in clients {
                    try client.writeAll("request")
                    expect(try client.readExactly(7).count == 7)
                }
                letOthersRun()
                stop.signal()
                for client in clients { expect(try client.readToEnd().isEmpty) }
                let report = try serving.join()
                expect(report.connections == 3 && report.finished == 3 && report.cancelled == 0, "\(report)")
            }
        }

        #if compiler(>=6.2)
            // In a process of its own: what a signal does belongs to the whole process.
            @Test func server_drainsAtTheFirstSignal_andEndsAtTheSecond() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        // snippet.show
                        func serve(_ listener: Listener, _ session: (Connection) throws -> Void) throws -> ServeReport {
                            let signals = try Signals.of(.interrupt, .terminate)
                            return try withFiberGroup { group in
                                try group.spawnDaemon(name: "signals") {
                                    _ = try signals.next()
                                    listener.close()  // no new connections: `serve` drains
                                    _ = try signals.next()
                                    group.cancel()  // enough: the connections are cancelled, and so is `serve`
                                }
                                return try listener.serve(draining: .seconds(30), session)
                            }
                        }
                        // snippet.hide
                        var all = sigset_t()
                        sigfillset(&all)
                        pthread_sigmask(SIG_UNBLOCK, &all, nil)
                        for count in 1...2 {
                            try inRuntime {
                                let listener = try Listener.bind(to: .loopback(port: 0))
                                var ended = 0
                                let serving = try Fiber.spawnLocal {
                                    try serve(listener) { stream in
                                        defer { ended += 1 }
                                        while try stream.readAvailable({ try stream.writeAll($0) }) {}
                                    }
                                }
                                let client = try Connection.connect(to: listener.address)
                                try client.writeAll("x")
                                expect(try client.read(upTo: 1).count == 1)
                                for _ in 0..<count {
                                    raise(SIGTERM)
                                    try waitUntil { !listener.isOpen }
                                    letOthersRun()
                                }
                                if count == 1 {
                                    // A connection that was open goes on.
                                    try client.writeAll("y")
                                    expect(try client.read(upTo: 1).count == 1)
                                    try client.shutdown(.write)
                                    let report = try serving.join()
                                    expect(
                                        report == (try serving.join()) && report.connections == 1 && report.finished == 1
                                            && report.cancelled == 0)
                                } else {
                                    do {
                                        _ = try serving.join()
                                        expect(false, "it returned")
                                    } catch { expect(error is CancellationError, "\(error)") }
                                    expect(try client.readToEnd().isEmpty)
                                }
                                expect(ended == 1)
                            }
                        }
                    }
                }
            }
        #endif
    }
}
