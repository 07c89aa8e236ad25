// SPDX-License-Identifier: Apache-2.0

// What the tests of cancellation share: the ways in which a call is ended from outside, and the ways to read and to write.

import CFiber
import FiberNet
import Fibers
import Glibc
import Testing

// MARK: Ending calls

/// How a call that would wait for ever is ended.
enum Ending: Sendable, CaseIterable, CustomTestStringConvertible {
    case cancel, cancelledBefore, deadline, outerDeadline, group, sibling, groupDeadline

    var testDescription: String {
        switch self {
        case .cancel: "its fiber is cancelled while it waits"
        case .cancelledBefore: "its fiber was cancelled before"
        case .deadline: "the deadline around it passes"
        case .outerDeadline: "a deadline further out passes"
        case .group: "its group is cancelled"
        case .sibling: "a sibling in its group fails"
        case .groupDeadline: "the deadline around its group passes"
        }
    }

    /// The call waits before it is ended.
    var comesLater: Bool { self != .cancelledBefore }
}

/// Makes a call in a fiber of its own and ends it. Expects that it waits until then, that it throws the right error at once, and that the scopes around it throw theirs.
///
/// - Parameters:
///   - limit: where a deadline ends it.
///   - meanwhile: is run when the call waits.
/// - Returns: the error of the call.
@discardableResult
func end(
    _ ending: Ending, after limit: Duration = .milliseconds(4), meanwhile: () throws -> Void = {},
    sourceLocation: SourceLocation = #_sourceLocation, _ call: @escaping () throws -> Void
) throws -> Failure? {
    try end(ending, after: limit, meanwhile: meanwhile, sourceLocation: sourceLocation, writing: { _ in try call() })
}

/// The same for a write, which says how much of it went.
@discardableResult
func end(
    _ ending: Ending, after limit: Duration = .milliseconds(4), meanwhile: () throws -> Void = {},
    sourceLocation: SourceLocation = #_sourceLocation, writing call: @escaping (inout Int) throws -> Void
) throws -> Failure? {
    let subject = Subject(call)
    let clock = ContinuousClock()
    let start = clock.now

    func expectToWait() {
        // In this order: a deadline may pass between the two.
        let isDone = subject.isDone
        let isDue = [.deadline, .outerDeadline, .groupDeadline].contains(ending) && clock.now - start >= limit
        expect(!isDone || isDue, "\(ending): it did not wait; \(String(describing: subject.error))", sourceLocation: sourceLocation)
    }
    func expectToEndNow() {
        for _ in 0..<3 { Fiber.yield() }
        expect(subject.isDone, "\(ending): it did not end at once", sourceLocation: sourceLocation)
    }
    func expectTimeout(_ error: (any Error)?) {
        expect(clock.now - start >= limit, "\(ending): it was early", sourceLocation: sourceLocation)
        expect(clock.now - start < .seconds(15), "\(ending): it was late", sourceLocation: sourceLocation)
        expect((error as? TimeoutError)?.limit == limit, "\(ending): \(String(describing: error))", sourceLocation: sourceLocation)
    }

    var outside: (any Error)?
    switch ending {
    case .cancel:
        let handle = try Fiber.spawnLocal { try subject.run() }
        letOthersRun()
        expectToWait()
        try meanwhile()
        handle.cancel()
        expectToEndNow()
        outside = thrown { try handle.join() }
        expect(outside is CancellationError, "\(String(describing: outside))", sourceLocation: sourceLocation)
    case .cancelledBefore:
        // By another fiber before it ran, and by itself.
        let first = Subject(call)
        let handles = [
            try Fiber.spawnLocal { try first.run() },
            try Fiber.spawnLocal {
                Fiber.current?.cancel()
                try subject.run()
            },
        ]
        handles[0].cancel()
        expectToEndNow()
        for handle in handles {
            outside = thrown { try handle.join() }
            expect(outside is CancellationError, "\(String(describing: outside))", sourceLocation: sourceLocation)
        }
        expect(first.error is CancellationError && subject.error is CancellationError, sourceLocation: sourceLocation)
        try meanwhile()
    case .deadline:
        let handle = try Fiber.spawnLocal { try withTimeout(limit) { try subject.run() } }
        letOthersRun()
        expectToWait()
        try meanwhile()
        outside = thrown { try handle.join() }
        expectTimeout(outside)
    case .outerDeadline:
        var between: (any Error)?
        let handle = try Fiber.spawnLocal {
            try withTimeout(limit) {
                do { try withTimeout(.seconds(1_000)) { try subject.run() } } catch {
                    between = error
                    throw error
                }
            }
        }
        letOthersRun()
        expectToWait()
        try meanwhile()
        outside = thrown { try handle.join() }
        expectTimeout(outside)
        expect(between is CancellationError, "\(String(describing: between))", sourceLocation: sourceLocation)
    case .group:
        outside = thrown {
            try withFiberGroup { group in
                try group.spawnLocal { try subject.run() }
                letOthersRun()
                expectToWait()
                try meanwhile()
                group.cancel()
                expectToEndNow()
            }
        }
        expect(outside == nil, "\(String(describing: outside))", sourceLocation: sourceLocation)
    case .sibling:
        outside = thrown {
            try withFiberGroup { group in
                try group.spawnLocal { try subject.run() }
                letOthersRun()
                expectToWait()
                try meanwhile()
                try group.spawnLocal { throw TestError(text: "sibling") }
                expectToEndNow()
            }
        }
        expect(outside as? TestError == TestError(text: "sibling"), "\(String(describing: outside))", sourceLocation: sourceLocation)
    case .groupDeadline:
        outside = thrown {
            try withTimeout(limit) {
                try withFiberGroup { group in
                    // On a slow machine the deadline may pass before all are in place.
                    try withCancellationShield {
                        try group.spawnLocal { try subject.run() }
                        letOthersRun()
                        expectToWait()
                        try meanwhile()
                    }
                    try group.waitForAll()
                }
            }
        }
        expectTimeout(outside)
    }

    let failure = subject.error.map { Failure(error: $0, written: subject.written) }
    expect(
        failure?.code == (ending == .deadline ? .timedOut : .cancelled), "\(ending): \(String(describing: subject.error)) was thrown",
        sourceLocation: sourceLocation)
    if ending == .deadline { expect(failure?.timeout == outside as? TimeoutError, sourceLocation: sourceLocation) }
    return failure
}

