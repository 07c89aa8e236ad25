// SPDX-License-Identifier: Apache-2.0

// Signals between fibers of all workers, and from a plain thread to them.

import Fibers

extension Account {
    static let signals = Account("signals between workers and from a thread", "sent", "received")
}

extension Kind {
    static let events = Kind("events", weight: 14, accounts: [.signals]) { job in
        let turns = job.random(1...20)
        if job.chance(2) {
            for _ in 0..<turns {
                let event = FiberEvent()
                job.round.wakingThread.ring(event)
                try job.receive(event)
            }
            return
        }
        // Two sides that wake each other in turn.
        let (ping, pong) = (FiberEvent(), FiberEvent())
        let other = try job.spawn(on: job.somewhere()) { other in
            for _ in 0..<turns {
                try other.receive(ping)
                if other.chance(4) { try other.pause() }
                other.send(pong)
            }
        }
        for _ in 0..<turns {
            job.send(ping)
            if job.chance(4) { try job.pause() }
            try job.receive(pong)
        }
        try other.join()
        try Violation.unless(!ping.take() && !pong.take(), "there is a signal that nobody has sent")
    }
}

extension Job {
    fileprivate func send(_ event: FiberEvent) {
        Account.signals.left += 1
        event.signal()
    }

    /// Now and then it gives up some times before.
    fileprivate func receive(_ event: FiberEvent) throws {
        step("wait for an event")
        var isReceived = false
        while !isReceived {
            do {
                try withTimeout(chance(3) ? .microseconds(random(0...200)) : nil) { try event.wait() }
                isReceived = true
            } catch is TimeoutError { Count.expectedErrors += 1 }
        }
        Account.signals.right += 1
    }
}
