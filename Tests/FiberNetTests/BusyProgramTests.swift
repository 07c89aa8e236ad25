// SPDX-License-Identifier: Apache-2.0

// Starting a program that is open for writing, or was a moment ago.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct BusyProgramTests {
        @Test func scripts_areStarted_asSoonAsTheyAreWritten() throws {
            try inRuntime(seconds: 300) {
                try withFiberGroup { group in
                    for i in 0..<6 {
                        try group.spawnLocal {
                            let path = freshPath()
                            defer { unlink(path) }
                            for j in 0..<scaled(40, sanitized: 10) {
                                try File.write(Array("#!/bin/sh\necho \(i) \(j)\n".utf8), to: path, permissions: 0o700)
                                let result = try Subprocess.run(.init(path))
                                expect(result.output == Array("\(i) \(j)\n".utf8), "\(result)")
                                unlink(path)
                            }
                        }
                    }
                }
            }
        }

        @Test func script_isStarted_whenItsWriterClosesBetweenTwoTries() throws {
            try withBusyScript { path, writer in
                let pauses = Guarded<[Duration]>([])
                let child = try Subprocess.spawn(.init(path), input: .null, output: .pipe, errors: .inherit) { pause in
                    pauses.withLock { $0.append(pause) }
                    if pauses.value.count == 3 { writer.close() }
                }
                expect(try child.output?.read(upTo: 100) == Array("started\n".utf8))
                expect(try child.wait() == .exited(0))
                expect(pauses.value.count == 3, "\(pauses.value)")
            }
        }

        @Test func script_isRefused_whenItsWriterStays() throws {
            try withBusyScript { path, _ in
                let waited = Guarded(Duration.zero)
                let error = expect(.system) {
                    _ = try Subprocess.spawn(.init(path), input: .null, output: .inherit, errors: .inherit) { pause in
                        waited.withLock { $0 += pause }
                    }
                }
                expect(error?.errno == .textFileBusy && "\(error!)".contains("open for writing"), "\(String(describing: error))")
                // Some time, and not for ever.
                expect(waited.value > .milliseconds(100) && waited.value < .seconds(2), "\(waited.value)")
            }
        }

        @Test func script_isTriedNoMore_whenNobodyWaitsForIt() throws {
            try withBusyScript { path, _ in
                let gate = Gate()
                let pauses = Guarded(0)
                let starting = try Fiber.spawnLocal {
                    _ = try Subprocess.spawn(.init(path), input: .null, output: .inherit, errors: .inherit) { _ in
                        pauses.withLock { $0 += 1 }
                        gate.wait()
                    }
                }
                try waitUntil { gate.arrivals == 1 }
                starting.cancel()
                do {
                    try starting.join()
                    expect(false, "it was started")
                } catch { expect(error is CancellationError, "\(error)") }
                gate.open()
                try letPoolSettle()
                expect(pauses.value == 1, "\(pauses.value)")
            }
        }
    }
}

/// A script that is open for writing.
private func withBusyScript(_ body: (String, OpenWriter) throws -> Void) throws {
    let path = try makeFile(Array("#!/bin/sh\necho started\n".utf8))
    defer { unlink(path) }
    chmod(path, 0o700)
    let writer = OpenWriter(path)
    defer { writer.close() }
    try inRuntime { try body(path, writer) }
}

private final class OpenWriter: Sendable {
    private let descriptor: Guarded<Int32>

    init(_ path: String) { descriptor = Guarded(open(path, O_WRONLY | O_CLOEXEC)) }

    func close() {
        descriptor.withLock { descriptor in
            if descriptor >= 0 { _ = Glibc.close(descriptor) }
            descriptor = -1
        }
    }
}
