// SPDX-License-Identifier: Apache-2.0

// A value that many read or one writes: a semaphore, of whose permits a reader takes one and a writer all. In the order in which they came, so neither starves, and readers that follow each
// other go together.

import Synchronization

@usableFromInline
final class RWLockCore: PermitCore, @unchecked Sendable {
    /// Who writes: to stop it where it locks again, and those that would wait for it for ever. Changed by the writer alone, so a caller that finds itself here is right. Readers are only counted.
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

/// A value that many fibers and threads may read at the same time, or one may write, of all workers.
///
/// ```swift
/// let routes = FiberRWLock<[String: Route]>([:])
/// let route = try routes.withReadLock { $0[path] }
/// ```
///
/// Who has to wait stands in one line, readers and writers in the order in which they came; readers that follow each other go together. So a reader that comes while a writer waits waits
/// behind it, and a fiber that reads must not read again inside, nor write: if a writer came in between, both would wait for each other for ever.
///
/// A call that would wait for a writer that was left behind when its runtime ended stops the program. Readers are only counted: those that are left behind keep writers waiting for ever.
public final class FiberRWLock<Value: ~Copyable> {
    @usableFromInline let core: RWLockCore
    @usableFromInline let value: UnsafeMutablePointer<Value>

    /// A lock that nobody holds.
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

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }

    /// Runs `body` with the value, which others may read meanwhile and nobody writes; waits for writers that came before.
    ///
    /// - Throws: what `body` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` was not run.
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

    /// Runs `body` with the value, which nobody else reads or writes meanwhile; waits for all that came before.
    ///
    /// - Throws: what `body` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` was not run.
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

    /// As ``withReadLock(_:)``, if nobody writes or waits now; nil otherwise. Does not wait; a loop over it lets other fibers run now and then.
    ///
    /// - Throws: what `body` throws.
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

    /// As ``withWriteLock(_:)``, if nobody reads, writes or waits now; nil otherwise. Does not wait; a loop over it lets other fibers run now and then.
    ///
    /// - Throws: what `body` throws.
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

// Readers of several threads see it at the same time.
extension FiberRWLock: @unchecked Sendable where Value: Sendable & ~Copyable {}

/// A value that many fibers of one worker may read at the same time, or one may write. As ``FiberRWLock``, without locks and atomic operations.
public final class LocalRWLock<Value: ~Copyable> {
    @usableFromInline let core: RWLockCore
    @usableFromInline let value: UnsafeMutablePointer<Value>

    /// A lock that nobody holds.
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

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }

    /// Runs `body` with the value, which others may read meanwhile and nobody writes; waits for writers that came before.
    ///
    /// - Throws: what `body` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` was not run.
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

    /// Runs `body` with the value, which nobody else reads or writes meanwhile; waits for all that came before.
    ///
    /// - Throws: what `body` throws; `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then `body` was not run.
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

    /// As ``withReadLock(_:)``, if nobody writes or waits now; nil otherwise. Does not wait; a loop over it lets other fibers run now and then.
    ///
    /// - Throws: what `body` throws.
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

    /// As ``withWriteLock(_:)``, if nobody reads, writes or waits now; nil otherwise. Does not wait; a loop over it lets other fibers run now and then.
    ///
    /// - Throws: what `body` throws.
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
