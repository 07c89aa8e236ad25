// One round: a runtime from start to stop, with its servers, and as many jobs at a time as were asked for, each of which starts the next one.
//
// Owner worker only, except `isStopping`.

import FiberNet
import Fibers
import Glibc
import Synchronization

final class Round {
    let options: Options
    let wakingThread: WakingThread
    private let budget: DescriptorBudget
    private(set) var server: Server!
    private(set) var isStopping = false
    private var running = 0
    private let change = WaitingRoom()

    private static let nextSerial = Atomic<UInt64>(0)

    /// Runs a whole round; returns true when a signal asked for the end.
    static func run(_ options: Options, _ slots: [Slot], _ wakingThread: WakingThread, until deadline: Int64) throws -> Bool {
        var configuration = FiberRuntime.Configuration()
        configuration.onUnhandledError = { unhandled in
            if let error = unhandled.error as? Planned {
                Account.errors.right += 1
                // It may park, in the last moments of a fiber; with a deadline that seldom comes.
                if error.number % 4 == 0, wakingThread.wait(until: Deadline.now + 500_000_000) { Account.wakes.right += 1 }
            } else {
                Failures.record("\(unhandled)")
            }
        }
        configuration.onWarning = { _ in Count.shortages += 1 }
        return try FiberRuntime.run(configuration) {
            try Round(options, wakingThread).run(slots, until: deadline)
        }
    }

    private init(_ options: Options, _ wakingThread: WakingThread) {
        self.options = options
        self.wakingThread = wakingThread
        budget = DescriptorBudget(Process.freeDescriptors() * 3 / 4)
    }

    private func run(_ slots: [Slot], until deadline: Int64) throws -> Bool {
        server = try Server(self)
        let signals = try Signals.of(.interrupt, .terminate)
        var isInterrupted = false
        try spawn {
            guard (try? signals.next()) != nil else { return }
            isInterrupted = true
            self.stop()
        }
        // Blocked between the rounds, when nobody subscribes to them.
        Process.blockSignals(false)
        for slot in slots {
            running += 1
            try launch(slot)
        }
        while !isStopping, Failures.all.isEmpty, Deadline.now < deadline {
            _ = change.wait(until: min(deadline, Deadline.now + 100_000_000))
        }
        stop()
        while running > 0 { _ = change.wait() }
        try server.stop()
        Process.blockSignals(true)
        signals.close()
        return isInterrupted
    }

    private func stop() {
        isStopping = true
        change.callAll()
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
            if self.isStopping {
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
