// SPDX-License-Identifier: Apache-2.0

// Fibers on other workers: handles go around, and whoever has one joins and cancels, wherever the fiber is.

import Fibers
import Glibc

extension Account {
    static let valuesSent = Account("values between workers", "returned", "joined")
    static let recalls = Account("fibers of any worker that others cancel", "cancelled", "have heard of it")
}

extension Kind {
    static let spreading = Kind("spreading", weight: 20, accounts: [.valuesSent]) { job in
        let children = try (0..<job.random(1...8)).map { _ in
            let number = job.random(0...UInt64.max)
            let joins = job.random(1...4)
            let handle = try job.spawn(on: job.somewhere()) { child in
                try child.pause()
                Account.valuesSent.left += joins
                return "a value that is let go of on any worker: \(number)"
            }
            // At once, and wherever: the handle may be faster than the fiber.
            let others = try (1..<joins).map { _ in
                try job.spawn(on: job.somewhere()) { other in
                    if other.chance(2) { try other.pause() }
                    try joinOnce(other, handle, number)
                }
            }
            return (handle, number, others)
        }
        try job.pause()
        for (handle, number, others) in children {
            try joinOnce(job, handle, number)
            for other in others { try other.join() }
        }
    }

    private static func joinOnce(_ job: Job, _ handle: FiberHandle<String>, _ number: UInt64) throws {
        job.step("join on any worker")
        // Now and then it first gives up some times.
        while job.chance(4) {
            let limit = Duration.microseconds(job.random(0...300))
            do { _ = try withTimeout(limit) { try handle.join() } } catch is TimeoutError { Count.expectedErrors += 1 }
        }
        let value = try handle.join()
        try Violation.unless(
            value == "a value that is let go of on any worker: \(number)",
            "a value joined on another worker is not the one that was returned")
        Account.valuesSent.right += 1
    }

    /// Each victim waits in its own way until it is cancelled, from anywhere.
    static let recalling = Kind("recalling", weight: 14, accounts: [.recalls, .blockingCalls, .members]) { job in
        let victims = try (0..<job.random(1...6)).map { _ in
            Account.recalls.left += 1
            let victim = try job.spawn(on: job.somewhere()) { try live($0) }
            // By one, or by several at once.
            let cancellers = try (0..<job.random(0...2)).map { _ in
                try job.spawn(on: job.somewhere()) { canceller in
                    if canceller.chance(2) { try canceller.pause() }
                    victim.cancel()
                }
            }
            return (victim, cancellers)
        }
        try job.pause()
        for (victim, cancellers) in victims {
            job.step("wait for a fiber on any worker that was cancelled")
            if cancellers.isEmpty || job.chance(3) { victim.cancel() }
            do {
                try victim.join()
                throw Violation("a fiber that waits until it is cancelled has returned")
            } catch is CancellationError { Count.expectedErrors += 1 }
            victim.cancel()
            for canceller in cancellers { try canceller.join() }
        }
    }

    private static func live(_ victim: Job) throws {
        victim.step("wait on any worker until cancelled")
        do {
            while true {
                switch victim.random(0...6) {
                case 0: try Fiber.sleep(for: .seconds(3600))
                case 1: try FiberEvent().wait()
                case 2:
                    try Fiber.checkCancellation()
                    Fiber.yield()
                case 3: try Fiber.sleep(for: .microseconds(victim.random(0...2000)))
                case 4:
                    let idler = try victim.spawn(on: victim.somewhere()) { _ in try Fiber.sleep(for: .seconds(3600)) }
                    // Cancelled itself, it ends the other and waits for that.
                    defer {
                        idler.cancel()
                        withCancellationShield { _ = try? idler.join() }
                    }
                    try idler.join()
                case 5:
                    try victim.callOut(microseconds: victim.random(0...2000))
                default:
                    let (spawned, ended) = (Tally(), Tally())
                    defer {
                        Account.members.left += spawned.value
                        Account.members.right += ended.value
                    }
                    try withFiberGroup { group in
                        for _ in 0..<3 {
                            try victim.spawn(in: group, spawned, ended) { _ in try Fiber.sleep(for: .seconds(3600)) }
                        }
                    }
                }
            }
        } catch is CancellationError {
            Account.recalls.right += 1
            try Violation.unless(Fiber.isCancelled, "a wait was cancelled, and the fiber was not")
            throw CancellationError()
        }
    }
}
