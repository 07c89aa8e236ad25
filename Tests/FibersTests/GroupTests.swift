// SPDX-License-Identifier: Apache-2.0

// Groups: who belongs to one, how long it lasts, and what its children leave behind.

import Fibers
import Testing

extension KernelTests {
    @Suite struct GroupTests {
        // The end.

        @Test func group_returnsWhatTheBodyReturns_afterItsChildrenHaveEnded() throws {
            var ended = 0
            let (value, then) = try runQuietly {
                let value = try withFiberGroup { group in
                    for i in 0..<10 {
                        try group.spawnLocal {
                            try Fiber.sleep(for: .microseconds(200 * i))
                            ended += 1
                        }
                    }
                    return "body"
                }
                return (value, ended)
            }
            #expect(value == "body")
            #expect(then == 10)
        }

        @Test func group_returnsAtOnce_whenNothingWasSpawned() throws {
            let value = try runQuietly {
                // Nobody else gets a turn.
                var turns = 0
                let other = try Fiber.spawnLocal { turns += 1 }
                let value = try withFiberGroup { _ in turns + 5 } + turns
                try other.join()
                return value
            }
            #expect(value == 5)
        }

        @Test func group_throwsWhatTheBodyThrows_afterItsChildrenHaveEnded() throws {
            var ended = 0
            let (error, then) = try runQuietly {
                let error = failure {
                    try withFiberGroup { group in
                        for _ in 0..<10 {
                            try group.spawnLocal {
                                try withCancellationShield { try Fiber.sleep(for: .milliseconds(2)) }
                                ended += 1
                            }
                        }
                        throw TestError(number: 1)
                    }
                }
                return (error, ended)
            }
            #expect(numbers(error) == [1])
            #expect(then == 10)
        }

        @Test(arguments: [false, true])
        func group_waitsForTheDeinitOfWhatAChildCaptured_whenItParks(_ fails: Bool) throws {
            final class Lingering {
                let owner: Fiber
                var ends: Box<[Fiber?]>
                init(_ ends: Box<[Fiber?]>) {
                    owner = Fiber.current!
                    self.ends = ends
                }
                deinit {
                    withCancellationShield { try? Fiber.sleep(for: .milliseconds(5)) }
                    ends.value.append(Fiber.current)
                }
            }
            let ends = Box<[Fiber?]>([])
            var child: Fiber?
            let (error, then) = try runQuietly {
                let error = failure {
                    try withFiberGroup { group in
                        func spawn(_ object: Lingering) throws {
                            child = try group.spawnLocal {
                                if fails, object.owner != Fiber.current { throw TestError(number: 1) }
                            }.fiber
                        }
                        try spawn(Lingering(ends))
                    }
                }
                return (error, ends.value)
            }
            #expect(numbers(error) == (fails ? [1] : nil))
            #expect(then.count == 1)
            #expect(then.first == child)
        }

        @Test func group_waitsForDescendants_whenChildrenSpawnIntoIt() throws {
            var ended = 0
            let then = try runQuietly {
                try withFiberGroup { group in
                    func grow(_ depth: Int) throws {
                        Fiber.yield()
                        if depth > 0 { for _ in 0..<2 { try group.spawnLocal { try grow(depth - 1) } } }
                        try Fiber.sleep(for: .microseconds(depth))
                        ended += 1
                    }
                    try group.spawnLocal { try grow(7) }
                }
                return ended
            }
            #expect(then == 255)
        }

        @Test func group_waitsForAChildSpawnedInTheLastMomentOfAnother_howeverOften() throws {
            var ended = 0
            let then = try runQuietly {
                try withFiberGroup { group in
                    func next() throws {
                        ended += 1
                        if ended < 1_000 { try group.spawnLocal { try next() } }
                    }
                    try group.spawnLocal { try next() }
                }
                return ended
            }
            #expect(then == 1_000)
        }

        @Test func group_waitsForChildren_whenTheBodyReturnsWhileOneStillSpawns() throws {
            var ended = 0
            let then = try runQuietly {
                try withFiberGroup { group in
                    _ = try group.spawnLocal {
                        for i in 0..<100 {
                            Fiber.yield()
                            try group.spawnLocal {
                                try Fiber.sleep(for: .microseconds(i))
                                ended += 1
                            }
                        }
                    }
                }
                return ended
            }
            #expect(then == 100)
        }

