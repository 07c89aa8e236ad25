// SPDX-License-Identifier: Apache-2.0

// Child processes: what they get, how they end, and that nothing is left of them.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import Synchronization
import SystemPackage
import Testing

extension NetTests {
    struct SubprocessTests {
        private static func sh(_ script: String) -> Subprocess.Command { Subprocess.Command("sh", ["-c", script]) }

        private static func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

        // Running.

        @Test func run_feedsAndCollects() throws {
            try inRuntime(seconds: 60) {
                let bytes = pattern(4_000_000)
                let result = try Subprocess.run(.init("cat"), input: bytes)
                expect(result.status == .exited(0) && result.status.isSuccess && same(result.output, bytes) && result.errors.isEmpty)
                let both = try Subprocess.run(Self.sh("echo out; echo err >&2; exit 7"))
                expect(both.status == .exited(7) && !both.status.isSuccess)
                expect(Self.text(both.output) == "out\n" && Self.text(both.errors) == "err\n")
                // Does not read what it is given.
                expect(try Subprocess.run(.init("true"), input: bytes).status.isSuccess)
                expect(try Subprocess.run(Self.sh("kill -TERM $$")).status == .signalled(.terminate))
                expect("\(Subprocess.Status.exited(3)), \(Subprocess.Status.signalled(.terminate))" == "exit code 3, ended by SIGTERM")
                expect("\(Subprocess.Status.unknown)" == "ended, nobody knows how" && !Subprocess.Status.unknown.isSuccess)
            }
        }

        @Test func arguments_environmentAndDirectory_arriveAsTheyAre() throws {
            try inRuntime {
                let arguments = ["a b", "", "$HOME", "ü", "'\"\\"]
                let printed = try Subprocess.run(.init("/usr/bin/printf", ["%s|"] + arguments))
                expect(Self.text(printed.output) == arguments.map { $0 + "|" }.joined(), Self.text(printed.output))
                let environment = try Subprocess.run(.init("/usr/bin/env", environment: ["B": "2=2", "A": "one"], directory: "/"))
                expect(Self.text(environment.output) == "A=one\nB=2=2\n", Self.text(environment.output))
                expect(Self.text(try Subprocess.run(.init("pwd", directory: "/usr")).output) == "/usr\n")
                // A relative path begins in the child's directory.
                expect(try Subprocess.run(.init("bin/true", directory: "/usr")).status.isSuccess)
                setenv("FIBERNET_TEST", "inherited", 1)
                defer { unsetenv("FIBERNET_TEST") }
                expect(Self.text(try Subprocess.run(Self.sh("echo $FIBERNET_TEST")).output) == "inherited\n")
            }
        }

        @Test func errors_nameWhatIsMissing() throws {
            let plain = try makeFile(Array("no program".utf8)), script = try makeFile(Array("#!/nowhere/interpreter\n".utf8))
            defer {
                unlink(plain)
                unlink(script)
            }
            chmod(script, 0o700)
            try inRuntime {
                let missing = expect(.notFound) { _ = try Subprocess.spawn(.init("/nowhere/program")) }
                expect(missing?.operation == "spawn" && missing?.subject == "/nowhere/program" && missing?.errno == .noSuchFileOrDirectory)
                let unknown = expect(.notFound) { _ = try Subprocess.spawn(.init("no-such-program")) }
                expect("\(unknown!)".contains("no-such-program, looked for in PATH"), "\(unknown!)")
                let forbidden = expect(.notPermitted) { _ = try Subprocess.spawn(.init(plain)) }
                expect(forbidden?.subject == plain)
                let interpreter = expect(.notFound) { _ = try Subprocess.spawn(.init(script)) }
                expect("\(interpreter!)".contains("interpreter"), "\(interpreter!)")
                let directory = expect(.notFound) { _ = try Subprocess.spawn(.init("true", directory: "/nowhere")) }
                expect("\(directory!)".contains("directory /nowhere"), "\(directory!)")
                chmod(plain, 0o700)
                expect(.system) { _ = try Subprocess.spawn(.init(plain)) }
                expect(.system) { _ = try Subprocess.spawn(.init("true\0x")) }
                expect(.system) { _ = try Subprocess.spawn(.init("true", ["a\0"])) }
                expect(.system) { _ = try Subprocess.spawn(.init("true", environment: ["A=B": ""])) }
                expect(.notFound) { _ = try Subprocess.run(.init("/nowhere/program"), input: [1]) }
            }
        }

