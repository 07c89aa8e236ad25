// SPDX-License-Identifier: Apache-2.0

// The public interface of deadlines and shields; the mechanism is in Kernel/Scopes/CancelScope.swift.

import CFiber

/// Runs `body` with a time limit: once the limit has passed, every call in `body` that waits, or would wait, throws until `body` has ended.
///
/// ```swift
/// let reply = try withTimeout(.seconds(5)) { try ask(server) }
/// ```
///
/// Scopes nest, and the earliest deadline counts. The call that was waiting throws a ``TimeoutError`` if the expired scope is the one
/// directly around it, else a `CancellationError`, which passes through the scopes in between. So `catch is TimeoutError` around a
/// `withTimeout` never catches the expiry of a scope further out. It catches the expiry of that `withTimeout`, and of scopes inside that
/// were not caught there (``TimeoutError/limit`` distinguishes them). Every call that waits follows this rule, including calls on sockets,
/// files, names and processes. The deadline also applies to children in groups inside.
///
/// A body that computes and never waits is not interrupted (see ``Fiber/checkCancellation()``); if it eventually returns, its value is
/// returned.
///
/// The call allocates nothing. Under a deadline that rarely expires, a call that waits costs one more comparison.
///
/// - Parameters:
///   - limit: how long, from now, with nanosecond resolution; zero or less has already passed, nil sets no limit.
///   - body: what to do.
/// - Throws: ``TimeoutError`` when the deadline ended the body, else what `body` throws.
@discardableResult
@inlinable
public func withTimeout<Result>(_ limit: Duration?, _ body: () throws -> Result) throws -> Result {
    guard let limit else { return try body() }
    return try withTemporaryMemory(byteCount: DeadlineScope.byteCount, alignment: DeadlineScope.alignment) { memory in
        let scope = DeadlineScope(entering: memory.baseAddress.unsafelyUnwrapped, limit)
        do {
            let result = try body()
            scope.leave()
            return result
        } catch { throw scope.leave(by: error) }
    }
}

/// Runs `body` until an instant at most; otherwise like ``withTimeout(_:_:)``.
///
/// The distance to the instant is computed once: time that the machine then spends suspended is added to it.
/// - Throws: ``TimeoutError`` when the deadline ended the body, else what `body` throws.
@discardableResult
@inlinable
public func withDeadline<Result>(_ deadline: ContinuousClock.Instant, _ body: () throws -> Result) throws -> Result {
    try withTimeout(DeadlineScope.distance(to: deadline), body)
}

/// Runs `body` shielded from cancellation and deadlines from outside, so that it can complete necessary work: a goodbye to the peer, a
/// commit. They take effect again when `body` has ended.
///
/// ```swift
/// defer { withCancellationShield { try? withTimeout(.seconds(1)) { try stream.writeAll("bye\n") } } }
/// ```
///
/// Give it a deadline of its own, as here: nothing else ends it.
@discardableResult
public func withCancellationShield<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    try Worker.here("withCancellationShield").shielded(body)
}

/// A scope with a deadline, for code that is compiled into the caller's module. The frames of a `withTimeout` would add two to the stack of
/// each call that waits, and more cache lines to fetch.
@usableFromInline
struct DeadlineScope {
    private let scope: ScopePointer

    /// As large as a `CancelScope` (`CFIBER_SCOPE_SIZE`).
    @inlinable static var byteCount: Int { 64 }
    @inlinable static var alignment: Int { 8 }

    /// Enters a scope that lies in this memory, in the caller's frame.
    @usableFromInline
    init(entering memory: UnsafeMutableRawPointer, _ limit: Duration) {
        let worker = Worker.here("withTimeout")
        let now = worker.now
        let length = Deadline.nanoseconds(limit)
        // A negative limit counts as zero: a deadline further out that has passed meanwhile then comes first, and ends a caller that
        // retries in a loop.
        let deadline = Deadline.after(nanoseconds: max(length, 0), from: now)
        scope = memory.bindMemory(to: CancelScope.self, capacity: 1)
        scope.initialize(to: CancelScope(.deadline, of: worker.running, deadline: deadline, limit: length))
        scope.enter()
    }

    @usableFromInline
    func leave() { scope.leave() }

    /// Leaves the scope by an error. Returns the error to throw: the scope's own if its deadline ended the body.
    @usableFromInline
    func leave(by error: any Error) -> any Error {
        scope.leave()
        return scope.pointee.cause == scope && error is CancellationError ? scope.timeoutError() : error
    }

    @usableFromInline
    static func distance(to instant: ContinuousClock.Instant) -> Duration { Deadline.distance(to: instant) }
}
