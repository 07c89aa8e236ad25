// SPDX-License-Identifier: Apache-2.0

// Many groups, large groups, deep groups, and random programs of groups.

import CFaults
import Fibers
import Testing

extension KernelTests {
    @Suite struct GroupScaleTests {
        @Test(arguments: [false, true])
        func chainOfGroups_isCancelledFromTheTop_howeverDeep(_ byDeadline: Bool) throws {
            let depth = scaled(10_000, sanitized: 3_000)
            var cancelled = 0, innermost = false
            var ends: (any Error)?
            try runQuietly {
                func descend(_ level: Int) throws {
                    try withFiberGroup { group in
                        if level == depth {
                            innermost = true
                            try waitForCancellation(&cancelled)
                        }
                        try group.spawnLocal { try descend(level + 1) }
                        // The others wait for their child, in the body or at the end.
                        if level % 2 == 0 {
                            do { try group.waitForAll() } catch {
                                cancelled += 1
                                throw error
                            }
                        }
                    }
                }
                let top = try Fiber.spawnLocal {
                    ends = failure {
                        if byDeadline { try withTimeout(.seconds(2)) { try descend(1) } } else { try descend(1) }
                    }
                }
                if !byDeadline {
                    _ = yield { innermost }
                    top.cancel()
                }
                try top.join()
            }
            #expect(innermost)
            #expect(byDeadline ? ends is TimeoutError : ends is CancellationError)
            // Every even level, the deepest included.
            #expect(cancelled == depth / 2)
        }

        @Test func error_climbsOutOfAChainOfGroups_howeverDeep() throws {
            let depth = scaled(5_000, sanitized: 1_500)
            var cancelled = 0
            let error = try runQuietly {
                func descend(_ level: Int) throws {
                    try withFiberGroup { group in
                        if level == depth { throw TestError(number: 1) }
                        try group.spawnLocal { try waitForCancellation(&cancelled) }
                        try group.spawnLocal { try descend(level + 1) }
                    }
                }
                return failure { try descend(1) }
            }
            #expect(numbers(error) == [1])
            #expect(cancelled == depth - 1)
        }

        #if compiler(>=6.2)
            @Test
            func process_keepsNothing_whenAHundredThousandGroupsCameAndWent() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var growth = Growth()
                        try FiberRuntime.run {
                            func use(_ rounds: Int) throws {
                                for i in 0..<rounds {
                                    let value = try withFiberGroup(of: Int.self, limit: 3) { group in
                                        try group.spawnDaemon { try Fiber.sleep(for: .seconds(1_000)) }
                                        for j in 0..<4 { try group.spawnLocal { j } }
                                        return try group.next()
                                    }
                                    let error = failure {
                                        try withTimeout(.seconds(1_000)) {
                                            try withFiberGroup { group in
                                                try group.spawnLocal { try Fiber.sleep(for: .seconds(1_000)) }
                                                if i % 2 == 0 { throw TestError(number: i) }
                                                group.cancel()
                                            }
                                        }
                                    }
                                    guard value == 0, numbers(error) == (i % 2 == 0 ? [i] : nil) else { throw TestError(number: i) }
                                }
                            }
                            let rounds = scaled(isDebugBuild ? 20_000 : 50_000, sanitized: 500)
                            try use(rounds / 10)
                            growth.begin()
                            try use(rounds)
                            growth.end()
                        }
                        #expect(growth.isNone, "\(growth)")
                    }
                }
            }

            @Test func process_keepsNothing_whenAMillionChildrenPassThroughAGroup() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var growth = Growth()
                        let count = scaled(isDebugBuild ? 100_000 : 1_000_000, sanitized: 3_000)
                        var ended = 0
                        try FiberRuntime.run {
                            try withFiberGroup(limit: 100) { group in
                                for i in 0..<count {
                                    if i == count / 10 { growth.begin() }
                                    try group.spawnLocal {
                                        Fiber.yield()
                                        ended += 1
                                    }
                                }
                                try group.waitForAll()
                                growth.end()
                            }
                        }
                        #expect(ended == count)
                        #expect(growth.isNone, "\(growth)")
                    }
                }
            }

            @Test func process_keepsNothing_whenTheResultsOfManyChildrenAreTaken() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var growth = Growth()
                        let count = scaled(isDebugBuild ? 50_000 : 500_000, sanitized: 3_000)
                        var sum = 0
                        try FiberRuntime.run {
                            try withFiberGroup(of: Int.self) { group in
                                for i in 0..<count {
                                    if i == count / 10 { growth.begin() }
                                    try group.spawnLocal { i }
                                    // There are always some that nobody has taken yet.
                                    if i >= 10 { sum += try group.next() ?? 0 }
                                }
                                while let result = try group.next() { sum += result }
                                growth.end()
                            }
                        }
                        #expect(sum == count * (count - 1) / 2)
                        #expect(growth.isNone, "\(growth)")
                    }
                }
            }
        #endif

        @Test(arguments: 1...4 as ClosedRange<UInt64>)
        func randomProgram_leavesNoFiberBehind_andThrowsTheErrorsThatHappened(_ seed: UInt64) throws {
            let program = RandomProgram(seed: seed)
            var live = -1
            try runQuietly {
                for _ in 0..<scaled(100, sanitized: 20) { program.run() }
                // None that the program does not know of either.
                live = Worker.current!.live
            }
            #expect(program.problems.isEmpty, "seed \(seed): \(program.problems.first ?? "")")
            #expect(program.begun == program.ended)
            #expect(program.begun > scaled(1_000, sanitized: 200), "\(program.begun) fibers")
            #expect(program.failures > 10 && program.quietEnds > 10, "\(program.failures) failures, \(program.quietEnds) ends without")
            #expect(live == 1)
        }
    }
}

