// SPDX-License-Identifier: Apache-2.0

// The public mutexes: one for all workers and threads, and one for a single worker. The value lies in memory of its own, so that no
// exclusive access to a variable stays open while a fiber parks with the lock held.

/// A value that one fiber or thread at a time may use, on any worker or outside a runtime. Unlike with the `Mutex` of the toolchain, a
/// fiber may wait while it holds the lock.
///
/// ```swift
/// let log = FiberMutex<[String]>([])
/// try log.withLock { $0.append("begun") }
/// ```
///
/// If the mutex is locked, a fiber parks and a plain thread blocks. Waiters queue in first-in, first-out order, and unlocking hands the
/// mutex to the first waiter. Misuse stops the program with a message that names the fibers or threads: locking twice, unlocking a mutex
/// that another fiber holds, ending with the mutex locked, and waiting for a holder that will never unlock, since it was abandoned when
/// its runtime ended.
public final class FiberMutex<Value: ~Copyable> {
    @usableFromInline let core: MutexCore
    @usableFromInline let value: UnsafeMutablePointer<Value>

    /// Creates an unlocked mutex.
    @inlinable
    public init(_ value: consuming sending Value) {
        core = MutexCore(isShared: true)
        self.value = .allocate(capacity: 1)
        self.value.initialize(to: value)
    }