        @Test(.enabled(if: cfaults_available() != 0)) func spawn_throwsResources_whenThereIsNoMemoryForAnArgument() throws {
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = 1
            try inRuntime(configuration) {
                let command = Subprocess.Command("sh", ["-c", "exit 3"], environment: ["A": "1", "B": "2"])
                for i in 1...5 {
                    // The only thread.
                    try withBlockingThread { cfaults_arm(CFAULTS_STRDUP, i, ENOMEM, 0) }
                    let error = expect(.resources) { _ = try Subprocess.spawn(command) }
                    expect(error?.subject == "sh" && error?.errno == .noMemory, "\(i): \(String(describing: error))")
                    try withBlockingThread { _ = cfaults_disarm() }
                }
                expect(try Subprocess.spawn(command).wait() == .exited(3))
            }
        }

        // Standard streams.

        @Test func streams_goWhereTheyAreSent() throws {
            let path = try makeFile(Array("from a file\n".utf8))
            defer { unlink(path) }
            let fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC)
            defer { close(fd) }
            try inRuntime {
                // To a file, both, in order.
                let child = try Subprocess.spawn(
                    Self.sh("cat; echo out; echo err >&2"), input: .descriptor(FileDescriptor(rawValue: fd)),
                    output: .descriptor(FileDescriptor(rawValue: fd)), errors: .standardOutput)
                expect(child.input == nil && child.output == nil && child.errors == nil)
                // What it reads it appends, up to where the end was when it looked.
                _ = try withTimeout(.seconds(20)) { try child.wait() }
            }
            let text = Self.text(try content(of: path))
            #expect(text.hasPrefix("from a file\n") && text.hasSuffix("out\nerr\n"), "\(text)")
        }

        @Test func conversation_goesBackAndForth() throws {
            try inRuntime {
                let status = try withSubprocess(.init("cat"), input: .pipe, output: .pipe) { cat in
                    let lines = cat.output!.lines()
                    for i in 0..<100 {
                        try cat.input!.writeAll("line \(i)\n")
                        expect(try lines.next() == "line \(i)")
                    }
                    cat.input!.close()
                    expect(try lines.next() == nil)
                    return try cat.wait()
                }
                expect(status.isSuccess)
            }
        }

        @Test func streamsOfOneProgram_canBeAnothers() throws {
            try inRuntime {
                let first = try Subprocess.spawn(Self.sh("echo b; sleep 0.1; echo a"), output: .pipe)
                let second = try first.output!.withFileDescriptor { fd in
                    try Subprocess.spawn(.init("sort"), input: .descriptor(fd), output: .pipe)
                }
                expect(try second.output!.readToEnd() == Array("a\nb\n".utf8))
                expect(try first.wait().isSuccess && second.wait().isSuccess)
            }
        }

        @Test func pipes_blockForTheChild_andNotForUs() throws {
            try inRuntime {
                let input = try Pipe.make(), output = try Pipe.make()
                let cat = try input.reader.withFileDescriptor { reader in
                    try output.writer.withFileDescriptor { writer in
                        try Subprocess.spawn(.init("cat"), input: .descriptor(reader), output: .descriptor(writer))
                    }
                }
                for fd in try [input.reader.fd, output.writer.fd] { expect(fcntl(fd, F_GETFL) & O_NONBLOCK != 0) }
                input.reader.close()
                output.writer.close()
                let bytes = pattern(1_000_000)
                // The program has to wait for its input, and then for room.
                try Fiber.sleep(for: .milliseconds(50))
                let writing = try Fiber.spawnLocal {
                    do { try input.writer.writeAll(bytes) } catch let error as IOError where error.code == .reset {}
                    input.writer.close()
                }
                try Fiber.sleep(for: .milliseconds(50))
                expect(same(try output.reader.readToEnd(), bytes))
                try writing.join()
                expect(try cat.wait().isSuccess)
            }
        }

        @Test func fifoThatNobodyWrites_isGivenToAChild_withoutWaiting() throws {
            let path = try makeFIFO()
            defer { unlink(path) }
            try inRuntime {
                let fifo = try DescriptorStream.open(path)
                let child = try fifo.withFileDescriptor { try Subprocess.spawn(.init("true"), input: .descriptor($0)) }
                expect(try child.wait().isSuccess)
            }
        }

