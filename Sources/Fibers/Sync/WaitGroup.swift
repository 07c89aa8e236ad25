// SPDX-License-Identifier: Apache-2.0

// Wait groups: a count of unfinished tasks, and a queue of waiters for the moment when it becomes zero.
//
// Invariant, whenever the lock of the wait point is free: waiters are queued only while the count is above zero. Runs on one worker or on
// any thread: see `WaitPoint`.

final class WaitGroupCore: SyncCore, @unchecked Sendable {
    @exclusivity(unchecked) private var number = 0

    override init(isShared: Bool) { super.init(isShared: isShared) }

    override var kind: Kind { Kind(local: "LocalWaitGroup", shared: "WaitGroup") }

    func add(_ amount: Int) {
        var claimed = WaitList()
        lock()
        let (sum, isTooMuch) = number.addingReportingOverflow(amount)
        require(
            sum >= 0 && !isTooMuch,
            "a wait group of \(number) was changed by \(amount): call add() before what is counted begins, and done() once for each when it has ended"
        )
        number = sum
        if sum == 0 { claimAll(of: first, into: &claimed) }
        unlock()
        resumeAll(&claimed)
    }

    func wait() throws {
        try beginCall()
        lock()
        if number == 0 { return unlock() }
        try checkWait(wait(in: first, .waitGroup))
    }

    var count: Int { withLock { number } }
}

/// Waits until a number of tasks are done, by fibers of all workers or plain threads. For fibers that start and end in one scope,
/// ``withFiberGroup(limit:_:)`` does more.
///
/// ```swift
/// let uploads = WaitGroup()
/// uploads.add()
/// startUpload(onCompletion: { uploads.done() })
/// try uploads.wait()
/// ```
///
/// It can be reused.
public final class WaitGroup: Sendable {
    private let core = WaitGroupCore(isShared: true)

    /// Creates a wait group with a count of zero.
    public init() {}

    /// Counts tasks that are about to begin. Call it before they begin, so that a wait cannot end too early. Never waits; any thread. A
    /// count below zero stops the program.
    public func add(_ count: Int = 1) { core.add(count) }

    /// Marks one task as done; the last one wakes all waiters. Never waits; any thread. More calls than ``add(_:)`` has counted stop the
    /// program.
    ///
    /// - Complexity: O(*n*) in the number of waiters that it resumes.
    public func done() { core.add(-1) }

    /// Waits until the count is zero.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled.
    /// - Note: parks
    public func wait() throws { try core.wait() }

    /// The number of tasks that are not done.
    public var count: Int { core.count }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

/// Waits until a number of tasks are done by fibers of one worker. Like ``WaitGroup``, but without locks and atomic operations.
public final class LocalWaitGroup {
    private let core = WaitGroupCore(isShared: false)

    /// Creates a wait group with a count of zero.
    public init() {}

    /// Counts tasks that are about to begin. Call it before they begin, so that a wait cannot end too early. Never waits. A count below
    /// zero stops the program.
    public func add(_ count: Int = 1) { core.add(count) }

    /// Marks one task as done; the last one wakes all waiters. Never waits. More calls than ``add(_:)`` has counted stop the program.
    ///
    /// - Complexity: O(*n*) in the number of waiters that it resumes.
    public func done() { core.add(-1) }

    /// Waits until the count is zero.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled.
    /// - Note: parks
    public func wait() throws { try core.wait() }

    /// The number of tasks that are not done.
    public var count: Int { core.count }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

@available(*, unavailable, message: "it stays on its worker: WaitGroup is for all")
extension LocalWaitGroup: Sendable {}
