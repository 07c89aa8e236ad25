// SPDX-License-Identifier: Apache-2.0

// Many fibers join one of any worker, and most of them give up: by a deadline, or because they are cancelled, while the joined fiber ends or goes on.

import Fibers

extension Account {
    static let impatience = Account("joins that may be given up", "begun", "ended by the value or given up")
}

extension Kind {
    static let impatient = Kind("impatient", weight: 8, accounts: [.impatience]) { job in
        let number = job.random(0...UInt64.max)
        let go = FiberEvent()
        let target = try job.spawn(on: job.somewhere()) { child in
            child.step("be joined by many")
            // Nothing cancels this fiber: a waiter that gives up must not end it.
            try go.wait()
            return number
        }
        let joiners = try (0..<job.random(1...60)).map { _ in
            let isPatient = job.chance(4)
            let joiner = try job.spawn(on: job.somewhere()) { try joinOrGiveUp($0, target, number, isPatient) }
            return (joiner, isPatient)
        }
        try job.pause()
        let isCancelled = job.chance(2)
        if isCancelled {
            for (joiner, isPatient) in joiners where !isPatient && job.chance(2) { joiner.cancel() }
        }
        // Now and then it ends while they are about to give up.
        if job.chance(2) { try job.pause() }
        go.signal()
        for (joiner, isPatient) in joiners {
            job.step("wait for those who join")
            do { try joiner.join() } catch is CancellationError where isCancelled && !isPatient { Count.expectedErrors += 1 }
        }
        try Violation.unless(try target.join() == number, "a fiber that many have joined has returned another value")
    }

    private static func joinOrGiveUp(_ job: Job, _ target: FiberHandle<UInt64>, _ number: UInt64, _ isPatient: Bool) throws {
        Account.impatience.left += 1
        defer { Account.impatience.right += 1 }
        while true {
            job.step("join and perhaps give up")
            let limit = isPatient ? nil : Duration.microseconds(job.random(0...2000))
            do {
                let value = try withTimeout(limit) { try target.join() }
                return try Violation.unless(value == number, "a join that was not given up has another value")
            } catch is TimeoutError where !isPatient {
                Count.expectedErrors += 1
                if job.chance(2) { return }
            }
        }
    }
}
