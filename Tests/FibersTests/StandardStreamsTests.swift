// SPDX-License-Identifier: Apache-2.0

// Programs that are started with closed standard streams: descriptors of ours must not get their numbers.
//
// Each is this program, started once more by a shell, which runs a scenario before `main`. Later the test library's threads open descriptors, too, which get the free numbers. A scenario
// writes to descriptor 3 what is wrong, and "done" at its end.

import CFaults
import Fibers
import Glibc
import Testing

#if compiler(>=6.2)
    extension KernelTests {
        struct StandardStreamsTests {
            @Test func run_opensNullForClosedStreams_andTheyStay() throws {
                try expectDone("all", "<&- >&- 2>&-")
            }

            @Test func run_leavesOpenStreamsAlone() throws {
                try expectDone("output", "</dev/zero >&- 2>/dev/full")
            }

            @Test func run_opensNullBeforeAnyRuntimeOpensAnything_whenSeveralBeginAtOnce() throws {
                try expectDone("several runtimes", "<&- >&- 2>&-")
            }

            @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose the same functions"))
            func run_throws_whenAClosedStreamCannotBeOpened_andWorksLater() throws {
                try expectDone("failure", "<&-")
            }

            private func expectDone(_ scenario: String, _ redirections: String) throws {
                let text = try runAgain("FIBERS_TESTS_ON_MAIN_THREAD='\(scenario)'", test: "none", redirections: "3>&1 \(redirections)")
                #expect(text == "done\n")
            }
        }
    }
#endif

/// Called before `main`.
func runWithClosedStreams(_ scenario: String) {
    alarm(60)
    do {
        switch scenario {
        case "all":
            try FiberRuntime.run { check(["/dev/null", "/dev/null", "/dev/null"]) }
            check(["/dev/null", "/dev/null", "/dev/null"])
            for fd in Int32(0)...2 {
                check(fcntl(fd, F_GETFD) == 0, "descriptor \(fd) is closed when this program executes another")
                check(fcntl(fd, F_GETFL) & O_ACCMODE == O_RDWR, "descriptor \(fd) is not for reading and writing")
            }
        case "output":
            try FiberRuntime.run { check(["/dev/zero", "/dev/null", "/dev/full"]) }
        case "several runtimes":
            let threads = (0..<4).map { _ in
                Thread { _ = try? FiberRuntime.run(.init(workers: 1)) { check(["/dev/null", "/dev/null", "/dev/null"]) } }
            }
            for thread in threads { thread.join() }
        case "failure":
            for (number, resource) in [(EMFILE, ResourceError.Resource.descriptors), (ENOENT, .kernel)] {
                cfaults_arm(CFAULTS_OPEN, 1, number, 1)
                var thrown: ResourceError?
                do { try FiberRuntime.run {} } catch { thrown = error as? ResourceError }
                cfaults_disarm()
                check(thrown?.errno == number && thrown?.resource == resource, "\(String(describing: thrown)) was thrown")
                check(thrown?.operation == "opening /dev/null for a closed standard stream", "\(String(describing: thrown)) was thrown")
            }
            check(target(0) == "closed", "descriptor 0 is \(target(0))")
            try FiberRuntime.run { check(target(0) == "/dev/null", "descriptor 0 is \(target(0))") }
        default: report("there is no scenario \(scenario)")
        }
    } catch { report("\(error)") }
    report("done")
}

private func check(_ targets: [String]) {
    for (fd, expected) in zip(Int32(0)..., targets) { check(target(fd) == expected, "descriptor \(fd) is \(target(fd))") }
}

private func check(_ condition: Bool, _ message: @autoclosure () -> String) {
    if !condition { report(message()) }
}

private func report(_ text: String) {
    let line = text + "\n"
    _ = write(3, line, line.utf8.count)
}

/// What a descriptor is open for, as /proc says.
private func target(_ fd: Int32) -> String {
    var bytes = [UInt8](repeating: 0, count: 256)
    let count = readlink("/proc/self/fd/\(fd)", &bytes, bytes.count)
    return count < 0 ? "closed" : String(decoding: bytes[..<count], as: UTF8.self)
}
