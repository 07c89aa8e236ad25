// SPDX-License-Identifier: Apache-2.0

// Scopes with deadlines around everything that waits: never before their time, the right one of several, with its own limit, and without an effect that is
// not told.

import FiberNet
import Fibers
import Glibc
import SystemPackage

extension Account {
    static let bytesRenewed = Account("bytes under renewed timeouts", "reported as written", "read")
}

extension Kind {
    /// Waits that nothing ends but a deadline, and sees that nothing has happened meanwhile.
    static let deadlines = Kind("deadlines", weight: 14, descriptors: 3) { job in
        switch job.random(0...8) {
        case 0:
            let (a, b) = try job.pair()
            try job.bounded("read under deadlines") { _ = try a.read(upTo: 10) }
            try job.bounded("read what is lent under deadlines") { _ = try a.readAvailable { _ in } }
            try job.bounded("wait for bytes under deadlines") { try a.waitReadable() }
            try b.writeAll([42])
            try Violation.unless(try a.read(upTo: 10) == [42], "a read that had timed out took what was written later")
            job.close(a, b)
        case 1: try writing(job)
        case 2:
            let listener = try job.listen(on: .loopback(port: 0))
            try job.bounded("accept under deadlines") { _ = try listener.accept() }
            try job.bounded("wait for a client under deadlines") { try listener.waitReadable() }
            let client = try job.connect(to: listener.address)
            job.close(try job.opened { try listener.accept() }, listener)
            job.hangUp(client)
        case 3:
            // A Unix listener that accepts nobody has room for one connection.
            let listener = try job.listen(on: try job.freshName(), backlog: 0)
            let first = try job.opened { try Connection.connect(to: listener.address) }
            try job.bounded("connect under deadlines") {
                try job.patiently { _ = try Connection.connect(to: listener.address) }
                throw Violation("a listener without room took a connection")
            }
            job.close(first, listener)
        case 4:
            let (output, input) = try FileDescriptor.pipe()
            Account.sockets.left += 2
            try job.bounded("wait for a pipe under deadlines") { try waitReadable(output) }
            for end in [output, input] { try end.close() }
            Account.sockets.right += 2
        case 5:
            let room = WaitingRoom()
            let child = try job.spawn { _ in room.wait() }
            try job.bounded("join under deadlines") { _ = try child.join() }
            try job.bounded("wait in a room under deadlines") {
                if !room.wait() { try Fiber.checkCancellation() }
                throw Violation("somebody was called whom nobody had called")
            }
            Fiber.yield()
            room.callAll()
            try Violation.unless(try child.join(), "a deadline of the one who joined it has reached another fiber")
        case 6: try filling(job)
        case 7:
            try job.bounded("take beats under deadlines") {
                let ticker = Ticker(every: .microseconds(job.random(1...3000)))
                var last = 0
                while true {
                    let tick = try ticker.next()
                    try Violation.unless(
                        tick.number == last + 1 + tick.missed, "beat \(tick.number) came after \(last), \(tick.missed) missed")
                    last = tick.number
                }
            }
            try job.bounded("compute under deadlines") {
                while true {
                    try Fiber.checkCancellation()
                    Fiber.yield()
                }
            }
        default:
            // These end on their own, too: before the deadline, after it, or in the same moment.
            try job.bounded("sleep under deadlines") {
                let nanoseconds = job.random(0...Int64(20_000_000))
                let begun = Deadline.now
                try Fiber.sleep(for: .nanoseconds(nanoseconds))
                let slept = Deadline.now - begun
                try Violation.unless(slept >= nanoseconds, "a sleep of \(nanoseconds) ns took \(slept) ns")
            }
            try job.bounded("wait for the thread under deadlines") {
                if job.round.wakingThread.wait(until: .max) {
                    Account.wakes.right += 1
                } else {
                    try Fiber.checkCancellation()
                    throw Violation("nobody has ended a wait, and it has ended")
                }
            }
        }
    }

    /// Writes until there is no room, again and again; the peer must find exactly what was reported.
    private static func writing(_ job: Job) throws {
        let (a, b) = try job.pair()
        var count = 0
        try job.bounded("write under deadlines") {
            while true {
                let bytes = Pattern.bytes(job.serial, at: count, count: job.random(1...60_000))
                var written = 0
                defer { count += written }
                if job.chance(2) {
                    try a.writeAll(bytes, written: &written)
                } else {
                    try a.writeAll(pieces: [[], bytes], written: &written)
                }
            }
        }
        try job.bounded("wait for room under deadlines") { try a.waitWritable() }
        job.close(a)
        var received = 0
        while let count = try job.receive(on: b, at: received) { received += count }
        try Violation.unless(received == count, "writes that timed out reported \(count) bytes; \(received) arrived")
        job.close(b)
    }

