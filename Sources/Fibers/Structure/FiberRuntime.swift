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
/// A runtime keeps no state behind when it ends: descriptors, stacks, threads and signal dispositions are as before, and another can be started. One thing stays: where the
/// process was started with closed standard streams, the first runtime opens `/dev/null` for them, so that what is written to standard error goes into nobody's connection.
public final class FiberRuntime: Sendable {
    let workers: WorkerSet
    /// Threads for blocking calls, of which there are none until the first one.
    let blocking: BlockingPool

    private init(_ configuration: Configuration) {
        var cpus = cfiber_cpus()
        // Those that the calling thread may use as long as it is not bound to one of them.
        let isBoundLater = configuration.pinsWorkers && cfiber_allowed_cpus(&cpus) == 0
        blocking = BlockingPool(
            limit: configuration.blockingThreads, idleLimit: Deadline.nanoseconds(configuration.blockingIdleLimit),
            cpus: isBoundLater ? cpus : nil)
        workers = WorkerSet(configuration.settings, Attachments(first: blocking))
    }

    /// Starts a runtime, runs `main` as its first fiber on the calling thread, and returns what that returns or throws what it throws, after **all** fibers have ended.
    ///
    /// The calling thread is worker 0 and does nothing else meanwhile; ``Configuration/workers`` says how many more there are, each with a thread of its own, where fibers begin by
    /// ``Fiber/spawn(name:on:_:)``. Several threads may each run a runtime of their own; one thread runs one at a time.
    ///
    /// Not for use inside a `Task`: it keeps the thread, which Swift concurrency has few of, and the task would be current for all fibers.
    ///
    /// When `main` throws, all other fibers are cancelled, and the error is thrown when they have ended. To end the others of a `main` that returns, put them into
    /// a group (``withFiberGroup(limit:_:)``) or call ``shutDown(within:)``.
    ///
    /// - Throws: what `main` throws, or a ``ResourceError`` when the runtime cannot start, also for lack of a descriptor or of `/dev/null` in place of a closed standard stream.
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
            // What `main` captures is borrowed from the caller of `run`, who must not go on while `main` has it.
            require(
                result != nil,
                "FiberRuntime.run cannot return: the runtime was shut down, and main, which was cancelled, has not ended within the limit. Let the errors of waiting calls end it, or give it more time (shutDown(within:))."
            )
        }
        return try result.unsafelyUnwrapped.get()
    }

    /// How many workers the calling fiber's runtime has.
    public static var workerCount: Int { Worker.here("FiberRuntime.workerCount").pointee.workers.all.count }

    /// Which of them runs the calling fiber; nil outside fibers. The thread that called ``run(_:_:)`` is 0.
    public static var currentWorker: Int? { Worker.current?.pointee.index }

    /// What the threads for blocking calls do; see ``withBlockingThread(name:_:)``.
    public static var blockingStatistics: BlockingStatistics {
        Worker.here("FiberRuntime.blockingStatistics").blockingPool.statistics
    }

    /// Waits for the calls that fibers have left to themselves.
    private func stopBlocking() {
        let left = blocking.stop(until: Deadline.after(workers.settings.shutdownLimit))
        if left.isEmpty { return }
        let names = left.prefix(20).joined(separator: ", ") + (left.count > 20 ? ", and \(left.count - 20) more" : "")
        workers.settings.warn(
            "the runtime ends while blocking calls that were cancelled still run, each on a thread of its own: \(names)")
    }

    /// Ends the calling fiber's runtime: cancels all of its fibers, the caller and those spawned later included, the newest first, and gives them some time to end.
    /// A shield protects what its own fiber does in it, and not the children of a group in it.
    ///
    /// It returns at once. ``run(_:_:)`` returns when all have ended, or when the time is over: then ``Configuration/onWarning`` hears the names of those that are left and
    /// what they wait for, and they never run again; what they own stays in memory. `main` itself cannot be left behind: if it has not ended by then, the program stops with a message. A fiber that
    /// computes without ever waiting or yielding holds up the end.
    ///
    /// - Parameter limit: how long the fibers may take, nil for ``Configuration/shutdownLimit``. Of several calls the earliest end counts.
    public static func shutDown(within limit: Duration? = nil) {
        let worker = Worker.here("FiberRuntime.shutDown")
        let deadline = Deadline.after(limit ?? worker.pointee.workers.settings.shutdownLimit)
        for other in worker.pointee.workers.all where other != worker {
            other.pointee.inbox.push(Message { other, _ in other.shutDown(until: deadline) })
        }
        worker.shutDown(until: deadline)
    }
}
