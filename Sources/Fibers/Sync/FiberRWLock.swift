// SPDX-License-Identifier: Apache-2.0

// Reader-writer locks: a semaphore of which a reader takes one permit and a writer takes all. Requests are served in order, so neither
// side starves, and readers that queue next to each other run together.

import Synchronization

@usableFromInline
final class RWLockCore: PermitCore, @unchecked Sendable {
    /// The writer: used to stop it if it locks again, and to stop callers that would wait for it forever. Only the writer changes it, so a
    /// caller that finds itself here is right. Readers are only counted.
    private let writer = Atomic<Holder>(0)
    private static var all: Int { .max }

    @usableFromInline
    init(isShared: Bool) { super.init(Self.all, isShared: isShared) }

    override var kind: Kind { Kind(local: "LocalRWLock", shared: "FiberRWLock") }

    @usableFromInline
    func acquireToRead() throws {
        lookAtWriter("reads")
        try acquire(1, .lock)
    }

    @usableFromInline
    func releaseReader() { release(1) }

    @usableFromInline
    func acquireToWrite() throws {
        lookAtWriter("writes")
        try acquire(Self.all, .lock)
        writer.store(Holder.caller, ordering: .relaxed)
    }

    @usableFromInline
    func releaseWriter() {
        writer.store(0, ordering: .relaxed)
        release(Self.all)
    }

    @usableFromInline
    func tryAcquireToRead() -> Bool { tryAcquire(1) }

    @usableFromInline
    func tryAcquireToWrite() -> Bool {
        guard tryAcquire(Self.all) else { return false }
        writer.store(Holder.caller, ordering: .relaxed)
        return true
    }

    @inline(__always)
    private func lookAtWriter(_ what: StaticString) {
        let holder = writer.load(ordering: .relaxed)
        if _slowPath(holder != 0) { stopIfFutile(holder, what) }
    }

    @inline(never)
    private func stopIfFutile(_ holder: Holder, _ what: StaticString) {
        let me = Holder.caller
        if holder == me {
            misuse(
                "\(Holders.describe(me)) \(what) what it has locked to write already, and would wait for itself for ever: hand the value on to the code that needs it"
            )
        }
        withLock { stopIfGone(holder, "has locked to write") }
    }
}

/// A value that many fibers and threads of all workers may read at the same time, or one may write.
///
/// ```swift
/// let routes = FiberRWLock<[String: Route]>([:])
/// let route = try routes.withReadLock { $0[path] }
/// ```
///
/// Readers and writers wait in one queue, in the order of their requests; readers that queue next to each other run together. So a reader
/// that comes while a writer waits is queued behind the writer. A fiber must not lock again, to read or to write, while it reads: if a
/// writer had queued in between, both would wait for each other forever.
///
/// A call that would wait for a writer that was abandoned when its runtime ended stops the program. Readers are only counted: an abandoned
/// reader blocks writers forever.
public final class FiberRWLock<Value: ~Copyable> {
    @usableFromInline let core: RWLockCore
    @usableFromInline let value: UnsafeMutablePointer<Value>

