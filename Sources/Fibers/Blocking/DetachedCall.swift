// SPDX-License-Identifier: Apache-2.0

/// A call on a thread for blocking calls that is nobody's own: several fibers may wait for it, and it goes on when one of them does not. How its result reaches
/// them is up to its body. At most half of the threads have such calls at a time.
package struct DetachedCall: Sendable {
    private let job: BlockingJob
    private let pool: BlockingPool

    /// Puts a call in line for a thread of the caller's runtime.
    ///
    /// - Parameters:
    ///   - name: for messages about calls that do not end.
    ///   - refused: called instead, on any thread, when there is no thread to be had.
    ///   - body: what to do; it runs outside any fiber, and may do so after the runtime has ended.
    package init(name: String, refused: @escaping @Sendable (ResourceError) -> Void, _ body: @escaping @Sendable () -> Void) {
        pool = Worker.here("DetachedCall").blockingPool
        job = BlockingJob(name: name, refused: refused, body)
        pool.start(job)
    }

    /// Takes the call back while it waits for a thread: then it never runs. False when it runs already, or is over. Any thread.
    package func takeBack() -> Bool { pool.takeBack(job) }
}
