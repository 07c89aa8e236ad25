// SPDX-License-Identifier: Apache-2.0

// Groups whose children live on any worker: with limits, errors, deadlines, and cancelled from outside. Nobody is left when one returns.

import Fibers
import Glibc

extension Account {
    static let sums = Account("numbers of children on any worker", "returned", "received by their group")
}

extension Kind {
    static let spanning = Kind("spanning", weight: 14, accounts: [.members, .sums]) { job in
        if job.chance(4) {
            // From outside, wherever it is.
            let tree = try job.spawn(on: job.somewhere()) { try $0.span(depth: 2, isEndless: true) }
            try job.pause()
            if job.chance(2) { try Fiber.sleep(for: .microseconds(job.random(0...5000))) }
            tree.cancel()
            job.step("join groups on all workers that were cancelled")
            do {
                try tree.join()
                throw Violation("groups that do not end have ended without an error")
            } catch is CancellationError { Count.expectedErrors += 1 }
        } else {
            try job.span(depth: 2, isEndless: false)
        }
    }
}

extension Job {
    /// Spawns a child of a group on any worker.
    func spawn<Value: Sendable>(
        in group: FiberGroup<Value>, _ spawned: Tally, _ ended: Tally, _ body: @escaping @Sendable (Job) throws -> Value
    ) throws {
        let worker = somewhere()
        let traveller = traveller(to: worker)
        try group.spawn(on: worker) {
            defer {
                Account.fibers.right += 1
                ended += 1
            }
            return try body(traveller.arrive())
        }
        Account.fibers.left += 1
        spawned += 1
    }

    /// Runs a group in one of the ways in which it can end. One that is endless does only when it is cancelled from outside.
    fileprivate func span(depth: Int, isEndless: Bool) throws {
        step("be in a group on all workers")
        let (spawned, ended, running) = (Tally(), Tally(), Tally())
        let limit = chance(2) ? random(1...4) : Int.max
        let nanoseconds = random(0...Int64(10_000_000))
        let failure = Planned(number: random(0...UInt64.max))
        let way = isEndless ? 3 : random(0...2)
        let begun = Deadline.now
        defer {
            Account.members.left += spawned.value
            Account.members.right += ended.value
        }
        func child(_ group: FiberGroup<Int>, _ body: @escaping @Sendable (Job) throws -> Int) throws {
            try spawn(in: group, spawned, ended) { child in
                running += 1
                defer { running += -1 }
                try Violation.unless(running.value <= limit, "\(running.value) children of a group run on all workers, where \(limit) may")
                return try body(child)
            }
        }
        do {
            switch way {
            case 0:
                // All end well.
                let count = random(0...8)
                let sum = try withFiberGroup(of: Int.self, limit: limit) { group in
                    for i in 0..<count {
                        try child(group) { child in
                            try child.pause()
                            if depth > 0 && child.chance(6) { try child.span(depth: depth - 1, isEndless: false) }
                            Account.sums.left += i
                            return i
                        }
                    }
                    var sum = 0
                    while let number = try group.next() { sum += number }
                    try Violation.unless(group.count == 0, "a group on all workers gave all its values, and \(group.count) children run")
                    return sum
                }
                Account.sums.right += sum
            case 1:
                // One fails, and the others are cancelled.
                try withFiberGroup(of: Int.self, limit: limit) { group in
                    try child(group) { child in
                        try child.pause()
                        throw failure
                    }
                    for _ in 0..<random(0...6) { try child(group) { try $0.hold() } }
                }
                throw Violation("a group whose child had failed has returned")
            case 2:
                // The time is over.
                try withTimeout(.nanoseconds(nanoseconds)) {
                    try withFiberGroup(of: Int.self, limit: limit) { group in
                        for _ in 0..<random(1...6) { try child(group) { try $0.hold() } }
                    }
                }
                throw Violation("a group whose children wait for ever has returned before its deadline")
            default:
                try withFiberGroup(of: Int.self, limit: limit) { group in
                    for _ in 0..<random(1...4) {
                        try child(group) { child in
                            if depth > 0 && child.chance(2) { try child.span(depth: depth - 1, isEndless: true) }
                            return try child.hold()
                        }
                    }
                }
            }
        } catch let error as Planned where way == 1 {
            Count.expectedErrors += 1
            try Violation.unless(error.number == failure.number, "out of a group on all workers came an error of another")
        } catch is TimeoutError where way == 2 {
            Count.expectedErrors += 1
            try Violation.unless(Deadline.now >= begun + nanoseconds, "a group on all workers was over before its deadline")
        }
        try Violation.unless(
            spawned.value == ended.value && running.value == 0,
            "a group on all workers has returned: \(spawned.value) children, \(ended.value) have ended, \(running.value) run")
    }

    /// Waits until it is cancelled, in one of several ways.
    fileprivate func hold() throws -> Int {
        switch random(0...3) {
        case 0: try FiberEvent().wait()
        case 1: while true { try Fiber.sleep(for: .microseconds(random(0...3000))) }
        default: try Fiber.sleep(for: .seconds(3600))
        }
        return 0
    }
}
