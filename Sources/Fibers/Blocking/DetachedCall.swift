// SPDX-License-Identifier: Apache-2.0

/// A call on a thread for blocking calls that belongs to no single fiber: several fibers may wait for it, and it continues when one of them
/// stops waiting. Its body delivers the result to them. At most half of the threads run such calls at a time.
package struct DetachedCall: Sendable {
    private let job: BlockingJob
    private let pool: BlockingPool

    /// Queues a call for a thread of the caller's runtime.
    ///
    /// - Parameters:
    ///   - name: for messages about calls that do not end.
    ///   - refused: called instead, on any thread, when no thread is available.
    ///   - body: what to do; it runs outside any fiber, and may do so after the runtime has ended.
    package init(name: String, refused: @escaping @Sendable (ResourceError) -> Void, _ body: @escaping @Sendable () -> Void) {
        pool = Worker.here("DetachedCall").blockingPool
        job = BlockingJob(name: name, refused: refused, body)
        pool.start(job)
    }

    /// Removes the call from the queue, so that it never runs. Returns false when it is running or over. Any thread.
    package func takeBack() -> Bool { pool.takeBack(job) }
}
