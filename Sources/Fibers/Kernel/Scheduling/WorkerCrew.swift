// SPDX-License-Identifier: Apache-2.0

// The threads of a runtime's workers: all of them started before the first fiber runs, or none.

import CFiber
import Glibc

final class WorkerCrew {
    /// The calling thread's worker.
    let first: Worker
    private let start: Start
    private var threads: [pthread_t] = []
    private var affinity: cfiber_cpus?

    /// Coordinates the new threads with the thread that starts them.
    private final class Start: @unchecked Sendable {
        enum Phase { case starting, running, cancelled }

        let set: WorkerSet
        /// The CPUs to which workers are pinned; nil if they are not.
        let cpus: cfiber_cpus?
        private let cpuCount: Int
        private let lock = ThreadLock()
        private let change: ThreadCondition
        private var phase = Phase.starting
        private var workers: [Int: Worker] = [:]
        private var failure: ResourceError?

        init(_ set: WorkerSet, cpus: cfiber_cpus?, count: Int) {
            self.set = set
            self.cpus = cpus
            cpuCount = count
            change = ThreadCondition(lock)
        }

        /// Makes the worker of the calling thread, pinned to a CPU if requested.
        func make(_ index: Int) throws(ResourceError) -> Worker {
            if var cpus {
                let status = cfiber_pin(&cpus, Int32(index))
                if status < 0 { throw .descriptors(-status, "sched_setaffinity") }
            }
            return try Worker.make(set, index: index)
        }

        /// The main function of a worker's thread.
        func run(_ index: Int) {
            cfiber_name_thread("fibers-\(index)")
            do {
                let worker = try make(index)
                let isRunning = tell { workers[index] = worker }
                if isRunning { worker.runUntilDone() }
                worker.destroy()
            } catch {
                _ = tell { failure = error }
            }
        }

        /// Reports, then waits for the decision. True if the worker shall run.
        private func tell(_ report: () -> Void) -> Bool {
            lock.withLock {
                report()
                change.broadcast()
                while phase == .starting { change.wait(until: .max) }
                return phase == .running
            }
        }

        /// Waits for the reports of `started` threads. Starts the workers if all of them succeeded, and returns the failure otherwise.
        func decide(_ first: Worker, started: Int, _ failure: ResourceError?) -> ResourceError? {
            lock.withLock {
                self.failure = self.failure ?? failure
                while self.failure == nil && workers.count < started { change.wait(until: .max) }
                if self.failure == nil {
                    set.complete([first] + (0..<started).map { workers[$0 + 1].unsafelyUnwrapped }, cpus: cpuCount)
                }
                phase = self.failure == nil ? .running : .cancelled
                change.broadcast()
                return self.failure
            }
        }
    }

    init(_ set: WorkerSet) throws(ResourceError) {
        var cpus = cfiber_cpus()
        let isKnown = cfiber_allowed_cpus(&cpus) == 0
        let available = isKnown ? min(Int(cpus.count), Int(cfiber_cpu_quota())) : 1
        let count = set.settings.workers ?? Self.automatic(available)
        let pins = set.settings.pinsWorkers && isKnown
        start = Start(set, cpus: pins ? cpus : nil, count: available)
        affinity = pins ? cpus : nil
        do throws(ResourceError) { first = try start.make(0) } catch {
            Self.release(&affinity)
            throw error
        }
        first.pointee.ending.isActive = true
        var failure: ResourceError?
        for index in 1..<count where failure == nil {
            var thread = pthread_t()
            let entry = Unmanaged.passRetained(Entry(start, index))
            let status = cfiber_start_thread(
                &thread, { Unmanaged<Entry>.fromOpaque($0.unsafelyUnwrapped).takeRetainedValue().run() }, entry.toOpaque())
            if status == 0 {
                threads.append(thread)
            } else {
                entry.release()
                failure = .threads(-status, "starting worker \(index) of \(count)")
            }
        }
        if let failure = start.decide(first, started: threads.count, failure) {
            end()
            throw failure
        }
    }

    private final class Entry {
        let start: Start
        let index: Int

        init(_ start: Start, _ index: Int) {
            self.start = start
            self.index = index
        }

        func run() { start.run(index) }
    }

    private static func automatic(_ cpus: Int) -> Int {
        // As in a shell, an empty variable counts as unset.
        if let text = getenv("FIBERS_WORKERS").map({ String(cString: $0) }), !text.isEmpty {
            guard let count = Int(text), (1...1024).contains(count) else {
                misuse("FIBERS_WORKERS must be a number from 1 to 1,024; it is \"\(text)\"")
            }
            return count
        }
        return max(1, min(cpus, 1024))
    }

    private static func release(_ affinity: inout cfiber_cpus?) {
        if var cpus = affinity { _ = cfiber_unpin(&cpus) }
        affinity = nil
    }

    /// Ends the calling thread's worker and waits for the other threads.
    func end() {
        // The workers never ran, so `main` is still counted.
        if first.pointee.ending.isActive { start.set.noteEnd() }
        first.destroy()
        for thread in threads { pthread_join(thread, nil) }
        start.set.dissolve()
        Self.release(&affinity)
    }
}
