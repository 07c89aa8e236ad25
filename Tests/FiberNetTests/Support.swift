// SPDX-License-Identifier: Apache-2.0

// What the socket tests share: the suite that all others stand in, the three transports, a runtime that cannot hang unnoticed, and bytes.

// The files here import CFiber for the declarations of <sys/socket.h>, which belong to whichever C module is loaded first, CFiber or Glibc.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import Synchronization
import SystemPackage
import TestBackends
import Testing

/// All socket suites stand in this one, so that no two of them run at the same time.
@Suite(.serialized) enum NetTests {}

/// True where AddressSanitizer or ThreadSanitizer own memory and time.
var isSanitized: Bool { cfaults_available() == 0 }

var isDebugBuild: Bool {
    #if DEBUG
        true
    #else
        false
    #endif
}

/// Less work under sanitizers.
func scaled(_ count: Int, sanitized: Int) -> Int { isSanitized ? min(count, sanitized) : count }

struct TestError: Error, Equatable {
    var text = ""
}

// MARK: Transports

/// What a stream can run over.
enum Transport: Sendable, Hashable, CustomTestStringConvertible {
    case ipv4, ipv6, unix

    static let all: [Transport] = hasIPv6Loopback ? [.ipv4, .ipv6, .unix] : [.ipv4, .unix]
    static let tcp: [Transport] = all.filter { $0 != .unix }

    var testDescription: String {
        switch self {
        case .ipv4: "TCP over IPv4"
        case .ipv6: "TCP over IPv6"
        case .unix: "Unix socket"
        }
    }

    /// Where a listener may listen that nobody else uses.
    var freshAddress: SocketAddress {
        get throws {
            switch self {
            case .ipv4: .loopback(port: 0)
            case .ipv6: .loopbackV6(port: 0)
            case .unix: try .unix(path: freshPath())
            }
        }
    }

    /// Some containers have no `::1`.
    private static var hasIPv6Loopback: Bool {
        let fd = socket(AF_INET6, Int32(SOCK_STREAM.rawValue), 0)
        guard fd >= 0 else { return false }
        defer { close(fd) }
        return SocketAddress.loopbackV6(port: 0).withSockaddr { bind(fd, $0, $1) } == 0
    }
}

private let pathCount = Atomic<Int>(0)
/// A process that was killed leaves its files, and its number comes again.
private let pathPrefix = "/tmp/fibernet-\(getpid())-\(String(UInt32.random(in: 0...(.max)), radix: 16))"

/// The name of a file that does not exist.
func freshPath() -> String { "\(pathPrefix)-\(pathCount.add(1, ordering: .relaxed).newValue)" }

// MARK: Backends

/// What is below the driver.
enum TestBackend: String, Sendable, CaseIterable, CustomTestStringConvertible {
    case epoll, completing, simulated

    /// Of the runtimes of this process where a test does not choose: the variable FIBERS_TEST_BACKEND names it, and a suite runs once more for each.
    static let current: TestBackend = {
        guard let name = getenv("FIBERS_TEST_BACKEND").map({ String(cString: $0) }) else { return .epoll }
        guard let backend = TestBackend(rawValue: name) else { fatalError("there is no backend \(name)") }
        return backend
    }()

    var testDescription: String { rawValue }

    func configure(_ configuration: FiberRuntime.Configuration = .init()) -> FiberRuntime.Configuration {
        var configuration = configuration
        switch self {
        case .epoll: configuration.makeBackend = nil
        case .completing: configuration.makeBackend = { (_) throws(ResourceError) in try CompletingBackend() }
        case .simulated:
            configuration.makeBackend = { _ in SimulatedBackend() }
            configuration.workers = 1
        }
        return configuration
    }
}

extension Trait where Self == ConditionTrait {
    /// For a test that is about what one backend does by its own means, or that uses sockets past the library.
    static func onlyOn(_ backends: TestBackend..., because reason: Comment) -> Self { .enabled(if: backends.contains(.current), reason) }
}

// MARK: Runtimes

/// The sockets of one test. All are closed when its main fiber ends, so that a test that fails leaves no fiber parked for ever.
final class Net {
    let transport: Transport
    private var endpoints: [Endpoint] = []
    private var listening: Listener?

