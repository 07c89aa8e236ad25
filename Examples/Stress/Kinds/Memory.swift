// SPDX-License-Identifier: Apache-2.0

// Deep stacks, and parks inside accesses to class properties.

import Fibers

extension Kind {
    static let recursion = Kind("recursion", weight: 3) { job in
        job.step("recurse")
        let depth = job.random(1...100)
        let sum = try descend(job, depth, depth / 2)
        try Violation.unless(sum == depth * (depth + 1) / 2 * 64, "frames of a deep stack have changed: \(sum)")
    }

    /// Keeps half a KiB in each frame, parks at one depth, and finds all of it again on the way back.
    @inline(never)
    private static func descend(_ job: Job, _ depth: Int, _ parkAt: Int) throws -> Int {
        if depth == 0 { return 0 }
        return try withUnsafeTemporaryAllocation(of: Int.self, capacity: 64) { frame in
            frame.initialize(repeating: depth)
            let below = try descend(job, depth - 1, parkAt)
            if depth == parkAt { try job.pause() }
            return below + frame.reduce(0, +)
        }
    }

    static let exclusivity = Kind("exclusivity", weight: 10) { job in
        let ledger = Ledger()
        let other = Ledger()
        let entries = job.random(1...10)
        job.step("park inside an access")
        for i in 0..<entries {
            try append(i, to: &ledger.entries) {
                try append(-i, to: &other.entries) { try job.pause() }
            }
        }
        try Violation.unless(
            ledger.entries == Array(0..<entries) && other.entries == (0..<entries).map { -$0 }, "a property changed under a parked access")
    }

    @inline(never)
    private static func append(_ entry: Int, to entries: inout [Int], _ park: () throws -> Void) throws {
        entries.append(.min)
        try park()
        entries[entries.count - 1] = entry
    }
}

private final class Ledger {
    var entries: [Int] = []
}
