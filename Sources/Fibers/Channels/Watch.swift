// SPDX-License-Identifier: Apache-2.0

// The public ends of watches. Only the owner of a receiver accesses the version that it has seen.

/// The common base of the sending ends of watches.
public class WatchSendingEnd<Value> {
    @usableFromInline final let core: WatchCore<Value>

    @inlinable
    init(_ core: WatchCore<Value>) { self.core = core }

    deinit { core.close() }

    /// Replaces the value. Never waits and never yields.
    ///
    /// - Complexity: O(*n*) for *n* waiting receivers.
    @inlinable
    public final func send(_ value: Value) { core.send(value) }

    /// Changes the value and returns the result of `body`. Never waits.
    ///
    /// The body changes a copy, while receivers still see the old value; if it throws, nothing has changed. If another sender changes the
    /// value in the meantime, `body` is called again with the new value. So `body` should have no other effects, and must not change this
    /// watch itself.
    ///
    /// - Complexity: O(*n*) for *n* waiting receivers.
    @inlinable
    @discardableResult
    public final func update<Result, Failure: Error>(_ body: (inout Value) throws(Failure) -> Result) throws(Failure) -> Result {
        while true {
            var (value, version) = core.latest
            let result = try body(&value)
            if core.replace(version, with: value) { return result }
        }
    }

    /// The current value.
    @inlinable
    public final var value: Value { core.latest.value }
}

/// The common base of the receiving ends of watches.
public class WatchReceivingEnd<Value> {
    @usableFromInline final let core: WatchCore<Value>
    /// The version that this receiver has seen last.
    @exclusivity(unchecked) @usableFromInline final var seen: UInt64

    @inlinable
    init(_ core: WatchCore<Value>, seen: UInt64) {
        self.core = core
        self.seen = seen
    }

    /// The latest value. Reading it marks it as seen.
    @inlinable
    public final var value: Value {
        let (value, version) = core.latest
        seen = version
        return value
    }

    /// True when this receiver has not seen the latest value. Never waits, but yields to other fibers from time to time, so a polling loop
    /// does not starve them.
    @inlinable
    public final var hasChanged: Bool { core.isNewer(than: seen) || WaitPoint.notYet() }

    /// Returns the latest value if this receiver has not seen it yet; otherwise waits for a change. Returns nil when the sender is gone and
    /// its last value has been seen.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled; no change is lost then.
    /// - Note: parks
    @inlinable
    public final func changed() throws -> Value? {
        if isLarge(Value.self) { return try changedLarge() }
        return try changedInline()
    }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func changedLarge() throws -> Value? { try changedInline() }

    @usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
    final func nextLarge() -> Value? { (try? changedInline()) ?? nil }

    @inlinable @inline(__always)
    final func changedInline() throws -> Value? {
        guard let (value, version) = try core.changed(since: seen) else { return nil }
        seen = version
        return value
    }
}

/// Iterates over the changes until the sender is gone. Of several changes since the last one, it returns only the latest. The loop also
/// ends when the fiber is cancelled. To tell the two apart, call `try Fiber.checkCancellation()` after the loop, or use ``changed()``,
/// which throws.
extension WatchReceivingEnd: Sequence, IteratorProtocol {
    /// The receiver is its own iterator.
    @inlinable
    public final func makeIterator() -> WatchReceivingEnd<Value> { self }

    @inlinable
    public final func next() -> Value? {
        if isLarge(Value.self) { return nextLarge() }
        return (try? changedInline()) ?? nil
    }
}

/// The sending end of a watch between workers and threads. All senders share one instance; the watch ends when its last reference is
/// released.
public final class WatchSender<Value: Sendable>: WatchSendingEnd<Value>, @unchecked Sendable {
    /// Adds a receiver that has seen the current value.
    public func subscribe() -> sending WatchReceiver<Value> { WatchReceiver(core, seen: core.latest.version) }
}

/// The sending end of a watch that stays on its worker. The watch ends when the last reference is released.
public final class LocalWatchSender<Value>: WatchSendingEnd<Value> {
    /// Adds a receiver that has seen the current value.
    public func subscribe() -> LocalWatchReceiver<Value> { LocalWatchReceiver(core, seen: core.latest.version) }
}

/// The receiving end of a watch between workers and threads. It has one owner: it can be transferred to a fiber of any worker or to a
/// thread, and the previous owner can then no longer use it. For several observers, give each its own receiver with ``share()``.
public final class WatchReceiver<Value: Sendable>: WatchReceivingEnd<Value> {
    /// Adds a receiver that has seen the same version as this one.
    public func share() -> sending WatchReceiver<Value> { WatchReceiver(core, seen: seen) }
}

/// The receiving end of a watch that stays on its worker.
public final class LocalWatchReceiver<Value>: WatchReceivingEnd<Value> {
    /// Adds a receiver that has seen the same version as this one.
    public func share() -> LocalWatchReceiver<Value> { LocalWatchReceiver(core, seen: seen) }
}

/// Makes a watch: a value that senders change and receivers observe, such as a configuration or a state. The ends may be used by fibers of
/// any worker and plain threads.
///
/// ```swift
/// let (settings, changes) = makeWatch(Settings())
/// try Fiber.spawn { for settings in changes { apply(settings) } }      // ends when the sender has gone
/// settings.update { $0.limit = 100 }
/// ```
///
/// A slow receiver misses intermediate values, but always gets the latest one. A fiber that has to wait parks; a plain thread blocks.
///
/// - Parameters:
///   - initial: the initial value, which counts as seen.
@inlinable
public func makeWatch<Value: Sendable>(_ initial: Value) -> sending (WatchSender<Value>, WatchReceiver<Value>) {
    let core = WatchCore(initial, isShared: true)
    return (WatchSender(core), WatchReceiver(core, seen: 0))
}

/// Makes a watch between fibers of the calling worker. It uses no locks and carries values of any type.
///
/// ```swift
/// let (level, changes) = makeLocalWatch(0)
/// try Fiber.spawnLocal { while let level = try changes.changed() { draw(level) } }
/// level.send(3)
/// ```
///
/// - Parameters:
///   - initial: the initial value, which counts as seen.
@inlinable
public func makeLocalWatch<Value>(_ initial: Value) -> (LocalWatchSender<Value>, LocalWatchReceiver<Value>) {
    let core = WatchCore(initial, isShared: false)
    return (LocalWatchSender(core), LocalWatchReceiver(core, seen: 0))
}
