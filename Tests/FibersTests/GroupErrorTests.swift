// SPDX-License-Identifier: Apache-2.0

// Errors in groups: whom they end, and which of them is thrown.

import Fibers
import Testing

/// What the body of a group may be doing.
private enum BodyWait: CaseIterable {
    case next, waitForAll, sleep, join, spawnLocal, innerGroup, endOfInnerGroup
}

extension KernelTests {
    @Suite struct GroupErrorTests {
        @Test func firstError_isRethrownItself_andCancelsEverybodyElse() throws {
            var cancelled = 0
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        for _ in 0..<5 { try group.spawnLocal { try waitForCancellation(&cancelled) } }
                        try group.spawnDaemon { try waitForCancellation(&cancelled) }
                        try group.spawnLocal {
                            try withFiberGroup { inner in
                                try inner.spawnLocal { try waitForCancellation(&cancelled) }
                                try waitForCancellation(&cancelled)
                            }
                        }
                        try group.spawnLocal { throw TestError(number: 7) }
                        try waitForCancellation(&cancelled)
                    }
                }
            }
            #expect(error as? TestError == TestError(number: 7))
            #expect(cancelled == 9)
        }

        @Test func childsError_isThrownInPlaceOfTheValue_whenTheBodyHasReturned() throws {
            let error = try runQuietly {
                failure {
                    _ = try withFiberGroup { group in
                        try group.spawnLocal {
                            try Fiber.sleep(for: .milliseconds(1))
                            throw TestError(number: 1)
                        }
                        return 5
                    }
                }
            }
            #expect(numbers(error) == [1])
        }

        @Test func childsError_isThrown_whenTheBodySwallowsItsCancellation() throws {
            let error = try runQuietly {
                failure {
                    _ = try withFiberGroup { group in
                        try group.spawnLocal { throw TestError(number: 1) }
                        try? Fiber.sleep(for: .seconds(1_000))
                        return 5
                    }
                }
            }
            #expect(numbers(error) == [1])
        }

        @Test(arguments: BodyWait.allCases)
        private func childsError_endsTheBodysWait(_ wait: BodyWait) throws {
            var caught: (any Error)?
            var cancelled = 0
            let error = try runQuietly {
                failure {
                    try withFiberGroup(of: Int.self, limit: 2) { group in
                        let latch = Latch()
                        try group.spawnLocal {
                            try latch.wait()
                            throw TestError(number: 1)
                        }
                        let sibling = try group.spawnLocal {
                            try waitForCancellation(&cancelled)
                            return 0
                        }
                        // Runs when the body waits.
                        try Fiber.spawnLocal { latch.open() }
                        do {
                            switch wait {
                            case .next: _ = try group.next()
                            case .waitForAll: try group.waitForAll()
                            case .sleep: try Fiber.sleep(for: .seconds(1_000))
                            case .join: _ = try sibling.join()
                            case .spawnLocal: _ = try group.spawnLocal { 5 }
                            case .innerGroup: try withFiberGroup { _ in try waitForCancellation(&cancelled) }
                            case .endOfInnerGroup:
                                try withFiberGroup { inner in _ = try inner.spawnLocal { try waitForCancellation(&cancelled) } }
                            }
                        } catch {
                            caught = error
                            throw error
                        }
                    }
                }
            }
            #expect(numbers(error) == [1])
            #expect(caught is CancellationError)
            #expect(cancelled == (wait == .innerGroup || wait == .endOfInnerGroup ? 2 : 1))
        }

        @Test func allErrors_areThrownInTheOrderInWhichTheyCame_whenOthersFailUponTheirCancellation() throws {
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        try group.spawnLocal {
                            do { try Fiber.sleep(for: .seconds(1_000)) } catch { throw TestError(number: 2) }
                        }
                        try group.spawnLocal {
                            try withCancellationShield { try Fiber.sleep(for: .milliseconds(5)) }
                            throw TestError(number: 4)
                        }
                        try group.spawnLocal {
                            Fiber.yield()
                            throw TestError(number: 1)
                        }
                        do { try Fiber.sleep(for: .seconds(1_000)) } catch { throw TestError(number: 3) }
                    }
                }
            }
            let group = error as? FiberGroupError
            #expect(group?.first as? TestError == TestError(number: 1))
            #expect(group?.others.map { ($0 as? TestError)?.number } == [2, 3, 4])
            #expect(group.map { "\($0)".contains("TestError(number: 1); and") } == true, "\(String(describing: group))")
        }

        @Test func bodysError_isTheFirst_whenChildrenFailUponTheirCancellation() throws {
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        try group.spawnLocal {
                            do { try Fiber.sleep(for: .seconds(1_000)) } catch { throw TestError(number: 2) }
                        }
                        throw TestError(number: 1)
                    }
                }
            }
            #expect(numbers(error) == [1, 2])
        }

        @Test func bothErrors_areThrown_whenTwoChildrenFailInTheSameTick() throws {
            var body: (any Error)?
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        let latch = Latch()
                        for i in 1...2 {
                            try group.spawnLocal {
                                try latch.wait()
                                throw TestError(number: i)
                            }
                        }
                        settle()
                        latch.open()
                        body = failure { try group.waitForAll() }
                    }
                }
            }
            #expect(numbers(error) == [1, 2])
            #expect(body is CancellationError)
        }

        @Test func bodysError_andTheChildsInTheSameTick_areBothThrown() throws {
            // The child has been woken, the body does not know, and both fail.
            for childFirst in [true, false] {
                let error = try runQuietly {
                    failure {
                        try withFiberGroup { group in
                            let latch = Latch()
                            try group.spawnLocal {
                                try latch.wait()
                                throw TestError(number: 2)
                            }
                            settle()
                            latch.open()
                            if childFirst { Fiber.yield() }
                            throw TestError(number: 1)
                        }
                    }
                }
                #expect(numbers(error) == (childFirst ? [2, 1] : [1, 2]))
            }
        }

        @Test func childsError_isThrownAlone_whenItReachesTheBodyByJoin() throws {
            // The same error twice is one failure, on whichever ways it came.
            var cancelled = 0
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        let failing = try group.spawnLocal {
                            Fiber.yield()
                            throw TestError(number: 1)
                        }
                        try group.spawnLocal { try failing.join() }
                        try group.spawnLocal { try waitForCancellation(&cancelled) }
                        try failing.join()
                    }
                }
            }
            #expect(error as? TestError == TestError(number: 1))
            #expect(cancelled == 1)
        }

        @Test func equalErrors_areThrownAll_whenSeveralFailed() throws {
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        for _ in 0..<3 { try group.spawnLocal { throw TestError(number: 1) } }
                    }
                }
            }
            #expect(numbers(error) == [1, 1, 1])
        }

        @Test func childCancelledOnItsOwn_isNoFailure() throws {
            var joined: (any Error)?
            var wasSiblingCancelled: Bool?
            let results = try runQuietly {
                try withFiberGroup(of: Int.self) { group in
                    let latch = Latch()
                    try group.spawnLocal {
                        try latch.wait()
                        wasSiblingCancelled = Fiber.isCancelled
                        return 1
                    }
                    let child = try group.spawnLocal {
                        try Fiber.sleep(for: .seconds(1_000))
                        return 2
                    }
                    settle()
                    child.cancel()
                    child.cancel()
                    joined = failure { _ = try child.join() }
                    latch.open()
                    return [try group.next(), try group.next()]
                }
            }
            #expect(results == [1, nil])
            #expect(joined is CancellationError)
            #expect(wasSiblingCancelled == false)
        }

        @Test func childCancelledBeforeItsFirstTurn_runsUpToItsFirstWait_andIsNoFailure() throws {
            var events: [String] = []
            try runQuietly {
                try withFiberGroup { group in
                    let child = try group.spawnLocal {
                        events.append("begun")
                        try Fiber.sleep(for: .seconds(1_000))
                        events.append("slept")
                    }
                    child.cancel()
                }
            }
            #expect(events == ["begun"])
        }

        @Test func childThatCancelsItself_isNoFailure() throws {
            let value = try runQuietly {
                try withFiberGroup { group in
                    try group.spawnLocal {
                        Fiber.current?.cancel()
                        try Fiber.sleep(for: .seconds(1_000))
                    }
                    return 3
                }
            }
            #expect(value == 3)
        }

        @Test func cancelledChild_thatReturnsAllTheSame_hasAResult() throws {
            let results = try runQuietly {
                try withFiberGroup(of: Int.self) { group in
                    let child = try group.spawnLocal {
                        try? Fiber.sleep(for: .seconds(1_000))
                        return 2
                    }
                    child.cancel()
                    return [try group.next(), try child.join()]
                }
            }
            #expect(results == [2, 2])
        }

        @Test func cancelledChild_thatFailsAllTheSame_endsTheGroup() throws {
            var cancelled = 0
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        try group.spawnLocal { try waitForCancellation(&cancelled) }
                        try group.spawnLocal {
                            do { try Fiber.sleep(for: .seconds(1_000)) } catch { throw TestError(number: 1) }
                        }.cancel()
                    }
                }
            }
            #expect(numbers(error) == [1])
            #expect(cancelled == 1)
        }

        @Test func cancellationErrorOfAChildThatIsNotCancelled_isAFailure() throws {
            var cancelled = 0
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        try group.spawnLocal { try waitForCancellation(&cancelled) }
                        try group.spawnLocal { throw CancellationError() }
                    }
                }
            }
            #expect(error is CancellationError)
            #expect(cancelled == 1)
        }

        @Test func childsOwnTimeout_isAFailure() throws {
            var cancelled = 0
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        try group.spawnLocal { try waitForCancellation(&cancelled) }
                        try group.spawnLocal { try withTimeout(.milliseconds(2)) { try Fiber.sleep(for: .seconds(1_000)) } }
                    }
                }
            }
            #expect((error as? TimeoutError)?.limit == .milliseconds(2))
            #expect(cancelled == 1)
        }

        @Test func errorsOfManyChildren_areAllThrown() throws {
            let count = 5_000
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        for i in 0..<count { try group.spawnLocal { throw TestError(number: i) } }
                    }
                }
            }
            #expect(numbers(error) == Array(0..<count))
        }
    }
}