        @Test func child_getsThreeDescriptors_andNoOther() throws {
            // One that was opened without close-on-exec.
            let stray = open("/dev/null", O_RDONLY)
            defer { close(stray) }
            try inRuntime {
                let listener = try Listener.bind(to: .loopback(port: 0))
                let pipe = try Pipe.make()
                let result = try Subprocess.run(.init("ls", ["/proc/self/fd"]), input: [1])
                // The last one is that of the directory.
                expect(Self.text(result.output) == "0\n1\n2\n3\n", Self.text(result.output))
                _ = (listener, pipe)
            }
        }

        @Test func signals_areNeitherBlockedNorIgnored_inTheChild() throws {
            let before = signal(SIGUSR1, SIG_IGN)
            var mask = sigset_t(), old = sigset_t()
            sigfillset(&mask)
            pthread_sigmask(SIG_BLOCK, &mask, &old)
            defer {
                pthread_sigmask(SIG_SETMASK, &old, nil)
                signal(SIGUSR1, before)
            }
            try inRuntime {
                let status = Self.text(try Subprocess.run(.init("cat", ["/proc/self/status"])).output)
                for name in ["SigBlk:", "SigIgn:"] {
                    let line = status.split(separator: "\n").first { $0.hasPrefix(name) } ?? ""
                    let set = UInt64(line.dropFirst(name.count).drop { $0 == "\t" }, radix: 16)
                    // Two belong to the C library.
                    expect(set.map { $0 & ~(3 << 31) } == 0, "\(line)")
                }
            }
        }

        // The example.

        @Test func pipeExample_passesItsInputThroughTheProgram() throws {
            let bytes = letters(1_000_000)
            let path = try makeFile(bytes)
            defer { unlink(path) }
            try inRuntime(seconds: 60) {
                let program = try pipeExample()
                let through = try Subprocess.run(.init(program, ["cat"]), input: bytes)
                expect(through.status.isSuccess && same(through.output, bytes), Self.text(through.errors))
                let fromFile = try Subprocess.run(.init(program, ["--file", path, "sh", "-c", "cat; exit 3"]))
                expect(fromFile.status == .exited(3) && same(fromFile.output, bytes), Self.text(fromFile.errors))
                let missing = try Subprocess.run(.init(program, ["no-such-program"]))
                expect(missing.status == .exited(1) && Self.text(missing.errors).contains("no-such-program, looked for in PATH"))
                expect(try Subprocess.run(.init(program, ["--what"])).status == .exited(2))

                // Input that never ends.
                try withSubprocess(.init(program, ["head", "-c", "10"]), input: .pipe, output: .pipe) { child in
                    try child.input!.writeAll(Array(bytes[..<100]))
                    expect(try child.output!.readToEnd() == Array(bytes[..<10]))
                    expect(try child.wait().isSuccess)
                }
            }
        }

        @Test func pipeExample_feedsAProgramThatHasClosedItsOutput() throws {
            let bytes = letters(1_000_000)
            let path = freshPath()
            defer { unlink(path) }
            try inRuntime(seconds: 60) {
                let script = "exec >&-; sleep 0.2; cat >\(path); exit 3"
                let result = try Subprocess.run(.init(try pipeExample(), ["sh", "-c", script]), input: bytes)
                expect(result.status == .exited(3), "\(result.status) \(Self.text(result.errors))")
                expect(same(try content(of: path), bytes))
            }
        }

        @Test func pipeExample_servesClients() throws {
            let path = try makeFile(letters(300_000))
            defer { unlink(path) }
            try inRuntime(seconds: 60) {
                try withSubprocess(.init(try pipeExample(), ["--file", path, "--listen", "0", "wc", "-c"]), errors: .pipe) { child in
                    let words = try child.errors!.lines().next()?.split(separator: " ") ?? []
                    let address = try SocketAddress(parsing: String(words.last ?? ""))
                    for client in try (0..<5).map({ _ in try Connection.connect(to: address) }) {
                        expect(try client.readToEnd() == Array("300000\n".utf8))
                    }
                    try child.kill(.terminate)
                    expect(try child.wait().isSuccess)
                }
            }
        }

        // Ends.

