// SPDX-License-Identifier: Apache-2.0

// A count of what is yet to be done, and those who wait until it is nothing.
//
// Invariant, whenever the lock of the wait point is free: somebody waits only while the count is above zero. One worker, or any thread: see `WaitPoint`.

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

/// Waits until so many things are done, by fibers of all workers or plain threads. For fibers that are started and ended in one place ``withFiberGroup(limit:_:)`` does more.
///
/// ```swift
/// let uploads = WaitGroup()
/// uploads.add()
/// startUpload(onCompletion: { uploads.done() })
/// try uploads.wait()
/// ```
///
/// It may be used again and again.
public final class WaitGroup: Sendable {
    private let core = WaitGroupCore(isShared: true)

    /// A group of nothing.
    public init() {}

    /// Counts what is about to begin: before it does, so that a wait cannot be over too early. Never waits; any thread. A count below zero stops the program.
    public func add(_ count: Int = 1) { core.add(count) }

    /// Counts one that has ended; with the last one, all that wait go on. Never waits; any thread. More of these than ``add(_:)`` has counted stop the program.
    ///
    /// - Complexity: O(*n*) in the number of those that go on by it.
    public func done() { core.add(-1) }

    /// Waits until the count is zero.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled.
    /// - Note: parks
    public func wait() throws { try core.wait() }

    /// How many have been added and are not done.
    public var count: Int { core.count }

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

/// Waits until so many things are done by fibers of one worker. As ``WaitGroup``, without locks and atomic operations.
public final class LocalWaitGroup {
    private let core = WaitGroupCore(isShared: false)

    /// A group of nothing.
    public init() {}

    /// Counts what is about to begin: before it does, so that a wait cannot be over too early. Never waits. A count below zero stops the program.
    public func add(_ count: Int = 1) { core.add(count) }

    /// Counts one that has ended; with the last one, all that wait go on. Never waits. More of these than ``add(_:)`` has counted stop the program.
    ///
    /// - Complexity: O(*n*) in the number of those that go on by it.
    public func done() { core.add(-1) }

    /// Waits until the count is zero.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled.
    /// - Note: parks
    public func wait() throws { try core.wait() }

    /// How many have been added and are not done.
    public var count: Int { core.count }

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

@available(*, unavailable, message: "it stays on its worker: WaitGroup is for all")
extension LocalWaitGroup: Sendable {}
