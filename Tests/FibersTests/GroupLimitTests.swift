// SPDX-License-Identifier: Apache-2.0

// Groups with a limit: who waits for room, in which order, and where a slot goes that its taker cannot use.

import CFaults
import Fibers
import Glibc
import Testing

extension KernelTests {
    @Suite struct GroupLimitTests {
        @Test(arguments: [1, 2, 3, 16], [1, 2] as [UInt64])
        func children_neverExceedTheLimit_inARandomProgram(_ limit: Int, _ seed: UInt64) throws {
            var random = SeededGenerator(seed: seed)
            var running = 0, most = 0, ended = 0
            let perSpawner = scaled(500, sanitized: 100)
            try runQuietly {
                try withFiberGroup(limit: limit) { group in
                    func spawn() throws {
                        for _ in 0..<perSpawner {
                            let turns = Int.random(in: 0...4, using: &random)
                            let sleeps = Int.random(in: 0..<4, using: &random) == 0
                            let child = try group.spawnLocal {
                                running += 1
                                most = max(most, running)
                                defer {
                                    running -= 1
                                    ended += 1
                                }
                                for _ in 0..<turns { Fiber.yield() }
                                if sleeps { try Fiber.sleep(for: .microseconds(turns)) }
                            }
                            if Int.random(in: 0..<8, using: &random) == 0 { child.cancel() }
                            if Int.random(in: 0..<4, using: &random) == 0 { Fiber.yield() }
                        }
                    }
                    for _ in 0..<3 { try group.spawnDaemon { try spawn() } }
                    // Otherwise the daemons are cancelled before they have begun.
                    Fiber.yield()
                    try spawn()
                    while ended < 4 * perSpawner { try Fiber.sleep(for: .microseconds(50)) }
                }
            }
            // With the few children that sanitizers leave, the limit need not be reached.
            #expect(isSanitized ? most <= limit : most == limit)
            #expect(running == 0)
            #expect(ended == 4 * perSpawner)
        }

        @Test func daemons_doNotCount() throws {
            var events: [String] = []
            try runQuietly {
                try withFiberGroup(limit: 1) { group in
                    for _ in 0..<3 { try group.spawnDaemon { try Fiber.sleep(for: .seconds(1_000)) } }
                    try group.spawnLocal { events.append("child") }
                    // Not even while there is no room.
                    try group.spawnDaemon { events.append("daemon") }
                    events.append("body")
                    settle()
                }
            }
            #expect(events == ["body", "child", "daemon"])
        }

        @Test func waitingSpawners_areServedInTheOrderInWhichTheyCame() throws {
            var order: [Int] = []
            try runQuietly {
                try withFiberGroup(limit: 1) { group in
                    let latch = Latch()
                    try group.spawnLocal { try latch.wait() }
                    for i in 0..<20 {
                        try group.spawnDaemon {
                            try group.spawnLocal {
                                Fiber.yield()
                                order.append(i)
                            }
                        }
                    }
                    settle()
                    latch.open()
                    // Comes after those who wait.
                    try group.spawnLocal { order.append(20) }
                    try group.waitForAll()
                }
            }
            #expect(order == Array(0...20))
        }

        @Test func spawner_doesNotOvertake_whenASlotIsOnItsWayToAnother() throws {
            var order: [String] = []
            try runQuietly {
                try withFiberGroup(limit: 1) { group in
                    let latch = Latch()
                    try group.spawnLocal { try latch.wait() }
                    try group.spawnDaemon { _ = try group.spawnLocal { order.append("first") } }
                    settle()
                    latch.open()
                    // The child ends in this turn, and the daemon has not run yet.
                    Fiber.yield()
                    order.append("\(group.count)")
                    try group.spawnLocal { order.append("second") }
                    try group.waitForAll()
                }
            }
            #expect(order == ["1", "first", "second"])
        }

