// SPDX-License-Identifier: Apache-2.0

// Fibers that others cancel at random moments, whatever they wait for: before they run, twice, after they have ended, or by themselves. Each cleans up, and what
// it did not get others get.

import FiberNet
import Fibers
import Glibc
import SystemPackage

extension Account {
    static let cleanups = Account("fibers that may be cancelled", "spawned", "cleaned up")
    static let bytesFed = Account("bytes to fibers that may be cancelled", "written", "read")
    static let bytesCutShort = Account("bytes of fibers that may be cancelled", "reported as written", "read")
    static let clients = Account("clients of acceptors that are cancelled", "connected", "served")
}

extension Kind {
    static let cancelling = Kind("cancelling", weight: 14, descriptors: 12, accounts: [.cleanups, .bytesFed, .bytesCutShort]) { job in
        let scene = try job.scene()
        let victims = try (0..<job.random(1...6)).map { _ in try Victim(of: job, in: scene) }
        // Some have not run yet.
        for victim in victims where job.chance(8) { victim.cancel() }
        for _ in 0..<job.random(0...8) {
            try job.pause()
            victims[job.random(0...victims.count - 1)].cancel()
        }
        job.step("wait for those who were cancelled")
        for victim in victims {
            victim.cancel()
            if job.chance(3) {
                // Dropped without a join: nobody may hear of the error.
                while !victim.handle.fiber.isFinished { try Fiber.sleep(for: .microseconds(500)) }
                continue
            }
            do { try victim.handle.join() } catch is CancellationError { Count.expectedErrors += 1 }
            // There is nobody any more.
            victim.cancel()
        }
        job.step("look at what those who were cancelled have left")
        try scene.finish()
    }

    /// Clients of a listener whose acceptors are cancelled all the time. Who was not accepted by the one is accepted by the next.
    static let accepting = Kind("accepting", weight: 6, descriptors: 13, accounts: [.clients]) { job in
        let listener = try job.listen(on: job.chance(2) ? .loopback(port: 0) : try job.freshName())
        let clients = try (0..<job.random(1...6)).map { number in
            try job.spawn { client in
                try client.pause()
                client.step("connect to acceptors that are cancelled")
                let stream = try client.connect(to: listener.address)
                Account.clients.left += 1
                try client.pause()
                client.step("wait to be accepted by somebody")
                try stream.writeAll([UInt8(number)])
                try Violation.unless(try stream.read(upTo: 2) == [UInt8(number)], "who was connected was not served")
                client.hangUp(stream)
            }
        }
        func accept(_ acceptor: Job) throws {
            while true {
                let limit: Duration? = acceptor.chance(4) ? .milliseconds(1) : nil
                let stream: Connection = try acceptor.opened { try withTimeout(limit) { try listener.accept() } }
                // Accepted is accepted, even if the fiber is cancelled by now.
                try withCancellationShield {
                    try stream.writeAll(try stream.read(upTo: 1))
                    Account.clients.right += 1
                    acceptor.close(stream)
                }
            }
        }
        var acceptors: [FiberHandle<Void>] = []
        func dismiss(_ acceptor: FiberHandle<Void>) throws {
            acceptor.cancel()
            if job.chance(8) { acceptor.cancel() }
            do { try acceptor.join() } catch is CancellationError {
                Count.expectedErrors += 1
            } catch is TimeoutError {
                Count.expectedErrors += 1
            }
        }
        while !clients.allSatisfy(\.fiber.isFinished) {
            acceptors.append(try job.spawn { try accept($0) })
            try job.pause()
            if job.chance(4) { try Fiber.sleep(for: .microseconds(job.random(0...2000))) }
            job.step("wait for an acceptor that was cancelled")
            if acceptors.count == 3 || job.chance(2) { try dismiss(acceptors.remove(at: job.random(0...acceptors.count - 1))) }
        }
        for acceptor in acceptors { try dismiss(acceptor) }
        for client in clients { try client.join() }
        job.close(listener)
    }
}

/// A fiber that waits for this and that until somebody cancels it.
private final class Victim {
    private(set) var handle: FiberHandle<Void>!
    private var isCancelled = false

    init(of job: Job, in scene: Scene) throws {
        Account.cleanups.left += 1
        handle = try job.spawn { fiber in
            defer { self.cleanUp(fiber) }
            try self.live(fiber, scene)
        }
    }

    func cancel() {
        isCancelled = true
        handle.cancel()
    }

