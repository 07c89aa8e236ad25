// SPDX-License-Identifier: Apache-2.0

// Fibers that return values of all sizes, joined at once, later, twice, or by several.

import Fibers

extension Account {
    static let values = Account("values", "returned", "joined")
}

extension Kind {
    static let joining = Kind("joining", weight: 20, accounts: [.values]) { job in
        switch job.random(0...3) {
        case 0: try joinAll(job) { $0 }
        case 1: try joinAll(job) { "a string that does not fit into a word: \($0)" }
        case 2: try joinAll(job) { [UInt64](repeating: $0, count: Int($0 % 50)) }
        default: try joinAll(job) { Wide(numbers: ($0, $0 &+ 1, $0 &+ 2)) }
        }
    }

    /// Spawns some fibers that return values, and joins each as often as it is due.
    private static func joinAll<Value: Equatable>(_ job: Job, _ value: @escaping (UInt64) -> Value) throws {
        let children = try (0..<job.random(1...8)).map { _ in
            let number = job.random(0...UInt64.max)
            let joins = job.random(1...3)
            let handle = try job.spawn { child in
                try child.pause()
                Account.values.left += joins
                return value(number)
            }
            return (handle, number, joins)
        }
        try job.pause()
        job.step("join")
        for (handle, number, joins) in children {
            func joinOnce() throws {
                try Violation.unless(try handle.join() == value(number), "a joined value is not the one that was returned")
                Account.values.right += 1
                Count.operations += 1
            }
            let others = try (1..<joins).map { _ in try job.spawn { _ in try joinOnce() } }
            try joinOnce()
            for other in others { try other.join() }
        }
    }
}

private struct Wide: Equatable {
    var numbers: (UInt64, UInt64, UInt64)
    static func == (a: Wide, b: Wide) -> Bool { a.numbers == b.numbers }
}
