// SPDX-License-Identifier: Apache-2.0

// A value behind a lock, as users name it: for all workers and threads, and for one worker. The value lies in memory of its own, so that no access to a variable stays open while a fiber
// that holds the lock parks.

/// A value that one fiber or thread at a time may use, of any worker; also outside a runtime. Unlike the toolchain's `Mutex` it may be held while its fiber waits for something.
///
/// ```swift
/// let log = FiberMutex<[String]>([])
/// try log.withLock { $0.append("begun") }
/// ```
///
/// A caller that finds it locked waits in line, a fiber parks, a plain thread blocks; the holder hands it to the first in line when it unlocks. The program stops with a message that names the
/// fibers or threads when one locks it twice, unlocks what another holds, ends with it locked, or waits for one that will never unlock it: a fiber that was left behind when its runtime ended.
public final class FiberMutex<Value: ~Copyable> {
    @usableFromInline let core: MutexCore
    @usableFromInline let value: UnsafeMutablePointer<Value>

    /// A mutex that nobody holds.
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

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }

    /// Runs `body` with the value; waits until nobody else has it. The body may wait, too, and keeps the value meanwhile.
    ///
    /// - Throws: what `body` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` was not run. Plain threads are not cancelled.
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

    /// Runs `body` with the value if nobody else has it now; nil otherwise. Does not wait, also not in a cancelled fiber; a loop over it lets other fibers run now and then.
    ///
    /// - Throws: what `body` throws.
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

    /// Waits until `predicate` holds of the value, and then runs `body` with it. While it does not hold, the mutex is free, and the caller waits for signals of `condition`.
    ///
    /// ```swift
    /// let job = try jobs.withLock(waitingOn: hasJobs, until: { !$0.isEmpty }) { $0.removeFirst() }
    /// ```
    ///
    /// - Throws: what `predicate` and `body` throw; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` was not run.
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

/// For what is protected and does not lie in the mutex. `withLock` gives it back for sure and is shorter.
extension FiberMutex where Value == Void {
    /// A mutex that nobody holds.
    public convenience init() { self.init(()) }

    /// Takes the mutex; waits until nobody else has it. A fiber must unlock it before it ends, however it ends: else the program stops.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then it does not have the mutex.
    /// - Note: parks
    @inlinable
    public func lock() throws { try core.lockOpenly() }

    /// Takes the mutex if nobody has it; true when it did. Does not wait; a loop over it lets other fibers run now and then.
    @inlinable
    public func tryLock() -> Bool { core.tryLockOpenly() }

    /// Gives the mutex to the first in line. For the fiber or thread that has taken it; any other stops the program.
    @inlinable
    public func unlock() { core.unlockOpenly() }
}

/// A value that one fiber at a time may use, of the fibers of one worker: for code that waits while it has the value. Code that does not wait needs no lock among the fibers of a worker.
///
/// As ``FiberMutex``, without atomic operations. Where fibers of another worker use it while some wait for it, the program stops with a message.
public final class LocalMutex<Value: ~Copyable> {
    @usableFromInline let core: MutexCore
    @usableFromInline let value: UnsafeMutablePointer<Value>

    /// A mutex that nobody holds.
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

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }

    /// Runs `body` with the value; waits until nobody else has it. The body may wait, too, and keeps the value meanwhile.
    ///
    /// - Throws: what `body` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` was not run.
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

    /// Runs `body` with the value if nobody else has it now; nil otherwise. Does not wait, also not in a cancelled fiber; a loop over it lets other fibers run now and then.
    ///
    /// - Throws: what `body` throws.
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

    /// Waits until `predicate` holds of the value, and then runs `body` with it. While it does not hold, the mutex is free, and the caller waits for signals of `condition`.
    ///
    /// - Throws: what `predicate` and `body` throw; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` was not run.
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

/// For what is protected and does not lie in the mutex. `withLock` gives it back for sure and is shorter.
extension LocalMutex where Value == Void {
    /// A mutex that nobody holds.
    public convenience init() { self.init(()) }

    /// Takes the mutex; waits until nobody else has it. A fiber must unlock it before it ends, however it ends: else the program stops.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then it does not have the mutex.
    /// - Note: parks
    @inlinable
    public func lock() throws { try core.lockOpenly() }

    /// Takes the mutex if nobody has it; true when it did. Does not wait; a loop over it lets other fibers run now and then.
    @inlinable
    public func tryLock() -> Bool { core.tryLockOpenly() }

    /// Gives the mutex to the first in line. For the fiber that has taken it; any other stops the program.
    @inlinable
    public func unlock() { core.unlockOpenly() }
}
