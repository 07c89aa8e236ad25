// SPDX-License-Identifier: Apache-2.0

// One worker's part of a round: its servers, and as many jobs at a time as it was given places for, each of which starts the next one.
//
// Owner worker only; it goes to others only as something to be handed back there.

import FiberNet
import Fibers
import Glibc
import Synchronization

final class Round: @unchecked Sendable {
    let crew: Crew
    private let budget: DescriptorBudget
    private(set) var server: Server!
    private var running = 0
    private let change = WaitingRoom()

    private static let nextSerial = Atomic<UInt64>(0)

    /// On its worker.
    init(_ crew: Crew, index: Int) throws {
        self.crew = crew
        budget = DescriptorBudget(Process.freeDescriptors() * 3 / 4 / FiberRuntime.workerCount)
        server = try Server(self, index: index)
    }

    var options: Options { crew.options }
    var wakingThread: WakingThread { crew.wakingThread }

    /// Runs jobs until it is time to stop and all have ended.
    func runJobs(_ slots: [Slot], until deadline: Int64) throws {
        for slot in slots {
            running += 1
            try launch(slot)
        }
        while !crew.isStopping, Failures.all.isEmpty, Deadline.now < deadline {
            _ = change.wait(until: min(deadline, Deadline.now + 100_000_000))
        }
        crew.stop()
        while running > 0 { _ = change.wait() }
    }

    /// Starts one job in a fiber, and after it the next one.
    private func launch(_ slot: Slot) throws {
        let serial = Self.nextSerial.add(1, ordering: .relaxed).newValue
        var generator = SplitMix64(seed: options.seed, serial: serial)
        let kind = choose(&generator)
        let job = Job(serial: serial, generator: generator, round: self, slot: slot)
        try spawn(name: kind.name) {
            self.budget.take(kind.descriptors)
            slot.begin(serial, kind)
            do {
                try kind.run(job)
            } catch {
                Failures.record("job \(serial) (\(kind.name)): \(error)")
            }
            slot.end()
            self.budget.give(kind.descriptors)
            kind.finished += 1
            Count.jobs += 1
            if self.crew.isStopping {
                self.running -= 1
                self.change.callAll()
            } else {
                try self.launch(slot)
            }
        }
    }

    private func choose(_ generator: inout SplitMix64) -> Kind {
        let total = options.kinds.reduce(0) { $0 + $1.weight }
        var pick = Int.random(in: 0..<total, using: &generator)
        return options.kinds.first {
            pick -= $0.weight
            return pick < 0
        }!
    }

    /// Spawns a fiber that is counted.
    @discardableResult
    func spawn<Value>(name: String? = nil, _ body: @escaping () throws -> Value) throws -> FiberHandle<Value> {
        let handle = try Fiber.spawnLocal(name: name) {
            defer { Account.fibers.right += 1 }
            return try body()
        }
        Account.fibers.left += 1
        return handle
    }
}

extension Deadline {
    static var now: Int64 { after(.zero) }
}
