// SPDX-License-Identifier: Apache-2.0

// Starting, ending and repeating runtimes.

import CFaults
import CFiber
import Fibers
import Glibc
import Synchronization
import Testing

extension KernelTests {
    @Suite struct RuntimeTests {
        @Test func run_returnsWhatMainReturns_whenItEnds() throws {
            #expect(try FiberRuntime.run { 6 * 7 } == 42)
        }

        @Test func run_throwsWhatMainThrows_afterTheOtherFibersWereCancelledAndHaveEnded() throws {
            var ended = 0
            #expect(throws: TestError(number: 7)) {
                try FiberRuntime.run {
                    try Fiber.spawnLocal {
                        defer { ended += 1 }
                        try Fiber.sleep(for: .seconds(100))
                    }
                    throw TestError(number: 7)
                }
            }
            #expect(ended == 1)
        }

        @Test func run_returnsLast_whenFibersWithoutHandlesOutliveMain() throws {
            var ended = 0
            try FiberRuntime.run {
                for i in 1...20 {
                    try Fiber.spawnLocal {
                        for _ in 0..<i { Fiber.yield() }
                        try Fiber.spawnLocal {
                            try Fiber.sleep(for: .microseconds(100 * i))
                            ended += 1
                        }
                    }
                }
            }
            #expect(ended == 20)
        }

        @Test func runtimes_areIndependent_whenTwoThreadsRunOneEach() throws {
            // Each waits for what the other has done, so both must make progress at the same time, and each sees its own fibers only.
            let turns = Turns()
            @Sendable func play(_ me: Int) -> [UInt64] {
                var ids: [UInt64] = []
                try? FiberRuntime.run {
                    for _ in 0..<3 {
                        ids.append(
                            try Fiber.spawnLocal {
                                for _ in 0..<500 {
                                    let mine = turns.next(me)
                                    while turns.count(1 - me) < mine - 3 { try Fiber.sleep(for: .microseconds(1)) }
                                    Fiber.yield()
                                }
                            }.fiber.id)
                    }
                }
                return ids
            }
            let other = Box<[UInt64]>([])
            let thread = Thread { other.value = play(1) }
            let mine = play(0)
            thread.join()
            #expect(turns.count(0) == 1_500 && turns.count(1) == 1_500)
            // Each counts on, and no number is given twice.
            for ids in [mine, other.value] { #expect(ids.count == 3 && ids == ids.first.map { [$0, $0 + 1, $0 + 2] }) }
            #expect(Set(mine).isDisjoint(with: other.value))
        }

        @Test func runtime_worksAgain_afterOneThatThrew() throws {
            for i in 0..<10 {
                #expect(throws: TestError(number: i)) { try FiberRuntime.run { throw TestError(number: i) } }
                #expect(try FiberRuntime.run { try Fiber.spawnLocal { i }.join() } == i)
            }
        }

        @Test func current_isTheFiberThatAsks_andNilOutside() throws {
            #expect(Fiber.current == nil)
            var inside: [Bool] = []
            try FiberRuntime.run {
                var found: Fiber?
                let handle = try Fiber.spawnLocal(name: "asks") { found = Fiber.current }
                try handle.join()
                inside = [found == handle.fiber, Fiber.current?.name == "main", Fiber.current != handle.fiber]
            }
            #expect(inside == [true, true, true])
            #expect(Fiber.current == nil)
        }

        @Test(
            arguments: [
                ("plain", "plain"), ("", nil), (String(repeating: "a", count: 50), String(repeating: "a", count: 39)),
                // Cut at a character boundary: 13 × 3 bytes, and 19 × 2 of the 39.
                (String(repeating: "€", count: 14), String(repeating: "€", count: 13)),
                (String(repeating: "ü", count: 30), String(repeating: "ü", count: 19)),
            ] as [(String, String?)])
        func name_isKept_upToItsLength(_ given: String, _ kept: String?) throws {
            #expect(try FiberRuntime.run { try Fiber.spawnLocal(name: given) { Fiber.current?.name }.join() } == kept)
        }

        @Test func name_isGone_whenTheNextFiberOnTheStackHasNone() throws {
            let names = try FiberRuntime.run {
                [try Fiber.spawnLocal(name: "first") { Fiber.current?.name }.join(), try Fiber.spawnLocal { Fiber.current?.name }.join()]
            }
            #expect(names == ["first", nil])
        }

        @Test func threadOfARuntime_isAsBefore_whenItEnds() throws {
            @Sendable func state() -> (stack: stack_t, handler: UInt) {
                var stack = stack_t()
                sigaltstack(nil, &stack)
                var action = sigaction()
                sigaction(SIGSEGV, nil, &action)
                return (stack, unsafeBitCast(action.__sigaction_handler, to: UInt.self))
            }
            let before = onThread { state() }
            let after = onThread {
                try? FiberRuntime.run { Fiber.yield() }
                return state()
            }
            #expect(after.stack.ss_flags == before.stack.ss_flags)
            #expect(after.handler == before.handler)
        }

        #if compiler(>=6.2)
            @Test func process_keepsNothing_whenARuntimeWasStartedTenThousandTimes() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        func use(_ runs: Int) throws {
                            for i in 0..<runs {
                                try FiberRuntime.run {
                                    let handle = try Fiber.spawnLocal { i }
                                    if i % 100 == 0 { try Fiber.sleep(for: .microseconds(10)) }
                                    Fiber.yield()
                                    guard try handle.join() == i else { throw TestError(number: i) }
                                }
                            }
                        }
                        try use(100)
                        let before = (descriptors: Process.descriptors, threads: Process.threads)
                        let heap = Int(cfaults_heap_bytes())
                        var mappings = Process.mappings
                        let runs = scaled(10_000, sanitized: 500)
                        try use(runs)
                        #expect(Process.descriptors == before.descriptors)
                        #expect(waitForThreads(before.threads))
                        // Twenty bytes for each run; an object leaked by each would be more.
                        #expect(Int(cfaults_heap_bytes()) - heap < 200_000, "\(Int(cfaults_heap_bytes()) - heap) bytes")
                        // Other threads' allocators may map an arena meanwhile; a leak would be thousands.
                        var more = abs(Process.mappings - mappings)
                        // Sanitizers map memory of their own until they have enough. Then nothing more may come, which a leak would do each time.
                        if isSanitized && more >= 20 {
                            mappings = Process.mappings
                            try use(runs)
                            more = abs(Process.mappings - mappings)
                        }
                        #expect(more < 20, "\(more) mappings")
                    }
                }
            }

            @Test func run_stopsAndSaysWhatToDo_whenCalledInsideARuntime() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run { try FiberRuntime.run {} }
                    }
                }
                expectMessage(result, "call Fiber.spawnLocal there, or run the second one on a thread of its own")
            }

            @Test func run_stopsAndSaysWhatToDo_whenTheStackSizeIsNoPowerOfTwo() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run(.init(stackSize: 200_000)) {}
                    }
                }
                expectMessage(result, "must be a power of two from 128 KiB")
            }
        #endif
    }
}

/// Two counters that two threads advance.
private final class Turns: Sendable {
    private let first = Atomic<Int>(0)
    private let second = Atomic<Int>(0)

    func next(_ i: Int) -> Int { (i == 0 ? first.add(1, ordering: .relaxed) : second.add(1, ordering: .relaxed)).newValue }
    func count(_ i: Int) -> Int { i == 0 ? first.load(ordering: .relaxed) : second.load(ordering: .relaxed) }
}
