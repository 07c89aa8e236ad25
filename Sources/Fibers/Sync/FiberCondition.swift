// SPDX-License-Identifier: Apache-2.0

// Waiting for something to become true of what a mutex protects.
//
// Invariants:
//   * who waits stands in line before he gives the mutex up, with the lock of the condition held around both: whoever takes the mutex after him and signals finds him in line;
//   * that lock is taken before the lock of a mutex, never the other way round;
//   * a wait that was signalled returns, also in a fiber that is cancelled meanwhile, so that no signal is lost; and all waits return with the mutex.

@usableFromInline
final class ConditionCore: SyncCore, @unchecked Sendable {
    override init(isShared: Bool) { super.init(isShared: isShared) }

    override var kind: Kind { Kind(local: "LocalCondition", shared: "FiberCondition") }

    /// Gives up the mutex, waits for a signal, and takes the mutex again, whatever ended the wait.
    @usableFromInline
    func wait(givingUp mutex: MutexCore) throws {
        require(
            mutex.isHeldByCaller,
            "wait on a condition was called without its mutex: lock() it before, else a signal between the look at what is waited for and the wait is missed"
        )
        try beginCall()
        lock()
        mutex.release()
        let outcome = wait(in: first, .condition)
        mutex.acquireShielded()
        try checkWait(outcome)
    }

    func signal() {
        lock()
        let waiting = claimFirst(of: first)
        unlock()
        if let waiting { resume(waiting) }
    }

    func broadcast() {
        var claimed = WaitList()
        lock()
        claimAll(of: first, into: &claimed)
        unlock()
        resumeAll(&claimed)
    }
}

/// Lets fibers of all workers, and plain threads, wait until something becomes true of what a ``FiberMutex`` protects; who makes it true signals.
///
/// For a value in a mutex see ``FiberMutex/withLock(waitingOn:until:_:)``. Use one condition with one mutex.
public final class FiberCondition: Sendable {
    @usableFromInline let core = ConditionCore(isShared: true)

    /// A condition that nobody waits for.
    public init() {}

    /// Gives up the mutex, which the caller must have taken, and waits for a signal; it has the mutex again when this returns, also when it throws. What was waited for may have come and gone
    /// by then, so look again, or use ``wait(_:until:)``.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then no signal is lost.
    /// - Note: parks
    public func wait(_ mutex: FiberMutex<Void>) throws { try core.wait(givingUp: mutex.core) }

    /// Waits until the predicate holds, which is called with the mutex taken; otherwise as ``wait(_:)``. Does not wait when it holds at once.
    ///
    /// - Throws: what `predicate` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled.
    /// - Note: parks
    public func wait(_ mutex: FiberMutex<Void>, until predicate: () throws -> Bool) throws {
        while try !predicate() { try wait(mutex) }
    }

    /// Lets the first in line go on, once it has the mutex. Nothing when nobody waits. Any thread, with the mutex or without.
    public func signal() { core.signal() }

    /// Lets all in line go on, one after the other, as each has the mutex.
    ///
    /// - Complexity: O(*n*) in the number of those that wait.
    public func broadcast() { core.broadcast() }

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

/// Lets fibers of one worker wait until something becomes true of what a ``LocalMutex`` protects. As ``FiberCondition``, without locks and atomic operations.
public final class LocalCondition {
    @usableFromInline let core = ConditionCore(isShared: false)

    /// A condition that nobody waits for.
    public init() {}

    /// Gives up the mutex, which the caller must have taken, and waits for a signal; it has the mutex again when this returns, also when it throws.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then no signal is lost.
    /// - Note: parks
    public func wait(_ mutex: LocalMutex<Void>) throws { try core.wait(givingUp: mutex.core) }

    /// Waits until the predicate holds, which is called with the mutex taken; otherwise as ``wait(_:)``. Does not wait when it holds at once.
    ///
    /// - Throws: what `predicate` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled.
    /// - Note: parks
    public func wait(_ mutex: LocalMutex<Void>, until predicate: () throws -> Bool) throws {
        while try !predicate() { try wait(mutex) }
    }

    /// Lets the first in line go on, once it has the mutex. Nothing when nobody waits.
    public func signal() { core.signal() }

    /// Lets all in line go on, one after the other, as each has the mutex.
    ///
    /// - Complexity: O(*n*) in the number of those that wait.
    public func broadcast() { core.broadcast() }

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

@available(*, unavailable, message: "it stays on its worker: FiberCondition is for all")
extension LocalCondition: Sendable {}
