// SPDX-License-Identifier: Apache-2.0

// Values that belong to a fiber and the fibers that it spawns.
//
// A record has a list of settings (`FiberLocalNode`), innermost first. A child begins with its parent's list at the spawn, so neither sees
// a value that the other sets later. The list is nil where nothing was set: then a spawn costs one read of a word, and a switch never costs
// anything.

/// A variable with a value of its own in each fiber, for example the id of a request for log lines.
///
/// ```swift
/// static let requestID = FiberLocal("-")
///
/// try requestID.withValue("r42") {
///     log("\(requestID.value): started")           // r42, however deep in calls
///     try Fiber.spawnLocal { try work() }          // r42 in there, too, also after withValue has ended
/// }
/// ```
///
/// Use it instead of `TaskLocal`, whose values leak into other fibers of the thread.
public final class FiberLocal<Value: Sendable>: Sendable {
    /// The value where no other was set, and outside fibers.
    public let defaultValue: Value

    public init(_ defaultValue: Value) { self.defaultValue = defaultValue }

    /// The value in the calling fiber.
    /// - Complexity: linear in the number of settings around the call.
    public var value: Value {
        var node = Worker.current?.running.locals
        while let some = node {
            if some.key == ObjectIdentifier(self) { return unsafeDowncast(some, to: Setting<Value>.self).value }
            node = some.next
        }
        return defaultValue
    }

    /// Runs `body` with another value, which fibers spawned meanwhile inherit, and restores the previous one.
    public func withValue<Result, Failure: Error>(_ value: Value, _ body: () throws(Failure) -> Result) throws(Failure) -> Result {
        let fiber = Worker.here("FiberLocal.withValue").running
        let outer = fiber.locals
        let setting = Setting(self, value, next: outer)
        fiber.locals = setting
        // The setting is released only after it has left the list: the deinit of its value may read the list.
        defer { withExtendedLifetime(setting) { fiber.locals = outer } }
        return try body()
    }
}

private final class Setting<Value: Sendable>: FiberLocalNode {
    let value: Value

    init(_ owner: FiberLocal<Value>, _ value: Value, next: FiberLocalNode?) {
        self.value = value
        super.init(owner, next: next)
    }
}
