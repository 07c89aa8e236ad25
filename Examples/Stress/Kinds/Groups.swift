// SPDX-License-Identifier: Apache-2.0

// Groups within groups, with limits, daemons, deadlines, children that fail and children that are cancelled: nobody is left when a group returns, results and errors
// come out of it in order, and no place in it is lost.

import Fibers

extension Account {
    static let members = Account("members of groups", "spawned", "ended before their group returned")
    static let results = Account("values of groups that were emptied", "returned", "received")
}

extension Kind {
    static let groups = Kind("groups", weight: 14, accounts: [.members, .results]) { job in
        let tree = try job.spawn { root in try root.grow(3) }
        let isCancelled = job.chance(4)
        if isCancelled {
            try job.pause()
            if job.chance(2) { try Fiber.sleep(for: .microseconds(job.random(0...10_000))) }
            tree.cancel()
        }
        job.step("join a tree of groups")
        do { _ = try tree.join() } catch is CancellationError where isCancelled {
            Count.expectedErrors += 1
        } catch  where error is Planned || error is FiberGroupError || error is TimeoutError {
            // Which one it must be has been judged where it came from.
            Count.expectedErrors += 1
        }
    }

    /// Daemons of a group and fibers outside spawn into it beyond its limit, some of them until they are cancelled.
    static let limits = Kind("limits", weight: 8, accounts: [.members]) { job in
        let limit = job.random(1...4)
        let roll = Roll(limit: limit)
        defer { roll.close() }
        // Who waits for a place, in order, and who need not go on waiting.
        var line: [Int] = []
        var cancelled: Set<Int> = []
        try withFiberGroup(limit: limit) { group in
            func fill(_ spawner: Job, _ number: Int) throws {
                for _ in 0..<spawner.random(1...6) {
                    spawner.step("spawn at the limit of a group")
                    // Where there is a place nobody waits, but one who has got his place may not have run yet.
                    if group.count == limit { line.append(number) }
                    defer { line.removeAll { $0 == number } }
                    try roll.spawn(in: group, spawner) { child in try child.pause() }
                    let earlier = line.contains(number) ? line.prefix { $0 != number } : []
                    try Violation.unless(earlier.allSatisfy(cancelled.contains), "\(number) got a place in a group before \(earlier)")
                }
            }
            let spawners = try (0..<job.random(1...8)).map { number in
                try job.chance(2)
                    ? job.spawn { try fill($0, number) } : roll.spawnDaemon(in: group, job) { try fill($0, number) }
            }
            for _ in 0..<job.random(0...6) {
                try job.pause()
                guard job.chance(2) else { continue }
                let number = job.random(0...spawners.count - 1)
                cancelled.insert(number)
                spawners[number].cancel()
            }
            for (number, spawner) in spawners.enumerated() {
                job.step("join one who spawns at the limit of a group")
                do { try spawner.join() } catch is CancellationError where cancelled.contains(number) { Count.expectedErrors += 1 }
            }
            job.step("wait for the children of a group with a limit")
            try group.waitForAll()
            try Violation.unless(
                group.count == 0 && roll.running == 0, "\(group.count) children are left of a group, and \(roll.running) run")
            // Every place is there: so many children can wait for each other.
            var missing = limit
            let room = WaitingRoom()
            for _ in 0..<limit {
                job.step("fill a group that is empty")
                try roll.spawn(in: group, job) { _ in
                    missing -= 1
                    if missing == 0 { room.callAll() } else { _ = room.wait() }
                }
            }
        }
    }
}

extension FiberGroup {
    /// Spawns a child that is counted.
    @discardableResult
    func spawn(_ job: Job, _ body: @escaping (Job) throws -> Value) throws -> FiberHandle<Value> {
        let child = job.child()
        let handle = try spawnLocal {
            defer { Account.fibers.right += 1 }
            return try body(child)
        }
        Account.fibers.left += 1
        return handle
    }
}

/// Who is in a group.
private final class Roll {
    let limit: Int
    private(set) var running = 0
    private var spawned = 0
    private var ended = 0

    init(limit: Int?) { self.limit = limit ?? .max }

