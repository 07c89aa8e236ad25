// SPDX-License-Identifier: Apache-2.0

// One round: a runtime from start to stop, with a part for each of its workers (Round.swift), and a server on all of them.
//
// Any thread, except `run`.

import FiberNet
import Fibers
import Glibc
import Synchronization

final class Crew: Sendable {
    let options: Options
    let wakingThread: WakingThread
    /// Of the servers of all workers. Complete before the first job begins.
    let addresses = Guarded<[SocketAddress]>([])
    /// Those that the servers have not seen yet, by the number that the client sends first.
    let connections = Guarded<[UInt64: Visit]>([:])
    private let rounds = Guarded<[Int: Round]>([:])
    private let stopping = Atomic<Bool>(false)

    var isStopping: Bool { stopping.load(ordering: .relaxed) }
    func stop() { stopping.store(true, ordering: .relaxed) }

    /// The part of the calling fiber's worker.
    var round: Round {
        let index = FiberRuntime.currentWorker!
        return rounds.withLock { $0[index]! }
    }

    /// Runs a whole round; returns true when a signal asked for the end.
    static func run(_ options: Options, _ slots: [Slot], _ wakingThread: WakingThread, until deadline: Int64) throws -> Bool {
        var configuration = configuration(options)
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
            try Crew(options, wakingThread).run(slots, until: deadline)
        }
    }

    private static func configuration(_ options: Options) -> FiberRuntime.Configuration {
        // Few threads for blocking calls, so that these wait in line.
        FiberRuntime.Configuration(workers: options.workers, blockingThreads: 4)
    }

    /// Has as many threads as a round may have, and nothing else: the system keeps some of their stacks for the next ones.
    static func warmUp(_ options: Options) {
        let configuration = configuration(options)
        let missing = Guarded(configuration.blockingThreads)
        do {
            try FiberRuntime.run(configuration) {
                for _ in 0..<configuration.blockingThreads {
                    try Fiber.spawn {
                        try withBlockingThread {
                            missing.withLock { $0 -= 1 }
                            while missing.value > 0 { usleep(100) }
                        }
                    }
                }
            }
        } catch {
            Failures.record("the runtime: \(error)")
        }
    }

    private init(_ options: Options, _ wakingThread: WakingThread) {
        self.options = options
        self.wakingThread = wakingThread
    }

    private func run(_ slots: [Slot], until deadline: Int64) throws -> Bool {
        try onEachWorker { index in
            let round = try Round(self, index: index)
            self.rounds.withLock { $0[index] = round }
            self.addresses.withLock { $0 += round.server.addresses }
        }
        let server = try TCPServer.bind(to: .loopback(port: 0))
        Account.sockets.left += FiberRuntime.workerCount
        addresses.withLock { $0.append(server.address) }
        let serving = try round.spawn { try server.serve { self.serve($0) } }
        let signals = try Signals.of(.interrupt, .terminate)
        var isInterrupted = false
        try round.spawn {
            guard (try? signals.next()) != nil else { return }
            isInterrupted = true
            self.stop()
        }
        // A signal is the process's, and one that a job raises may come when the job has heard another's and has gone.
        let others = try Signals.of(.user1, .user2)
        try round.spawn { while (try? others.next()) != nil {} }
        // Blocked between the rounds, when nobody subscribes to them.
        Process.blockSignals(false)
        let count = FiberRuntime.workerCount
        try onEachWorker { index in
            let own = slots.indices.filter { $0 % count == index }.map { slots[$0] }
            try self.round.runJobs(own, until: deadline)
        }
        server.close()
        let report = try serving.join()
        Account.sockets.right += FiberRuntime.workerCount
        let done = server.connections
        try Violation.unless(
            report.cancelled == 0 && done.allSatisfy { $0.open == 0 } && done.reduce(0) { $0 + $1.accepted } == report.connections,
            "the server of all workers ended with \(report) and \(done)")
        Count.handedOver += done.reduce(0) { $0 + $1.handedOver }
        try onEachWorker { _ in try self.round.server.stop() }
        // They know the crew, and it them.
        rounds.withLock { $0 = [:] }
        Process.blockSignals(true)
        signals.close()
        others.close()
        return isInterrupted
    }

    /// Runs something in a fiber on each worker, at the same time, and returns when all have ended.
    private func onEachWorker(_ body: @escaping @Sendable (Int) throws -> Void) throws {
        let handles = try (0..<FiberRuntime.workerCount).map { index in
            let handle = try Fiber.spawn(on: index) {
                defer { Account.fibers.right += 1 }
                try body(index)
            }
            Account.fibers.left += 1
            return handle
        }
        for handle in handles { try handle.join() }
    }
}