    /// Spawns into a group that is full: no fiber may come of that.
    private static func filling(_ job: Job) throws {
        let room = WaitingRoom()
        var strangers = 0
        try withFiberGroup(of: Bool.self, limit: 1) { group in
            try group.spawn(job) { _ in room.wait() }
            try job.bounded("spawn into a full group under deadlines") {
                try group.spawn(job) { _ in
                    strangers += 1; return true
                }
            }
            try job.bounded("wait for a value under deadlines") { _ = try group.next() }
            try job.bounded("wait for a group under deadlines") { try group.waitForAll() }
            Fiber.yield()
            room.callAll()
            try Violation.unless(try group.next() == true, "a deadline of the one who waited has reached the child it waited for")
        }
        try Violation.unless(strangers == 0, "a spawn that had timed out started \(strangers) fibers")
    }

    /// A stream that is read and written under timeouts set anew for each call, most of which never come, and under none; after those that do come, both sides go on
    /// where they were.
    static let renewals = Kind("renewals", weight: 8, descriptors: 2, accounts: [.bytesRenewed]) { job in
        let (a, b) = try job.pair()
        try a.setOption(.sendBufferSize, to: 8192)
        let total = job.size(upTo: 400_000)
        let writer = try job.spawn { writer in
            var sent = 0
            while sent < total {
                let bytes = Pattern.bytes(writer.serial, at: sent, count: min(total - sent, writer.size(upTo: 40_000)))
                writer.step("write under a renewed timeout")
                try writer.renewed {
                    var written = 0
                    defer {
                        sent += written
                        Account.bytesRenewed.left += written
                    }
                    try a.writeAll(bytes, written: &written)
                }
                if writer.chance(10) { try writer.pause() }
            }
            try a.shutdown(.write)
        }
        var received = 0
        var isOver = false
        func receive() throws {
            while !isOver {
                try job.renewed {
                    if let count = try job.receive(on: b, at: received) { received += count } else { isOver = true }
                }
                if job.chance(10) { try Fiber.sleep(for: .microseconds(job.random(0...2000))) }
            }
        }
        // With a deadline further out, no call is without one.
        if job.chance(3) { try withTimeout(.seconds(3600), receive) } else { try receive() }
        Account.bytesRenewed.right += received
        try writer.join()
        try Violation.unless(received == total, "\(received) bytes of \(total) came through under renewed timeouts")
        job.close(a, b)
    }
}

extension Job {
    /// An abstract Unix address that nobody else uses.
    func freshName() throws -> SocketAddress {
        try .unixAbstract(name: "swift-fibers-stress-\(round.options.seed)-\(serial)-\(random(0...UInt64.max))")
    }

    /// Runs a call under a timeout that is seldom reached, after which the caller may try again; or under none.
    fileprivate func renewed(_ body: () throws -> Void) throws {
        if chance(3) { return try body() }
        let limit = chance(4) ? random(0...Int64(500_000)) : random(50_000_000...Int64(10_000_000_000))
        let begun = Deadline.now
        do { return try withTimeout(.nanoseconds(limit), body) } catch let error as TimeoutError {
            try Violation.unless(error.limit == .nanoseconds(limit), "a timeout of \(limit) ns says that it was \(error.limit)")
        }
        try Violation.unless(Deadline.now >= begun + limit, "a timeout of \(limit) ns came after \(Deadline.now - begun) ns")
        Count.expectedErrors += 1
    }

    /// Runs a wait inside scopes at random, some times over.
    fileprivate func bounded(_ what: StaticString, _ wait: @escaping () throws -> Void) throws {
        for _ in 0..<random(1...3) {
            step(what)
            do {
                try Scopes(self).bound(random(0...4), wait)
            } catch is TimeoutError {
                Count.expectedErrors += 1
            } catch is CancellationError {
                throw Violation("\(what): a cancellation has come out of all scopes")
            }
            try Violation.unless(!Fiber.isCancelled, "\(what): the fiber is still cancelled behind the scope that was")
        }
    }
}

/// The scopes around a wait, and what the clock says about when each must end it; so it is known, as far as it can be from outside the kernel, which one may.
private final class Scopes {
    private enum Kind { case deadline, shield, group }

    private struct Scope {
        let kind: Kind
        var limit: Int64 = 0
        /// Its deadline lies between these moments.
        var earliest = Int64.max
        var latest = Int64.max
        /// What its error may say less than the limit: the time until the kernel knew of it, where an instant was given and not a duration.
        var play: Int64 = 0

        func isNamed(by error: TimeoutError) -> Bool {
            kind == .deadline && .nanoseconds(limit - play) <= error.limit && error.limit <= .nanoseconds(limit)
        }
    }

    private let job: Job
    /// The outermost first.
    private var entered: [Scope] = []
    /// Those that reached the wait whose error is on its way out.
    private var ended: ArraySlice<Scope> = []
    /// What has come out of a scope and may pass through others.
    private var passing: TimeoutError?

    init(_ job: Job) { self.job = job }

    /// What reaches a wait here: nothing outside the innermost shield.
    private var visible: ArraySlice<Scope> { entered[(entered.lastIndex { $0.kind == .shield } ?? 0)...] }

    /// Runs the wait inside a scope that ends soon, and up to so many others.
    func bound(_ depth: Int, _ wait: @escaping () throws -> Void) throws {
        // Now and then there is no time at all.
        let limit = job.random(-2_000_000...Int64(15_000_000))
        try within(max(limit, job.random(-1...0))) { try self.nest(depth, wait) }
    }

