// SPDX-License-Identifier: Apache-2.0

// Programs that are started with closed standard streams.
//
// Each is this program, started once more by a shell, which runs a scenario before `main`. Later the test library's threads open descriptors, too, which get the free numbers. A scenario
// writes to descriptor 3 what is wrong, and "done" at its end.

import FiberNet
import Fibers
import Glibc
import Testing

extension NetTests {
    struct ClosedStreamsTests {
        @Test func standardInput_isAtItsEnd_whenTheProcessHasNone() throws { try expectDone("input", "<&-") }
        @Test func standardOutput_swallowsWhatIsWritten_whenTheProcessHasNone() throws { try expectDone("output", ">&-") }
        @Test func errorLine_goesIntoNobodysConnection_whenTheProcessHasNoStandardError() throws {
            try expectDone("errors", "<&- >&- 2>&-")
        }

        private func expectDone(_ scenario: String, _ redirections: String) throws {
            var path = [UInt8](repeating: 0, count: 4096)
            let count = readlink("/proc/self/exe", &path, path.count)
            let program = String(decoding: path[..<max(0, count)], as: UTF8.self)
            let command = "FIBERS_NET_TESTS_ON_MAIN_THREAD=\(scenario) exec '\(program)' 3>&1 \(redirections)"
            let (_, output, errors) = try Child("sh", ["-c", command]).wait()
            #expect(output == "done\n", "\(errors)")
        }
    }
}

/// Called by CFaults before `main`, when FIBERS_NET_TESTS_ON_MAIN_THREAD is set.
@_cdecl("fibers_net_tests_on_main_thread")
public func runWithClosedStreams() {
    alarm(30)
    do {
        try FiberRuntime.run(.init(workers: 1)) {
            switch String(cString: getenv("FIBERS_NET_TESTS_ON_MAIN_THREAD")) {
            case "input":
                check(try StandardInput.open().read(upTo: 100).isEmpty, "there is something on standard input")
                check(try StandardInput.open().lines().next() == nil, "there is a line on standard input")
            case "output":
                try StandardOutput.open().writeAll("nobody reads this")
            case "errors":
                // As many as it takes to get any of the numbers.
                let pairs = try (0..<4).map { _ in try Connection.pair() }
                let line = "an error for the operator\n"
                for fd in Int32(0)...2 { check(write(fd, line, line.utf8.count) == line.utf8.count, "descriptor \(fd) takes no line") }
                for (a, b) in pairs {
                    for stream in [a, b] {
                        let code = failure { _ = try withTimeout(.zero) { try stream.read(upTo: 1) } }?.code
                        check(code == .timedOut, "a connection has got the line: \(String(describing: code))")
                    }
                }
            case let scenario: report("there is no scenario \(scenario)")
            }
        }
    } catch { report("\(error)") }
    report("done")
}

private func check(_ condition: Bool, _ message: @autoclosure () -> String) {
    if !condition { report(message()) }
}

private func report(_ text: String) {
    let line = text + "\n"
    _ = write(3, line, line.utf8.count)
}