    private func live(_ fiber: Job, _ scene: Scene) throws {
        func wait() throws { try scene.waits[fiber.random(0...scene.waits.count - 1)](fiber) }
        do {
            for _ in 0..<fiber.random(1...8) {
                if fiber.chance(20) { for _ in 0..<fiber.random(1...2) { cancel() } }
                let wasCancelled = Fiber.isCancelled
                try Violation.unless(wasCancelled == isCancelled, "a fiber that was\(isCancelled ? "" : " not") cancelled says otherwise")
                try wait()
                try Violation.unless(!wasCancelled, "a wait went well that a cancelled fiber had begun")
            }
        } catch let error as CancellationError {
            try Violation.unless(isCancelled, "a wait was cancelled, and the fiber was not: \(error)")
            Count.expectedErrors += 1
            // It may ignore it, and finds that nothing waits for it any more.
            for _ in 0..<fiber.random(0...2) {
                do {
                    try wait()
                    throw Violation("a wait went well in a cancelled fiber")
                } catch is CancellationError {}
            }
            // Nor has it to do with a fiber that it spawns, unless in a group.
            let child = try fiber.spawn { child in
                try child.pause()
                return Fiber.isCancelled
            }
            let isInherited = try withCancellationShield { try child.join() }
            try Violation.unless(!isInherited, "a fiber has inherited the cancellation of the one that spawned it")
            if !fiber.chance(8) { throw error }
        }
    }

    /// What has to be done in any case, in peace.
    private func cleanUp(_ fiber: Job) {
        withCancellationShield {
            do {
                try Violation.unless(!Fiber.isCancelled, "a fiber is cancelled within a shield")
                try fiber.pause()
                if fiber.chance(2) { try Fiber.sleep(for: .microseconds(fiber.random(0...1000))) }
                let child = try fiber.spawn { $0.random(0...9) }
                _ = try child.join()
                // Its own deadline counts in there.
                do {
                    try withTimeout(.zero) { try Fiber.sleep(for: .seconds(3600)) }
                    throw Violation("a deadline within a shield did not come")
                } catch is TimeoutError {}
            } catch {
                Failures.record("job \(fiber.serial): a fiber that was cancelled could not clean up: \(error)")
            }
        }
        if Fiber.isCancelled != isCancelled { Failures.record("job \(fiber.serial): a shield has changed whether its fiber is cancelled") }
        Account.cleanups.right += 1
    }
}

/// What the victims of a job wait for. Each wait throws in a cancelled fiber, and has then done nothing that it does not tell of.
private struct Scene {
    var waits: [(Job) throws -> Void]
    /// When nobody waits any more: looks whether anything is missing, and closes what was opened.
    var finish: () throws -> Void
}

extension Job {
    fileprivate func scene() throws -> Scene {
        switch random(0...4) {
        case 0: try reading()
        case 1: try writing()
        case 2: try listening()
        case 3: try foreign()
        default: try idling()
        }
    }

    /// A stream that is fed slowly, so that its readers wait for bytes or for their turn.
    private func reading() throws -> Scene {
        let (a, b) = try pair()
        var isOver = false
        // Not only how many bytes there are, but which.
        var sum = 0
        func take(_ bytes: UnsafeRawBufferPointer) -> Int {
            sum += bytes.reduce(0) { $0 + Int($1) }
            Account.bytesFed.right += bytes.count
            return bytes.count
        }
        func read(_ fiber: Job) throws -> Int {
            switch fiber.random(0...2) {
            case 0: return try a.read(upTo: fiber.size(upTo: 4000)).withUnsafeBytes(take)
            case 1:
                var memory = [UInt8](repeating: 0, count: fiber.size(upTo: 4000))
                return try memory.withUnsafeMutableBytes { take(UnsafeRawBufferPointer(rebasing: $0[..<(try a.read(into: $0))])) }
            default:
                var count = 0
                _ = try a.readAvailable { data in count = data.withUnsafeBytes(take) }
                return count
            }
        }
        let feeder = try spawn { feeder in
            var sum = 0
            while !isOver {
                let bytes = Pattern.bytes(feeder.random(0...UInt64.max), at: 0, count: feeder.size(upTo: 5000))
                try b.writeAll(bytes)
                sum += bytes.reduce(0) { $0 + Int($1) }
                Account.bytesFed.left += bytes.count
                try Fiber.sleep(for: .microseconds(feeder.random(0...2000)))
            }
            try b.shutdown(.write)
            return sum
        }
        return Scene(
            waits: [
                { fiber in
                    fiber.step("read until cancelled")
                    _ = try read(fiber)
                },
                { fiber in
                    fiber.step("read within a scope until cancelled")
                    try withTimeout(.seconds(3600)) { _ = try read(fiber) }
                },
                { fiber in
                    fiber.step("wait for bytes until cancelled")
                    try a.waitReadable()
                },
            ],
            finish: {
                isOver = true
                while try read(self) > 0 {}
                try Violation.unless(try feeder.join() == sum, "other bytes were read than were written, by fibers that were cancelled")
                self.close(a, b)
            })
    }

    /// A stream with little room that is read slowly, so that its writers wait for room or for their turn.
    private func writing() throws -> Scene {
        let (a, b) = try pair()
        try a.setOption(.sendBufferSize, to: 8192)
        let reader = try spawn { reader in
            while try b.readAvailable({ Account.bytesCutShort.right += $0.byteCount }) {
                try Fiber.sleep(for: .microseconds(reader.random(0...3000)))
            }
        }
        func write(_ fiber: Job) throws {
            let bytes = [UInt8](repeating: 7, count: fiber.size(upTo: 60_000))
            var written = 0
            defer { Account.bytesCutShort.left += written }
            switch fiber.random(0...2) {
            case 0: try a.writeAll(bytes, written: &written)
            case 1: try a.writeAll(pieces: [bytes, []], written: &written)
            default: try a.writeAll(bytes.span.bytes.extracting(..<1), bytes.span.bytes.extracting(1...), written: &written)
            }
        }
        return Scene(
            waits: [
                { fiber in
                    fiber.step("write until cancelled")
                    try write(fiber)
                },
                { fiber in
                    fiber.step("wait for room until cancelled")
                    try a.waitWritable()
                },
            ],
            finish: {
                try a.shutdown(.write)
                try reader.join()
                self.close(a, b)
            })
    }