    @discardableResult
    func spawn<Value>(in group: FiberGroup<Value>, _ job: Job, _ body: @escaping (Job) throws -> Value) throws -> FiberHandle<Value> {
        let handle = try group.spawn(job) { child in
            self.running += 1
            defer {
                self.running -= 1
                self.ended += 1
            }
            try Violation.unless(
                self.running <= group.count && group.count <= self.limit,
                "\(self.running) children of a group run, \(group.count) by its own count, and \(self.limit) may")
            return try body(child)
        }
        spawned += 1
        return handle
    }

    @discardableResult
    func spawnDaemon<Value>(in group: FiberGroup<Value>, _ job: Job, _ body: @escaping (Job) throws -> Void) throws -> FiberHandle<Void> {
        let child = job.child()
        let handle = try group.spawnDaemon {
            defer {
                self.ended += 1
                Account.fibers.right += 1
            }
            try body(child)
        }
        Account.fibers.left += 1
        spawned += 1
        return handle
    }

    /// To be called when the group has returned.
    func close() {
        Account.members.left += spawned
        Account.members.right += ended
    }
}

extension Job {
    /// Runs a group that may hold others, at most so deep, in a scope with a deadline or without one.
    fileprivate func grow(_ depth: Int) throws -> UInt64 {
        let branch = Branch(self, depth)
        guard chance(4) else { return try branch.run() }
        let limit = random(0...Int64(30_000_000))
        let begun = Deadline.now
        do { return try withTimeout(.nanoseconds(limit)) { try branch.run() } } catch let error as TimeoutError
            where error.limit == .nanoseconds(limit)
        {
            try Violation.unless(Deadline.now >= begun + limit, "a group's timeout of \(limit) ns came after \(Deadline.now - begun) ns")
            throw error
        } catch let error as CancellationError {
            try Violation.unless(Fiber.isCancelled, "a scope around a group let a cancellation pass that is nobody's outside: \(error)")
            throw error
        }
    }
}

/// One group of a tree, and what must come of it.
private final class Branch {
    private let job: Job
    private let depth: Int
    private let roll: Roll
    private let limit: Int?
    private var handles: [FiberHandle<UInt64>] = []
    /// Children that were cancelled one by one.
    private var dismissed: Set<Int> = []
    /// What the children returned, in the order in which they ended.
    private var returned: [UInt64] = []
    private var received = 0
    private var isEmptied = false
    /// What must come out of the group, in this order.
    private var failures: [String] = []
    /// The group was cancelled from inside: by itself or for an error.
    private var isCancelled = false
    private var bodyWasCancelled = false
    /// A child was ended by a cancellation, and it was one from outside.
    private var wasCutShort = false

    init(_ job: Job, _ depth: Int) {
        self.job = job
        self.depth = depth
        limit = job.chance(2) ? job.random(1...4) : nil
        roll = Roll(limit: limit)
    }

    func run() throws -> UInt64 {
        job.step("be in a group")
        let result = Result {
            try withFiberGroup(of: UInt64.self, limit: limit) { group in
                do { return try tend(group) } catch {
                    bodyWasCancelled = note(error)
                    throw error
                }
            }
        }
        roll.close()
        return try judge(result)
    }

    private func judge(_ result: Result<UInt64, any Error>) throws -> UInt64 {
        let outcome: String
        switch result {
        case .success(let value) where failures.isEmpty:
            try Violation.unless(!wasCutShort, "a group whose children were cut short from outside has returned as if nothing were missing")
            try Violation.unless(!bodyWasCancelled, "a group has returned whose body was cancelled")
            if isEmptied {
                Account.results.left += returned.count
                Account.results.right += received
            }
            return value
        case .failure(is CancellationError) where failures.isEmpty:
            if Fiber.isCancelled { throw CancellationError() }
            try Violation.unless(bodyWasCancelled && isCancelled, "a group was cancelled, by nobody")
            // It has cancelled itself, which is nobody else's business.
            return 0
        case .failure(let error as TimeoutError) where failures.isEmpty && Fiber.isCancelled:
            // Of the scope directly around the group.
            try Violation.unless(bodyWasCancelled || wasCutShort, "a group timed out that nothing has cut short")
            throw error
        case .failure(let errors as FiberGroupError) where failures.count > 1:
            outcome = ([errors.first] + errors.others).map { "\($0)" }.joined(separator: "; ")
        case .failure(let error): outcome = "\(error)"
        case .success: outcome = "no error"
        }
        try Violation.unless(
            outcome == failures.joined(separator: "; "), "out of a group came \(outcome), after \(failures.joined(separator: "; "))")
        return try result.get()
    }

