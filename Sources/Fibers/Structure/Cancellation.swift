// SPDX-License-Identifier: Apache-2.0

// Deadlines and shields as users name them; the mechanism is in Kernel/Scopes/CancelScope.swift.

import CFiber

/// Runs `body`, for so long at most: then every call in it that waits, or would wait, throws, until the body has ended.
///
/// ```swift
/// let reply = try withTimeout(.seconds(5)) { try ask(server) }
/// ```
///
/// Scopes nest, and the earliest deadline counts. The call that was waiting throws a ``TimeoutError`` if this is the scope directly around it, else a
/// `CancellationError`, which passes through the scopes in between; so `catch is TimeoutError` behind a `withTimeout` never catches what ends a scope further out. It catches that
/// scope's own, and those of scopes inside that were not caught there (``TimeoutError/limit`` tells them apart). Every call that waits follows this rule: those on sockets, files, names and
/// processes, too. Children in groups inside are bound by the deadline as well.
///
/// A body that computes and never waits is not interrupted (see ``Fiber/checkCancellation()``); if it returns in the end, its value is returned.
///
/// Nothing is allocated. Under a deadline that seldom comes, a call that waits costs a comparison more.
///
/// - Parameters:
///   - limit: how long, from now, with nanosecond resolution; zero or less has passed now, nil sets none.
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

/// Runs `body`, until an instant at most; otherwise as ``withTimeout(_:_:)``.
///
/// How far away the instant is is found out once: time that the machine then spends suspended comes on top.
/// - Throws: ``TimeoutError`` when the deadline ended the body, else what `body` throws.
@discardableResult
@inlinable
public func withDeadline<Result>(_ deadline: ContinuousClock.Instant, _ body: () throws -> Result) throws -> Result {
    try withTimeout(DeadlineScope.distance(to: deadline), body)
}

/// Runs `body` untouched by cancellation and deadlines from outside, so that it can finish what must be finished: a goodbye to the peer, a commit. They count again
/// when it has ended.
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

/// A scope with a deadline, for code that is compiled into the caller's module: the frames of a `withTimeout` would be two more on the way to each call that waits, and lines to fetch for each.
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
        // What has passed long ago has passed now: a deadline outside that has passed meanwhile comes first, and ends those who try again and again.
        let deadline = Deadline.after(nanoseconds: max(length, 0), from: now)
        scope = memory.bindMemory(to: CancelScope.self, capacity: 1)
        scope.initialize(to: CancelScope(.deadline, of: worker.running, deadline: deadline, limit: length))
        scope.enter()
    }

    @usableFromInline
    func leave() { scope.leave() }

    /// Leaves it by an error, and returns the one to throw: the scope's own if its deadline is what ended the body.
    @usableFromInline
    func leave(by error: any Error) -> any Error {
        scope.leave()
        return scope.pointee.cause == scope && error is CancellationError ? scope.timeoutError() : error
    }

    @usableFromInline
    static func distance(to instant: ContinuousClock.Instant) -> Duration { Deadline.distance(to: instant) }
}
