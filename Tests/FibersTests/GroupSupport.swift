// SPDX-License-Identifier: Apache-2.0

// What the tests of groups share.

import Fibers
import Testing

/// Runs `main` in a runtime. An error that a fiber threw and nobody heard of is an issue of the test.
func runQuietly<Value>(
    _ configuration: FiberRuntime.Configuration = .init(), sourceLocation: SourceLocation = #_sourceLocation, _ main: () throws -> Value
) throws -> Value {
    let unheard = Box<[String]>([])
    var configuration = configuration
    configuration.onUnhandledError = { unheard.value.append("\($0)") }
    defer { #expect(unheard.value.isEmpty, sourceLocation: sourceLocation) }
    return try FiberRuntime.run(configuration, main)
}

/// What a call throws, nil when it throws nothing. Expectations about it stand outside the runtime, where no closure surrounds them.
func failure(of call: () throws -> Void) -> (any Error)? {
    do { try call() } catch { return error }
    return nil
}

/// The error itself, or the first and the others of a group.
func numbers(_ error: (any Error)?) -> [Int]? {
    if let error = error as? TestError { return [error.number] }
    guard let error = error as? FiberGroupError else { return nil }
    return ([error.first] + error.others).map { ($0 as? TestError)?.number ?? -1 }
}

/// Fibers wait here until it is opened, which is for ever.
final class Latch {
    private let list = UnsafeMutablePointer<WaitList>.allocate(capacity: 1)
    private let worker = Worker.current!
    private(set) var isOpen = false

    init() { list.initialize(to: WaitList()) }
    deinit { list.deallocate() }

    var isAwaited: Bool { !list.pointee.isEmpty }

    func wait() throws {
        while !isOpen { try worker.check(worker.park(in: list, .other)) }
    }

    func open() {
        isOpen = true
        worker.wakeAll(&list.pointee, .ready)
    }
}

/// Waits for its cancellation; counts it, and passes it on.
func waitForCancellation(_ count: inout Int) throws {
    do { try Fiber.sleep(for: .seconds(1_000)) } catch {
        count += 1
        throw error
    }
}

/// Lets the other fibers go on until each waits for something; enough turns for a few hand-overs between them.
func settle() {
    for _ in 0..<20 { Fiber.yield() }
}

/// Counts its ends.
final class Counted {
    let ends: Box<Int>
    init(_ ends: Box<Int>) { self.ends = ends }
    deinit { ends.value += 1 }
}
