// SPDX-License-Identifier: Apache-2.0

// The ends of watches, as users name them. What a receiver has seen is known to its owner alone.

/// What the sending ends of watches have in common.
public class WatchSendingEnd<Value> {
    @usableFromInline final let core: WatchCore<Value>

    @inlinable
    init(_ core: WatchCore<Value>) { self.core = core }

    deinit { core.close() }

    /// Replaces the value; never waits, and lets nobody else run.
    ///
    /// - Complexity: O(*n*) for *n* receivers that wait.
    @inlinable
    public final func send(_ value: Value) { core.send(value) }

    /// Changes the value and returns what `body` returns. Never waits.
    ///
    /// The body works on a copy, while receivers still have the value as it was; if it throws, nothing has changed. If somebody else has changed the value meanwhile it is called again, with what
    /// is there then, so it should do nothing else, and must not change this watch itself.
    ///
    /// - Complexity: O(*n*) for *n* receivers that wait.
    @inlinable
    @discardableResult
    public final func update<Result, Failure: Error>(_ body: (inout Value) throws(Failure) -> Result) throws(Failure) -> Result {
        while true {
            var (value, version) = core.latest
            let result = try body(&value)
            if core.replace(version, with: value) { return result }
        }
    }

    /// The value as it is now.
    @inlinable
    public final var value: Value { core.latest.value }
}

/// What the receiving ends of watches have in common.
public class WatchReceivingEnd<Value> {
    @usableFromInline final let core: WatchCore<Value>
    /// The version that it has seen last.
    @exclusivity(unchecked) @usableFromInline final var seen: UInt64

    @inlinable
    init(_ core: WatchCore<Value>, seen: UInt64) {
        self.core = core
        self.seen = seen
    }

    /// The latest value, which counts as seen.
    @inlinable
    public final var value: Value {
        let (value, version) = core.latest
        seen = version
        return value
    }

    /// True when there is a value that this receiver has not seen. Does not wait; a loop over it lets other fibers run now and then.
    @inlinable
    public final var hasChanged: Bool { core.isNewer(than: seen) || WaitPoint.notYet() }

    /// The latest value if this receiver has not seen it yet; otherwise waits for a change. Nil when the sender has gone and its last value has been seen.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the fiber is cancelled, and then no change is lost.
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

/// The changes, until the sender has gone; of several since the last one only the latest. The loop ends, too, when the fiber is cancelled; where that matters,
/// `try Fiber.checkCancellation()` behind it tells, or call ``changed()``, which throws.
extension WatchReceivingEnd: Sequence, IteratorProtocol {
    /// Itself.
    @inlinable
    public final func makeIterator() -> WatchReceivingEnd<Value> { self }

    @inlinable
    public final func next() -> Value? {
        if isLarge(Value.self) { return nextLarge() }
        return (try? changedInline()) ?? nil
    }
}

/// The sending end of a watch between workers and threads. Share it with all that change the value: when the last reference has gone, the watch ends.
public final class WatchSender<Value: Sendable>: WatchSendingEnd<Value>, @unchecked Sendable {
    /// Another receiver, which has seen the value as it is now.
    public func subscribe() -> sending WatchReceiver<Value> { WatchReceiver(core, seen: core.latest.version) }
}

/// The sending end of a watch that stays on its worker. When the last reference has gone, the watch ends.
public final class LocalWatchSender<Value>: WatchSendingEnd<Value> {
    /// Another receiver, which has seen the value as it is now.
    public func subscribe() -> LocalWatchReceiver<Value> { LocalWatchReceiver(core, seen: core.latest.version) }
}

/// The receiving end of a watch between workers and threads. It has one owner: it may be given away, to another fiber of any worker or to a thread, and then it is gone here. Make each who
/// wants to know its own with ``share()``.
public final class WatchReceiver<Value: Sendable>: WatchReceivingEnd<Value> {
    /// Another receiver, which has seen what this one has.
    public func share() -> sending WatchReceiver<Value> { WatchReceiver(core, seen: seen) }
}

/// The receiving end of a watch that stays on its worker.
public final class LocalWatchReceiver<Value>: WatchReceivingEnd<Value> {
    /// Another receiver, which has seen what this one has.
    public func share() -> LocalWatchReceiver<Value> { LocalWatchReceiver(core, seen: seen) }
}

/// Makes a watch: a value that some change and others, fibers of all workers and plain threads, want to know as it is now, such as a configuration or a state.
///
/// ```swift
/// let (settings, changes) = makeWatch(Settings())
/// try Fiber.spawn { for settings in changes { apply(settings) } }      // ends when the sender has gone
/// settings.update { $0.limit = 100 }
/// ```
///
/// A receiver that is slow misses what was replaced in between, and always gets the latest. A fiber that has to wait parks, a plain thread blocks.
///
/// - Parameters:
///   - initial: the value to begin with, which counts as seen.
@inlinable
public func makeWatch<Value: Sendable>(_ initial: Value) -> sending (WatchSender<Value>, WatchReceiver<Value>) {
    let core = WatchCore(initial, isShared: true)
    return (WatchSender(core), WatchReceiver(core, seen: 0))
}

/// Makes a watch between fibers of the calling worker: without locks, and for values of any kind.
///
/// ```swift
/// let (level, changes) = makeLocalWatch(0)
/// try Fiber.spawnLocal { while let level = try changes.changed() { draw(level) } }
/// level.send(3)
/// ```
///
/// - Parameters:
///   - initial: the value to begin with, which counts as seen.
@inlinable
public func makeLocalWatch<Value>(_ initial: Value) -> (LocalWatchSender<Value>, LocalWatchReceiver<Value>) {
    let core = WatchCore(initial, isShared: false)
    return (LocalWatchSender(core), LocalWatchReceiver(core, seen: 0))
}
