// SPDX-License-Identifier: Apache-2.0

// Turns at the processor, and time.

import Fibers

extension Kind {
    static let yielding = Kind("yielding", weight: 20) { job in
        let turns = job.random(1...100)
        job.step("yield")
        for _ in 0..<turns { Fiber.yield() }
        Count.operations += turns
    }

    static let sleeping = Kind("sleeping", weight: 10) { job in
        for _ in 0..<job.random(1...3) {
            let nanoseconds = job.random(0...Int64(20_000_000))
            let begun = Deadline.now
            job.step("sleep")
            try Fiber.sleep(for: .nanoseconds(nanoseconds))
            let slept = Deadline.now - begun
            try Violation.unless(slept >= nanoseconds, "a sleep of \(nanoseconds) ns took \(slept) ns")
        }
    }
}