/// How much more of everything the process holds after some work than before.
private struct Growth: CustomStringConvertible {
    private var before = (heap: 0, resident: 0, mappings: 0, descriptors: 0)
    private var after = (heap: 0, resident: 0, mappings: 0, descriptors: 0)

    private static func look() -> (heap: Int, resident: Int, mappings: Int, descriptors: Int) {
        (Int(cfaults_heap_bytes()), Process.residentBytes, Process.mappings, Process.descriptors)
    }

    mutating func begin() {
        cfaults_forget_thrown_errors()
        before = Self.look()
    }
    mutating func end() { after = Self.look() }

    /// An object that each round leaves would be megabytes.
    var isNone: Bool {
        guard after.descriptors == before.descriptors else { return false }
        return isSanitized
            || after.heap - before.heap < 200_000 && after.resident - before.resident < 2_000_000
                && abs(after.mappings - before.mappings) < 20
    }

    var description: String { "before: \(before), after: \(after)" }
}

/// Groups in groups, whose members spawn, sleep, fail, cancel each other and take results at random; and what must be true of each group whatever they do.
private final class RandomProgram {
    private var random: SeededGenerator
    private var budget = 0
    private var nextError = 0
    private(set) var begun = 0
    private(set) var ended = 0
    private(set) var failures = 0
    private(set) var quietEnds = 0
    private(set) var problems: [String] = []

    init(seed: UInt64) { random = SeededGenerator(seed: seed) }

    /// What is known of one group.
    private final class Members {
        let limit: Int?
        var spawned = 0
        var running = 0
        var alive = 0
        var errors: [Int] = []
        var handles: [FiberHandle<Int>] = []
        init(limit: Int?) { self.limit = limit }
    }

    private func chance(_ one: Int) -> Bool { Int.random(in: 0..<one, using: &random) == 0 }

    /// Runs one group, and those in it.
    func run() {
        budget = 150
        if case .failure(let error) = Result(catching: { try runGroup(depth: 0) }), !isExpected(error) { problems.append("\(error)") }
        if begun != ended { problems.append("\(begun) have begun, \(ended) ended") }
    }

    private func isExpected(_ error: any Error) -> Bool {
        error is TestError || error is FiberGroupError || error is CancellationError
    }

    private func runGroup(depth: Int) throws {
        let members = Members(limit: chance(2) ? Int.random(in: 1...4, using: &random) : nil)
        var thrown: (any Error)?
        do {
            try withFiberGroup(of: Int.self, limit: members.limit) { group in
                do {
                    for _ in 0..<Int.random(in: 0...(depth == 0 ? 60 : 8), using: &random) {
                        try act(group, members, depth, mayWaitForRoom: true)
                    }
                } catch {
                    note(error, members)
                    throw error
                }
            }
        } catch { thrown = error }
        check(members, thrown)
        if let thrown { throw thrown }
    }