    /// Creates an unlocked lock.
    @inlinable
    public init(_ value: consuming sending Value) {
        core = RWLockCore(isShared: true)
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

    /// Runs `body` with the value, which others may read at the same time. Waits for earlier writers.
    ///
    /// - Throws: the errors of `body`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` did not run.
    /// - Note: parks
    @inlinable
    public func withReadLock<Result: ~Copyable, Failure: Error>(
        _ body: (borrowing Value) throws(Failure) -> Result
    ) throws -> Result {
        try core.acquireToRead()
        defer {
            core.releaseReader()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(value.pointee)
    }

    /// Runs `body` with exclusive access to the value. Waits for all earlier readers and writers.
    ///
    /// - Throws: the errors of `body`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` did not run.
    /// - Note: parks
    @inlinable
    public func withWriteLock<Result: ~Copyable, Failure: Error>(
        _ body: (inout Value) throws(Failure) -> Result
    ) throws -> Result {
        try core.acquireToWrite()
        defer {
            core.releaseWriter()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(&value.pointee)
    }

    /// Like ``withReadLock(_:)`` if the lock can be taken at once; returns nil otherwise. Never waits. A loop over it lets other fibers
    /// run from time to time.
    ///
    /// - Throws: the errors of `body`.
    @inlinable
    public func withReadLockIfAvailable<Result: ~Copyable, Failure: Error>(
        _ body: (borrowing Value) throws(Failure) -> Result
    ) throws(Failure) -> Result? {
        guard core.tryAcquireToRead() else { return nil }
        defer {
            core.releaseReader()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(value.pointee)
    }

    /// Like ``withWriteLock(_:)`` if the lock can be taken at once; returns nil otherwise. Never waits. A loop over it lets other fibers
    /// run from time to time.
    ///
    /// - Throws: the errors of `body`.
    @inlinable
    public func withWriteLockIfAvailable<Result: ~Copyable, Failure: Error>(
        _ body: (inout Value) throws(Failure) -> Result
    ) throws(Failure) -> Result? {
        guard core.tryAcquireToWrite() else { return nil }
        defer {
            core.releaseWriter()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(&value.pointee)
    }
}

// Readers on several threads use the value at the same time.
extension FiberRWLock: @unchecked Sendable where Value: Sendable & ~Copyable {}

/// A value that many fibers of one worker may read at the same time, or one may write. Like ``FiberRWLock``, but without locks and atomic
/// operations.
public final class LocalRWLock<Value: ~Copyable> {
    @usableFromInline let core: RWLockCore
    @usableFromInline let value: UnsafeMutablePointer<Value>

    /// Creates an unlocked lock.
    @inlinable
    public init(_ value: consuming Value) {
        core = RWLockCore(isShared: false)
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

    /// Runs `body` with the value, which others may read at the same time. Waits for earlier writers.
    ///
    /// - Throws: the errors of `body`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` did not run.
    /// - Note: parks
    @inlinable
    public func withReadLock<Result: ~Copyable, Failure: Error>(
        _ body: (borrowing Value) throws(Failure) -> Result
    ) throws -> Result {
        try core.acquireToRead()
        defer {
            core.releaseReader()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(value.pointee)
    }

    /// Runs `body` with exclusive access to the value. Waits for all earlier readers and writers.
    ///
    /// - Throws: the errors of `body`; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` did not run.
    /// - Note: parks
    @inlinable
    public func withWriteLock<Result: ~Copyable, Failure: Error>(
        _ body: (inout Value) throws(Failure) -> Result
    ) throws -> Result {
        try core.acquireToWrite()
        defer {
            core.releaseWriter()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(&value.pointee)
    }

    /// Like ``withReadLock(_:)`` if the lock can be taken at once; returns nil otherwise. Never waits. A loop over it lets other fibers
    /// run from time to time.
    ///
    /// - Throws: the errors of `body`.
    @inlinable
    public func withReadLockIfAvailable<Result: ~Copyable, Failure: Error>(
        _ body: (borrowing Value) throws(Failure) -> Result
    ) throws(Failure) -> Result? {
        guard core.tryAcquireToRead() else { return nil }
        defer {
            core.releaseReader()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(value.pointee)
    }

    /// Like ``withWriteLock(_:)`` if the lock can be taken at once; returns nil otherwise. Never waits. A loop over it lets other fibers
    /// run from time to time.
    ///
    /// - Throws: the errors of `body`.
    @inlinable
    public func withWriteLockIfAvailable<Result: ~Copyable, Failure: Error>(
        _ body: (inout Value) throws(Failure) -> Result
    ) throws(Failure) -> Result? {
        guard core.tryAcquireToWrite() else { return nil }
        defer {
            core.releaseWriter()
            // Keeps the memory of the value until here, even if the caller holds the last reference.
            withExtendedLifetime(self) {}
        }
        return try body(&value.pointee)
    }
}

@available(*, unavailable, message: "it stays on its worker: FiberRWLock is for all")
extension LocalRWLock: Sendable where Value: ~Copyable {}
