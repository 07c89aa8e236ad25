// SPDX-License-Identifier: Apache-2.0

// Groups that are cancelled: by themselves, by their own members, by scopes outside.

import Fibers
import Testing

extension KernelTests {
    @Suite struct GroupCancellationTests {
        // cancel().

        @Test func cancel_endsChildrenDaemonsAndBody_andIsNoFailure() throws {
            var cancelled = 0
            var body: (any Error)?
            let value = try runQuietly {
                try withFiberGroup { group in
                    for _ in 0..<3 { try group.spawnLocal { try waitForCancellation(&cancelled) } }
                    try group.spawnDaemon { try waitForCancellation(&cancelled) }
                    settle()
                    group.cancel()
                    group.cancel()
                    body = failure { try Fiber.sleep(for: .seconds(1_000)) }
                    return 6
                }
            }
            #expect(value == 6)
            #expect(cancelled == 4)
            #expect(body is CancellationError)
        }

        @Test func group_throwsTheCancellationError_whenCancelHasEndedItsBody() throws {
            var outside: Bool?
            let error = try runQuietly {
                let error = failure {
                    try withFiberGroup { group in
                        group.cancel()
                        try Fiber.sleep(for: .seconds(1_000))
                    }
                }
                outside = Fiber.isCancelled
                return error
            }
            #expect(error is CancellationError)
            #expect(outside == false)
        }

        @Test(arguments: [false, true])
        func cancel_endsTheOthers_whenAMemberCallsIt(_ isDaemon: Bool) throws {
            var cancelled = 0
            var member: (any Error)?
            let value = try runQuietly {
                try withFiberGroup { group in
                    for _ in 0..<3 { try group.spawnLocal { try waitForCancellation(&cancelled) } }
                    let end = {
                        group.cancel()
                        member = failure { try Fiber.sleep(for: .seconds(1_000)) }
                    }
                    if isDaemon { try group.spawnDaemon(end) } else { try group.spawnLocal(end) }
                    return 6
                }
            }
            #expect(value == 6)
            #expect(cancelled == 3)
            #expect(member is CancellationError)
        }

        @Test func cancel_reachesChildrenThatAreSpawnedLater() throws {
            var events: [String] = []
            var refusal: (any Error)?
            try runQuietly {
                try withFiberGroup { group in
                    group.cancel()
                    // The body itself is cancelled, and a call of its that may wait throws.
                    refusal = failure { try group.spawnLocal { events.append("never") } }
                    func spawn() throws {
                        try group.spawnLocal {
                            events.append("begun")
                            try Fiber.sleep(for: .seconds(1_000))
                            events.append("slept")
                        }
                    }
                    try withCancellationShield { try spawn() }
                    try Fiber.spawnLocal { try spawn() }
                    events.append("\(group.count)")
                    settle()
                    events.append("\(group.count)")
                }
            }
            #expect(refusal is CancellationError)
            #expect(events == ["1", "begun", "begun", "0"])
        }

        @Test func cancel_reachesGroupsInside_andPassesShields() throws {
            var cancelled = 0
            var shielded: Bool?
            try runQuietly {
                try withFiberGroup { group in
                    for _ in 0..<3 {
                        try group.spawnLocal {
                            try withFiberGroup { inner in
                                for _ in 0..<3 { try inner.spawnLocal { try waitForCancellation(&cancelled) } }
                                try withTimeout(.seconds(2_000)) { try waitForCancellation(&cancelled) }
                            }
                        }
                    }
                    try group.spawnLocal {
                        try withCancellationShield {
                            try withFiberGroup { inner in
                                _ = try inner.spawnLocal {
                                    try Fiber.sleep(for: .milliseconds(5))
                                    shielded = Fiber.isCancelled
                                }
                            }
                        }
                    }
                    settle()
                    group.cancel()
                }
            }
            #expect(cancelled == 12)
            #expect(shielded == false)
        }

        // From outside.

        @Test(arguments: [false, true])
        func group_throwsCancellationError_whenItsFiberIsCancelled(_ bodyHasReturned: Bool) throws {
            var cancelled = 0
            var error: (any Error)?
            try runQuietly {
                let owner = try Fiber.spawnLocal {
                    error = failure {
                        try withFiberGroup { group in
                            for _ in 0..<3 { try group.spawnLocal { try waitForCancellation(&cancelled) } }
                            try group.spawnDaemon { try waitForCancellation(&cancelled) }
                            if !bodyHasReturned { try waitForCancellation(&cancelled) }
                        }
                    }
                }
                settle()
                owner.cancel()
                try owner.join()
            }
            #expect(error is CancellationError)
            #expect(cancelled == (bodyHasReturned ? 4 : 5))
        }

        @Test(arguments: [false, true])
        func group_endsByTheTimeoutOfTheScopeAroundIt(_ bodyHasReturned: Bool) throws {
            var children: [any Error] = []
            var group: (any Error)?
            let error = try runQuietly {
                failure {
                    try withTimeout(.milliseconds(3)) {
                        group = failure {
                            try withFiberGroup { group in
                                for _ in 0..<3 {
                                    try group.spawnLocal {
                                        do { try Fiber.sleep(for: .seconds(1_000)) } catch {
                                            children.append(error)
                                            throw error
                                        }
                                    }
                                }
                                if !bodyHasReturned { try Fiber.sleep(for: .seconds(1_000)) }
                            }
                        }
                        if let group { throw group }
                    }
                }
            }
            #expect((error as? TimeoutError)?.limit == .milliseconds(3))
            #expect((group as? TimeoutError)?.limit == .milliseconds(3))
            #expect(children.count == 3)
            #expect(children.allSatisfy { $0 is CancellationError })
        }

