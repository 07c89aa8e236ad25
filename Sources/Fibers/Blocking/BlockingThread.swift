// SPDX-License-Identifier: Apache-2.0

/// Runs a call that blocks its thread on a thread kept for that, and parks the calling fiber meanwhile: files, `getaddrinfo`, C libraries, long computations.
///
/// ```swift
/// let digest = try withBlockingThread { try slowHash(of: path) }
/// ```
///
/// There are up to `FiberRuntime.Configuration.blockingThreads` such threads, made when they are needed and ended when they were idle for a while; while all of them are busy
/// calls wait in line. The closure runs outside any fiber: calls that park stop the program there, and what it captures must be safe to use on another thread.
///
/// When the fiber is cancelled, or a deadline passes, a call that waits in line is taken back and never runs. A call that runs cannot be interrupted: the fiber goes on at once, the
/// call runs to its end, and nobody hears of its result. Let it capture nothing then that must not change behind your back.
///
/// - Parameters:
///   - name: for messages about calls that do not end; at most 39 bytes of UTF-8 are kept.
///   - body: what to do.
/// - Throws: what `body` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled; ``ResourceError`` when there is no thread to be had.
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
    /// Runs a call on a thread kept for that, and parks the running fiber until it has returned; otherwise as `withBlockingThread`.
    package func callOnBlockingThread(_ name: String, _ body: @escaping () -> Void) throws {
        try blockingPool.run(BlockingJob(name: name, body), for: self)
    }
}

/// Where a thread leaves the result for the fiber; one writes before the other is woken.
private final class ResultPlace<Value>: @unchecked Sendable {
    nonisolated(unsafe) var result: Result<Value, any Error>?

    func take() throws -> sending Value {
        nonisolated(unsafe) let value = try result.unsafelyUnwrapped.get()
        result = nil
        return value
    }
}
