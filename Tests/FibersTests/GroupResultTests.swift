// SPDX-License-Identifier: Apache-2.0

// What a group's children return: in which order, how often, and for how long it is kept.

import Fibers
import Testing

extension KernelTests {
    @Suite struct GroupResultTests {
        @Test func next_returnsResults_inTheOrderInWhichChildrenEnd() throws {
            let order = [3, 0, 4, 1, 2]
            var results: [Int] = []
            try runQuietly {
                try withFiberGroup(of: Int.self) { group in
                    let latches = order.map { _ in Latch() }
                    for (i, latch) in latches.enumerated() {
                        try group.spawnLocal {
                            try latch.wait()
                            return i
                        }
                    }
                    for i in order {
                        latches[i].open()
                        Fiber.yield()
                    }
                    while let result = try group.next() { results.append(result) }
                }
            }
            #expect(results == order)
        }

        @Test func next_waits_whileChildrenRunAndNoneHasEnded() throws {
            var results: [Int] = []
            try runQuietly {
                try withFiberGroup(of: Int.self) { group in
                    for i in [2, 0, 1] {
                        try group.spawnLocal {
                            try Fiber.sleep(for: .milliseconds(1 + 30 * i))
                            return i
                        }
                    }
                    while let result = try group.next() { results.append(result) }
                }
            }
            #expect(results == [0, 1, 2])
        }

        @Test func next_returnsNil_untilThereAreChildrenAgain() throws {
            var results: [Int?] = []
            try runQuietly {
                try withFiberGroup(of: Int.self) { group in
                    for i in 0..<3 {
                        results.append(try group.next())
                        try group.spawnLocal { i }
                        results.append(try group.next())
                        results.append(try group.next())
                    }
                }
            }
            #expect(results == [nil, 0, nil, nil, 1, nil, nil, 2, nil])
        }

        @Test func next_returnsNilOnceNoChildRuns_whenTheyReturnNothing() throws {
            var ended = 0
            let (results, then) = try runQuietly {
                try withFiberGroup { group in
                    for i in 0..<3 {
                        try group.spawnLocal {
                            try Fiber.sleep(for: .microseconds(i))
                            ended += 1
                        }
                    }
                    try group.spawnDaemon { try Fiber.sleep(for: .seconds(1_000)) }
                    return (try group.next() == nil, ended)
                }
            }
            #expect(results)
            #expect(then == 3)
        }

        @Test func waitForAll_returnsOnceNoChildRuns_andLeavesResultsAndDaemons() throws {
            var ended = 0
            var seen: [Int] = []
            var next: Int?
            try runQuietly {
                try withFiberGroup(of: Int.self) { group in
                    let daemon = try group.spawnDaemon { try Fiber.sleep(for: .seconds(1_000)) }
                    try group.waitForAll()
                    for i in 1...3 {
                        try group.spawnLocal {
                            try Fiber.sleep(for: .microseconds(i))
                            ended += 1
                            return i
                        }
                        if i == 2 {
                            try group.waitForAll()
                            seen.append(ended)
                        }
                    }
                    try group.waitForAll()
                    seen.append(ended)
                    next = try group.next()
                    if daemon.fiber.isFinished { seen.append(-1) }
                }
            }
            #expect(seen == [2, 3])
            #expect(next == 1)
        }

        @Test func results_areWhatChildrenReturned_whateverTheirType() throws {
            struct Large: Equatable { var a = 1, b = 2, c = 3, d = "four" }
            enum Shape: Equatable { case none, some(Int, String) }
            #expect(try roundTrip([1, -1, .max, .min]))
            #expect(try roundTrip([0, 255] as [UInt8]))
            #expect(try roundTrip([true, false]))
            #expect(try roundTrip([0.5, -.infinity]))
            #expect(try roundTrip([nil, 3, nil] as [Int?]))
            #expect(try roundTrip([nil, "x", nil] as [String?]))
            #expect(try roundTrip(["", "short", String(repeating: "long", count: 20)]))
            #expect(try roundTrip([[], [1], Array(0..<100)]))
            #expect(try roundTrip([Large(), Large(a: 5, d: "")]))
            #expect(try roundTrip([SIMD4(1.0, 2, 3, 4)]))
            #expect(try roundTrip([Shape.none, .some(1, "x")]))
            let objects = (0..<3).map { _ in Counted(Box(0)) }
            #expect(try roundTrip(objects.map { ObjectIdentifier($0) }))
            #expect(try results(of: objects.map { object in { object } }).elementsEqual(objects) { $0 === $1 })
        }

        @Test func results_areHadOnce_whenSeveralFibersTakeThem() throws {
            var taken: [[Int]] = Array(repeating: [], count: 4)
            var counts: [Int] = []
            try runQuietly {
                try withFiberGroup(of: Int.self) { group in
                    for i in 0..<100 {
                        try group.spawnLocal {
                            for _ in 0..<i % 7 { Fiber.yield() }
                            return i
                        }
                    }
                    try withFiberGroup { takers in
                        for taker in 0..<4 {
                            try takers.spawnLocal {
                                while let result = try group.next() {
                                    taken[taker].append(result)
                                    Fiber.yield()
                                }
                            }
                        }
                    }
                    counts = taken.map { $0.count }
                }
            }
            #expect(taken.flatMap { $0 }.sorted() == Array(0..<100))
            #expect(counts.allSatisfy { $0 > 0 }, "\(counts)")
        }

