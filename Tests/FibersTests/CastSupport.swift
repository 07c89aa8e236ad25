// SPDX-License-Identifier: Apache-2.0

// What the tests of one-shots, watches and broadcasts share.

import Fibers
import Glibc
import Testing

/// For one worker, or for all and threads.
enum Reach: CaseIterable, Sendable {
    case local, shared
}

/// Where the other side of a test is.
enum Side: Hashable, Sendable, CustomTestStringConvertible {
    case worker(Int, of: Int)
    case thread

    static var all: [Side] { [.worker(0, of: 1), .worker(1, of: 2), .worker(3, of: 4), .thread] }

    var workers: Int { if case .worker(_, let count) = self { count } else { 1 } }

    var testDescription: String {
        switch self {
        case .worker(let index, let count): "worker \(index) of \(count)"
        case .thread: "thread"
        }
    }

    /// Runs a body there; what is returned waits for its end. In a fiber.
    func run(_ body: @Sendable @escaping () throws -> Void) throws -> () throws -> Void {
        switch self {
        case .worker(let index, _):
            let handle = try Fiber.spawn(on: index) { try body() }
            return { try handle.join() }
        case .thread:
            let failed = Counter()
            let thread = Box(Thread { do { try body() } catch { failed.add() } })
            return {
                // The thread may need this worker.
                try withBlockingThread { thread.value.join() }
                if failed.value > 0 { throw TestError(number: -1) }
            }
        }
    }
}

/// Counts where it is let go of, and does something.
final class Token: Sendable {
    let number: Int
    private let ends: Counter
    private let atEnd: (@Sendable () -> Void)?

    init(_ number: Int = 0, _ ends: Counter, atEnd: (@Sendable () -> Void)? = nil) {
        self.number = number
        self.ends = ends
        self.atEnd = atEnd
    }

    deinit {
        ends.add()
        atEnd?()
    }
}

/// A time limit at random that ends some waits and not all, however slow the machine is: a call whose time is over when it begins takes nothing.
func limit(_ random: inout SeededGenerator) -> Duration { .microseconds(1 << (random.next() % 12)) }

/// Keeps a side busy until the other has counted one more, so that what may be rare comes however the machine runs the two.
func waitForNext(_ count: Counter) {
    let before = count.value
    while count.value == before {
        if Worker.current != nil { Fiber.yield() } else { sched_yield() }
    }
}

/// A delay at random, often none.
func delay(_ random: inout SeededGenerator) {
    switch random.next() % 8 {
    case 0: for i in 0..<random.next() % 3_000 { _ = opaque(Int(i)) }
    case 1 where Worker.current != nil: Fiber.yield()
    default: break
    }
}