        @Test func cancelledSpawner_startsNothing_andTheNextInLineGetsTheSlot() throws {
            var refusal: (any Error)?
            var events: [String] = []
            try runQuietly {
                try withFiberGroup(limit: 1) { group in
                    let latch = Latch()
                    try group.spawnLocal { try latch.wait() }
                    let first = try group.spawnDaemon { refusal = failure { try group.spawnLocal { events.append("first") } } }
                    try group.spawnDaemon { _ = try group.spawnLocal { events.append("second") } }
                    settle()
                    first.cancel()
                    settle()
                    events.append("\(group.count)")
                    latch.open()
                    settle()
                    events.append("\(group.count)")
                }
            }
            #expect(refusal is CancellationError)
            #expect(events == ["1", "second", "0"])
        }

        @Test func spawnerCancelledInTheTickInWhichTheSlotComesFree_passesItOn() throws {
            // The child's last act is to cancel the spawner that is first in line.
            var refusal: (any Error)?
            var events: [String] = []
            try runQuietly {
                try withFiberGroup(limit: 1) { group in
                    let latch = Latch()
                    var first: FiberHandle<Void>?
                    try group.spawnLocal {
                        try latch.wait()
                        first?.cancel()
                    }
                    first = try group.spawnDaemon { refusal = failure { try group.spawnLocal { events.append("first") } } }
                    try group.spawnDaemon { _ = try group.spawnLocal { events.append("second") } }
                    settle()
                    latch.open()
                    settle()
                    events.append("\(group.count)")
                }
            }
            #expect(refusal is CancellationError)
            #expect(events == ["second", "0"])
        }

        @Test func spawnerCancelledInTheTickAfterItGotTheSlot_usesIt() throws {
            var events: [String] = []
            try runQuietly {
                try withFiberGroup(limit: 1) { group in
                    let latch = Latch()
                    try group.spawnLocal { try latch.wait() }
                    let first = try group.spawnDaemon {
                        try group.spawnLocal { events.append("first") }
                        events.append(Fiber.isCancelled ? "cancelled" : "not cancelled")
                    }
                    try group.spawnDaemon { _ = try group.spawnLocal { events.append("second") } }
                    settle()
                    latch.open()
                    // The child ends in this turn, and has handed its slot over; the spawner comes after us.
                    Fiber.yield()
                    first.cancel()
                    settle()
                    events.append("\(group.count)")
                    // None was lost.
                    try group.spawnLocal { events.append("third") }
                    try group.waitForAll()
                }
            }
            #expect(events == ["cancelled", "first", "second", "0", "third"])
        }

        @Test func spawnerWhoseDeadlinePasses_startsNothing_andTakesNoSlot() throws {
            var refusal: (any Error)?
            var events: [String] = []
            try runQuietly {
                try withFiberGroup(limit: 1) { group in
                    let latch = Latch()
                    try group.spawnLocal { try latch.wait() }
                    refusal = failure {
                        try withTimeout(.milliseconds(1)) { _ = try group.spawnLocal { events.append("never") } }
                    }
                    latch.open()
                    try group.spawnLocal { events.append("child") }
                    try group.waitForAll()
                    events.append("\(group.count)")
                }
            }
            #expect((refusal as? TimeoutError)?.limit == .milliseconds(1))
            #expect((refusal as? TimeoutError)?.operation == "the fibers of a group")
            #expect(events == ["child", "0"])
        }

        @Test func waitingSpawners_startNothing_whenAChildFails() throws {
            var refusals: [any Error] = []
            var begun = 0
            let error = try runQuietly {
                failure {
                    try withFiberGroup(limit: 2) { group in
                        let latch = Latch()
                        try group.spawnLocal {
                            try latch.wait()
                            throw TestError(number: 1)
                        }
                        try group.spawnLocal { try Fiber.sleep(for: .seconds(1_000)) }
                        func spawn() throws {
                            do { try group.spawnLocal { begun += 1 } } catch {
                                refusals.append(error)
                                throw error
                            }
                        }
                        for _ in 0..<2 { try group.spawnDaemon { try spawn() } }
                        settle()
                        latch.open()
                        try spawn()
                    }
                }
            }
            #expect(numbers(error) == [1])
            #expect(refusals.count == 3)
            #expect(refusals.allSatisfy { $0 is CancellationError })
            #expect(begun == 0)
        }