    /// Listeners to which nobody comes, or has come already.
    private func listening() throws -> Scene {
        let listener = try listen(on: .loopback(port: 0))
        let full = try listen(on: try freshName(), backlog: 0)
        let first = try opened { try Connection.connect(to: full.address) }
        return Scene(
            waits: [
                { fiber in
                    fiber.step("accept until cancelled")
                    _ = try listener.accept()
                },
                { fiber in
                    fiber.step("wait for a client until cancelled")
                    try listener.waitReadable()
                },
                { fiber in
                    fiber.step("connect without success until cancelled")
                    try fiber.patiently { _ = try Connection.connect(to: full.address) }
                },
                { fiber in
                    fiber.step("connect until cancelled")
                    let addresses = fiber.round.crew.addresses.value
                    fiber.hangUp(try fiber.connect(to: addresses[fiber.random(0...addresses.count - 1)]))
                },
            ],
            finish: { self.close(first, full, listener) })
    }

    /// Pipes on which nothing happens, a thread that wakes whom it finds, signals.
    private func foreign() throws -> Scene {
        let (empty, idle) = try FileDescriptor.pipe()
        let (unread, full) = try FileDescriptor.pipe()
        Account.sockets.left += 4
        _ = fcntl(full.rawValue, F_SETFL, O_NONBLOCK)
        let bytes = [UInt8](repeating: 0, count: 65_536)
        while write(full.rawValue, bytes, bytes.count) > 0 {}
        return Scene(
            waits: [
                { fiber in
                    fiber.step("wait for a pipe until cancelled")
                    try waitReadable(empty)
                },
                { fiber in
                    fiber.step("wait for room in a pipe until cancelled")
                    try waitWritable(full)
                },
                { fiber in
                    fiber.step("wait for the thread until cancelled")
                    if fiber.round.wakingThread.wait(until: .max) {
                        Account.wakes.right += 1
                        // The thread may have been faster.
                        try Fiber.checkCancellation()
                    } else {
                        try Fiber.checkCancellation()
                        throw Violation("nobody has ended a wait, and it has ended")
                    }
                },
                { fiber in
                    let signals: Signals
                    do throws(IOError) { signals = try Signals.of(.user1) } catch  where error.code == .resources {
                        Count.shortages += 1
                        return try Fiber.sleep(for: .milliseconds(1))
                    }
                    defer { signals.close() }
                    fiber.step("wait for a signal until cancelled")
                    try Violation.unless(try signals.next() == .user1, "another signal came than was asked for")
                },
            ],
            finish: {
                for end in [empty, idle, unread, full] { try end.close() }
                Account.sockets.right += 4
            })
    }

    /// Other fibers, and time.
    private func idling() throws -> Scene {
        let room = WaitingRoom()
        let idler = try spawn { _ in room.wait() }
        return Scene(
            waits: [
                { fiber in
                    fiber.step("sleep until cancelled")
                    try Fiber.sleep(for: .microseconds(fiber.random(0...5000)))
                },
                { fiber in
                    fiber.step("join until cancelled")
                    _ = try idler.join()
                    throw Violation("a fiber has ended that waits for others")
                },
                { fiber in
                    fiber.step("wait in a room until cancelled")
                    if room.wait() { throw Violation("somebody was called whom nobody had called") }
                    try Fiber.checkCancellation()
                },
                { fiber in
                    fiber.step("take beats until cancelled")
                    let ticker = Ticker(every: .microseconds(fiber.random(1...3000)))
                    while true { _ = try ticker.next() }
                },
                { fiber in
                    fiber.step("compute until cancelled")
                    while true {
                        try Fiber.checkCancellation()
                        Fiber.yield()
                    }
                },
                { fiber in
                    fiber.step("wait for children until cancelled")
                    let way = fiber.random(0...3)
                    var strangers = 0
                    defer { if strangers > 0 { Failures.record("\(strangers) fibers were spawned into a full group") } }
                    try withFiberGroup(of: Int.self, limit: 1) { group in
                        try group.spawn(fiber) { child in
                            child.step("sleep until the group is cancelled")
                            try Fiber.sleep(for: .seconds(3600))
                            return 0
                        }
                        switch way {
                        case 0:
                            try group.spawn(fiber) { _ in
                                strangers += 1; return 1
                            }
                        case 1: _ = try group.next()
                        case 2: try group.waitForAll()
                        default: break
                        }
                    }
                },
            ],
            finish: {
                Fiber.yield()
                room.callAll()
                try Violation.unless(try idler.join(), "a fiber that nobody cancelled was cancelled with those who waited for it")
            })
    }
}
