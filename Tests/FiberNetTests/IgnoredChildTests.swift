// SPDX-License-Identifier: Apache-2.0

// Children of a process that ignores SIGCHLD, which the kernel reaps: their output comes, and their end is noticed.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct IgnoredChildTests {
        private static func sh(_ script: String) -> Subprocess.Command { Subprocess.Command("sh", ["-c", script]) }

        @Test func run_givesTheOutput_whenSIGCHLDIsIgnored() async {
            #if compiler(>=6.2)
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        signal(SIGCHLD, SIG_IGN)
                        try inRuntime {
                            // It ends when its input does, and so after its start has been seen.
                            let result = try Subprocess.run(Self.sh("cat; echo err >&2; exit 7"), input: Array("out".utf8))
                            expect(result.output == Array("out".utf8) && result.errors == Array("err\n".utf8), "\(result)")
                            expect(result.status == (endsAreRemembered ? .exited(7) : .unknown), "\(result.status)")
                            expect(!result.status.isSuccess)
                            // These may be over before that.
                            for _ in 0..<scaled(200, sanitized: 20) {
                                let result = try Subprocess.run(Self.sh("echo out; exit 7"))
                                expect(result.output == Array("out\n".utf8), "\(result)")
                                expect(result.status == .exited(7) || result.status == .unknown, "\(result.status)")
                            }
                            let killed = try Subprocess.run(Self.sh("cat; kill -TERM $$"), input: [1])
                            expect(killed.status == (endsAreRemembered ? .signalled(.terminate) : .unknown), "\(killed.status)")
                        }
                    }
                }
            #endif
        }

        @Test func children_endInEveryWay_whenSIGCHLDIsIgnored() async {
            #if compiler(>=6.2)
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        signal(SIGCHLD, SIG_IGN)
                        let watchdog = Watchdog(seconds: 60, "children_endInEveryWay")
                        defer { watchdog.stop() }
                        let before = openFilesAndPipes()
                        try inRuntime {
                            // Killed at the end of its scope, by its last reference, and by a cancellation of its start.
                            try withSubprocess(.init("sleep", ["100"])) { _ in }
                            _ = try Subprocess.spawn(.init("sleep", ["100"]))
                            let starting = try Fiber.spawnLocal { _ = try Subprocess.spawn(.init("sleep", ["100"])) }
                            letOthersRun()
                            starting.cancel()
                            _ = try? starting.join()
                            let child = try Subprocess.spawn(.init("sleep", ["100"]))
                            expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try child.wait() } }
                            try child.kill()
                            expect(try child.wait() == (endsAreRemembered ? .signalled(.kill) : .unknown))
                            expect(try child.wait() == child.status)
                            try child.kill()
                        }
                        // The thread that waits for a child closes its descriptor.
                        while openFilesAndPipes() > before { usleep(1000) }
                    }
                }
            #endif
        }
    }
}

/// Linux tells how a process ended that nobody has waited for from 6.15 on.
var endsAreRemembered: Bool {
    var name = utsname()
    uname(&name)
    let release = withUnsafeBytes(of: &name.release) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    let numbers = release.split { !$0.isNumber }.prefix(2).compactMap { Int($0) }
    return numbers.count == 2 && (numbers[0], numbers[1]) >= (6, 15)
}