    init(_ transport: Transport) { self.transport = transport }

    func keep<E: Endpoint>(_ endpoint: E) -> E {
        endpoints.append(endpoint)
        return endpoint
    }

    func listener(backlog: Int = 128) throws -> Listener {
        keep(try Listener.bind(to: try transport.freshAddress, backlog: backlog))
    }

    /// A client and the server's end of its connection.
    func pair() throws -> (client: Connection, server: Connection) {
        let listener = try listening ?? self.listener()
        listening = listener
        let client = keep(try Connection.connect(to: listener.address))
        return (client, keep(try listener.accept()))
    }

    /// The same, where the client's kernel buffer is small, so that large writes have to wait.
    func narrowPair() throws -> (client: Connection, server: Connection) {
        let (client, server) = try pair()
        try client.setOption(.sendBufferSize, to: 32 * 1024)
        try server.setOption(.receiveBufferSize, to: 32 * 1024)
        return (client, server)
    }

    func closeAll() {
        for endpoint in endpoints { endpoint.close() }
    }
}

/// Runs `body` in a runtime, with sockets of one transport. An error that a fiber threw and nobody joined is an issue of the test.
func withNet<Value>(
    _ transport: Transport, _ configuration: FiberRuntime.Configuration = .init(), seconds: Int = 30,
    sourceLocation: SourceLocation = #_sourceLocation, _ body: (Net) throws -> Value
) throws -> Value {
    try inRuntime(configuration, seconds: seconds, sourceLocation: sourceLocation) {
        let net = Net(transport)
        defer { net.closeAll() }
        return try body(net)
    }
}

/// Runs `body` in a runtime; ends the process with a message if that takes too long, since a parked fiber cannot be ended from outside.
func inRuntime<Value>(
    _ configuration: FiberRuntime.Configuration = .init(), seconds: Int = 30,
    sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Value
) throws -> Value {
    let messages = Box<[String]>([])
    var configuration = configuration
    if configuration.makeBackend == nil && TestBackend.current != .epoll { configuration = TestBackend.current.configure(configuration) }
    configuration.onUnhandledError = { unhandled in
        // Fibers that serve until the end find their sockets closed then; where `closed` is what a test is about, it joins.
        if (unhandled.error as? IOError)?.code != .closed { messages.value.append("\(unhandled)") }
    }
    let watchdog = Watchdog(seconds: seconds, "\(sourceLocation)")
    defer {
        watchdog.stop()
        #expect(messages.value.isEmpty, sourceLocation: sourceLocation)
    }
    return try FiberRuntime.run(configuration, body)
}

/// Runs `body`, which leaves fibers behind: what those own leaks, and LeakSanitizer does not report it.
func toleratingLeaks<Value>(_ body: () throws -> Value) rethrows -> Value {
    cfaults_leaks_begin()
    defer { cfaults_leaks_end() }
    return try body()
}

/// Ends the process if it is not stopped in time.
final class Watchdog {
    private let semaphore: UnsafeMutablePointer<sem_t>
    private var thread: Thread?

    init(seconds: Int, _ place: String) {
        let semaphore = UnsafeMutablePointer<sem_t>.allocate(capacity: 1)
        sem_init(semaphore, 0, 0)
        self.semaphore = semaphore
        let address = UInt(bitPattern: semaphore)
        thread = Thread {
            var limit = timespec()
            clock_gettime(CLOCK_REALTIME, &limit)
            limit.tv_sec += seconds
            var status: Int32
            repeat { status = sem_timedwait(UnsafeMutablePointer(bitPattern: address)!, &limit) } while status != 0 && errno == EINTR
            guard status != 0 else { return }
            var line = "The test at \(place) did not end within \(seconds) seconds: a fiber was never woken.\n"
            line.withUTF8 { _ = write(STDERR_FILENO, $0.baseAddress, $0.count) }
            abort()
        }
    }

    func stop() {
        sem_post(semaphore)
        thread?.join()
        sem_destroy(semaphore)
        semaphore.deallocate()
    }
}