    /// A failure, which the group must throw, unless the error is just a cancellation's.
    private func note(_ error: any Error, _ members: Members) {
        members.errors += numbers(error).map { [$0.count > 1 ? -$0.count : $0[0]] } ?? []
    }

    private func check(_ members: Members, _ thrown: (any Error)?) {
        if members.alive != 0 { problems.append("\(members.alive) members are alive after the end") }
        if let limit = members.limit, members.running > limit { problems.append("\(members.running) of \(limit)") }
        // A group within the group counts as one failure, said by the number of those in it.
        let errors: [Int] =
            switch thrown {
            case let group as FiberGroupError where members.errors.count > 1:
                ([group.first] + group.others).map { numbers($0).map { $0.count > 1 ? -$0.count : $0[0] } ?? 0 }
            case let error?: numbers(error).map { [$0.count > 1 ? -$0.count : $0[0]] } ?? []
            case nil: []
            }
        if errors != members.errors { problems.append("thrown: \(String(describing: thrown)), happened: \(members.errors)") }
        // The deadline of the scope that this group may be directly in.
        let isOverdue = (thrown as? TimeoutError)?.limit == .microseconds(200)
        if let thrown, !isExpected(thrown), !isOverdue { problems.append("\(thrown)") }
        if errors.isEmpty { quietEnds += 1 } else { failures += 1 }
    }

    /// The life of a child or daemon.
    private func live(_ group: FiberGroup<Int>, _ members: Members, _ depth: Int, isDaemon: Bool) throws {
        begun += 1
        if !isDaemon {
            members.running += 1
            if let limit = members.limit, members.running > limit {
                problems.append("\(members.running) children run, of \(limit) at most")
            }
        }
        defer {
            ended += 1
            members.alive -= 1
            if !isDaemon { members.running -= 1 }
        }
        do {
            // A child that waits for room in its own group keeps it from ever coming, if all do.
            for _ in 0..<Int.random(in: 0...5, using: &random) {
                try act(group, members, depth, mayWaitForRoom: isDaemon || members.limit == nil)
            }
        } catch {
            note(error, members)
            throw error
        }
    }

    private func spawn(_ group: FiberGroup<Int>, _ members: Members, _ depth: Int, mayWaitForRoom: Bool) throws {
        budget -= 1
        let body = {
            try self.live(group, members, depth, isDaemon: false)
            return self.begun
        }
        let handle =
            if mayWaitForRoom { try group.spawnLocal(body) } else { try withTimeout(.microseconds(100)) { try group.spawnLocal(body) } }
        members.alive += 1
        members.handles.append(handle)
    }

    private func act(_ group: FiberGroup<Int>, _ members: Members, _ depth: Int, mayWaitForRoom: Bool) throws {
        switch Int.random(in: 0..<24, using: &random) {
        case 0..<6 where budget > 0:
            do { try spawn(group, members, depth, mayWaitForRoom: mayWaitForRoom) } catch is TimeoutError {}
        case 6..<8 where budget > 0:
            budget -= 1
            members.alive += 1
            try group.spawnDaemon { try self.live(group, members, depth, isDaemon: true) }
        case 8..<11: Fiber.yield()
        case 11, 12: try Fiber.sleep(for: .microseconds(Int.random(in: 0...50, using: &random)))
        case 13: try withCancellationShield { try Fiber.sleep(for: .microseconds(20)) }
        case 14: try? withTimeout(.microseconds(30)) { try Fiber.sleep(for: .milliseconds(1)) }
        case 15: try? withTimeout(.microseconds(30)) { _ = try group.next() }
        case 16: try? withTimeout(.microseconds(30)) { try group.waitForAll() }
        case 17 where chance(4):
            nextError += 1
            throw TestError(number: nextError)
        case 18 where chance(3): group.cancel()
        case 19: members.handles.randomElement(using: &random)?.cancel()
        case 20..<24 where budget > 0 && depth < 4:
            do {
                if chance(4) {
                    try withTimeout(.microseconds(200)) { try runGroup(depth: depth + 1) }
                } else {
                    try runGroup(depth: depth + 1)
                }
            } catch is TimeoutError {
            } catch is CancellationError where !Fiber.isCancelled {
                // Only that group was cancelled.
            }
        default: break
        }
    }
}
