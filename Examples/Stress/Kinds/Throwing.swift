// SPDX-License-Identifier: Apache-2.0

// Errors that come out of fibers: joined, or left to the runtime's handler, and never to both or none.

import Fibers

/// An error that is meant to be thrown.
struct Planned: Error {
    let number: UInt64
}

extension Account {
    static let errors = Account("errors", "thrown", "joined or handled")
}

extension Kind {
    static let throwing = Kind("throwing", weight: 10, accounts: [.errors]) { job in
        for _ in 0..<job.random(1...4) {
            let number = job.random(0...UInt64.max)
            let isJoined = job.chance(2)
            let handle = try job.spawn { child -> Int in
                try child.pause()
                Account.errors.left += 1
                throw Planned(number: number)
            }
            // Else the handle is dropped, before or after the fiber has run.
            guard isJoined else {
                try job.pause()
                continue
            }
            job.step("join a fiber that throws")
            do {
                _ = try handle.join()
                throw Violation("a fiber that threw an error was joined without it")
            } catch let error as Planned {
                try Violation.unless(error.number == number, "the error that was joined is not the one that was thrown")
                Account.errors.right += 1
                Count.expectedErrors += 1
            }
        }
    }
}