/// Lets the other fibers go on until each waits for something; enough turns for a few hand-overs between them.
func letOthersRun() {
    for _ in 0..<20 { Fiber.yield() }
}

/// Lets other fibers run until a condition holds; an issue, and an error, if it did not within very many turns.
func waitUntil(sourceLocation: SourceLocation = #_sourceLocation, _ condition: () -> Bool) throws {
    for _ in 0..<20_000_000 {
        if condition() { return }
        Fiber.yield()
    }
    expect(false, "waited in vain", sourceLocation: sourceLocation)
    throw TestError(text: "waited in vain")
}

/// The error that a call throws.
func failure(_ body: () throws -> Void) -> Failure? {
    do { try body() } catch { return Failure(error: error) }
    return nil
}

/// The error that a write throws, and how much it says was written; an `IOError` must say the same.
func failure(writing body: (inout Int) throws -> Void) -> Failure? {
    var written = 0
    do { try body(&written) } catch {
        let failure = Failure(error: error, written: written)
        if let io = failure.io { expect(max(io.bytesTransferred, io.datagramsTransferred) >= written, "\(io), and not \(written)") }
        return failure
    }
    return nil
}

/// An error of a call that waits, as tests compare it: either something has ended the wait, or it is about the world.
struct Failure: Equatable, CustomStringConvertible {
    enum Code: Hashable {
        /// `CancellationError`.
        case cancelled
        /// `TimeoutError`.
        case timedOut
        /// `IOError`.
        case world(IOError.Code)
        /// Any other error.
        case other

        static let closed = Code.world(.closed)
        static let refused = Code.world(.refused)
        static let reset = Code.world(.reset)
        static let unreachable = Code.world(.unreachable)
        static let addressInUse = Code.world(.addressInUse)
        static let addressNotAvailable = Code.world(.addressNotAvailable)
        static let notPermitted = Code.world(.notPermitted)
        static let tooLarge = Code.world(.tooLarge)
        static let resources = Code.world(.resources)
        static let unsupported = Code.world(.unsupported)
        static let system = Code.world(.system)
        static let notFound = Code.world(.notFound)
        static let exists = Code.world(.exists)
        static let limitExceeded = Code.world(.limitExceeded)
    }

    let error: any Error
    /// What a write has said about itself.
    var written = 0

    var io: IOError? { error as? IOError }
    var timeout: TimeoutError? { error as? TimeoutError }
    var code: Code { error is CancellationError ? .cancelled : timeout != nil ? .timedOut : io.map { .world($0.code) } ?? .other }
    var errno: Errno? { io?.errno }
    var operation: String? { io?.operation }
    var subject: String? { io?.subject }
    var bytesTransferred: Int { io?.bytesTransferred ?? 0 }
    var datagramsTransferred: Int { io?.datagramsTransferred ?? 0 }
    var description: String { "\(error)" }

    static func == (a: Failure, b: Failure) -> Bool { a.code == b.code && a.io == b.io && a.timeout == b.timeout }
}

// MARK: Expectations

// Functions, since closures in the arguments of `#expect` that itself stands in a closure are miscompiled by Swift 6.3: they may get the symbol of another
// closure nearby, and then silently run its code.

/// As `#expect`, to be used inside closures.
func expect(_ condition: Bool, _ comment: @autoclosure () -> String = "", sourceLocation: SourceLocation = #_sourceLocation) {
    if !condition { Issue.record("it is not so \(comment())", sourceLocation: sourceLocation) }
}