        @Test(.onlyOn(.epoll, because: "others end a cancelled call some time later and not at once"))
        func wait_isEndedAndTheChildGoesOn() throws {
            try inRuntime(seconds: 60) {
                try withSubprocess(.init("cat"), input: .pipe, output: .null) { child in
                    for ending in Ending.allCases { try end(ending) { try child.wait() } }
                    expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try child.wait() } }
                    expect(child.status == nil)
                    let waiting = try (0..<5).map { _ in try Fiber.spawnLocal { try child.wait() } }
                    letOthersRun()
                    try child.kill(.hangup)
                    for fiber in waiting { expect(try fiber.join() == .signalled(.hangup)) }
                    expect(try child.status == .signalled(.hangup) && child.wait() == .signalled(.hangup))
                    // It has ended, and nobody else gets this.
                    try child.kill()
                }
            }
        }

        @Test func kill_throws_whenThereIsNoSuchSignal() throws {
            try inRuntime {
                try withSubprocess(.init("cat"), input: .pipe, output: .null) { child in
                    expect(.system) { try child.kill(Signal(1000)) }
                    try child.kill()
                    expect(try child.wait() == .signalled(.kill))
                }
            }
        }

        @Test(arguments: Ending.allCases)
        func scopedChild_isKilledAndReaped_whenItsFiberIsEnded(ending: Ending) throws {
            try inRuntime(seconds: 60) {
                let ids = Box<[Int32]>([])
                // Not by its pipe: it reads nothing. The end comes at a park of the body; the shield behind it takes a moment.
                let ended = try Fiber.spawnLocal {
                    let limit: Duration? = [.deadline, .outerDeadline, .groupDeadline].contains(ending) ? .milliseconds(100) : nil
                    if ending == .cancelledBefore { Fiber.current?.cancel() }
                    try withTimeout(limit) {
                        try withSubprocess(.init("sleep", ["1000"])) { child in
                            ids.value.append(child.id)
                            try child.wait()
                        }
                    }
                }
                if ending == .cancelledBefore || ending == .deadline || ending == .outerDeadline || ending == .groupDeadline {
                    expect(thrown { try ended.join() } != nil)
                } else {
                    try waitUntil { !ids.value.isEmpty }
                    letOthersRun()
                    ended.cancel()
                    expect(thrown { try ended.join() } is CancellationError)
                }
                // A deadline may pass before a busy machine has begun.
                let count = ids.value.count
                expect(count == ([.cancel, .group, .sibling].contains(ending) ? 1 : 0) || count == 1 && ending.comesLater, "\(count)")
                // Neither running nor a zombie.
                for id in ids.value { expect(Glibc.kill(id, 0) == -1 && errno == ESRCH, "process \(id) is there still") }
            }
        }

        @Test func run_isCancelled_whateverTheProgramDoes() throws {
            try inRuntime(seconds: 60) {
                for script in [
                    "exec sleep 1000", "cat; exec sleep 1000", "exec yes >/dev/null", "trap '' TERM HUP INT; while :; do sleep 1; done",
                ] {
                    let error = thrown {
                        try withTimeout(.milliseconds(50)) {
                            _ = try Subprocess.run(Self.sh("exec 3>&1; " + script), input: pattern(100_000))
                        }
                    }
                    expect(error is TimeoutError, "\(script): \(String(describing: error))")
                }
            }
        }

        @Test func run_returns_whenWhatTheProgramLeavesBehind_holdsItsInput() throws {
            try inRuntime(seconds: 60) {
                // A shell gives what it runs in the background no input unless it is told to, and not by the number 0.
                let script = Self.sh("exec 3<&0; sleep 5 <&3 >/dev/null 2>&1 & echo $!")
                let result = try Subprocess.run(script, input: pattern(1_000_000))
                guard let left = Int32(Self.text(result.output).dropLast()) else { throw TestError(text: Self.text(result.output)) }
                // It runs still, and holds the input: what has ended has no arguments any more.
                expect(try !content(of: "/proc/\(left)/cmdline").isEmpty)
                expect(Glibc.kill(left, SIGKILL) == 0)
                expect(result.status.isSuccess)
            }
        }

        @Test func run_throws_whenThereIsMoreOutputThanTheLimit() throws {
            try inRuntime(seconds: 60) {
                let out = expect(.limitExceeded) { _ = try Subprocess.run(.init("yes"), outputLimit: 100_000) }
                expect(out?.subject?.contains("standard output of yes") == true, "\(String(describing: out))")
                let err = expect(.limitExceeded) { _ = try Subprocess.run(Self.sh("exec yes >&2"), outputLimit: 100_000) }
                expect(err?.subject?.contains("standard error of sh") == true, "\(String(describing: err))")
                expect(try Subprocess.run(Self.sh("printf 12345"), outputLimit: 5).output.count == 5)
            }
        }

        // The worker is never held up.

        @Test func ticker_isHardlyLate_whileChildrenRun() throws {
            // Made before, since the ticker would wait for that.
            let input = pattern(4 << 20)
            let lateness: Duration = try inRuntime(seconds: 120) {
                try latenessOfATicker {
                    for _ in 0..<20 { expect(try Subprocess.run(.init("true")).status.isSuccess) }
                    expect(try Subprocess.run(.init("cat"), input: input).status.isSuccess)
                }
            }
            #expect(lateness < .seconds(2))
        }

        @Test func spawning_isDoneByAnotherThread() throws {
            // The thread that waits for the program to be loaded is a child's parent thread's concern alone: with the pool busy nothing is started,
            // and the worker goes on.
            try withBusyPool { free in
                let spawning = try Fiber.spawnLocal { try Subprocess.run(.init("true")).status }
                letOthersRun()
                expect(!spawning.fiber.isFinished && FiberRuntime.blockingStatistics.queued == 1)
                free()
                expect(try spawning.join().isSuccess)
            }
        }

        #if compiler(>=6.2)
            @Test func manyChildren_leaveNothing() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try inRuntime(seconds: 120) {
                            _ = try Subprocess.run(.init("true"))
                            let before = openFilesAndPipes()
                            for i in 0..<scaled(200, sanitized: 40) {
                                let result = try Subprocess.run(.init("sh", ["-c", "exit \(i % 256)"]))
                                expect(result.status == .exited(Int32(i % 256)))
                            }
                            try withFiberGroup(limit: 20) { group in
                                for i in 0..<scaled(200, sanitized: 40) {
                                    try group.spawnLocal {
                                        let result = try Subprocess.run(.init("cat"), input: letters(1000, seed: UInt64(i)))
                                        expect(result.output == letters(1000, seed: UInt64(i)))
                                    }
                                }
                            }
                            expect(waitpid(-1, nil, WNOHANG) == -1 && errno == ECHILD, "a child is left")
                            expect(openFilesAndPipes() == before, "\(openDescriptors())")
                        }
                    }
                }
            }

            @Test func childThatIsLetGo_isKilledAndReaped() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let before = openFilesAndPipes()
                        var escaped: Subprocess?
                        try inRuntime {
                            for _ in 0..<20 {
                                _ = try Subprocess.spawn(.init("sleep", ["1000"]), input: .pipe, output: .pipe, errors: .pipe)
                            }
                            // Some have ended before.
                            for _ in 0..<5 {
                                let child = try Subprocess.spawn(.init("true"), output: .pipe)
                                _ = try child.output?.readToEnd()
                            }
                            try waitUntil { waitpid(-1, nil, WNOHANG) == -1 && errno == ECHILD }
                            try waitUntil { openFilesAndPipes() == before }
                            escaped = try Subprocess.spawn(.init("sleep", ["1000"]), input: .pipe)
                        }
                        // One that outlives its runtime.
                        expect(escaped?.input?.isOpen == false && waitpid(-1, nil, WNOHANG) == 0)
                        escaped = nil
                        while waitpid(-1, nil, WNOHANG) != -1 { usleep(1000) }
                        while openFilesAndPipes() != before { usleep(1000) }
                    }
                }
            }

            @Test func spawnsThatAreCancelled_leaveNoChildAndNoDescriptor() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let seed = UInt64.random(in: 0...(.max))
                        print("seed \(seed)")
                        var random = SeededGenerator(seed: seed)
                        let before = openFilesAndPipes()
                        var (started, cancelled) = (0, 0)
                        try inRuntime(seconds: 120) {
                            for _ in 0..<scaled(300, sanitized: 60) {
                                let spawning = try Fiber.spawnLocal {
                                    try Subprocess.spawn(.init("sleep", ["1000"]), input: .pipe, output: .pipe, errors: .null).id
                                }
                                // As many small numbers as large ones: how long a turn is depends on the build.
                                let turns = Int.random(in: 0..<(1 << Int.random(in: 1...15, using: &random)), using: &random)
                                for _ in 0..<turns where !spawning.fiber.isFinished { Fiber.yield() }
                                spawning.cancel()
                                do {
                                    _ = try spawning.join()
                                    started += 1
                                } catch is CancellationError { cancelled += 1 }
                            }
                            try letPoolSettle()
                            try waitUntil { waitpid(-1, nil, WNOHANG) == -1 && errno == ECHILD }
                            try waitUntil { openFilesAndPipes() == before }
                        }
                        print("\(started) started, \(cancelled) cancelled")
                        expect(cancelled > 0)
                    }
                }
            }

            @Test func subscribersToSIGCHLD_hearOfChildren_andTheStatusIsStillHad() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try inRuntime {
                            let signals = try Signals.of(.child)
                            for i in 0..<10 {
                                let child = try Subprocess.spawn(.init("sh", ["-c", "exit \(i)"]))
                                expect(try signals.next() == .child)
                                expect(try child.wait() == .exited(Int32(i)))
                            }
                            signals.close()
                        }
                    }
                }
            }

            @Test func wait_saysWhatIsKnown_whenTheProgramHasTakenTheStatus() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try inRuntime {
                            let child = try Subprocess.spawn(.init("true"))
                            while waitpid(child.id, nil, WNOHANG) == 0 { Fiber.yield() }
                            let status = try child.wait()
                            expect(status == (endsAreRemembered ? .exited(0) : .unknown), "\(status)")
                            expect(try child.wait() == status)
                        }
                    }
                }
            }

            @Test func descriptorsOfTheRuntime_areAllClosedByExec() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let path = try makeFile([1])
                        defer { unlink(path) }
                        let before = Set(openDescriptors().keys)
                        try inRuntime {
                            let listener = try Listener.bind(to: .loopback(port: 0))
                            let client = try Connection.connect(to: listener.address)
                            let server = try listener.accept()
                            let (file, signals, pipe) = (try File.open(path), try Signals.of(.user1), try Pipe.make())
                            let child = try Subprocess.spawn(.init("cat"), input: .pipe, output: .pipe, errors: .pipe)
                            let waiting = try Fiber.spawnLocal { try child.wait() }
                            let input = try DescriptorStream.open(path)
                            try client.writeAll("x")
                            letOthersRun()
                            let ours = openDescriptors().filter { !before.contains($0.key) }
                            // epoll, its eventfd, sockets, pipes, the process and the files.
                            expect(ours.count >= 14, "\(ours)")
                            for (fd, target) in ours { expect(fcntl(fd, F_GETFD) & FD_CLOEXEC != 0, "\(fd) \(target) is inherited") }
                            child.input?.close()
                            expect(try waiting.join().isSuccess)
                            _ = (server, file, signals, pipe, input)

                            // A program that is started by other means gets none of them, while the runtime runs.
                            let fds = try makePipe()
                            var pid = pid_t()
                            var actions = posix_spawn_file_actions_t()
                            posix_spawn_file_actions_init(&actions)
                            posix_spawn_file_actions_adddup2(&actions, fds[1], 1)
                            let arguments =
                                ["sh", "-c", "for f in /proc/self/fd/*; do readlink $f; done"].map { (text: String) in strdup(text) } + [
                                    nil
                                ]
                            defer {
                                posix_spawn_file_actions_destroy(&actions)
                                arguments.forEach { free($0) }
                            }
                            expect(posix_spawnp(&pid, "sh", &actions, nil, arguments, environ) == 0)
                            close(fds[1])
                            let reader = try DescriptorStream.adopt(FileDescriptor(rawValue: fds[0]), closing: true)
                            let seen = String(decoding: try reader.readToEnd(), as: UTF8.self)
                            expect(!seen.contains("socket:") && !seen.contains("anon_inode") && !seen.contains(path), seen)
                            expect(waitpid(pid, nil, 0) == pid)
                        }
                    }
                }
            }
        #endif
    }
}

/// The Pipe program, which lies beside the test program.
private func pipeExample() throws -> String {
    var path = [UInt8](repeating: 0, count: 4096)
    let n = readlink("/proc/self/exe", &path, path.count)
    let program = String(decoding: path[..<max(0, n)], as: UTF8.self)
    let example = program[..<(program.lastIndex(of: "/") ?? program.startIndex)] + "/Pipe"
    guard access(String(example), X_OK) == 0 else { throw TestError(text: "\(example) was not built: swift build --build-tests") }
    return String(example)
}
