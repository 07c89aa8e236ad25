// SPDX-License-Identifier: Apache-2.0

// What "Getting started" shows.

import FiberNet
import Fibers
import Glibc
import Synchronization
import Testing

private let logged = Mutex<[String]>([])

private func log(_ line: String) { logged.withLock { $0.append(line) } }

extension NetTests {
    struct GettingStartedGuide {
        @Test func child_runs_whenItsParentWaits() throws {
            let watchdog = Watchdog(seconds: 30, #function)
            defer { watchdog.stop() }
            // snippet.show
            var notes: [String] = []
            try FiberRuntime.run {
                let child = try Fiber.spawnLocal(name: "child") {
                    notes.append("the child runs")
                    return 6 * 7
                }
                notes.append("the parent goes on")
                let answer = try child.join()
                notes.append("the child returned \(answer)")
            }
            // the parent goes on, the child runs, the child returned 42
            // snippet.hide
            #expect(notes == ["the parent goes on", "the child runs", "the child returned 42"])
        }

        @Test func sleepers_sleepAtTheSameTime() throws {
            let watchdog = Watchdog(seconds: 60, #function)
            defer { watchdog.stop() }
            // snippet.show
            let elapsed = try ContinuousClock().measure {
                try FiberRuntime.run {
                    for _ in 0..<1_000 {
                        try Fiber.spawnLocal { try Fiber.sleep(for: .milliseconds(100)) }
                    }
                }
            }
            // a tenth of a second, and not a hundred seconds
            // snippet.hide
            #expect(elapsed >= .milliseconds(100))
            #expect(elapsed < .seconds(50))
        }

        @Test func fibersShareWithoutLocks_whenNothingParksInBetween() throws {
            let watchdog = Watchdog(seconds: 30, #function)
            defer { watchdog.stop() }
            // snippet.show
            var total = 0
            try FiberRuntime.run {
                for _ in 0..<100 {
                    try Fiber.spawnLocal {
                        for _ in 0..<100 {
                            total += 1
                            Fiber.yield()
                        }
                    }
                }
            }
            // total is 10,000
            // snippet.hide
            #expect(total == 10_000)
        }

        @Test func server_echoes() throws {
            let watchdog = Watchdog(seconds: 30, #function)
            defer { watchdog.stop() }
            // snippet.show
            func echo(on listener: Listener) throws {
                try listener.serve { stream in
                    while try stream.readAvailable({ try stream.writeAll($0) }) {}
                }
            }
            // snippet.hide
            // snippet.show
            let reply = try FiberRuntime.run {
                let listener = try Listener.bind(to: .loopback(port: 0))  // 0: any free port
                let client = try Fiber.spawnLocal(name: "client") {
                    defer { listener.close() }  // which ends `serve`
                    let stream = try Connection.connect(to: listener.address)
                    try stream.writeAll("hello")
                    return String(decoding: try stream.read(upTo: 100), as: UTF8.self)
                }
                try echo(on: listener)
                return try client.join()
            }
            // reply is "hello"
            // snippet.hide
            #expect(reply == "hello")
        }

        @Test func join_throwsWhatTheFiberThrew() throws {
            let watchdog = Watchdog(seconds: 30, #function)
            defer { watchdog.stop() }
            // snippet.show
            struct NoSuchFile: Error {}

            let outcome = try FiberRuntime.run {
                let reading = try Fiber.spawnLocal { throw NoSuchFile() }
                do {
                    try reading.join()
                    return "read"
                } catch is NoSuchFile {
                    return "there is no such file"
                }
            }
            // snippet.hide
            #expect(outcome == "there is no such file")
        }

        @Test func handler_hearsOfAnError_whenNobodyJoins() throws {
            let watchdog = Watchdog(seconds: 30, #function)
            defer { watchdog.stop() }
            struct NoSuchFile: Error {}
            // snippet.show
            var configuration = FiberRuntime.Configuration()
            configuration.onUnhandledError = { log("\($0)") }
            try FiberRuntime.run(configuration) {
                try Fiber.spawnLocal(name: "import") { throw NoSuchFile() }
            }
            // fiber #2 "import" ended with an error that nobody joined: NoSuchFile()
            // snippet.hide
            let lines = logged.withLock { $0 }
            // The number is the next one of the process.
            let line = try #require(lines.first)
            #expect(lines.count == 1 && line.hasPrefix("fiber #"))
            #expect(line.drop { $0 != "\"" } == "\"import\" ended with an error that nobody joined: NoSuchFile()")
        }

        #if compiler(>=6.2)
            @Test func program_endsWithOneLine_whenItsPortIsTaken() async {
                let result = await #expect(processExitsWith: .exitCode(1), observing: [\.standardErrorContent]) {
                    reportingErrors {
                        // A second descriptor goes on listening.
                        let taken = try? FiberRuntime.run {
                            let listener = try Listener.bind(to: .loopback(port: 0))
                            _ = dup(try listener.fd)
                            return listener.address
                        }
                        guard let address = taken else { exit(77) }
                        // snippet.show
                        do {
                            try FiberRuntime.run {
                                let server = try TCPServer.bind(to: address)
                                try server.serve { stream in try stream.writeAll("hello") }
                            }
                        } catch {
                            let line = Array("server: \(error)\n".utf8)
                            write(STDERR_FILENO, line, line.count)
                            exit(1)
                        }
                        // server: bind 127.0.0.1:7777: Address already in use; stop the other listener, …
                        // snippet.hide
                    }
                }
                let lines = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self).split(separator: "\n")
                #expect(lines.count == 1)
                #expect(lines.first?.hasPrefix("server: bind 127.0.0.1:") == true, "\(lines)")
                #expect(lines.first?.contains(": Address already in use; stop the other listener, ") == true, "\(lines)")
            }
        #endif

        @Test func fiber_knowsItsName() throws {
            let watchdog = Watchdog(seconds: 30, #function)
            defer { watchdog.stop() }
            // snippet.show
            let name = try FiberRuntime.run {
                try Fiber.spawnLocal(name: "cache cleaner") { Fiber.current?.name }.join()
            }
            // name is "cache cleaner"
            // snippet.hide
            #expect(name == "cache cleaner")
        }
    }
}