    private func nest(_ depth: Int, _ wait: @escaping () throws -> Void) throws {
        switch depth == 0 ? 0 : job.random(0...7) {
        case 0: try judged(wait)
        case 1: try shielded { try self.bound(depth - 1, wait) }
        case 2: try grouped { try self.nest(depth - 1, wait) }
        case 3: try within(job.random(1_000_000_000_000...Int64(9_000_000_000_000))) { try self.nest(depth - 1, wait) }
        default: try bound(depth - 1, wait)
        }
        if depth > 0 && job.chance(3) { try judged(wait) }
    }

    private func within(_ limit: Int64, _ body: () throws -> Void) throws {
        let depth = entered.count
        let before = Deadline.now
        var scope = Scope(kind: .deadline, limit: limit, earliest: before + limit)
        func enter() {
            let now = Deadline.now
            // A deadline that has passed counts from the moment when there is a scope: until then another may end the fiber's work.
            scope.latest = now + max(limit, 0)
            entered.append(scope)
        }
        do {
            if job.chance(4) {
                let instant = ContinuousClock.now + .nanoseconds(limit)
                try withDeadline(instant) {
                    scope.play = Deadline.now - before
                    enter()
                    try body()
                }
            } else {
                try withTimeout(.nanoseconds(limit)) {
                    enter()
                    try body()
                }
            }
        } catch let error as TimeoutError {
            entered.removeLast(entered.count - depth)
            if error != passing { try check(error, of: scope) }
            try agreeWithClock()
            // Whoever catches it may go on.
            passing = job.chance(2) ? error : nil
            if passing != nil { throw error }
            ended = []
            return
        } catch {
            entered.removeLast(entered.count - depth)
            throw error
        }
        entered.removeLast(entered.count - depth)
        try agreeWithClock()
    }

    private func check(_ error: TimeoutError, of scope: Scope) throws {
        let now = Deadline.now
        try Violation.unless(scope.isNamed(by: error), "a scope of \(scope.limit) ns threw \(error)")
        try Violation.unless(now >= scope.earliest, "a scope of \(scope.limit) ns ended \(scope.earliest - now) ns early")
        // The earliest of a fiber and of those around it; not always of its children: a deadline of a child that is ready, and has not looked at it, may have passed
        // unnoticed when its parent's comes.
        let depth = entered.count
        let children = ended.indices.first { $0 > depth && ended[$0].kind == .group } ?? ended.endIndex
        for other in ended[..<children] where other.kind == .deadline {
            try Violation.unless(
                scope.earliest <= other.latest,
                "a scope of \(scope.limit) ns ended a wait, where one of \(other.limit) ns was due \(scope.earliest - other.latest) ns earlier"
            )
        }
    }

    private func shielded(_ body: () throws -> Void) throws {
        entered.append(Scope(kind: .shield))
        defer { entered.removeLast() }
        do {
            try withCancellationShield {
                try Violation.unless(!Fiber.isCancelled, "a fiber is cancelled within a shield")
                try body()
            }
        } catch is CancellationError {
            throw Violation("a cancellation came out of a shield")
        }
    }

    /// Runs `body` in a child of a group: the scopes bound it like its parent.
    private func grouped(_ body: @escaping () throws -> Void) throws {
        entered.append(Scope(kind: .group))
        defer { entered.removeLast() }
        let waits = job.chance(2)
        try withFiberGroup(of: Bool.self) { group in
            try group.spawn(job) { _ in
                try body()
                return true
            }
            if waits { _ = try group.next() }
        }
    }

    /// Runs the wait, and judges by which error it ends.
    private func judged(_ wait: () throws -> Void) throws {
        do { try wait() } catch {
            let now = Deadline.now
            let scope = entered[entered.count - 1]
            if let timeout = error as? TimeoutError {
                try Violation.unless(scope.isNamed(by: timeout), "a wait directly inside a scope of \(scope.limit) ns threw \(error)")
                try Violation.unless(now >= scope.earliest, "a wait was ended \(scope.earliest - now) ns before the deadline of its scope")
            } else if error is CancellationError {
                try Violation.unless(
                    visible.dropLast().contains { $0.kind == .deadline && $0.earliest <= now },
                    "a wait was cancelled, and no scope further out was due")
            } else {
                throw error
            }
            ended = visible
            throw error
        }
        try agreeWithClock()
    }

    /// The fiber is cancelled exactly when one of the deadlines that reach it has passed.
    private func agreeWithClock() throws {
        let before = Deadline.now
        let isCancelled = Fiber.isCancelled
        let after = Deadline.now
        let deadlines = visible.filter { $0.kind == .deadline }
        if isCancelled {
            try Violation.unless(deadlines.contains { $0.earliest <= after }, "a fiber is cancelled before any of its deadlines")
        } else {
            try Violation.unless(deadlines.allSatisfy { $0.latest > before }, "a fiber is not cancelled after one of its deadlines")
        }
    }
}
