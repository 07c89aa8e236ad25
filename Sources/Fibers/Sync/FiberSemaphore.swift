// SPDX-License-Identifier: Apache-2.0

// Permits, in order: what a semaphore does, and, with as many permits as there may be readers, of which a writer takes all, a lock for readers and writers.
//
// Invariants, whenever the lock of the wait point is free:
//   * a permit is with a caller or in `available`. Whoever serves somebody in line takes the permits out for him, with the lock held and once his wait is claimed, so a wait that ends
//     by a cancellation has taken none;
//   * the first in line wants more than is available, or his wait has ended and he will leave soon, which lets those behind him go on (`hasLeft`). Nobody passes him: a large request is
//     not starved by small ones.
// One worker, or any thread: see `WaitPoint`.

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

    /// Claims those at the head of the line for whom there are permits. With the lock held.
    private final func serve(_ claimed: inout WaitList) {
        while let place = claimFirst(of: first, ifAdmitted: { $0 <= available }) {
            available &-= place.pointee.amount
            claimed.append(place.node)
        }
    }
}

/// A number of permits for fibers of all workers and plain threads: to bound how many do something at the same time, or to count what has come.
///
/// ```swift
/// let slots = FiberSemaphore(10)
/// try slots.withPermits { try fetch(url) }       // ten at a time
/// ```
///
/// Served strictly in order: while somebody waits, those who come later wait behind, also where the permits would do for them.
public final class FiberSemaphore: Sendable {
    private let core: PermitCore

    /// A semaphore with so many permits.
    ///
    /// - Parameter permits: how many there are at first, 0 or more.
    public init(_ permits: Int) {
        require(permits >= 0, "a semaphore begins with 0 permits or more, not \(permits)")
        core = PermitCore(permits, isShared: true)
    }

    /// Takes permits; waits until there are so many, and nobody waits who came before.
    ///
    /// - Parameter count: at least 1.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then it took none.
    /// - Note: parks
    public func acquire(_ count: Int = 1) throws { try core.acquire(checked(count), .semaphore) }

    /// Takes permits if there are so many and nobody waits; true when it did. Does not wait; a loop over it lets other fibers run now and then.
    public func tryAcquire(_ count: Int = 1) -> Bool { core.tryAcquire(checked(count)) }

    /// Gives permits back, or adds some: nobody need have acquired them. Never waits; any thread.
    ///
    /// - Complexity: O(*n*) in the number of those in line who go on by it.
    public func release(_ count: Int = 1) { core.release(checked(count)) }

    /// Runs `body` with permits, and gives them back.
    ///
    /// - Throws: what `body` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` was not run.
    /// - Note: parks
    @inlinable
    public func withPermits<Result: ~Copyable>(_ count: Int = 1, _ body: () throws -> Result) throws -> Result {
        try acquire(count)
        defer { release(count) }
        return try body()
    }

    /// How many permits could be had now.
    public var availablePermits: Int { core.permits }

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

/// A number of permits for fibers of one worker. As ``FiberSemaphore``, without locks and atomic operations.
public final class LocalSemaphore {
    private let core: PermitCore

    /// A semaphore with so many permits.
    ///
    /// - Parameter permits: how many there are at first, 0 or more.
    public init(_ permits: Int) {
        require(permits >= 0, "a semaphore begins with 0 permits or more, not \(permits)")
        core = PermitCore(permits, isShared: false)
    }

    /// Takes permits; waits until there are so many, and nobody waits who came before.
    ///
    /// - Parameter count: at least 1.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then it took none.
    /// - Note: parks
    public func acquire(_ count: Int = 1) throws { try core.acquire(checked(count), .semaphore) }

    /// Takes permits if there are so many and nobody waits; true when it did. Does not wait; a loop over it lets other fibers run now and then.
    public func tryAcquire(_ count: Int = 1) -> Bool { core.tryAcquire(checked(count)) }

    /// Gives permits back, or adds some: nobody need have acquired them. Never waits.
    ///
    /// - Complexity: O(*n*) in the number of those in line who go on by it.
    public func release(_ count: Int = 1) { core.release(checked(count)) }

    /// Runs `body` with permits, and gives them back.
    ///
    /// - Throws: what `body` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` was not run.
    /// - Note: parks
    @inlinable
    public func withPermits<Result: ~Copyable>(_ count: Int = 1, _ body: () throws -> Result) throws -> Result {
        try acquire(count)
        defer { release(count) }
        return try body()
    }

    /// How many permits could be had now.
    public var availablePermits: Int { core.permits }

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

@available(*, unavailable, message: "it stays on its worker: FiberSemaphore is for all")
extension LocalSemaphore: Sendable {}

@inline(__always)
private func checked(_ count: Int) -> Int {
    require(count >= 1, "a semaphore was asked for \(count) permits: acquire and release at least 1")
    return count
}