        @Test func takersThatCameFirst_getTheFirstResults() throws {
            var taken: [Int: Int] = [:]
            try runQuietly {
                try withFiberGroup(of: Int.self) { group in
                    let latches = (0..<3).map { _ in Latch() }
                    for (i, latch) in latches.enumerated() {
                        try group.spawnLocal {
                            try latch.wait()
                            return i
                        }
                    }
                    try withFiberGroup { takers in
                        for taker in 0..<3 { try takers.spawnLocal { taken[taker] = try group.next() } }
                        settle()
                        for latch in latches {
                            latch.open()
                            settle()
                        }
                    }
                }
            }
            #expect(taken == [0: 0, 1: 1, 2: 2])
        }

        @Test func next_andWaitForAll_return_whenTheGroupEndsWhileAFiberOutsideWaits() throws {
            // The group's frame is gone when the strangers go on: they were woken after its body.
            var seen: [String] = []
            try runQuietly {
                try withFiberGroup(of: Int.self) { group in
                    let latch = Latch()
                    try group.spawnLocal {
                        try latch.wait()
                        return 6
                    }
                    try Fiber.spawnLocal {
                        // After the body has begun to wait.
                        for _ in 0..<3 {
                            try Fiber.spawnLocal { seen.append(try group.next() == nil ? "nil" : "a result") }
                            try Fiber.spawnLocal {
                                try group.waitForAll()
                                seen.append("all")
                            }
                        }
                        settle()
                        latch.open()
                    }
                }
                seen.append("group")
                overwriteStack()
                settle()
            }
            #expect(seen.first == "group")
            #expect(seen.dropFirst().sorted() == ["all", "all", "all", "nil", "nil", "nil"])
        }

        @Test func handle_joins_insideTheGroupAndAfterIt() throws {
            var joined: [Int] = []
            try runQuietly {
                let handle = try withFiberGroup(of: Int.self) { group in
                    let handle = try group.spawnLocal {
                        Fiber.yield()
                        return 4
                    }
                    joined.append(try handle.join())
                    joined.append(try group.next() ?? -1)
                    joined.append(try handle.join())
                    return handle
                }
                joined.append(try handle.join())
            }
            #expect(joined == [4, 4, 4, 4])
        }

        @Test func results_areReleasedAsTheyAreTaken_andTheRestAtTheEnd() throws {
            let ends = Box(0)
            var seen: [Int] = []
            try runQuietly {
                var escaped: FiberGroup<Counted>?
                try withFiberGroup(of: Counted.self) { group in
                    escaped = group
                    for _ in 0..<10 { try group.spawnLocal { Counted(ends) } }
                    try group.waitForAll()
                    seen.append(ends.value)
                    for _ in 0..<4 {
                        try take(from: group)
                        seen.append(ends.value)
                    }
                }
                // Even if somebody keeps the group.
                seen.append(ends.value)
                _ = opaque(escaped)
            }
            #expect(seen == [0, 1, 2, 3, 4, 10])
        }

        @Test func results_areReleased_whenTheyReferToTheirGroup() throws {
            final class Knowing {
                let group: FiberGroup<Knowing>
                let counted: Counted
                init(_ group: FiberGroup<Knowing>, _ ends: Box<Int>) {
                    self.group = group
                    counted = Counted(ends)
                }
            }
            let ends = Box(0)
            try runQuietly {
                try withFiberGroup(of: Knowing.self) { group in
                    for _ in 0..<10 { try group.spawnLocal { Knowing(group, ends) } }
                }
            }
            #expect(ends.value == 10)
        }

        @Test func errors_areReleased_whenTheyReferToTheirGroup() throws {
            struct Knowing: Error, @unchecked Sendable {
                let group: FiberGroup<Void>
                let counted: Counted
            }
            let ends = Box(0)
            var isThrown = false
            try runQuietly {
                isThrown =
                    failure {
                        try withFiberGroup { group in
                            for _ in 0..<2 { try group.spawnLocal { throw Knowing(group: group, counted: Counted(ends)) } }
                        }
                    } is FiberGroupError
            }
            #expect(isThrown)
            #expect(ends.value == 2)
        }

        @Test func bodiesOfChildren_areReleased_whenTheyEnd() throws {
            let ends = Box(0)
            var then = -1
            try runQuietly {
                try withFiberGroup { group in
                    func spawn(_ object: Counted) throws { try group.spawnLocal { _ = opaque(object) } }
                    for _ in 0..<10 { try spawn(Counted(ends)) }
                    try group.waitForAll()
                    then = ends.value
                }
            }
            #expect(then == 10)
        }

        @Test func next_throws_andTakesNothing_inACancelledFiber() throws {
            var isCancellation = false
            var results: [Int] = []
            try runQuietly {
                try withFiberGroup(of: Int.self) { group in
                    try group.spawnLocal { 9 }
                    let daemon = try group.spawnDaemon { isCancellation = failure { _ = try group.next() } is CancellationError }
                    daemon.cancel()
                    settle()
                    while let result = try group.next() { results.append(result) }
                }
            }
            #expect(isCancellation)
            #expect(results == [9])
        }
    }
}

private func take(from group: FiberGroup<Counted>) throws {
    _ = try group.next()
}

/// Uses the stack below the caller's frame.
@inline(never)
private func overwriteStack() {
    withUnsafeTemporaryAllocation(byteCount: 16_384, alignment: 16) { bytes in
        for i in bytes.indices { bytes[i] = opaque(0x7f) }
    }
}

/// What `next` gives when children return values one after the other.
private func results<Value>(of children: [() -> Value]) throws -> [Value] {
    try runQuietly {
        try withFiberGroup(of: Value.self) { group in
            for child in children { try group.spawnLocal { child() } }
            var results: [Value] = []
            while let result = try group.next() { results.append(result) }
            return results
        }
    }
}

private func roundTrip<Value: Equatable>(_ values: [Value]) throws -> Bool {
    try results(of: values.map { value in { value } }) == values
}