    /// Notes how a fiber of the group ends; true when a cancellation is what ends it.
    private func note(_ error: any Error) -> Bool {
        if Fiber.isCancelled && error is CancellationError { return true }
        failures.append("\(error)")
        isCancelled = true
        return false
    }

    private func tend(_ group: FiberGroup<UInt64>) throws -> UInt64 {
        if job.chance(3) { try spawnDaemon(in: group) }
        for _ in 0..<job.random(0...6) {
            try spawn(in: group)
            switch job.random(0...39) {
            case 0:
                isCancelled = true
                group.cancel()
            case 1...2:
                let number = job.random(0...handles.count - 1)
                dismissed.insert(number)
                handles[number].cancel()
            case 3: throw Planned(number: job.random(0...UInt64.max))
            // What it threw comes out of the group.
            case 4...7: _ = try? handles[job.random(0...handles.count - 1)].join()
            case 8...15: _ = try takeNext(of: group)
            case 16...19: try job.pause()
            default: break
            }
        }
        job.step("end a group")
        switch job.random(0...3) {
        case 0: break
        case 1: try group.waitForAll()
        default:
            while try takeNext(of: group) {}
            isEmptied = true
        }
        return job.random(0...UInt64.max)
    }

    private func takeNext(of group: FiberGroup<UInt64>) throws -> Bool {
        job.step("wait for a value of a group")
        guard let value = try group.next() else {
            try Violation.unless(received == returned.count, "a group gave \(received) of \(returned.count) values")
            return false
        }
        try Violation.unless(received < returned.count && returned[received] == value, "a group gave another value than was due")
        received += 1
        return true
    }

    private func spawn(in group: FiberGroup<UInt64>) throws {
        let number = handles.count
        let handle = try roll.spawn(in: group, job) { [self] child in
            do {
                let value = try work(child, number, group)
                returned.append(value)
                return value
            } catch {
                if note(error) && !isCancelled && !dismissed.contains(number) { wasCutShort = true }
                throw error
            }
        }
        handles.append(handle)
    }

    private func work(_ child: Job, _ number: Int, _ group: FiberGroup<UInt64>) throws -> UInt64 {
        defer { if child.chance(8) { cleanUp(child) } }
        switch child.random(0...39) {
        case 0:
            try child.pause()
            throw Planned(number: child.random(0...UInt64.max))
        case 1:
            dismissed.insert(number)
            Fiber.current?.cancel()
            try Fiber.sleep(for: .zero)
            throw Violation("a child that had cancelled itself slept")
        case 2...8: if depth > 0 { return try child.grow(depth - 1) }
        case 9...14: try Fiber.sleep(for: .microseconds(child.random(0...10_000)))
        // At a limit it might wait for itself.
        case 15...17: if limit == nil { try spawn(in: group) }
        case 18: try withTimeout(.microseconds(child.random(0...1000))) { try Fiber.sleep(for: .microseconds(child.random(0...1000))) }
        default: try child.pause()
        }
        return child.random(0...UInt64.max)
    }

    private func cleanUp(_ child: Job) {
        do {
            try withCancellationShield { try Fiber.sleep(for: .microseconds(child.random(0...2000))) }
        } catch {
            Failures.record("job \(child.serial): a child could not clean up: \(error)")
        }
    }

    /// A child that does not end by itself, unless it fails.
    private func spawnDaemon(in group: FiberGroup<UInt64>) throws {
        let beats = job.chance(8) ? job.random(0...10) : nil
        try roll.spawnDaemon(in: group, job) { [self] daemon in
            do {
                var beat = 0
                while true {
                    if beat == beats { throw Planned(number: daemon.random(0...UInt64.max)) }
                    try Fiber.sleep(for: .microseconds(daemon.random(0...3000)))
                    beat += 1
                }
            } catch {
                _ = note(error)
                throw error
            }
        }
    }
}
