// SPDX-License-Identifier: Apache-2.0

import CFiber
import Glibc

/// Runs fibers.
///
/// ```swift
/// try FiberRuntime.run {
///     let answer = try Fiber.spawnLocal { 6 * 7 }
///     print(try answer.join())
/// }
/// ```
///
/// A runtime leaves no state behind when it ends: descriptors, stacks, threads and signal dispositions are as before, and another can be
/// started. There is one exception. If the process was started with closed standard streams, the first runtime opens `/dev/null` for them,
/// so that output to standard error cannot end up in a connection.
public final class FiberRuntime: Sendable {
    let workers: WorkerSet
    /// The threads for blocking calls. None exists before the first call.
    let blocking: BlockingPool

    private init(_ configuration: Configuration) {
        var cpus = cfiber_cpus()
        // The CPUs that the calling thread may use, read before it is bound to one of them.
        let isBoundLater = configuration.pinsWorkers && cfiber_allowed_cpus(&cpus) == 0
        blocking = BlockingPool(
            limit: configuration.blockingThreads, idleLimit: Deadline.nanoseconds(configuration.blockingIdleLimit),
            cpus: isBoundLater ? cpus : nil)
        workers = WorkerSet(configuration.settings, Attachments(first: blocking))
    }

    /// Starts a runtime and runs `main` as its first fiber on the calling thread. Returns or throws the result of `main` after **all**
    /// fibers have ended.
    ///
    /// The calling thread is worker 0 and does nothing else meanwhile. ``Configuration/workers`` sets the number of workers; each further
    /// one has a thread of its own, and ``Fiber/spawn(name:on:_:)`` starts fibers there. Several threads may each run a runtime of their
    /// own; one thread runs one at a time.
    ///
    /// Do not use it inside a `Task`: it occupies the thread, of which Swift concurrency has few, and the task would be current for all
    /// fibers.
    ///
    /// When `main` throws, all other fibers are cancelled, and the error is thrown when they have ended. To end the other fibers when
    /// `main` returns, put them into a group (``withFiberGroup(limit:_:)``) or call ``shutDown(within:)``.
    ///
    /// - Throws: what `main` throws, or a ``ResourceError`` when the runtime cannot start, for instance for lack of a descriptor or of
    ///   `/dev/null` in place of a closed standard stream.
    @discardableResult
    public static func run<Value>(_ configuration: Configuration = Configuration(), _ main: () throws -> Value) throws -> Value {
        require(
            Worker.current == nil,
            "FiberRuntime.run was called inside a running runtime: call Fiber.spawnLocal there, or run the second one on a thread of its own"
        )
        configuration.check()
        let status = cfiber_fill_standard_streams()
        if status < 0 { throw ResourceError.standardStreams(-status) }
        let runtime = FiberRuntime(configuration)
        let crew = try WorkerCrew(runtime.workers)
        let worker = crew.first
        defer {
            crew.end()
            runtime.workers.attachments.end()
            runtime.stopBlocking()
        }
        var result: Result<Value, any Error>?
        try withoutActuallyEscaping(main) { main in
            try Fiber.spawnLocal(name: "main") {
                result = Result { try main() }
                if case .failure = result { shutDown() }
            }
            worker.runUntilDone()
            // The captures of `main` are borrowed from the caller of `run`, which must not continue while `main` still uses them.
            require(
                result != nil,
                "FiberRuntime.run cannot return: the runtime was shut down, and main, which was cancelled, has not ended within the limit. Let the errors of waiting calls end it, or give it more time (shutDown(within:))."
            )
        }
        return try result.unsafelyUnwrapped.get()
    }

    /// The number of workers of the calling fiber's runtime.
    public static var workerCount: Int { Worker.here("FiberRuntime.workerCount").pointee.workers.all.count }

    /// The index of the worker that runs the calling fiber; nil outside fibers. The thread that called ``run(_:_:)`` is worker 0.
    public static var currentWorker: Int? { Worker.current?.pointee.index }

    /// The state of the threads for blocking calls; see ``withBlockingThread(name:_:)``.
    public static var blockingStatistics: BlockingStatistics {
        Worker.here("FiberRuntime.blockingStatistics").blockingPool.statistics
    }

    /// Waits for the blocking calls whose fibers stopped waiting for them.
    private func stopBlocking() {
        let left = blocking.stop(until: Deadline.after(workers.settings.shutdownLimit))
        if left.isEmpty { return }
        let names = left.prefix(20).joined(separator: ", ") + (left.count > 20 ? ", and \(left.count - 20) more" : "")
        workers.settings.warn(
            "the runtime ends while blocking calls that were cancelled still run, each on a thread of its own: \(names)")
    }

    /// Ends the calling fiber's runtime: cancels all of its fibers, including the caller and any spawned later, newest first, and gives
    /// them some time to end. A shield protects the work of its own fiber inside it, but not the children of a group inside it.
    ///
    /// The call returns at once. ``run(_:_:)`` returns when all fibers have ended, or when the time is over. In the second case
    /// ``Configuration/onWarning`` receives the names of the remaining fibers and the reasons for which they wait. They never run again,
    /// and the memory that they own is not freed. `main` itself cannot be abandoned: if it has not ended by then, the program stops with a
    /// message. A fiber that computes without ever waiting or yielding delays the end.
    ///
    /// - Parameter limit: how long the fibers may take, nil for ``Configuration/shutdownLimit``. Of several calls the earliest deadline
    ///   counts.
    public static func shutDown(within limit: Duration? = nil) {
        let worker = Worker.here("FiberRuntime.shutDown")
        let deadline = Deadline.after(limit ?? worker.pointee.workers.settings.shutdownLimit)
        for other in worker.pointee.workers.all where other != worker {
            other.pointee.inbox.push(Message { other, _ in other.shutDown(until: deadline) })
        }
        worker.shutDown(until: deadline)
    }
}
