// SPDX-License-Identifier: Apache-2.0

// What the tests share: the suite that all others stand in, a seeded generator, a look at the process from outside, and threads.

import CFiber
import Fibers
import Glibc
import Testing

/// All suites of the kernel stand in this one, so that no two tests run at the same time: several measure what belongs to the whole process.
@Suite(.serialized) enum KernelTests {}

/// True where AddressSanitizer or ThreadSanitizer own memory and time, and measurements of either mean nothing.
var isSanitized: Bool { cfiber_sanitizer()[0] != 0 }

/// Fewer fibers under sanitizers: ThreadSanitizer knows about 8,000.
func scaled(_ count: Int, sanitized: Int) -> Int { isSanitized ? min(count, sanitized) : count }

/// FIBERS_TEST_SCALE=2000 makes the races of wakes as many times longer: 10^8 of them, in minutes with an optimised build.
let timesLonger = getenv("FIBERS_TEST_SCALE").flatMap { Int(String(cString: $0)) } ?? 1

var isDebugBuild: Bool {
    #if DEBUG
        true
    #else
        false
    #endif
}

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

struct TestError: Error, Equatable {
    var number = 0
}

/// The whole text of a small file of /proc; nil when it cannot be read.
func contents(of path: String) -> String? {
    let fd = open(path, O_RDONLY | O_CLOEXEC)
    guard fd >= 0 else { return nil }
    defer { close(fd) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65_536)
    while true {
        let n = read(fd, &chunk, chunk.count)
        guard n > 0 else { break }
        bytes += chunk[..<n]
    }
    return String(decoding: bytes, as: UTF8.self)
}

/// This process as the kernel sees it.
enum Process {
    /// A line of /proc/self/status, in bytes where the kernel says kB.
    static func status(_ key: String) -> Int {
        for line in (contents(of: "/proc/self/status") ?? "").split(separator: "\n") where line.hasPrefix(key + ":") {
            let words = line.dropFirst(key.count + 1).split(whereSeparator: \.isWhitespace)
            return (words.first.flatMap { Int($0) } ?? 0) * (words.last == "kB" ? 1024 : 1)
        }
        return -1
    }

    /// Memory of the process's own that is in memory. Pages of code do not count: how many of those the kernel reads at once is not the program's doing.
    static var residentBytes: Int { status("RssAnon") }
    static var pageTableBytes: Int { status("VmPTE") }
    static var threads: Int { status("Threads") }
    /// Memory that the machine could still give out.
    static var availableBytes: Int {
        for line in (contents(of: "/proc/meminfo") ?? "").split(separator: "\n") where line.hasPrefix("MemAvailable:") {
            return line.split(separator: " ").dropFirst().first.flatMap { Int($0) }.map { $0 * 1024 } ?? 0
        }
        return 0
    }

    static var mappings: Int { cfiber_count_mappings() }

    /// Open descriptors. The test runner's threads open and close some when they like, so it is the smallest number of several.
    static var descriptors: Int {
        var least = descriptorsNow
        for _ in 0..<10 {
            usleep(100)
            least = min(least, descriptorsNow)
        }
        return least
    }

    /// The one that looks not counted, and no timerfd: the library has none, and a thread of the test runner opens one that stays.
    private static var descriptorsNow: Int {
        guard let directory = opendir("/proc/self/fd") else { return -1 }
        defer { closedir(directory) }
        var count = 0
        var target = [CChar](repeating: 0, count: 64)
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
            let length = readlink("/proc/self/fd/" + name, &target, target.count)
            if length > 0, String(decoding: target.prefix(length).map { UInt8(bitPattern: $0) }, as: UTF8.self) != "anon_inode:[timerfd]" {
                count += 1
            }
        }
        return count - 1
    }
}

/// A worker that soon gives back the memory of stacks that nobody needs.
var trimmingSoon: FiberRuntime.Configuration {
    var configuration = FiberRuntime.Configuration()
    configuration.trimInterval = .milliseconds(200)
    return configuration
}

/// A thread outside any runtime.
final class Thread {
    private final class Body {
        let run: () -> Void
        init(_ run: @escaping () -> Void) { self.run = run }
    }

    private var id = pthread_t()

    init(_ body: @Sendable @escaping () -> Void) {
        let argument = Unmanaged.passRetained(Body(body)).toOpaque()
        let status = pthread_create(&id, nil, threadMain, argument)
        precondition(status == 0, "no thread to be had: \(status)")
    }

    func join() { pthread_join(id, nil) }

    fileprivate static func run(_ argument: UnsafeMutableRawPointer) {
        Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
    }
}

private func threadMain(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    if let argument { Thread.run(argument) }
    return nil
}

/// Runs a closure on a thread of its own and returns what it returns.
func onThread<Value>(_ body: @Sendable @escaping () -> Value) -> Value {
    let value = Box<Value?>(nil)
    Thread { value.value = body() }.join()
    return value.value!
}

/// A place for values that closures on several threads hand to one another, whose order the test itself makes sure of.
final class Box<Value>: @unchecked Sendable {
    var value: Value
    init(_ value: Value) { self.value = value }
}

/// Hides a value from the optimiser.
@inline(never) @_optimize(none)
func opaque<Value>(_ value: Value) -> Value { value }

/// Lets other fibers run until a condition holds; false if it did not within so many turns.
func yield(until condition: () -> Bool, turns: Int = 10_000_000) -> Bool {
    for _ in 0..<turns {
        if condition() { return true }
        Fiber.yield()
    }
    return condition()
}

#if compiler(>=6.2)
    /// Runs the body of an exit test. An error that leaves the body would end the process by a trap, which looks like a misuse that stopped it, and its text would be lost; this
    /// prints the error and ends the process with status 77.
    func reportingErrors(_ body: () throws -> Void) {
        do { try body() } catch {
            let line = "the body of the exit test threw: \(error)\n"
            _ = write(STDERR_FILENO, line, line.utf8.count)
            exit(77)
        }
    }

    /// Expects words on standard error of a process that stopped itself. Optimised builds of Swift print no message for a failed precondition.
    func expectMessage(_ result: ExitTest.Result?, _ words: String, sourceLocation: SourceLocation = #_sourceLocation) {
        guard let result else { return }
        let text = String(decoding: result.standardErrorContent, as: UTF8.self)
        #expect(text.contains(words), "\(text)", sourceLocation: sourceLocation)
    }
#endif