/// Expects a call to throw an error of a code, or nothing for nil; returns the error.
@discardableResult
func expect(_ code: Failure.Code?, sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void) -> Failure? {
    let failure = failure(body)
    if failure?.code != code {
        let (seen, wanted) = (failure.map { "\($0)" } ?? "no error", code.map { "\($0)" } ?? "no error")
        Issue.record("\(seen) was thrown, expected: \(wanted)", sourceLocation: sourceLocation)
    }
    return failure
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

    /// Expects words on standard error of a process that stopped itself.
    func expectMessage(_ result: ExitTest.Result?, _ words: String, sourceLocation: SourceLocation = #_sourceLocation) {
        guard let result else { return }
        let text = String(decoding: result.standardErrorContent, as: UTF8.self)
        #expect(text.contains(words), "\(text)", sourceLocation: sourceLocation)
    }
#endif

// MARK: Threads

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

/// Has two buffers made that can be lent: who has read may let the other side go on before it is done with what it has read.
func makeTwoBuffers() throws {
    let (a, b) = try Connection.pair()
    try a.writeAll("a")
    try b.writeAll("b")
    _ = try a.readAvailable { _ in _ = try b.readAvailable { _ in } }
}

/// A place for values that closures hand to one another in an order that the test itself makes sure of.
final class Box<Value>: @unchecked Sendable {
    var value: Value
    init(_ value: Value) { self.value = value }
}

// MARK: The process

/// Open sockets of this process; other descriptors are opened by the test library when it likes. Only where no other test runs: in exit tests.
var openSockets: Int {
    guard let directory = opendir("/proc/self/fd") else { return -1 }
    defer { closedir(directory) }
    var count = 0
    while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(cString: $0.bindMemory(to: CChar.self).baseAddress!) }
        var target = [UInt8](repeating: 0, count: 64)
        let n = readlink("/proc/self/fd/" + name, &target, target.count)
        if n > 0, String(decoding: target[..<n], as: UTF8.self).hasPrefix("socket:") { count += 1 }
    }
    return count
}

/// Nanoseconds of processor time that this process has used.
var processorTime: Int64 {
    var t = timespec()
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t)
    return Int64(t.tv_sec) * 1_000_000_000 + Int64(t.tv_nsec)
}

/// The two ends of a pipe, for reading and for writing.
func makePipe(nonBlocking: Bool = false) throws -> [Int32] {
    var fds: [Int32] = [-1, -1]
    guard pipe(&fds) == 0 else { throw TestError(text: "no pipe: error \(errno)") }
    for fd in fds {
        _ = fcntl(fd, F_SETFD, FD_CLOEXEC)
        if nonBlocking { _ = fcntl(fd, F_SETFL, O_NONBLOCK) }
    }
    return fds
}

// MARK: Bytes

/// Random bytes, the same for each seed (SplitMix64).
func pattern(_ count: Int, seed: UInt64 = 1) -> [UInt8] {
    [UInt8](unsafeUninitializedCapacity: count + 8) { buffer, initialized in
        var state = seed
        let raw = UnsafeMutableRawBufferPointer(buffer)
        for offset in stride(from: 0, to: count, by: 8) {
            state &+= 0x9e37_79b9_7f4a_7c15
            var z = state
            z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
            z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
            raw.storeBytes(of: z ^ (z >> 31), toByteOffset: offset, as: UInt64.self)
        }
        initialized = count
    }
}

/// Whether two arrays hold the same bytes; unoptimised code compares elements one by one otherwise.
func same(_ a: [UInt8], _ b: [UInt8]) -> Bool {
    a.count == b.count && (a.isEmpty || memcmp(a, b, a.count) == 0)
}

extension Connection {
    /// Everything up to the end of the stream.
    func readToEnd(chunk: Int = 65_536) throws -> [UInt8] {
        var all: [UInt8] = []
        while true {
            let bytes = try read(upTo: chunk)
            if bytes.isEmpty { return all }
            all += bytes
        }
    }

    /// Exactly so many bytes, fewer only where the stream ends.
    func readExactly(_ count: Int) throws -> [UInt8] {
        var all: [UInt8] = []
        while all.count < count {
            let bytes = try read(upTo: min(65_536, count - all.count))
            if bytes.isEmpty { break }
            all += bytes
        }
        return all
    }
}

extension Endpoint {
    /// The number of the descriptor.
    var fd: Int32 { get throws { try withFileDescriptor { $0.rawValue } } }
}

// MARK: Several workers

/// A number that fibers of several workers change.
final class SharedCounter: Sendable {
    private let number = Atomic<Int>(0)
    var value: Int { number.load(ordering: .acquiring) }
    func add(_ amount: Int = 1) { number.add(amount, ordering: .acquiringAndReleasing) }
    func raise(to value: Int) { number.max(value, ordering: .acquiringAndReleasing) }
}
