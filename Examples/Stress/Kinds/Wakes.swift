// SPDX-License-Identifier: Apache-2.0

// Wake-ups from another thread, some of them in a race with a deadline.

import Fibers

extension Account {
    static let wakes = Account("wake-ups from a thread", "sent", "arrived")
}

extension Kind {
    static let wakes = Kind("wakes", weight: 15, accounts: [.wakes]) { job in
        for _ in 0..<job.random(1...10) {
            let limit = job.chance(3) ? job.random(0...Int64(400_000)) : nil
            let deadline = limit.map { Deadline.now + $0 } ?? .max
            job.step("wait for the thread")
            if job.round.wakingThread.wait(until: deadline) {
                Account.wakes.right += 1
            } else {
                try Violation.unless(Deadline.now >= deadline, "a wait ended before its deadline, and nobody had ended it")
                Count.expectedErrors += 1
            }
        }
    }
}
