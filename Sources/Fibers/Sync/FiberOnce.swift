// SPDX-License-Identifier: Apache-2.0

// A value that is made when it is first asked for, by the one who asks first.
//
// Invariants:
//   * the value is there exactly when `isMade` is set, and never changes after that;
//   * else at most one makes it, the `maker`, and somebody waits in line only while there is one. If he fails he makes the first in line the maker before he lets him go on; the slot of a
//     place is the maker that it would be. Once the value is made, all in line go on, by the outcome `closed`.
// One worker, or any thread: see `WaitPoint`.

import Synchronization

@usableFromInline
final class OnceCore: SyncCore, @unchecked Sendable {
    private let made = Atomic<Bool>(false)
    @exclusivity(unchecked) private var maker: Holder = 0

    @usableFromInline
    override init(isShared: Bool) { super.init(isShared: isShared) }

    override var kind: Kind { Kind(local: "LocalOnce", shared: "FiberOnce") }

    /// True when the value is there, and whoever sees that sees the value.
    @usableFromInline
    var isMade: Bool { made.load(ordering: .acquiring) }

    /// Waits for the value. False when the caller is to make it, and must then call `end`.
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

    /// The caller has made the value, or failed to.
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

/// The value, and what makes it, for the one who makes it or all once it is made. In a place of its own, so that no access is open while the initialiser waits.
@usableFromInline
struct OnceState<Value> {
    @usableFromInline var value: Value?
    @usableFromInline var make: (() throws -> Value)?

    @usableFromInline
    init(make: @escaping () throws -> Value) { self.make = make }

    /// Waits for the value, or makes it.
    @usableFromInline
    static func ask(_ state: UnsafeMutablePointer<OnceState>, _ core: OnceCore) throws {
        if try core.begin() { return }
        do { state.pointee.value = try state.pointee.make.unsafelyUnwrapped() } catch {
            core.end(isMade: false)
            throw error
        }
        // What it has captured is let go of when others can have the value already.
        let make = state.pointee.make.take()
        core.end(isMade: true)
        withExtendedLifetime(make) {}
    }

    /// The value, which is there.
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

/// A value that is made when it is first asked for, for fibers of all workers and plain threads.
///
/// ```swift
/// let database = FiberOnce { try Database.open(path) }
/// let rows = try database.value.rows(in: "orders")
/// ```
///
/// Whoever asks first makes it, and may wait for things meanwhile; others who ask wait until it is there. If the initialiser throws, or its fiber is cancelled, whoever asked has that error, and
/// the next one tries again. A fiber that asks from inside the initialiser stops the program, and so does one that
/// would wait for a fiber that was left behind, making it, when its runtime ended.
public final class FiberOnce<Value: Sendable>: @unchecked Sendable {
    @usableFromInline let core = OnceCore(isShared: true)
    @usableFromInline let state = UnsafeMutablePointer<OnceState<Value>>.allocate(capacity: 1)

    /// A value that is not made yet.
    ///
    /// - Parameter make: runs once on success, in the fiber or thread that asks.
    public init(_ make: @escaping @Sendable () throws -> Value) { state.initialize(to: OnceState(make: make)) }

    deinit {
        state.deinitialize(count: 1)
        state.deallocate()
    }

    /// The value. Makes it, or waits until somebody else has.
    ///
    /// - Throws: what the initialiser throws that this call runs; `CancellationError` or ``TimeoutError`` when the fiber is cancelled while it waits. Once it is made, nothing.
    /// - Note: parks
    @inlinable
    public var value: Value {
        get throws {
            if !core.isMade { try OnceState.ask(state, core) }
            return OnceState.made(state)
        }
    }

    /// The value if it was made already. Does not wait; a loop over it lets other fibers run now and then.
    @inlinable
    public var valueIfMade: Value? { OnceState.ifMade(state, core.isMade || WaitPoint.notYet()) }

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

/// A value that is made when it is first asked for, for fibers of one worker. As ``FiberOnce``, without locks and atomic operations, and for values of any kind.
public final class LocalOnce<Value> {
    @usableFromInline let core = OnceCore(isShared: false)
    @usableFromInline let state = UnsafeMutablePointer<OnceState<Value>>.allocate(capacity: 1)

    /// A value that is not made yet.
    ///
    /// - Parameter make: runs once on success, in the fiber that asks.
    public init(_ make: @escaping () throws -> Value) { state.initialize(to: OnceState(make: make)) }

    deinit {
        state.deinitialize(count: 1)
        state.deallocate()
    }

    /// The value. Makes it, or waits until another fiber has.
    ///
    /// - Throws: what the initialiser throws that this call runs; `CancellationError` or ``TimeoutError`` when the fiber is cancelled while it waits. Once it is made, nothing.
    /// - Note: parks
    @inlinable
    public var value: Value {
        get throws {
            if !core.isMade { try OnceState.ask(state, core) }
            return OnceState.made(state)
        }
    }

    /// The value if it was made already. Does not wait; a loop over it lets other fibers run now and then.
    @inlinable
    public var valueIfMade: Value? { OnceState.ifMade(state, core.isMade || WaitPoint.notYet()) }

    /// Nobody waits, for tests.
    package func hasNoWaiters() -> Bool { core.isLineEmpty }
}

@available(*, unavailable, message: "it stays on its worker: FiberOnce is for all")
extension LocalOnce: Sendable {}