        @Test func group_returnsItsValue_whenAllWasDoneInSpiteOfACancellationFromOutside() throws {
            var wasCancelled: Bool?
            var value: Int?
            try runQuietly {
                let owner = try Fiber.spawnLocal {
                    value = try withFiberGroup { group in
                        for _ in 0..<3 {
                            try group.spawnLocal { try withCancellationShield { try Fiber.sleep(for: .milliseconds(2)) } }
                        }
                        return 4
                    }
                    wasCancelled = Fiber.isCancelled
                }
                settle()
                owner.cancel()
                try owner.join()
            }
            #expect(value == 4)
            #expect(wasCancelled == true)
        }

        @Test func group_returnsItsValue_whenTheDeadlineAroundItIsStillToCome() throws {
            let value = try runQuietly {
                try withTimeout(.seconds(1_000)) {
                    let value = try withFiberGroup { group in
                        for _ in 0..<3 { try group.spawnLocal { try Fiber.sleep(for: .microseconds(10)) } }
                        return 4
                    }
                    try Fiber.checkCancellation()
                    return value
                }
            }
            #expect(value == 4)
        }

        @Test func childCancelledOnItsOwn_isNotCutShort_whenTheOthersFinishInSpiteOfACancellationFromOutside() throws {
            var value: Int?
            try runQuietly {
                let owner = try Fiber.spawnLocal {
                    value = try withFiberGroup { group in
                        try group.spawnLocal { try withCancellationShield { try Fiber.sleep(for: .milliseconds(2)) } }
                        try group.spawnLocal { try Fiber.sleep(for: .seconds(1_000)) }.cancel()
                        return 4
                    }
                }
                // The child has been cancelled on its own, and has not run yet.
                Fiber.yield()
                owner.cancel()
                try owner.join()
            }
            #expect(value == 4)
        }

        @Test func childsError_isThrown_whenItFailsUponACancellationFromOutside() throws {
            let error = try runQuietly {
                failure {
                    try withTimeout(.milliseconds(2)) {
                        try withFiberGroup { group in
                            try group.spawnLocal {
                                do { try Fiber.sleep(for: .seconds(1_000)) } catch { throw TestError(number: 1) }
                            }
                            try Fiber.sleep(for: .seconds(1_000))
                        }
                    }
                }
            }
            #expect(numbers(error) == [1])
        }

        @Test func groupInAShield_isNotReachedFromOutside() throws {
            var isCancelled: [Bool] = []
            let value = try runQuietly {
                try withTimeout(.milliseconds(1)) {
                    try withCancellationShield {
                        try withFiberGroup { group in
                            try group.spawnLocal {
                                try Fiber.sleep(for: .milliseconds(5))
                                isCancelled.append(Fiber.isCancelled)
                            }
                            try Fiber.sleep(for: .milliseconds(5))
                            isCancelled.append(Fiber.isCancelled)
                            return 4
                        }
                    }
                }
            }
            #expect(value == 4)
            #expect(isCancelled == [false, false])
        }

        @Test func child_isBoundByTheGroupsScopes_notByThoseAroundItsSpawn() throws {
            var slept = false
            try runQuietly {
                try withFiberGroup { group in
                    var isSpawned = false
                    // Again where the machine stood still for so long that the time was over before.
                    while !isSpawned {
                        do {
                            try withTimeout(.milliseconds(1)) {
                                try group.spawnLocal {
                                    try Fiber.sleep(for: .milliseconds(5))
                                    slept = true
                                }
                                isSpawned = true
                            }
                        } catch is TimeoutError {}
                    }
                }
            }
            #expect(slept)
        }

        @Test func deadline_endsAThousandChildren() throws {
            let clock = ContinuousClock()
            let limit = Duration.milliseconds(20)
            // Even where the time is over before all of them have been spawned.
            func shielded(_ spawn: () throws -> Void) throws { try withCancellationShield(spawn) }
            var ends: [ContinuousClock.Instant] = []
            var start = clock.now
            let error = try runQuietly {
                start = clock.now
                return failure {
                    try withTimeout(limit) {
                        try withFiberGroup { group in
                            for i in 0..<1_000 {
                                try shielded {
                                    try group.spawnLocal {
                                        defer { ends.append(clock.now) }
                                        try Fiber.sleep(for: .seconds(1_000 + i))
                                    }
                                }
                            }
                        }
                    }
                }
            }
            #expect((error as? TimeoutError)?.limit == limit)
            #expect(ends.count == 1_000)
            #expect(ends.allSatisfy { $0 - start >= limit && $0 - start < .seconds(20) })
        }

        // Shutdown.

        @Test func group_throwsCancellationError_whenTheRuntimeShutsDown() throws {
            var cancelled = 0
            let error = failure {
                try runQuietly {
                    try withFiberGroup { group in
                        for _ in 0..<3 { try group.spawnLocal { try waitForCancellation(&cancelled) } }
                        try Fiber.spawnLocal { FiberRuntime.shutDown() }
                    }
                }
            }
            #expect(error is CancellationError)
            #expect(cancelled == 3)
        }

    }
}
