// SPDX-License-Identifier: Apache-2.0

// Calls that block, more than there are threads for them: some are taken back while they wait in line, some are given up while they run.

import Fibers
import Glibc
import Synchronization

extension Account {
    static let blockingCalls = Account("blocking calls", "asked for", "run or taken back")
}

extension Kind {
    static let blocking = Kind("blocking", weight: 6, accounts: [.blockingCalls]) { job in
        let callers = try (0..<job.random(1...6)).map { _ in
            try job.spawn(on: job.somewhere()) { caller in
                try caller.pause()
                let limit = caller.chance(2) ? Duration.microseconds(caller.random(0...5000)) : nil
                do {
                    caller.step("make a blocking call")
                    try withTimeout(limit) { try caller.callOut(microseconds: caller.random(0...1000)) }
                } catch is TimeoutError where limit != nil { Count.expectedErrors += 1 }
            }
        }
        // By cancellation, too, from here.
        for caller in callers {
            let isCancelled = job.chance(4)
            if isCancelled {
                try job.pause()
                caller.cancel()
            }
            job.step("wait for somebody's blocking call")
            do { try caller.join() } catch is CancellationError where isCancelled { Count.expectedErrors += 1 }
        }
    }
}

extension Job {
    /// Makes a blocking call and looks whether its result is its own.
    func callOut(microseconds: UInt32) throws {
        let number = random(0...UInt64.max)
        let ticket = Ticket()
        let answer = try withBlockingThread {
            ticket.use()
            usleep(microseconds)
            return "answer \(number)"
        }
        try Violation.unless(answer == "answer \(number)" && ticket.isUsed, "a blocking call has returned what is another's")
    }
}

/// Goes with a blocking call. Nobody has it any more once that has run or will never run.
private final class Ticket: Sendable {
    private let uses = Atomic<Int>(0)

    init() { Account.blockingCalls.left += 1 }

    deinit {
        let uses = uses.load(ordering: .acquiring)
        if uses > 1 { Failures.record("a blocking call has run \(uses) times") }
        Account.blockingCalls.right += 1
    }

    func use() { uses.add(1, ordering: .acquiringAndReleasing) }
    var isUsed: Bool { uses.load(ordering: .acquiring) == 1 }
}
