// SPDX-License-Identifier: Apache-2.0

// Errors that nobody joins: the runtime's handler hears of each exactly once.

import Fibers
import Testing

extension KernelTests {
    @Suite struct ErrorTests {
        /// Runs `main` and returns what the handler heard.
        private static func heard(_ main: () throws -> Void) throws -> [UnhandledFiberError] {
            let heard = Box<[UnhandledFiberError]>([])
            try FiberRuntime.run(.init(onUnhandledError: { heard.value.append($0) }), main)
            return heard.value
        }

        @Test func handler_hearsIdNameAndError_whenNobodyKeepsTheHandle() throws {
            var id: UInt64 = 0
            let heard = try Self.heard {
                try Fiber.spawnLocal(name: "unlucky") {
                    id = Fiber.current!.id
                    throw TestError(number: 1)
                }
            }
            try #require(heard.count == 1)
            #expect(heard[0].fiberID == id && id != 0)
            #expect(heard[0].fiberName == "unlucky")
            #expect(heard[0].error as? TestError == TestError(number: 1))
            #expect("\(heard[0])".contains("#\(id) \"unlucky\""))
        }

        @Test func handler_hearsOnce_whenTheHandleIsDroppedAfterTheEnd() throws {
            var before = -1
            let count = Box(0)
            try FiberRuntime.run(.init(onUnhandledError: { _ in count.value += 1 })) {
                var handle: FiberHandle<Void>? = try Fiber.spawnLocal { throw TestError() }
                let fiber = handle!.fiber
                _ = yield { fiber.isFinished }
                before = count.value
                _ = opaque(handle)
                handle = nil
            }
            #expect(before == 0)
            #expect(count.value == 1)
        }

        @Test func handler_hearsOnce_whenTheHandleOutlivesTheRuntime() throws {
            let count = Box(0)
            do {
                var handle: FiberHandle<Void>?
                try FiberRuntime.run(.init(onUnhandledError: { _ in count.value += 1 })) {
                    handle = try Fiber.spawnLocal { throw TestError() }
                }
                _ = opaque(handle)
                handle = nil
            }
            #expect(count.value == 1)
        }

        @Test func handler_hearsNothing_whenTheErrorWasJoined() throws {
            let heard = try Self.heard {
                let handle = try Fiber.spawnLocal { throw TestError() }
                try? handle.join()
            }
            #expect(heard.isEmpty)
        }

        @Test func handler_hearsEachOfMany_whenHalfOfThemAreJoined() throws {
            let heard = try Self.heard {
                for i in 0..<100 {
                    let handle = try Fiber.spawnLocal { throw TestError(number: i) }
                    if i % 2 == 0 { try Fiber.spawnLocal { try? handle.join() } }
                }
            }
            #expect(heard.compactMap { ($0.error as? TestError)?.number } == (0..<100).filter { $0 % 2 == 1 })
        }

        @Test func handler_hearsNothing_whenMainThrows() throws {
            let count = Box(0)
            #expect(throws: TestError(number: 9)) {
                try FiberRuntime.run(.init(onUnhandledError: { _ in count.value += 1 })) { throw TestError(number: 9) }
            }
            #expect(count.value == 0)
        }

        @Test func handler_mayParkAndSpawn_whenItRunsInTheFiber() throws {
            let trace = Box<[String]>([])
            let configuration = FiberRuntime.Configuration(onUnhandledError: { error in
                for _ in 0..<3 { Fiber.yield() }
                try? Fiber.sleep(for: .microseconds(50))
                _ = try? Fiber.spawnLocal { trace.value.append("spawned") }
                trace.value.append("\(error.fiberName ?? "")")
            })
            try FiberRuntime.run(configuration) { for name in ["a", "b"] { try Fiber.spawnLocal(name: name) { throw TestError() } } }
            #expect(trace.value.sorted() == ["a", "b", "spawned", "spawned"])
        }

        #if compiler(>=6.2)
            @Test(.enabled(if: !isSanitized, "sanitizers keep memory of their own"))
            func handler_leavesNoDeadlineBehind_whenTheStackIsGivenBackBeforeItComes() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let deadline = Deadline.after(.seconds(1))
                        let list = UnsafeMutablePointer<WaitList>.allocate(capacity: 1)
                        list.initialize(to: WaitList())
                        let address = UInt(bitPattern: list)
                        let woken = Box(0)
                        var configuration = trimmingSoon
                        configuration.onUnhandledError = { _ in
                            let list = UnsafeMutablePointer<WaitList>(bitPattern: address)!
                            if Worker.current!.park(in: list, .other, until: deadline) == .ready { woken.value += 1 }
                        }
                        try FiberRuntime.run(configuration) {
                            let before = Process.status("RssAnon")
                            for _ in 0..<1000 { try Fiber.spawnLocal { throw TestError() } }
                            Fiber.yield()
                            Worker.current!.wakeAll(&list.pointee, .ready)
                            while Process.status("RssAnon") - before > 2 << 20, Deadline.after(.zero) < deadline {
                                try Fiber.sleep(for: .milliseconds(10))
                            }
                            #expect(woken.value == 1000)
                            #expect(Process.status("RssAnon") - before <= 2 << 20)
                            // Where the deadlines were kept is looked at once more when they come.
                            while Deadline.after(.zero) <= deadline { try Fiber.sleep(for: .milliseconds(10)) }
                            try Fiber.sleep(for: .milliseconds(10))
                        }
                    }
                }
            }
        #endif

        @Test func handler_mayLookAtItsFiber_andKeepWhatItFinds() throws {
            // The fiber's life is over by then, and its core about to be freed.
            let found = Box<[Fiber?]>([])
            try FiberRuntime.run(.init(onUnhandledError: { _ in found.value.append(Fiber.current) })) {
                for _ in 0..<3 { try Fiber.spawnLocal { throw TestError() } }
            }
            #expect(found.value == [nil, nil, nil])
        }

        @Test func error_passesThroughTwoJoins_andIsDelivered() throws {
            var caught: TestError?
            let heard = try Self.heard {
                let inner = try Fiber.spawnLocal { throw TestError(number: 4) }
                let outer = try Fiber.spawnLocal { try inner.join() }
                do { try outer.join() } catch let error as TestError { caught = error }
            }
            #expect(caught == TestError(number: 4))
            #expect(heard.isEmpty)
        }

        #if compiler(>=6.2)
            @Test func defaultHandler_printsOneLine_whenNobodyJoins() async throws {
                let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        struct TwoLines: Error, CustomStringConvertible { var description: String { "first\nsecond" } }
                        try FiberRuntime.run { _ = try Fiber.spawnLocal(name: "unlucky") { throw TwoLines() } }
                    }
                }
                let text = String(decoding: try #require(result).standardErrorContent, as: UTF8.self)
                #expect(text == "fiber #2 \"unlucky\" ended with an error that nobody joined: first second\n")
            }
        #endif
    }
}
