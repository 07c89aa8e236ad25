// SPDX-License-Identifier: Apache-2.0

// Running off the end of a stack: one clear message, and then the crash as it would have been.

import CFaults
import CFiber
import Fibers
import Glibc
import Testing

/// Recursion without end that the optimiser cannot turn into a loop.
@inline(never) @_optimize(none)
func recurse(_ depth: Int) -> Int {
    var frame = (depth, depth, depth, depth)
    if depth >= 0 { frame.1 = recurse(depth + 1) }
    return frame.0 + frame.1
}

private func overflow() throws {
    try FiberRuntime.run(.init(stackSize: 512 * 1024)) {
        _ = try Fiber.spawnLocal { Fiber.yield() }
        _ = try Fiber.spawnLocal(name: "digger") {
            Fiber.yield()
            _ = recurse(0)
        }
    }
}

/// Called by CFaults before `main` when FIBERS_TESTS_ON_MAIN_THREAD is set: the threads of Swift's concurrency run all tests, never the first one.
@_cdecl("fibers_tests_on_main_thread")
public func onMainThread() {
    guard getpid() == cfaults_thread_id() else { return }
    switch String(cString: getenv("FIBERS_TESTS_ON_MAIN_THREAD")) {
    case "overflow": try? overflow()
    case let scenario: runWithClosedStreams(scenario)
    }
}

/// Starts this program once more, with the crash reporter switched on and one test chosen, and returns what it printed on either stream until it ended, or where the shell's
/// `redirections` lead.
func runAgain(_ environment: String, test: String, redirections: String = "2>&1") throws -> String {
    var path = [CChar](repeating: 0, count: 4096)
    guard readlink("/proc/self/exe", &path, path.count - 1) > 0 else { throw TestError(number: Int(errno)) }
    let reporter = "SWIFT_BACKTRACE=enable=yes,color=no,interactive=no,limit=12"
    let command =
        "\(environment) \(reporter) exec '\(String(decoding: path.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))' --testing-library swift-testing --filter \(test) \(redirections)"
    guard let pipe = popen(command, "re") else { throw TestError(number: Int(errno)) }
    defer { pclose(pipe) }
    var output: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 4096)
    while true {
        var query = pollfd(fd: fileno(pipe), events: Int16(POLLIN), revents: 0)
        // A reporter that hangs keeps it open when the program has long ended.
        try #require(poll(&query, 1, 60_000) > 0, "nothing more came: \(String(decoding: output, as: UTF8.self))")
        let n = read(fileno(pipe), &chunk, chunk.count)
        guard n > 0 else { break }
        output += chunk[..<n]
    }
    return String(decoding: output, as: UTF8.self)
}

#if compiler(>=6.2)
    extension KernelTests {
        @Suite(.enabled(if: !isSanitized, "sanitizers report overflows themselves"))
        struct OverflowTests {
            private static func expectExplanation(_ result: ExitTest.Result?, fiber: Int = 3) throws {
                let text = String(decoding: try #require(result).standardErrorContent, as: UTF8.self)
                #expect(text.contains("fiber stack overflow: fiber #\(fiber) \"digger\" used up its stack of 448 KiB"))
                #expect(text.contains("FiberRuntime.Configuration(stackSize: 1024 * 1024); it is now 512 * 1024, guard included"))
                #expect(text.ranges(of: "fiber stack overflow").count == 1)
            }

            @Test func overflow_isExplained_onAnotherThread() async throws {
                let result = await #expect(processExitsWith: .signal(SIGSEGV), observing: [\.standardErrorContent]) {
                    onThread { try? overflow() }
                }
                try Self.expectExplanation(result)
            }

            @Test func overflow_isExplained_whenAnotherRuntimeHasEndedMeanwhile() async throws {
                let result = await #expect(processExitsWith: .signal(SIGSEGV), observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {}
                        try FiberRuntime.run {
                            onThread { try? FiberRuntime.run { Fiber.yield() } }
                            onThread { try? overflow() }
                        }
                    }
                }
                // Each runtime takes 1,024 numbers at a time.
                try Self.expectExplanation(result, fiber: 3 * 1024 + 3)
            }

            @Test func overflowOfMain_isExplained() async throws {
                let result = await #expect(processExitsWith: .signal(SIGSEGV), observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run { _ = recurse(0) }
                    }
                }
                let text = String(decoding: try #require(result).standardErrorContent, as: UTF8.self)
                #expect(text.contains("fiber stack overflow: fiber #1 \"main\" used up its stack of 192 KiB"))
            }

            @Test func nullDereference_isNotTakenForAnOverflow() async throws {
                let result = await #expect(processExitsWith: .signal(SIGSEGV), observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            _ = try Fiber.spawnLocal {
                                opaque(UnsafeMutablePointer<Int>(bitPattern: 16))!.pointee = 1
                            }
                        }
                    }
                }
                let text = String(decoding: try #require(result).standardErrorContent, as: UTF8.self)
                #expect(!text.contains("overflow"))
            }

            @Test func sentSignal_endsTheProcess_whileARuntimeRuns() async throws {
                let result = await #expect(processExitsWith: .signal(SIGSEGV), observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            // Swift's crash reporter, were it on, would report a sent signal, let the program go on and leave the next one to the system.
                            while true {
                                raise(SIGSEGV)
                                Fiber.yield()
                            }
                        }
                    }
                }
                let text = String(decoding: try #require(result).standardErrorContent, as: UTF8.self)
                #expect(!text.contains("overflow"))
            }

            // Swift gives the main thread an alternate signal stack of its own and the other threads none, so both are looked at. Exit tests run with
            // the crash reporter switched off and never on the main thread, so this program is started once more.

            @Test func crashReporter_printsTheFrames_afterOurMessage_onTheMainThread() throws {
                let text = try runAgain("FIBERS_TESTS_ON_MAIN_THREAD=overflow", test: "none")
                try Self.expectFrames(text)
            }

            @Test func crashReporter_printsTheFrames_afterOurMessage_onAnotherThread() throws {
                let text = try runAgain("FIBERS_TESTS_OVERFLOW=1", test: "overflow_happens_whenAskedForByTheEnvironment")
                try Self.expectFrames(text)
            }

            private static func expectFrames(_ text: String) throws {
                let ours = try #require(text.firstRange(of: "fiber stack overflow: fiber #3 \"digger\""), "\(text)")
                let crash = try #require(text.firstRange(of: "Program crashed: Bad pointer dereference"), "\(text)")
                let frames = try #require(text.firstRange(of: "recurse(_:)"), "\(text)")
                #expect(ours.lowerBound < crash.lowerBound && crash.lowerBound < frames.lowerBound)
            }

            /// Not a test of its own: the other half of the one above.
            @Test(.enabled(if: getenv("FIBERS_TESTS_OVERFLOW") != nil, "run by another test only"))
            func overflow_happens_whenAskedForByTheEnvironment() throws { try overflow() }
        }
    }
#endif