        @Test func spawnerOutsideTheGroup_getsItsSlot_whenTheGroupIsCancelled() throws {
            // It is not cancelled itself, so its child begins, and is cancelled then. The group waits for it.
            var events: [String] = []
            let error = try runQuietly {
                failure {
                    try withFiberGroup(limit: 1) { group in
                        let latch = Latch()
                        try group.spawnLocal {
                            try latch.wait()
                            throw TestError(number: 1)
                        }
                        try Fiber.spawnLocal {
                            try group.spawnLocal {
                                events.append("begun")
                                try withCancellationShield { try Fiber.sleep(for: .milliseconds(2)) }
                                try Fiber.sleep(for: .seconds(1_000))
                            }
                            events.append("spawned")
                        }
                        settle()
                        latch.open()
                    }
                    events.append("no error")
                }
            }
            #expect(numbers(error) == [1])
            #expect(events == ["spawned", "begun"])
        }

        #if compiler(>=6.2)
            @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose the same functions"))
            func slot_isGivenBack_whenThereIsNoStackForItsChild() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var errors: [(any Error)?] = []
                        var counts: [Int] = []
                        try FiberRuntime.run {
                            // The first slab has 16 stacks, one of which is main's.
                            try withFiberGroup(limit: 16) { group in
                                let latch = Latch()
                                cfaults_arm(CFAULTS_MMAP, 1, ENOMEM, 1)
                                for _ in 0..<15 { try group.spawnLocal { try latch.wait() } }
                                for _ in 0..<3 {
                                    errors.append(failure { try group.spawnLocal {} })
                                    errors.append(failure { try group.spawnDaemon {} })
                                    counts.append(group.count)
                                }
                                cfaults_disarm()
                                try group.spawnLocal { try latch.wait() }
                                counts.append(group.count)
                                latch.open()
                                try group.waitForAll()
                                counts.append(group.count)
                            }
                        }
                        #expect(errors.count == 6)
                        #expect(errors.allSatisfy { ($0 as? ResourceError)?.errno == ENOMEM })
                        #expect(counts == [15, 15, 15, 16, 0])
                    }
                }
            }

            @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose the same functions"))
            func slotsHandedOver_areGivenBack_whenThereAreNoStacksForTheirChildren() async {
                // No child and no daemon is left then that could wake the group by its end.
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var errors: [(any Error)?] = []
                        var endOfGroup = -1
                        try FiberRuntime.run {
                            // No fiber ends, and leaves its stack, until all have failed.
                            func waitForErrors() { while errors.count < 3 || endOfGroup < 0 { Fiber.yield() } }
                            try withFiberGroup(limit: 1) { group in
                                let latch = Latch()
                                try group.spawnLocal { try latch.wait() }
                                for _ in 0..<3 {
                                    try Fiber.spawnLocal {
                                        errors.append(failure { try group.spawnLocal {} })
                                        waitForErrors()
                                    }
                                }
                                // With main these are 16 fibers, and the first slab has 16 stacks.
                                for i in 0..<11 {
                                    try Fiber.spawnLocal {
                                        if i == 0 {
                                            settle()
                                            latch.open()
                                            Fiber.yield()
                                            // Takes the stack of the child, which has ended, before the spawners can.
                                            try Fiber.spawnLocal { waitForErrors() }
                                        }
                                        waitForErrors()
                                    }
                                }
                                cfaults_arm(CFAULTS_MMAP, 1, ENOMEM, 1)
                            }
                            cfaults_disarm()
                            endOfGroup = errors.count
                        }
                        #expect(endOfGroup == 3)
                        #expect(errors.map { ($0 as? ResourceError)?.errno } == [ENOMEM, ENOMEM, ENOMEM])
                    }
                }
            }
        #endif
    }
}