        @Test func group_waitsForChildrenOfItsDaemons_whenTheBodyHasReturned() throws {
            var ended = 0
            let then = try runQuietly {
                try withFiberGroup { group in
                    let latch = Latch()
                    try group.spawnLocal { try latch.wait() }
                    try group.spawnDaemon {
                        for _ in 0..<10 {
                            Fiber.yield()
                            try group.spawnLocal {
                                try Fiber.sleep(for: .milliseconds(1))
                                ended += 1
                            }
                        }
                        latch.open()
                    }
                }
                return ended
            }
            #expect(then == 10)
        }

        @Test func group_waitsForAChild_whichAFiberOutsideSpawnsAsTheLastOneEnds() throws {
            // The body has been made ready by the end of its only child, but the stranger runs first.
            var events: [String] = []
            try runQuietly {
                let latch = Latch()
                try withFiberGroup { group in
                    try group.spawnLocal { try latch.wait() }
                    try Fiber.spawnLocal {
                        latch.open()
                        Fiber.yield()
                        try group.spawnLocal {
                            settle()
                            events.append("second child")
                        }
                    }
                }
                events.append("group")
            }
            #expect(events == ["second child", "group"])
        }

        @Test func groups_endFromTheInside_whenChildrenOpenGroups() throws {
            var order: [String] = []
            try runQuietly {
                try withFiberGroup { outer in
                    _ = try outer.spawnLocal {
                        try withFiberGroup { inner in
                            _ = try inner.spawnLocal {
                                try Fiber.sleep(for: .milliseconds(1))
                                order.append("grandchild")
                            }
                        }
                        order.append("child")
                    }
                }
                order.append("group")
            }
            #expect(order == ["grandchild", "child", "group"])
        }

        @Test func count_isTheNumberOfChildrenThatRun_daemonsExcepted() throws {
            var counts: [Int] = []
            try runQuietly {
                try withFiberGroup { group in
                    let latches = [Latch(), Latch()]
                    counts.append(group.count)
                    for latch in latches { try group.spawnLocal { try latch.wait() } }
                    try group.spawnDaemon { try Fiber.sleep(for: .seconds(1_000)) }
                    for latch in latches {
                        counts.append(group.count)
                        latch.open()
                        settle()
                    }
                    counts.append(group.count)
                }
            }
            #expect(counts == [0, 2, 1, 0])
        }

        // Daemons.

        @Test func daemon_isCancelledAndWaitedFor_whenChildrenAndBodyHaveEnded() throws {
            var events: [String] = []
            let value = try runQuietly {
                try withFiberGroup { group in
                    try group.spawnDaemon {
                        do { try Fiber.sleep(for: .seconds(1_000)) } catch {
                            events.append("\(type(of: error))")
                            // A shield delays the end.
                            try withCancellationShield { try Fiber.sleep(for: .milliseconds(2)) }
                            events.append("daemon")
                            throw error
                        }
                    }
                    try group.spawnLocal {
                        try Fiber.sleep(for: .milliseconds(2))
                        events.append("child")
                    }
                    return 7
                }
            }
            #expect(value == 7)
            #expect(events == ["child", "CancellationError", "daemon"])
        }

        @Test func daemon_mayEndBeforeTheGroup() throws {
            var events: [String] = []
            try runQuietly {
                try withFiberGroup { group in
                    let daemon = try group.spawnDaemon { events.append("daemon") }
                    try daemon.join()
                    try group.spawnLocal { events.append("child") }
                }
            }
            #expect(events == ["daemon", "child"])
        }

        @Test func daemonsChild_runsAndIsWaitedFor_whenItIsSpawnedAfterTheCancellation() throws {
            var events: [String] = []
            try runQuietly {
                try withFiberGroup { group in
                    _ = try group.spawnDaemon {
                        do { try Fiber.sleep(for: .seconds(1_000)) } catch {
                            try withCancellationShield {
                                _ = try group.spawnLocal {
                                    events.append("child")
                                    try withCancellationShield { try Fiber.sleep(for: .milliseconds(2)) }
                                    events.append("child, at its end")
                                }
                            }
                            events.append("daemon")
                        }
                    }
                }
                events.append("group")
            }
            #expect(events == ["daemon", "child", "child, at its end", "group"])
        }

