// SPDX-License-Identifier: Apache-2.0

// What the tests of scopes and cancellation share: what a call came to, every kind of wait, and time that passes without a turn for anybody.

import CFaults
import CFiber
import Fibers
import Testing

/// What a call came to.
enum Fate: Hashable, CustomStringConvertible {
    case returned
    /// It threw a `TimeoutError` with this limit.
    case timedOut(Duration)
    case cancelled
    case threw(String)

    var description: String {
        switch self {
        case .returned: "returned"
        case .timedOut(let limit): "timed out after \(limit)"
        case .cancelled: "cancelled"
        case .threw(let error): "threw \(error)"
        }
    }

    init(of error: any Error) {
        switch error {
        case let error as TimeoutError: self = .timedOut(error.limit)
        case is CancellationError: self = .cancelled
        default: self = .threw("\(error)")
        }
    }
}

func fate(_ body: () throws -> Void) -> Fate {
    do { try body() } catch { return Fate(of: error) }
    return .returned
}

/// Runs a runtime of which nothing may be heard: no error that nobody joined, and no warning.
@discardableResult
func runQuietly<Value>(sourceLocation: SourceLocation = #_sourceLocation, _ main: () throws -> Value) throws -> Value {
    let heard = Box<[String]>([])
    defer { #expect(heard.value.isEmpty, sourceLocation: sourceLocation) }
    return try FiberRuntime.run(
        .init(onUnhandledError: { heard.value.append("\($0)") }, onWarning: { heard.value.append($0) }), main)
}

/// Runs a body that leaves fibers behind, with what they own: sanitizers shall not take that for a leak that is news.
func leavingFibersBehind<Value>(_ body: () throws -> Value) rethrows -> Value {
    cfaults_leaks_begin()
    defer { cfaults_leaks_end() }
    return try body()
}

/// Lets the other fibers go on until each waits for something; enough turns for a few hand-overs between them.
func letTheOthersPark() {
    for _ in 0..<20 { Fiber.yield() }
}

/// Computes for a time and lets nobody run meanwhile.
func compute(for duration: Duration) {
    let end = Deadline.after(duration, from: cfiber_now())
    while cfiber_now() < end {}
}

/// Has the worker look at its timers. Fibers whose time has come are ready then, and none of them has run.
func expireTimers() {
    let worker = Worker.current!
    _ = worker.beginPark()
    // Before every other deadline, so that the caller is the first to go on.
    _ = worker.park(.other, until: 1)
}

/// Longer than any test takes.
let long = Duration.seconds(100)

/// Every way in which the kernel lets a fiber wait.
enum Wait: CaseIterable, Sendable, CustomTestStringConvertible {
    case sleep, sleepUntil, ticker, join, groupNext, groupWaitForAll, groupSpawn, groupEnd, park, parkUntil, parkInList, sharedPark

    var testDescription: String { "\(self)" }

    /// Waits for what does not come for a long time.
    func callAsFunction() throws {
        let worker = Worker.current!
        switch self {
        case .sleep: try Fiber.sleep(for: long)
        case .sleepUntil: try Fiber.sleep(until: .now + long)
        case .ticker:
            let ticker = Ticker(every: long)
            _ = try ticker.next()
        case .join:
            var target: Waiter?
            let handle = try Fiber.spawnLocal {
                target = worker.beginPark()
                _ = worker.park(.other)
            }
            Fiber.yield()
            defer { _ = worker.unpark(target!, .ready) }
            try handle.join()
        case .groupNext:
            try withFiberGroup(of: Int.self) { group in
                try group.spawnLocal {
                    try Fiber.sleep(for: long)
                    return 1
                }
                _ = try group.next()
            }
        case .groupWaitForAll:
            try withFiberGroup { group in
                try group.spawnLocal { try Fiber.sleep(for: long) }
                try group.waitForAll()
            }
        case .groupSpawn:
            try withFiberGroup(limit: 1) { group in
                for _ in 0..<2 { try group.spawnLocal { try Fiber.sleep(for: long) } }
            }
        case .groupEnd: _ = try withFiberGroup { group in try group.spawnLocal { try Fiber.sleep(for: long) } }
        case .park:
            _ = worker.beginPark()
            try worker.check(worker.park(.other))
        case .parkUntil:
            _ = worker.beginPark()
            let outcome = worker.park(.other, until: Deadline.after(long))
            if outcome == .timedOut { throw TestError(number: 1) }
            try worker.check(outcome)
        case .parkInList:
            let list = UnsafeMutablePointer<WaitList>.allocate(capacity: 1)
            list.initialize(to: WaitList())
            defer { list.deallocate() }
            let outcome = worker.park(in: list, .other)
            if !list.pointee.isEmpty { throw TestError(number: 2) }
            try worker.check(outcome)
        case .sharedPark:
            let cell = worker.beginSharedPark()
            try worker.check(worker.park(in: cell, .other))
        }
    }

    /// What a `TimeoutError` says that the fiber did, without the number of another fiber.
    var operation: String {
        switch self {
        case .sleep, .sleepUntil, .ticker: "sleep"
        case .join: "join fiber #"
        case .groupNext, .groupWaitForAll, .groupSpawn, .groupEnd: "the fibers of a group"
        case .park, .parkUntil, .parkInList, .sharedPark: "other"
        }
    }
}
