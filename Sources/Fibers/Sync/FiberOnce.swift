// SPDX-License-Identifier: Apache-2.0

// Values that are made lazily, by the first caller that asks for them.
//
// Invariants:
//   * The value exists exactly when `isMade` is set, and never changes after that.
//   * Otherwise at most one caller makes it, the `maker`, and waiters are queued only while there is a maker. If the maker fails, it makes
//     the first waiter the maker before it resumes the waiter; the slot of a queued waiter is the maker that it would become. Once the
//     value has been made, all waiters continue with the outcome `closed`.
// Runs on one worker or on any thread: see `WaitPoint`.

import Synchronization

@usableFromInline
final class OnceCore: SyncCore, @unchecked Sendable {
    private let made = Atomic<Bool>(false)
    @exclusivity(unchecked) private var maker: Holder = 0

    @usableFromInline
    override init(isShared: Bool) { super.init(isShared: isShared) }

    override var kind: Kind { Kind(local: "LocalOnce", shared: "FiberOnce") }

    /// True when the value exists. A caller that reads true also sees the value.
    @usableFromInline
    var isMade: Bool { made.load(ordering: .acquiring) }

    /// Waits for the value. Returns false if the caller must make the value and then call `end`.
    func begin() throws -> Bool {
        try beginCall()
        let me = Holder.caller
        lock()
        if isMade {
            unlock()
            return true
        }
        if maker == 0 {
            maker = me
            unlock()
            return false
        }
        if maker == me {
            unlock()
            misuse(
                "\(Holders.describe(me)) asks for a once-value while it makes it, and would wait for itself for ever: make it without asking for it"
            )
        }
        stopIfGone(maker, "makes")
        let outcome = wait(in: first, slot: UnsafeMutableRawPointer(bitPattern: me), .once)
        if outcome == .closed { return true }
        try checkWait(outcome)
        return false
    }

    /// Ends the making of the value, which may have failed.
    func end(isMade: Bool) {
        var claimed = WaitList()
        lock()
        maker = 0
        if isMade {
            made.store(true, ordering: .releasing)
            claimAll(of: first, into: &claimed)
        } else if let next = claimFirst(of: first) {
            maker = UInt(bitPattern: next.pointee.slot)
            claimed.append(next.node)
        }
        unlock()
        resumeAll(&claimed, isMade ? .closed : .ready)
    }
}

/// The value and its initialiser. The maker uses it, and all callers once the value exists. It has memory of its own, so that no exclusive
/// access is open while the initialiser waits.
@usableFromInline
struct OnceState<Value> {
    @usableFromInline var value: Value?
    @usableFromInline var make: (() throws -> Value)?

    @usableFromInline
    init(make: @escaping () throws -> Value) { self.make = make }

    /// Waits for the value or makes it.
    @usableFromInline
    static func ask(_ state: UnsafeMutablePointer<OnceState>, _ core: OnceCore) throws {
        if try core.begin() { return }
        do { state.pointee.value = try state.pointee.make.unsafelyUnwrapped() } catch {
            core.end(isMade: false)
            throw error
        }
        // Releases the captures of the initialiser only after other callers can use the value.
        let make = state.pointee.make.take()
        core.end(isMade: true)
        withExtendedLifetime(make) {}
    }

    /// The value, which must exist.
    @inlinable @inline(__always)
    static func made(_ state: UnsafeMutablePointer<OnceState>) -> Value {
        isLarge(Value.self) ? madeLarge(state) : state.pointee.value.unsafelyUnwrapped
    }

    @inlinable @inline(__always)
    static func ifMade(_ state: UnsafeMutablePointer<OnceState>, _ isMade: Bool) -> Value? {
        if isLarge(Value.self) { return ifMadeLarge(state, isMade) }
        return isMade ? state.pointee.value : nil
    }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    static func madeLarge(_ state: UnsafeMutablePointer<OnceState>) -> Value { state.pointee.value.unsafelyUnwrapped }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    static func ifMadeLarge(_ state: UnsafeMutablePointer<OnceState>, _ isMade: Bool) -> Value? { isMade ? state.pointee.value : nil }
}

/// A value that is made when it is first used, for fibers of all workers and plain threads.
///
/// ```swift
/// let database = FiberOnce { try Database.open(path) }
/// let rows = try database.value.rows(in: "orders")
/// ```
///
/// The first caller makes the value, and may wait in the initialiser; other callers wait for the value. If the initialiser throws, or its
/// fiber is cancelled, the first caller gets that error, and the next caller tries again. A fiber that asks for the value inside the
/// initialiser stops the program. So does a caller that would wait for a maker that was abandoned when its runtime ended.
public final class FiberOnce<Value: Sendable>: @unchecked Sendable {
    @usableFromInline let core = OnceCore(isShared: true)
    @usableFromInline let state = UnsafeMutablePointer<OnceState<Value>>.allocate(capacity: 1)

    /// Creates the holder of a value that has not been made yet.
    ///
    /// - Parameter make: makes the value, in the fiber or thread that asks for it first. It runs again only after it has failed.
    public init(_ make: @escaping @Sendable () throws -> Value) { state.initialize(to: OnceState(make: make)) }

    deinit {
        state.deinitialize(count: 1)
        state.deallocate()
    }

    /// The value. The first access makes it; others wait until it has been made.
    ///
    /// - Throws: the errors of the initialiser, if this call runs it; `CancellationError` or ``TimeoutError`` when the fiber is cancelled
    ///   while it waits. Never throws once the value has been made.
    /// - Note: parks
    @inlinable
    public var value: Value {
        get throws {
            if !core.isMade { try OnceState.ask(state, core) }
            return OnceState.made(state)
        }
    }

    /// The value if it has been made. Never waits. A loop over it lets other fibers run from time to time.
    @inlinable
    public var valueIfMade: Value? { OnceState.ifMade(state, core.isMade || WaitPoint.notYet()) }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

/// A value that is made when it is first used, for fibers of one worker. Like ``FiberOnce``, but without locks and atomic operations, and
/// for values of any type.
public final class LocalOnce<Value> {
    @usableFromInline let core = OnceCore(isShared: false)
    @usableFromInline let state = UnsafeMutablePointer<OnceState<Value>>.allocate(capacity: 1)

    /// Creates the holder of a value that has not been made yet.
    ///
    /// - Parameter make: makes the value, in the fiber that asks for it first. It runs again only after it has failed.
    public init(_ make: @escaping () throws -> Value) { state.initialize(to: OnceState(make: make)) }

    deinit {
        state.deinitialize(count: 1)
        state.deallocate()
    }

    /// The value. The first access makes it; others wait until it has been made.
    ///
    /// - Throws: the errors of the initialiser, if this call runs it; `CancellationError` or ``TimeoutError`` when the fiber is cancelled
    ///   while it waits. Never throws once the value has been made.
    /// - Note: parks
    @inlinable
    public var value: Value {
        get throws {
            if !core.isMade { try OnceState.ask(state, core) }
            return OnceState.made(state)
        }
    }

    /// The value if it has been made. Never waits. A loop over it lets other fibers run from time to time.
    @inlinable
    public var valueIfMade: Value? { OnceState.ifMade(state, core.isMade || WaitPoint.notYet()) }

    /// True when no fiber or thread waits; for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

@available(*, unavailable, message: "it stays on its worker: FiberOnce is for all")
extension LocalOnce: Sendable {}
