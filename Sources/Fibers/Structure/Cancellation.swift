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
/// scope's own, and those of scopes inside that were not caught there (``TimeoutError/limit`` tells them apart). Sockets throw their `IOError`, with the code `timedOut` or `cancelled`.
/// Whatever it was, this function throws a `TimeoutError`. Children in groups inside are bound by the deadline, too.
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
public func withTimeout<Result>(_ limit: Duration?, _ body: () throws -> Result) throws -> Result {
    guard let limit else { return try body() }
    let worker = Worker.here("withTimeout")
    let now = worker.now
    // What has passed long ago has passed now: a deadline outside that has passed meanwhile comes first, and ends those who try again and again.
    let deadline = max(now, Deadline.after(limit, from: now))
    return try withScope(CancelScope(.deadline, of: worker.running, deadline: deadline, limit: Deadline.nanoseconds(limit)), body)
}

/// Runs `body`, until an instant at most; otherwise as ``withTimeout(_:_:)``.
///
/// How far away the instant is is found out once: time that the machine then spends suspended comes on top.
/// - Throws: ``TimeoutError`` when the deadline ended the body, else what `body` throws.
@discardableResult
public func withDeadline<Result>(_ deadline: ContinuousClock.Instant, _ body: () throws -> Result) throws -> Result {
    try withTimeout(Deadline.distance(to: deadline), body)
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

@inline(__always)
private func withScope<Result>(_ scope: CancelScope, _ body: () throws -> Result) throws -> Result {
    var scope = scope
    return try withLocalPointer(to: &scope) { scope in
        scope.enter()
        defer { scope.leave() }
        do { return try body() } catch { throw scope.turned(error) }
    }
}

extension UnsafeMutablePointer where Pointee == CancelScope {
    /// The error that leaves a deadline's scope: its own if its deadline is what ended the body.
    @inline(never)
    fileprivate func turned(_ error: any Error) -> any Error {
        guard pointee.cause == self && isCancellation(error) else { return error }
        return timeoutError(underlying: error is CancellationError ? nil : error)
    }
}
