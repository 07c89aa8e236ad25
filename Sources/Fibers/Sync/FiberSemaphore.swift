// SPDX-License-Identifier: Apache-2.0

// Permits, granted in order: the core of a semaphore. With `Int.max` permits, of which a reader takes one and a writer takes all, it is
// also the core of a reader-writer lock.
//
// Invariants, whenever the lock of the wait point is free:
//   * A permit is with a caller or in `available`. The caller that serves a waiter takes the permits on its behalf, with the lock held and
//     after claiming its wait. So a wait that ends by a cancellation has taken none.
//   * The first waiter wants more permits than are available, or its wait has ended and it will leave soon, which serves the waiters
//     behind it (`hasLeft`). No waiter overtakes it, so small requests do not starve a large one.
// Runs on one worker or on any thread: see `WaitPoint`.

@usableFromInline
class PermitCore: SyncCore, @unchecked Sendable {
    @exclusivity(unchecked) private final var available: Int

    init(_ permits: Int, isShared: Bool) {
        available = permits
        super.init(isShared: isShared)
    }

    override var kind: Kind { Kind(local: "LocalSemaphore", shared: "FiberSemaphore") }

    final func acquire(_ amount: Int, _ reason: WaitReason) throws {
        try beginCall()
        lock()
        if take(amount) { return unlock() }
        try checkWait(wait(in: first, amount: amount, reason))
    }

    final func tryAcquire(_ amount: Int) -> Bool {
        countTry()
        return withLock { take(amount) }
    }

    final func release(_ amount: Int) {
        var claimed = WaitList()
        lock()
        let (sum, isTooMuch) = available.addingReportingOverflow(amount)
        require(!isTooMuch, "a semaphore has more permits than an Int can count: release what was acquired, and no more")
        available = sum
        serve(&claimed)
        unlock()
        resumeAll(&claimed)
    }

    final override func hasLeft(_ place: PlacePointer, _ claimed: inout WaitList) { serve(&claimed) }

    final var permits: Int { withLock { available } }

    @inline(__always)
    private final func take(_ amount: Int) -> Bool {
        guard amount <= available && first.pointee.isEmpty else { return false }
        available &-= amount
        return true
    }

    /// Claims the waiters at the head of the queue whose permits are available. The lock must be held.
    private final func serve(_ claimed: inout WaitList) {
        while let place = claimFirst(of: first, ifAdmitted: { $0 <= available }) {
            available &-= place.pointee.amount
            claimed.append(place.node)
        }
    }
}

/// A number of permits for fibers of all workers and plain threads. Use it to limit how many do something at the same time, or to count
/// available items.
///
/// ```swift
/// let slots = FiberSemaphore(10)
/// try slots.withPermits { try fetch(url) }       // ten at a time
/// ```
///
/// Requests are served strictly in order: while a request waits, later requests wait behind it, even if enough permits are available for
/// them.
public final class FiberSemaphore: Sendable {
    private let core: PermitCore

    /// Creates a semaphore with a number of permits.
    ///
    /// - Parameter permits: the initial number of permits, 0 or more.
    public init(_ permits: Int) {
        require(permits >= 0, "a semaphore begins with 0 permits or more, not \(permits)")
        core = PermitCore(permits, isShared: true)
    }

    /// Takes permits. Waits until enough are available and all earlier requests have been served.
    ///
    /// - Parameter count: at least 1.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then it has taken no permit.
    /// - Note: parks
    public func acquire(_ count: Int = 1) throws { try core.acquire(checked(count), .semaphore) }

    /// Takes permits if enough are available and no request waits; returns whether it did. Never waits. A loop over it lets other fibers
    /// run from time to time.
    public func tryAcquire(_ count: Int = 1) -> Bool { core.tryAcquire(checked(count)) }

    /// Returns permits, or adds new ones: the caller need not have acquired them. Never waits; any thread.
    ///
    /// - Complexity: O(*n*) in the number of waiters that it resumes.
    public func release(_ count: Int = 1) { core.release(checked(count)) }

    /// Takes permits, runs `body`, and returns the permits.
    ///
    /// - Throws: the errors of `body`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` did not run.
    /// - Note: parks
    @inlinable
    public func withPermits<Result: ~Copyable>(_ count: Int = 1, _ body: () throws -> Result) throws -> Result {
        try acquire(count)
        defer { release(count) }
        return try body()
    }

    /// The number of permits that are available now.
    public var availablePermits: Int { core.permits }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

/// A number of permits for fibers of one worker. Like ``FiberSemaphore``, but without locks and atomic operations.
public final class LocalSemaphore {
    private let core: PermitCore

    /// Creates a semaphore with a number of permits.
    ///
    /// - Parameter permits: the initial number of permits, 0 or more.
    public init(_ permits: Int) {
        require(permits >= 0, "a semaphore begins with 0 permits or more, not \(permits)")
        core = PermitCore(permits, isShared: false)
    }

    /// Takes permits. Waits until enough are available and all earlier requests have been served.
    ///
    /// - Parameter count: at least 1.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then it has taken no permit.
    /// - Note: parks
    public func acquire(_ count: Int = 1) throws { try core.acquire(checked(count), .semaphore) }

    /// Takes permits if enough are available and no request waits; returns whether it did. Never waits. A loop over it lets other fibers
    /// run from time to time.
    public func tryAcquire(_ count: Int = 1) -> Bool { core.tryAcquire(checked(count)) }

    /// Returns permits, or adds new ones: the caller need not have acquired them. Never waits.
    ///
    /// - Complexity: O(*n*) in the number of waiters that it resumes.
    public func release(_ count: Int = 1) { core.release(checked(count)) }

    /// Takes permits, runs `body`, and returns the permits.
    ///
    /// - Throws: the errors of `body`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` did not run.
    /// - Note: parks
    @inlinable
    public func withPermits<Result: ~Copyable>(_ count: Int = 1, _ body: () throws -> Result) throws -> Result {
        try acquire(count)
        defer { release(count) }
        return try body()
    }

    /// The number of permits that are available now.
    public var availablePermits: Int { core.permits }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

@available(*, unavailable, message: "it stays on its worker: FiberSemaphore is for all")
extension LocalSemaphore: Sendable {}

@inline(__always)
private func checked(_ count: Int) -> Int {
    require(count >= 1, "a semaphore was asked for \(count) permits: acquire and release at least 1")
    return count
}
