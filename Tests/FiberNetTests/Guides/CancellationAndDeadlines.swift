// SPDX-License-Identifier: Apache-2.0

// What "Cancellation and deadlines" shows.

import FiberNet
import Fibers
import Testing

extension NetTests {
    struct CancellationAndDeadlinesGuide {
        @Test func withTimeout_throws_whenAReadTakesTooLong() throws {
            try inRuntime {
                let (server, client) = try Connection.pair()
                var outcome = ""
                // snippet.show
                do {
                    let request = try withTimeout(.milliseconds(20)) {
                        try server.read(upTo: 1024)  // and nobody writes
                    }
                    outcome = "\(request.count) bytes"
                } catch let error as TimeoutError {
                    outcome = "\(error)"
                }
                // timed out after 0.02 seconds (read descriptor 7)
                // snippet.hide
                expect(outcome == "timed out after 0.02 seconds (read descriptor \(try server.fd))", outcome)
                client.close()
            }
        }

        @Test func innerScope_catchesNothingOfAnOuterOne() throws {
            var notes: [String] = []
            try inRuntime {
                // snippet.show
                do {
                    try withTimeout(.milliseconds(20)) {
                        do {
                            try withTimeout(.seconds(60)) { try Fiber.sleep(for: .seconds(3600)) }
                        } catch is TimeoutError {
                            notes.append("the minute is over")
                        } catch let error as CancellationError {
                            notes.append("something further out")
                            throw error
                        }
                    }
                } catch is TimeoutError {
                    notes.append("the 20 milliseconds are over")
                }
                // something further out, the 20 milliseconds are over
                // snippet.hide
            }
            #expect(notes == ["something further out", "the 20 milliseconds are over"])
        }

        @Test func steps_shareADeadline() throws {
            try inRuntime {
                // snippet.show
                let deadline = ContinuousClock.now + .milliseconds(20)
                var steps = 0
                do {
                    while true {
                        try withDeadline(deadline) { try Fiber.sleep(for: .milliseconds(1)) }
                        steps += 1
                    }
                } catch is TimeoutError {}
                // ContinuousClock.now is at or after `deadline`
                // snippet.hide
                expect(ContinuousClock.now >= deadline)
                expect(steps <= 20, "\(steps)")
            }
        }

        @Test func call_throwsTimeoutError_whenTheTimeAroundItIsOver() throws {
            try inRuntime {
                let (server, client) = try Connection.pair()
                var isIdle = false
                // snippet.show
                do {
                    _ = try withTimeout(.milliseconds(20)) { try server.read(upTo: 1024) }
                } catch is TimeoutError {
                    isIdle = true
                }
                // snippet.hide
                expect(isIdle)
                client.close()
            }
        }

        @Test func connection_ends_whenItIsIdle() throws {
            try inRuntime {
                // snippet.show
                func echo(_ stream: Connection, idle limit: Duration) throws {
                    while try withTimeout(limit, { try stream.readAvailable { try stream.writeAll($0) } }) {}
                }
                // snippet.hide
                let (server, client) = try Connection.pair()
                let session = try Fiber.spawnLocal { try echo(server, idle: .milliseconds(50)) }
                try client.writeAll("x")
                expect(try client.read(upTo: 1).count == 1)
                do {
                    try session.join()
                    expect(false, "it goes on")
                } catch { expect((error as? TimeoutError)?.limit == .milliseconds(50), "\(error)") }
                // And while it is not, it goes on to the end.
                let (secondServer, secondClient) = try Connection.pair()
                let second = try Fiber.spawnLocal { try echo(secondServer, idle: .seconds(20)) }
                try secondClient.writeAll("x")
                expect(try secondClient.read(upTo: 1).count == 1)
                try secondClient.shutdown(.write)
                try second.join()
            }
        }

        @Test func join_throwsCancellationError_whenTheFiberWasCancelled() throws {
            try inRuntime {
                var outcome = ""
                // snippet.show
                let waiting = try Fiber.spawnLocal(name: "waiting") {
                    try Fiber.sleep(for: .seconds(3600))
                }
                waiting.cancel()
                do {
                    try waiting.join()
                } catch is CancellationError {
                    outcome = "cancelled"
                }
                // snippet.hide
                expect(outcome == "cancelled")
            }
        }

        @Test func computation_ends_whenItLooks() throws {
            try inRuntime {
                // snippet.show
                func countPrimes(below limit: Int) throws -> Int {
                    var primes: [Int] = []
                    for number in 2..<limit {
                        if number % 1_000 == 0 {
                            Fiber.yield()  // the others want to run
                            try Fiber.checkCancellation()  // and perhaps nobody wants the result
                        }
                        if primes.allSatisfy({ number % $0 != 0 || $0 * $0 > number }) { primes.append(number) }
                    }
                    return primes.count
                }
                // snippet.hide
                expect(try countPrimes(below: 3_000) == 430)
                do {
                    _ = try withTimeout(.milliseconds(20)) { try countPrimes(below: .max) }
                    expect(false, "it ended")
                } catch { expect((error as? TimeoutError)?.limit == .milliseconds(20), "\(error)") }
            }
        }

