// SPDX-License-Identifier: Apache-2.0

/// Runs a blocking call on a dedicated thread and parks the calling fiber meanwhile: files, `getaddrinfo`, C libraries, long computations.
///
/// ```swift
/// let digest = try withBlockingThread { try slowHash(of: path) }
/// ```
///
/// There are up to `FiberRuntime.Configuration.blockingThreads` such threads, started on demand and ended when they have been idle for a
/// while. While all of them are busy, calls wait in a queue. The closure runs outside any fiber: calls that park stop the program there,
/// and its captures must be safe to use on another thread.
///
/// When the fiber is cancelled, or a deadline passes, a queued call is removed and never runs. A running call cannot be interrupted: the
/// fiber continues at once, the call runs to its end, and its result is discarded. Such a call must not capture data that it must not
/// change after `withBlockingThread` has returned.
///
/// - Parameters:
///   - name: for messages about calls that do not end; at most 39 bytes of UTF-8 are kept.
///   - body: what to do.
/// - Throws: what `body` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled; ``ResourceError`` when no thread is
///   available.
/// - Note: parks
@discardableResult
public func withBlockingThread<Result>(
    name: String = "blocking call", _ body: sending @escaping () throws -> sending Result
) throws -> sending Result {
    let worker = Worker.here("withBlockingThread")
    let place = ResultPlace<Result>()
    try worker.blockingPool.run(BlockingJob(name: name) { place.result = Swift.Result { try body() } }, for: worker)
    return try place.take()
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Runs a call on a dedicated thread, and parks the running fiber until it has returned; otherwise like `withBlockingThread`.
    package func callOnBlockingThread(_ name: String, _ body: @escaping () -> Void) throws {
        try blockingPool.run(BlockingJob(name: name, body), for: self)
    }
}

/// The place where a thread stores the result for the fiber. The thread writes it before it wakes the fiber.
private final class ResultPlace<Value>: @unchecked Sendable {
    nonisolated(unsafe) var result: Result<Value, any Error>?

    func take() throws -> sending Value {
        nonisolated(unsafe) let value = try result.unsafelyUnwrapped.get()
        result = nil
        return value
    }
}