        @Test func daemonsError_endsTheGroup() throws {
            var cancelled = 0
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        try group.spawnLocal { try waitForCancellation(&cancelled) }
                        try group.spawnDaemon { try waitForCancellation(&cancelled) }
                        try group.spawnDaemon { throw TestError(number: 3) }
                        try waitForCancellation(&cancelled)
                    }
                }
            }
            #expect(numbers(error) == [3])
            #expect(cancelled == 3)
        }

        @Test func daemonsError_isThrown_whenItFailsUponItsCancellationAtTheEnd() throws {
            let error = try runQuietly {
                failure {
                    _ = try withFiberGroup { group in
                        try group.spawnDaemon {
                            do { try Fiber.sleep(for: .seconds(1_000)) } catch { throw TestError(number: 4) }
                        }
                        // It must have begun: a cancelled fiber runs up to its first wait all the same, but this one is about its wait.
                        settle()
                        return 5
                    }
                }
            }
            #expect(numbers(error) == [4])
        }

        @Test func daemonsCancellation_isNoFailure_whenItComesFromOutsideAndAllElseIsDone() throws {
            // A daemon is there to be cancelled: nothing was cut short.
            var cancelled = 0
            let value = try runQuietly {
                try withTimeout(.milliseconds(2)) {
                    try withFiberGroup { group in
                        try group.spawnDaemon { try waitForCancellation(&cancelled) }
                        try group.spawnLocal { try withCancellationShield { try Fiber.sleep(for: .milliseconds(10)) } }
                        return 8
                    }
                }
            }
            #expect(value == 8)
            #expect(cancelled == 1)
        }

        // Misuse.

        #if compiler(>=6.2)
            @Test func group_stopsAndSaysWhatToDo_whenItIsUsedAfterItsEnd() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run { _ = try endedGroup().spawnLocal {} }
                    }
                }
                expectMessage(
                    result, "FiberGroup.spawnLocal was called on a group that has ended: use it inside the body of its withFiberGroup")
            }

            @Test func next_stopsAndSaysWhatToDo_whenTheGroupHasEnded() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run { _ = try endedGroup().next() }
                    }
                }
                expectMessage(
                    result, "FiberGroup.next() was called on a group that has ended: use it inside the body of its withFiberGroup")
            }

            @Test func group_stopsAndSaysWhatToDo_whenADeinitSpawnsIntoItAtItsEnd() async {
                // The child would outlive the group.
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            try withFiberGroup(of: Respawning.self) { group in
                                _ = try group.spawnLocal { Respawning(group) }
                            }
                        }
                    }
                }
                expectMessage(
                    result, "FiberGroup.spawnLocal was called on a group that has ended: use it inside the body of its withFiberGroup")
            }

            @Test func group_stopsAndSaysWhatToDo_whenAnotherThreadUsesIt() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            try withFiberGroup { group in
                                let box = Box(group)
                                onThread { box.value.cancel() }
                            }
                        }
                    }
                }
                expectMessage(result, "FiberGroup.cancel() was called on another worker's group: use it on the thread that runs it")
            }

            @Test func limit_stopsAndSaysWhatToDo_whenItIsZero() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run { try withFiberGroup(limit: 0) { _ in } }
                    }
                }
                expectMessage(result, "withFiberGroup(limit:) takes at least 1, not 0")
            }

            @Test func withFiberGroup_stopsAndSaysWhatToDo_outsideARuntime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try withFiberGroup { _ in }
                    }
                }
                expectMessage(result, "withFiberGroup was called outside a fiber: wrap the program in FiberRuntime.run")
            }
        #endif
    }
}

private func endedGroup() throws -> FiberGroup<Void> {
    try withFiberGroup { $0 }
}

/// A result that would spawn a child when it is released.
private final class Respawning {
    private let group: FiberGroup<Respawning>
    init(_ group: FiberGroup<Respawning>) { self.group = group }

    deinit {
        let group = self.group
        _ = try? group.spawnLocal { Respawning(group) }
    }
}