/// A call and what became of it.
private final class Subject {
    private let call: (inout Int) throws -> Void
    private(set) var error: (any Error)?
    private(set) var written = 0
    private(set) var isDone = false

    init(_ call: @escaping (inout Int) throws -> Void) { self.call = call }

    func run() throws {
        var written = 0
        defer {
            self.written = written
            isDone = true
        }
        do { try call(&written) } catch {
            self.error = error
            throw error
        }
    }
}

/// What a call throws.
func thrown(_ body: () throws -> Void) -> (any Error)? {
    do { try body() } catch { return error }
    return nil
}

// MARK: Ways to read and to write

enum ReadWay: Sendable, CaseIterable {
    case intoSpan, intoMemory, upTo, lent

    /// At most `limit` bytes; `lent` may give more.
    func read(_ stream: Connection, upTo limit: Int = 100) throws -> [UInt8] {
        switch self {
        case .intoSpan:
            var array = [UInt8](repeating: 0, count: limit)
            var span = array.mutableSpan
            var bytes = span.mutableBytes
            let count = try stream.read(into: &bytes)
            return Array(array.prefix(count))
        case .intoMemory:
            let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: limit, alignment: 1)
            defer { memory.deallocate() }
            let count = try stream.read(into: memory)
            return Array(memory.prefix(count))
        case .upTo:
            return try stream.read(upTo: limit)
        case .lent:
            var bytes: [UInt8] = []
            _ = try stream.readAvailable { span in span.withUnsafeBytes { bytes += $0 } }
            return bytes
        }
    }
}

enum WriteWay: Sendable, CaseIterable {
    case span, array, string, pieces, twoSpans

    /// Writes bytes, which are ASCII, all at once.
    func write(_ bytes: [UInt8], to stream: Connection, written: inout Int) throws {
        switch self {
        case .span: try stream.writeAll(bytes.span.bytes, written: &written)
        case .array: try stream.writeAll(bytes, written: &written)
        case .string: try stream.writeAll(String(decoding: bytes, as: UTF8.self), written: &written)
        case .pieces: try stream.writeAll(pieces: pieces(bytes), written: &written)
        case .twoSpans:
            let head = Array(bytes.prefix(bytes.count / 3)), tail = Array(bytes.dropFirst(bytes.count / 3))
            try stream.writeAll(head.span.bytes, tail.span.bytes, written: &written)
        }
    }

    /// The same by the forms that do not say how much was written.
    func write(_ bytes: [UInt8], to stream: Connection) throws {
        switch self {
        case .span: try stream.writeAll(bytes.span.bytes)
        case .array: try stream.writeAll(bytes)
        case .string: try stream.writeAll(String(decoding: bytes, as: UTF8.self))
        case .pieces: try stream.writeAll(pieces: pieces(bytes))
        case .twoSpans:
            let head = Array(bytes.prefix(bytes.count / 3)), tail = Array(bytes.dropFirst(bytes.count / 3))
            try stream.writeAll(head.span.bytes, tail.span.bytes)
        }
    }

    /// About a hundred pieces of different sizes, some of them empty.
    private func pieces(_ bytes: [UInt8]) -> [[UInt8]] {
        var pieces: [[UInt8]] = []
        var start = 0
        var size = 1
        while start < bytes.count {
            let end = min(bytes.count, start + size)
            pieces.append(Array(bytes[start..<end]))
            if pieces.count % 5 == 0 { pieces.append([]) }
            start = end
            size = size * 7 % (bytes.count / 50 + 2) + 1
        }
        return pieces
    }
}

/// Random letters, the same for each seed.
func letters(_ count: Int, seed: UInt64 = 1) -> [UInt8] {
    var bytes = pattern(count, seed: seed)
    bytes.withUnsafeMutableBufferPointer { bytes in
        for i in bytes.indices { bytes[i] = 64 + bytes[i] % 32 }
    }
    return bytes
}

// MARK: Chance

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

/// Two seeds that are always the same, and one that is not; the test library prints them.
let seeds: [UInt64] = [1, 2, .random(in: 3...999_999_999)]

/// Writes until there is no room, and none will be: an acknowledgement on its way makes room once more. Linux delays it for 40 ms mostly, and for 200 ms at most.
func fillUp(_ stream: Connection) throws -> Int {
    var sent = 0
    let block = pattern(1_000_000)
    for _ in 0..<100 {
        sent +=
            failure(writing: { written in try withTimeout(.milliseconds(5)) { try stream.writeAll(block, written: &written) } })?.written
            ?? block.count
        if failure({ try withTimeout(.milliseconds(250)) { try stream.waitWritable() } })?.code == .timedOut { return sent }
    }
    throw TestError(text: "there was always room again, after \(sent) bytes")
}
