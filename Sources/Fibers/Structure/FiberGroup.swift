// SPDX-License-Identifier: Apache-2.0

// The public interface of groups; the children's bookkeeping is in Kernel/Scopes/GroupRecord.swift.

/// Fibers with a common end; created by ``withFiberGroup(limit:_:)`` and invalid once that returns.
public final class FiberGroup<Value> {
    private var record: GroupPointer?
    private let ledger: GroupLedger

    fileprivate init(_ record: GroupPointer, _ ledger: GroupLedger) {
        self.record = record
        self.ledger = ledger
    }

    fileprivate func end() { record = nil }

    private func group(_ call: StaticString) -> GroupPointer {
        guard let record else {
            misuse("\(call) was called on a group that has ended: use it inside the body of its withFiberGroup { … } and in its fibers")
        }
        require(
            record.scope.pointee.fiber.worker == Worker.current,
            "\(call) was called on another worker's group: use it on the thread that runs it")
        return record
    }

    /// Starts a child on the caller's worker, after waiting until fewer children than the group's limit run. Waiting callers are served in
    /// order.
    ///
    /// The body may capture anything. Its result is available from ``next()`` or from the handle; an error that it throws ends the group.
    ///
    /// - Parameters:
    ///   - name: for messages and dumps; at most 39 bytes of UTF-8 are kept.
    ///   - body: what to do.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the caller is cancelled, ``ResourceError`` when no stack is available. No
    ///   fiber was started then.
    /// - Note: parks
    @inlinable
    @discardableResult
    public func spawnLocal(name: String? = nil, _ body: @escaping () throws -> Value) throws -> FiberHandle<Value> {
        let (core, place) = try start(name, isDaemon: false) { FiberCore.run($0, $1, Value.self, staysHome: true) }
        place.initializeMemory(as: (() throws -> Value).self, to: body)
        return FiberHandle(core: core)
    }

    /// Starts a child on the worker with the fewest fibers, or on the given one, after waiting until fewer children than the group's limit
    /// run.
    ///
    /// It is a child like any other: bound by the group's deadline, cancelled with its siblings, and awaited at the end. The body is sent
    /// to another thread, so its captures must be safe there.
    ///
    /// - Parameters:
    ///   - name: for messages and dumps; at most 39 bytes of UTF-8 are kept.
    ///   - worker: from 0 to ``FiberRuntime/workerCount`` - 1; nil for the least loaded.
    ///   - body: what to do.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the caller is cancelled. If the other worker has no stack for the child, that
    ///   ends the group like an error thrown by the body.
    /// - Note: parks
    @inlinable
    @discardableResult
    public func spawn(name: String? = nil, on worker: Int? = nil, _ body: sending @escaping () throws -> Value) throws -> FiberHandle<Value>
    where Value: Sendable {
        let core = try start(name, on: worker, { FiberCore.run($0, $1, Value.self, staysHome: false) }, SentBody(consume body))
        return FiberHandle(core: core)
    }

    @usableFromInline
    func start(
        _ name: String?, on index: Int?, _ runner: @escaping FiberBodyRunner, _ body: any Departing
    ) throws -> FiberCore {
        let group = group("FiberGroup.spawn")
        let worker = Worker.here("FiberGroup.spawn")
        _ = try group.takeSlot()
        let target = worker.target(index)
        if target == worker {
            let (core, memory) = try start(name, in: group, isDaemon: false, runner)
            body.move(to: memory)
            return core
        }
        return send(name, to: target, in: group, mayBeRefused: false, runner, body)
    }

    /// Starts a child that serves the others: when they and the group's body have ended, it is cancelled. It does not count towards the
    /// limit, and its error ends the group like any other.
    /// - Throws: ``ResourceError`` when no stack is available. No fiber was started then.
    @inlinable
    @discardableResult
    public func spawnDaemon(name: String? = nil, _ body: @escaping () throws -> Void) throws -> FiberHandle<Void> {
        let (core, place) = try start(name, isDaemon: true) { FiberCore.run($0, $1, Void.self, staysHome: false) }
        place.initializeMemory(as: (() throws -> Void).self, to: body)
        return FiberHandle(core: core)
    }

    @usableFromInline
    func start(_ name: String?, isDaemon: Bool, _ runner: @escaping FiberBodyRunner) throws -> (FiberCore, UnsafeMutableRawPointer) {
        let group = group(isDaemon ? "FiberGroup.spawnDaemon" : "FiberGroup.spawnLocal")
        if !isDaemon { _ = try group.takeSlot() }
        return try start(name, in: group, isDaemon: isDaemon, runner)
    }