    @inlinable
    deinit {
        value.deinitialize(count: 1)
        value.deallocate()
    }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }

    /// Waits for the lock and runs `body` with the value. The body may wait, and holds the lock meanwhile.
    ///
    /// - Throws: the errors of `body`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` did not run.
    ///   Plain threads are not cancelled.
    /// - Note: parks
    @inlinable
    public func withLock<Result: ~Copyable, Failure: Error>(
        _ body: (inout sending Value) throws(Failure) -> sending Result
    ) throws -> sending Result {
        try core.acquire()
        defer {
            core.release()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(&value.pointee)
    }

    /// Runs `body` with the value if the lock is free; returns nil otherwise. Never waits, even in a cancelled fiber. A loop over it lets
    /// other fibers run from time to time.
    ///
    /// - Throws: the errors of `body`.
    @inlinable
    public func withLockIfAvailable<Result: ~Copyable, Failure: Error>(
        _ body: (inout sending Value) throws(Failure) -> sending Result
    ) throws(Failure) -> sending Result? {
        guard core.tryAcquire() else { return nil }
        defer {
            core.release()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(&value.pointee)
    }

    /// Waits until `predicate` is true for the value, and then runs `body` with the value. While the predicate is false, the mutex is
    /// unlocked and the caller waits for signals of `condition`.
    ///
    /// ```swift
    /// let job = try jobs.withLock(waitingOn: hasJobs, until: { !$0.isEmpty }) { $0.removeFirst() }
    /// ```
    ///
    /// - Throws: the errors of `predicate` and `body`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then
    ///   `body` did not run.
    /// - Note: parks
    @inlinable
    public func withLock<Result: ~Copyable>(
        waitingOn condition: FiberCondition, until predicate: (inout sending Value) throws -> Bool,
        _ body: (inout sending Value) throws -> sending Result
    ) throws -> sending Result {
        try core.acquire()
        defer {
            core.release()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        while try !predicate(&value.pointee) { try condition.core.wait(givingUp: core) }
        return try body(&value.pointee)
    }
}

extension FiberMutex: @unchecked Sendable where Value: ~Copyable {}

/// For data that does not lie in the mutex. Prefer `withLock`, which is shorter and always unlocks.
extension FiberMutex where Value == Void {
    /// Creates an unlocked mutex.
    public convenience init() { self.init(()) }

    /// Waits for the mutex and locks it. A fiber must unlock it before it ends, even if it ends by an error; otherwise the program stops.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then it does not hold the mutex.
    /// - Note: parks
    @inlinable
    public func lock() throws { try core.lockOpenly() }

    /// Locks the mutex if it is free, and returns whether it did. Never waits. A loop over it lets other fibers run from time to time.
    @inlinable
    public func tryLock() -> Bool { core.tryLockOpenly() }

    /// Unlocks the mutex and hands it to the first waiter. Only the fiber or thread that locked the mutex may call it; any other caller
    /// stops the program.
    @inlinable
    public func unlock() { core.unlockOpenly() }
}

/// A value that one fiber of a worker at a time may use. It is for code that waits while it uses the value; code that does not wait needs
/// no lock among the fibers of one worker.
///
/// Like ``FiberMutex``, but without atomic operations. If a fiber of another worker uses it while fibers wait for it, the program stops
/// with a message.
public final class LocalMutex<Value: ~Copyable> {
    @usableFromInline let core: MutexCore
    @usableFromInline let value: UnsafeMutablePointer<Value>

    /// Creates an unlocked mutex.
    @inlinable
    public init(_ value: consuming Value) {
        core = MutexCore(isShared: false)
        self.value = .allocate(capacity: 1)
        self.value.initialize(to: value)
    }

    @inlinable
    deinit {
        value.deinitialize(count: 1)
        value.deallocate()
    }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }

    /// Waits for the lock and runs `body` with the value. The body may wait, and holds the lock meanwhile.
    ///
    /// - Throws: the errors of `body`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` did not run.
    /// - Note: parks
    @inlinable
    public func withLock<Result: ~Copyable, Failure: Error>(_ body: (inout Value) throws(Failure) -> Result) throws -> Result {
        try core.acquire()
        defer {
            core.release()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(&value.pointee)
    }

    /// Runs `body` with the value if the lock is free; returns nil otherwise. Never waits, even in a cancelled fiber. A loop over it lets
    /// other fibers run from time to time.
    ///
    /// - Throws: the errors of `body`.
    @inlinable
    public func withLockIfAvailable<Result: ~Copyable, Failure: Error>(
        _ body: (inout Value) throws(Failure) -> Result
    ) throws(Failure) -> Result? {
        guard core.tryAcquire() else { return nil }
        defer {
            core.release()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(&value.pointee)
    }

    /// Waits until `predicate` is true for the value, and then runs `body` with the value. While the predicate is false, the mutex is
    /// unlocked and the caller waits for signals of `condition`.
    ///
    /// - Throws: the errors of `predicate` and `body`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then
    ///   `body` did not run.
    /// - Note: parks
    @inlinable
    public func withLock<Result: ~Copyable>(
        waitingOn condition: LocalCondition, until predicate: (borrowing Value) throws -> Bool,
        _ body: (inout Value) throws -> Result
    ) throws -> Result {
        try core.acquire()
        defer {
            core.release()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        while try !predicate(value.pointee) { try condition.core.wait(givingUp: core) }
        return try body(&value.pointee)
    }
}

@available(*, unavailable, message: "it stays on its worker: FiberMutex is for all")
extension LocalMutex: Sendable where Value: ~Copyable {}

/// For data that does not lie in the mutex. Prefer `withLock`, which is shorter and always unlocks.
extension LocalMutex where Value == Void {
    /// Creates an unlocked mutex.
    public convenience init() { self.init(()) }

    /// Waits for the mutex and locks it. A fiber must unlock it before it ends, even if it ends by an error; otherwise the program stops.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then it does not hold the mutex.
    /// - Note: parks
    @inlinable
    public func lock() throws { try core.lockOpenly() }

    /// Locks the mutex if it is free, and returns whether it did. Never waits. A loop over it lets other fibers run from time to time.
    @inlinable
    public func tryLock() -> Bool { core.tryLockOpenly() }

    /// Unlocks the mutex and hands it to the first waiter. Only the fiber that locked the mutex may call it; any other caller stops the
    /// program.
    @inlinable
    public func unlock() { core.unlockOpenly() }
}