        @Test func goodbye_isSaid_whenTheSessionIsCancelled() throws {
            try inRuntime {
                // snippet.show
                func session(_ stream: Connection) throws {
                    defer {
                        withCancellationShield {
                            try? withTimeout(.seconds(1)) { try stream.writeAll("bye\n") }
                        }
                        stream.close()
                    }
                    while try stream.readAvailable({ try stream.writeAll($0) }) {}
                }
                // snippet.hide
                let (server, client) = try Connection.pair()
                let running = try Fiber.spawnLocal { try session(server) }
                try client.writeAll("x")
                expect(try client.read(upTo: 1).count == 1)
                running.cancel()
                expect(String(decoding: try client.readToEnd(), as: UTF8.self) == "bye\n")
                expect(fails(with: CancellationError.self) { try running.join() })
            }
        }

        @Test func write_saysHowManyBytesWent_whenItsTimeIsOver() throws {
            try inRuntime {
                let (stream, peer) = try Connection.pair()
                let file = pattern(4_000_000)
                // snippet.show
                var written = 0
                do {
                    try withTimeout(.milliseconds(20)) { try stream.writeAll(file, written: &written) }
                } catch is TimeoutError {}
                // the kernel has the first `written` bytes of `file`, and no others
                // snippet.hide
                expect(written > 0 && written < file.count)
                stream.close()
                let received = try peer.readToEnd()
                expect(same(received, Array(file[..<written])))
            }
        }

        @Test func errors_areAnswered_unlessTheyAreCancellations() throws {
            try inRuntime {
                // snippet.show
                func answer(_ stream: Connection, with work: () throws -> String) throws {
                    do {
                        try stream.writeAll("200 \(try work())")
                    } catch let error where Fiber.isCancelled {
                        throw error  // somebody further out wants us to end
                    } catch {
                        try stream.writeAll("500 \(error)")
                    }
                }
                // snippet.hide
                let (server, client) = try Connection.pair()
                try answer(server) { "fine" }
                expect(String(decoding: try client.readExactly(8), as: UTF8.self) == "200 fine")
                try answer(server) { throw Unavailable() }
                expect(String(decoding: try client.readExactly(17), as: UTF8.self) == "500 Unavailable()")
                // What passes is its own deadline: an error like any other.
                try answer(server) {
                    try withTimeout(.zero) { try Fiber.sleep(for: .seconds(3600)) }
                    return "late"
                }
                expect(String(decoding: try client.readExactly(13), as: UTF8.self) == "500 timed out")
                _ = try client.read(upTo: 1000)
                expect(
                    fails(with: TimeoutError.self) {
                        try withTimeout(.milliseconds(5)) {
                            try answer(server) {
                                try Fiber.sleep(for: .seconds(3600))
                                return "late"
                            }
                        }
                    })
                server.close()
                expect(try client.readToEnd().isEmpty)
            }
        }

        @Test func ticker_beatsWithoutDrift() throws {
            try inRuntime {
                let start = ContinuousClock.now
                // snippet.show
                let ticker = Ticker(every: .milliseconds(5))
                var beats: [Int] = []
                while beats.count < 3 {
                    let tick = try ticker.next()
                    beats.append(tick.number)  // and tick.missed says how many went by untaken
                }
                // 1, 2, 3
                // snippet.hide
                // A busy machine may miss some.
                expect(beats[0] >= 1 && beats[1] > beats[0] && beats[2] > beats[1], "\(beats)")
                expect(ContinuousClock.now - start >= .milliseconds(5) * beats[2])
            }
        }

        @Test func attempts_areRepeated_withinADeadlineForAll() throws {
            try inRuntime {
                // snippet.show
                func retrying<Value>(_ work: () throws -> Value) throws -> Value {
                    var pause = Duration.milliseconds(10)
                    while true {
                        do {
                            return try withTimeout(.seconds(1), work)  // for this attempt
                        } catch {
                            try Fiber.sleep(for: pause)  // throws when the time for all is over
                            pause = min(pause * 2, .seconds(1))
                        }
                    }
                }
                // snippet.hide
                // snippet.show
                struct Unavailable: Error {}

                var attempts = 0
                let reply = try withTimeout(.seconds(10)) {
                    try retrying {
                        attempts += 1
                        if attempts < 3 { throw Unavailable() }
                        return "here I am"
                    }
                }
                // "here I am", at the third attempt
                // snippet.hide
                expect(reply == "here I am" && attempts == 3)
                // While an attempt runs, and in a pause.
                for works in [true, false] {
                    do {
                        try withTimeout(.milliseconds(20)) {
                            try retrying {
                                if works { try Fiber.sleep(for: .seconds(3600)) }
                                throw Unavailable()
                            }
                        }
                        expect(false, "it returned")
                    } catch { expect((error as? TimeoutError)?.limit == .milliseconds(20), "\(error)") }
                }
            }
        }

        private struct Unavailable: Error {}

        private func fails<Failure: Error>(with _: Failure.Type, _ body: () throws -> Void) -> Bool {
            do { try body() } catch { return error is Failure }
            return false
        }
    }
}