    private func start(
        _ name: String?, in group: GroupPointer, isDaemon: Bool, _ runner: @escaping FiberBodyRunner
    ) throws -> (FiberCore, UnsafeMutableRawPointer) {
        do {
            let started = try Worker.here("FiberGroup.spawnLocal").start(name: name, runner)
            group.adopt(started.0.record.unsafelyUnwrapped, isDaemon: isDaemon)
            return started
        } catch {
            if !isDaemon { cancelReservation() }
            throw error
        }
    }

    // Spawning in two steps, for callers that fetch a child's input only once there is room for the child.

    /// Takes a slot, waiting until fewer children than the limit run. Returns false when `endReserving` was called meanwhile. Parks.
    package func reserve() throws -> Bool { try group("FiberGroup.reserve").takeSlot() }

    /// Starts a child in a slot that `reserve` took; returns the slot on failure.
    package func spawnReserved(name: String?, _ body: @escaping () throws -> Value) throws {
        let (_, place) = try start(name, in: group("FiberGroup.spawnReserved"), isDaemon: false) {
            FiberCore.run($0, $1, Value.self, staysHome: true)
        }
        place.initializeMemory(as: (() throws -> Value).self, to: body)
    }

    /// Starts a child in a reserved slot on another worker. If that worker has no stack for the child, the error is reported to
    /// `onUnhandledError` and does not end the group.
    /// - Parameter onRefusal: called instead of the body, outside fibers and on the other worker's thread, as soon as that worker has no
    ///   stack or no longer runs fibers; see `Departure`.
    package func spawnReserved(
        name: String?, on index: Int, onRefusal: @escaping @Sendable () -> Void, _ body: sending @escaping () throws -> Value
    ) throws where Value: Sendable {
        let group = group("FiberGroup.spawnReserved")
        let worker = Worker.here("FiberGroup.spawnReserved")
        send(
            name, to: worker.target(index), in: group, mayBeRefused: true, onRefusal: onRefusal,
            { FiberCore.run($0, $1, Value.self, staysHome: false) }, SentBody(consume body))
    }

    /// Sends a child to another worker, in a slot that has been taken.
    @discardableResult
    private func send(
        _ name: String?, to target: Worker, in group: GroupPointer, mayBeRefused: Bool, onRefusal: (@Sendable () -> Void)? = nil,
        _ runner: @escaping FiberBodyRunner, _ body: any Departing
    ) -> FiberCore {
        let worker = Worker.here("FiberGroup.spawn")
        let core = worker.makeCore(on: target, RemoteLife(group: group, on: worker, mayBeRefused: mayBeRefused))
        var departure = group.adoptRemote(core, name: name, locals: worker.running.locals)
        departure.onRefusal = onRefusal
        worker.send(core, departure, runner, body)
        return core
    }

    /// Returns a reserved slot.
    package func cancelReservation() {
        let group = group("FiberGroup.cancelReservation")
        group.giveSlot()
        group.noteChange()
    }

    /// Ends all waits in `reserve`.
    package func endReserving() { group("FiberGroup.endReserving").endWaitsForRoom() }

    /// The result of the next child that ends, in the order in which they end; nil when no child runs and all results have been taken.
    ///
    /// Each result is returned once. Results that are never taken remain until the group ends; a group of `Void` keeps no results, and this
    /// returns nil once no child runs.
    ///
    /// - Throws: `CancellationError` or ``TimeoutError`` when the caller is cancelled, which also happens when a child has failed.
    /// - Note: parks
    public func next() throws -> Value? {
        _ = group("FiberGroup.next()")
        try Worker.here("FiberGroup.next()").refuseIfCancelled()
        while true {
            if let core = ledger.takeFinished() { return try core.result(Value.self) }
            // A fiber outside the group may wait here, too, and the group may have ended by the time it resumes.
            guard let record, record.pointee.running > 0 else { return nil }
            try record.waitForChange()
        }
    }

    /// Waits until no child runs, daemons excepted. ``withFiberGroup(limit:_:)`` does so at its end in any case.
    /// - Throws: `CancellationError` or ``TimeoutError`` when the caller is cancelled, which also happens when a child has failed.
    /// - Note: parks
    public func waitForAll() throws {
        _ = group("FiberGroup.waitForAll()")
        try Worker.here("FiberGroup.waitForAll()").refuseIfCancelled()
        // As in `next`, the group may have ended by the time the caller resumes.
        while let record, record.pointee.running > 0 { try record.waitForChange() }
    }

    /// Cancels all children, including any spawned later, and the group's body. See ``Fiber/cancel()``.
    public func cancel() {
        let group = group("FiberGroup.cancel()")
        group.scope.pointee.fiber.worker.cancel(group.scope)
    }

    /// The number of running children, daemons excepted.
    public var count: Int { group("FiberGroup.count").pointee.running }
}

