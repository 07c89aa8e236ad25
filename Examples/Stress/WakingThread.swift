// SPDX-License-Identifier: Apache-2.0

// A plain thread that wakes fibers: what a blocking pool, a channel between workers or a callback of some library will do.

import Fibers
import Glibc

/// A fiber that goes on for another reason takes its waiter out; one that is woken in that moment is not, and is not counted.
final class WakingThread: Sendable {
    private struct Entry: Sendable {
        let number: UInt64
        let waiter: WaitCell
    }

    private struct State {
        var waiting: [Entry] = []
        var next: UInt64 = 0
        var rung: [FiberEvent] = []
    }

    private let state = Guarded(State())

    /// Parks the calling fiber until the thread wakes it, until a deadline, or until it is cancelled; true when it was the thread.
    func wait(until deadline: Int64) -> Bool {
        let worker = Worker.here("WakingThread.wait")
        let entry = state.withLock { state in
            state.next += 1
            let entry = Entry(number: state.next, waiter: worker.beginSharedPark())
            state.waiting.append(entry)
            return entry
        }
        let outcome = worker.park(in: entry.waiter, .other, until: deadline)
        state.withLock { $0.waiting.removeAll { $0.number == entry.number } }
        return outcome == .ready
    }

    /// Has the thread signal an event, soon.
    func ring(_ event: FiberEvent) { state.withLock { $0.rung.append(event) } }

    /// Wakes who waits, as many as there are in one go, sometimes at once and sometimes after a while.
    func run() -> Never {
        var random = SplitMix64(seed: 0, serial: 0)
        while true {
            state.withLock { state in
                for entry in state.waiting where entry.waiter.unparkFromAnyThread(.ready) { Account.wakes.left += 1 }
                state.waiting.removeAll()
            }
            let rung = state.withLock { state in
                defer { state.rung = [] }
                return state.rung
            }
            for event in rung {
                Account.signals.left += 1
                event.signal()
            }
            let pause = random.next() % 4
            if pause == 0 { sched_yield() } else { usleep(UInt32(random.next() % (100 << pause))) }
        }
    }
}
