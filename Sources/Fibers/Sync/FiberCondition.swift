// SPDX-License-Identifier: Apache-2.0

// Condition variables: waiting until the data that a mutex protects has a property.
//
// Invariants:
//   * A waiter queues itself before it unlocks the mutex, with the lock of the condition held around both. So a caller that locks the
//     mutex afterwards and signals finds the waiter in the queue.
//   * The lock of the condition is taken before the lock of a mutex, never the other way round.
//   * A signalled wait returns normally even if its fiber has been cancelled meanwhile, so that no signal is lost. All waits return with
//     the mutex locked.

@usableFromInline
final class ConditionCore: SyncCore, @unchecked Sendable {
    override init(isShared: Bool) { super.init(isShared: isShared) }

    override var kind: Kind { Kind(local: "LocalCondition", shared: "FiberCondition") }

    /// Unlocks the mutex, waits for a signal, and locks the mutex again, whatever ended the wait.
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

/// A condition variable: lets fibers of all workers and plain threads wait until the data that a ``FiberMutex`` protects has a property.
/// The code that changes the data signals.
///
/// For a value in a mutex see ``FiberMutex/withLock(waitingOn:until:_:)``. Use a condition with one mutex only.
public final class FiberCondition: Sendable {
    @usableFromInline let core = ConditionCore(isShared: true)

    /// Creates a condition.
    public init() {}

    /// Unlocks the mutex, which the caller must hold, and waits for a signal. The caller holds the mutex again when this returns or
    /// throws. The property may be false again by then, so check it again, or use ``wait(_:until:)``.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then no signal is lost.
    /// - Note: parks
    public func wait(_ mutex: FiberMutex<Void>) throws { try core.wait(givingUp: mutex.core) }

    /// Waits until the predicate is true; otherwise like ``wait(_:)``. The predicate is called with the mutex locked. Does not wait if it
    /// is true at once.
    ///
    /// - Throws: the errors of `predicate`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled.
    /// - Note: parks
    public func wait(_ mutex: FiberMutex<Void>, until predicate: () throws -> Bool) throws {
        while try !predicate() { try wait(mutex) }
    }

    /// Wakes the first waiter, which continues once it holds the mutex. Does nothing if there is no waiter. Any thread, with the mutex
    /// locked or not.
    public func signal() { core.signal() }

    /// Wakes all waiters, which continue one after the other as each gets the mutex.
    ///
    /// - Complexity: O(*n*) in the number of waiters.
    public func broadcast() { core.broadcast() }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

/// A condition variable for the fibers of one worker and a ``LocalMutex``. Like ``FiberCondition``, but without locks and atomic
/// operations.
public final class LocalCondition {
    @usableFromInline let core = ConditionCore(isShared: false)

    /// Creates a condition.
    public init() {}

    /// Unlocks the mutex, which the caller must hold, and waits for a signal. The caller holds the mutex again when this returns or
    /// throws.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then no signal is lost.
    /// - Note: parks
    public func wait(_ mutex: LocalMutex<Void>) throws { try core.wait(givingUp: mutex.core) }

    /// Waits until the predicate is true; otherwise like ``wait(_:)``. The predicate is called with the mutex locked. Does not wait if it
    /// is true at once.
    ///
    /// - Throws: the errors of `predicate`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled.
    /// - Note: parks
    public func wait(_ mutex: LocalMutex<Void>, until predicate: () throws -> Bool) throws {
        while try !predicate() { try wait(mutex) }
    }

    /// Wakes the first waiter, which continues once it holds the mutex. Does nothing if there is no waiter.
    public func signal() { core.signal() }

    /// Wakes all waiters, which continue one after the other as each gets the mutex.
    ///
    /// - Complexity: O(*n*) in the number of waiters.
    public func broadcast() { core.broadcast() }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

@available(*, unavailable, message: "it stays on its worker: FiberCondition is for all")
extension LocalCondition: Sendable {}