/// Several errors of one group.
public struct FiberGroupError: Error, CustomStringConvertible {
    /// The first error, which caused the others to be cancelled.
    public let first: any Error
    /// The errors thrown after it until all had ended, in that order.
    public let others: [any Error]

    public var description: String {
        "\(first); and while the group was being cancelled: \(others.map { "\($0)" }.joined(separator: "; "))"
    }
}

/// Runs `body`, which may spawn children, and returns when it **and all children** have ended: no fiber outlives the group.
///
/// ```swift
/// try withFiberGroup { group in
///     try group.spawnDaemon { try logStatistics() }
///     for url in urls { try group.spawnLocal { try fetch(url) } }
/// }
/// ```
///
/// The first error, of the body or of a child, cancels all others and is thrown when they have ended. If others failed, too, and not only
/// because they were cancelled, a ``FiberGroupError`` is thrown that holds all errors, the first one first. A child that was cancelled
/// individually and ended because of that has not failed. Each child that fails counts, even where several throw the same error object.
/// Only an error that a fiber received from another fiber, by ``FiberHandle/join()`` or from a group of its own, and rethrew still counts
/// as the failure of that other fiber.
///
/// A cancellation or a deadline from outside reaches the children as well. Inside the group it is a `CancellationError`. The group itself
/// then throws what any waiting call would throw in its place: a ``TimeoutError`` if the time of the scope directly around it has passed.
/// The wait for the children at the end cannot be cut short, since they may use data on the caller's stack; a child that ignores its
/// cancellation keeps the group from ending.
///
/// - Parameters:
///   - limit: how many children may run at a time, at least 1; ``FiberGroup/spawnLocal(name:_:)`` waits at the limit. Nil for any number.
///   - body: receives the group.
/// - Returns: what `body` returns.
/// - Note: parks
@discardableResult
public func withFiberGroup<Result>(limit: Int? = nil, _ body: (FiberGroup<Void>) throws -> Result) throws -> Result {
    try withFiberGroup(of: Void.self, limit: limit, body)
}

/// Runs `body`, which may spawn children that return values; otherwise like ``withFiberGroup(limit:_:)``.
///
/// ```swift
/// let total = try withFiberGroup(of: Int.self, limit: 8) { group in
///     for file in files { try group.spawnLocal { try size(file) } }
///     var total = 0
///     while let size = try group.next() { total += size }
///     return total
/// }
/// ```
/// - Note: parks
@discardableResult
public func withFiberGroup<Value, Result>(
    of _: Value.Type, limit: Int? = nil, _ body: (FiberGroup<Value>) throws -> Result
) throws -> Result {
    try withFiberGroup(of: Value.self, limit: limit, waitingFor: .group, body)
}

/// Like ``withFiberGroup(of:limit:_:)``, for calls that use a group and report a wait reason of their own.
package func withFiberGroup<Value, Result>(
    of _: Value.Type, limit: Int? = nil, waitingFor reason: WaitReason, _ body: (FiberGroup<Value>) throws -> Result
) throws -> Result {
    let limit = limit ?? .max
    require(limit > 0, "withFiberGroup(limit:) takes at least 1, not \(limit): with none its first spawn would never return")
    let worker = Worker.here("withFiberGroup")
    let ledger = GroupLedger(keepsResults: Value.self != Void.self)
    var record = GroupRecord(owner: worker.running, limit: limit, reason: reason, ledger: ledger)
    return try withLocalPointer(to: &record) { record in
        let group = FiberGroup<Value>(record, ledger)
        record.scope.enter()
        var result = Swift.Result { try body(group) }
        if case .failure(let error) = result {
            if record.scope.pointee.cause == nil || !(error is CancellationError) {
                ledger.noteFailure(error, from: worker.running.failureHad(error))
            } else if record.scope.pointee.cause == record.scope {
                // The group has cancelled itself: its caller receives that, not the error of its body at that moment.
                result = .failure(CancellationError())
            }
            worker.cancel(record.scope)
        }
        record.waitForEnd()
        // Immediately: releasing values below may run a deinit, which must no longer spawn into the group, and which may wait.
        group.end()
        record.scope.leave()
        let failures = ledger.close()
        if let first = failures.first {
            if failures.count > 1 { throw FiberGroupError(first: first.error, others: failures.dropFirst().map(\.error)) }
            if let origin = first.origin { worker.running.noteHad(origin) }
            throw first.error
        }
        // Like any other call that waits here, since the scope around the group may be the expired one.
        if ledger.wasCutShort { throw worker.running.cancellation }
        do { return try result.get() } catch is CancellationError { throw worker.running.cancellation }
    }
}
