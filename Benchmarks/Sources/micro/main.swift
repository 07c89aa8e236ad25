// SPDX-License-Identifier: Apache-2.0

// The runtime's own cost, one workload per run: `micro WORKLOAD [--n N]`. Prints `name value unit` lines; exit status 3 for an unknown workload.

import Fibers
import Glibc

let arguments = CommandLine.arguments
let workload = arguments.count > 1 ? arguments[1] : ""

func flag(_ name: String, _ fallback: Int) -> Int {
    guard let at = arguments.firstIndex(of: name), at + 1 < arguments.count, let value = Int(arguments[at + 1]) else { return fallback }
    return value
}

func nanoseconds(_ clock: clockid_t) -> Double {
    var t = timespec()
    clock_gettime(clock, &t)
    return Double(t.tv_sec) * 1e9 + Double(t.tv_nsec)
}

func wall() -> Double { nanoseconds(CLOCK_MONOTONIC) }

func emit(_ name: String, _ value: Double, _ unit: String) {
    print("\(name) \(value) \(unit)")
    fflush(nil)
}

func residentBytes() -> Double {
    guard let file = fopen("/proc/self/statm", "r") else { return 0 }
    defer { fclose(file) }
    var text = [CChar](repeating: 0, count: 128)
    guard fgets(&text, 128, file) != nil else { return 0 }
    let fields = String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self).split(separator: " ")
    return (Double(fields[1]) ?? 0) * 4096
}

/// Kilobytes of a field of /proc/self/status.
func status(_ field: String) -> Double {
    guard let file = fopen("/proc/self/status", "r") else { return 0 }
    defer { fclose(file) }
    var text = [CChar](repeating: 0, count: 256)
    while fgets(&text, 256, file) != nil {
        let line = String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        if line.hasPrefix(field + ":") { return Double(line.split(whereSeparator: { $0 == " " || $0 == "\t" })[1]) ?? 0 }
    }
    return 0
}

func timed(_ name: String, _ n: Int, _ body: (Int) throws -> Void) throws {
    try body(n / 10)
    let start = wall()
    try body(n)
    emit(name, (wall() - start) / Double(n), "ns")
}

func yields(fibers: Int, _ n: Int) throws {
    let each = n / fibers
    var handles: [FiberHandle<Void>] = []
    for _ in 0..<fibers {
        handles.append(
            try Fiber.spawnLocal {
                for _ in 0..<each { Fiber.yield() }
            })
    }
    for handle in handles { try handle.join() }
}

enum Frames {
    nonisolated(unsafe) static var returned = 0
}

/// Yields from under `depth` calls. What it does after each call keeps the compiler from making a loop or a jump of it.
@inline(never)
func nested(_ depth: Int) {
    if depth == 0 { return Fiber.yield() }
    nested(depth - 1)
    Frames.returned &+= 1
}

func nestedYields(_ n: Int) throws {
    var handles: [FiberHandle<Void>] = []
    for _ in 0..<64 {
        handles.append(
            try Fiber.spawnLocal {
                for _ in 0..<n / 64 { nested(5) }
            })
    }
    for handle in handles { try handle.join() }
}

/// What the parked fibers of `park` wait for; here so that they capture nothing.
enum Gate {
    nonisolated(unsafe) static var isOpen = false
    nonisolated(unsafe) static var fiber: FiberHandle<Void>?
}

func park(_ n: Int) throws {
    // One broadcast: every fiber joins a gate that ends when it is opened.
    let gate = try Fiber.spawnLocal { while !Gate.isOpen { try Fiber.sleep(for: .milliseconds(1)) } }
    Gate.fiber = gate
    let resident = residentBytes()
    let tables = status("VmPTE")
    let start = wall()
    var last: FiberHandle<Void>?
    for i in 0..<n {
        last = try Fiber.spawnLocal { try Gate.fiber?.join() }
        if i % 64 == 0 { Fiber.yield() }
    }
    Fiber.yield()
    let parked = wall()
    emit("park_bytes", (residentBytes() - resident) / Double(n), "B/task")
    emit("park_bytes_with_page_tables", (residentBytes() - resident + (status("VmPTE") - tables) * 1024) / Double(n), "B/task")
    emit("park_create", (parked - start) / Double(n), "ns/task")
    Gate.isOpen = true
    let opened = wall()
    try gate.join()
    try last?.join()
    emit("park_wake", (wall() - opened) / Double(n), "ns/task")
}

func timers(_ n: Int) throws {
    var x: UInt64 = 42
    var late = 0.0
    var left = n
    let start = wall()
    let cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID)
    var handles: [FiberHandle<Void>] = []
    handles.reserveCapacity(n)
    for _ in 0..<n {
        x = x &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        let microseconds = Int((x >> 33) % 1_000_000)
        handles.append(
            try Fiber.spawnLocal {
                let begin = wall()
                try Fiber.sleep(for: .microseconds(microseconds))
                late += wall() - begin - Double(microseconds) * 1000
                left -= 1
            })
    }
    for handle in handles { try handle.join() }
    guard left == 0 else { fatalError("\(left) sleepers are missing") }
    emit("timers_cpu", (nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) / 1e6, "ms")
    emit("timers_wall", (wall() - start) / 1e6, "ms")
    emit("timers_late", late / Double(n) / 1000, "us")
}

/// Two fibers on two workers wake each other in turn.
func crossPong(_ n: Int) throws {
    let (ping, pong) = (FiberEvent(), FiberEvent())
    let other = try Fiber.spawn(on: 1) {
        for _ in 0..<n {
            try ping.wait()
            pong.signal()
        }
    }
    for _ in 0..<n {
        ping.signal()
        try pong.wait()
    }
    try other.join()
}

/// One sends, one receives, on the same worker.
func channel(_ capacity: ChannelCapacity, _ n: Int) throws {
    let (sender, receiver) = makeLocalChannel(of: Int.self, capacity)
    let producer = try Fiber.spawnLocal {
        for i in 0..<n {
            try sender.send(i)
            if capacity == .unbounded && i % 1024 == 1023 { Fiber.yield() }
        }
        sender.close()
    }
    var sum = 0
    while let message = try receiver.receive() { sum &+= message }
    try producer.join()
    guard sum == n * (n - 1) / 2 else { fatalError("messages are missing: the sum is \(sum)") }
}

/// Fibers in a ring pass a token round. 503 of them fit with their channels into the second cache, 20,011 do not.
func ring(fibers: Int, _ n: Int) throws {
    let links = (0..<fibers).map { _ in makeLocalChannel(of: Int.self, .bounded(1)) }
    let (done, end) = makeLocalChannel(of: Int.self, .bounded(1))
    var handles: [FiberHandle<Void>] = []
    for i in 0..<fibers {
        let (receiver, sender) = (links[i].1, links[(i + 1) % fibers].0)
        handles.append(
            try Fiber.spawnLocal {
                while let token = try receiver.receive() {
                    if token == 0 { try done.send(i) } else { try sender.send(token - 1) }
                }
            })
    }
    try links[0].0.send(n)
    guard try end.receive() == n % fibers else { fatalError("the token is not where it should be") }
    for link in links { link.0.close() }
    for handle in handles { try handle.join() }
}

/// Ten children each, and a million leaves, which tell their numbers.
func skynet(_ parent: LocalSender<Int>, _ base: Int, _ size: Int) throws {
    if size == 1 { return try parent.send(base) }
    let (sender, receiver) = makeLocalChannel(of: Int.self, .bounded(10))
    for i in 0..<10 {
        try Fiber.spawnLocal(startingNow: true) { try skynet(sender, base + i * (size / 10), size / 10) }
    }
    var sum = 0
    for _ in 0..<10 { sum += try receiver.receive() ?? 0 }
    try parent.send(sum)
}

func skynet(leaves n: Int) throws {
    let (sender, receiver) = makeLocalChannel(of: Int.self, .bounded(1))
    try Fiber.spawnLocal { try skynet(sender, 0, n) }
    guard try receiver.receive() == n * (n - 1) / 2 else { fatalError("leaves are missing") }
}

/// Each of them locks, adds, lets the others come while it has the lock, and unlocks; a single one has no others.
func mutex(fibers: Int, _ n: Int) throws {
    let mutex = LocalMutex(0)
    let each = n / fibers
    try withFiberGroup { group in
        for _ in 0..<fibers {
            try group.spawnLocal {
                for _ in 0..<each {
                    try mutex.withLock { value in
                        value += 1
                        if fibers > 1 { Fiber.yield() }
                    }
                }
            }
        }
    }
    guard try mutex.withLock({ $0 }) == each * fibers else { fatalError("additions are missing") }
}

/// Several send and as many receive, on two workers.
func crossChannel(pairs: Int, _ n: Int) throws {
    let (sender, receiver) = makeChannel(of: Int.self, .bounded(128))
    var consumers: [FiberHandle<Int>] = []
    var producers: [FiberHandle<Void>] = []
    for i in 0..<pairs {
        let receiver = receiver.share()
        consumers.append(
            try Fiber.spawn(on: 1 - i % 2) {
                var sum = 0
                while let message = try receiver.receive() { sum &+= message }
                return sum
            })
        producers.append(try Fiber.spawn(on: i % 2) { for message in 0..<n / pairs { try sender.send(message) } })
    }
    for producer in producers { try producer.join() }
    sender.close()
    var sum = 0
    for consumer in consumers { sum += try consumer.join() }
    let each = n / pairs
    guard sum == pairs * (each * (each - 1) / 2) else { fatalError("messages are missing: the sum is \(sum)") }
}

try FiberRuntime.run(.init(workers: ["xpong", "mpmc", "xspsc"].contains(workload) ? 2 : 1)) {
    switch workload {
    case "yield2": try timed(workload, flag("--n", 20_000_000)) { try yields(fibers: 2, $0) }
    case "yield1000": try timed(workload, flag("--n", 20_000_000)) { try yields(fibers: 1000, $0) }
    case "yield20k": try timed(workload, flag("--n", 8_000_000)) { try yields(fibers: 20_000, $0) }
    case "yieldnest": try timed(workload, flag("--n", 20_000_000), nestedYields)
    case "spawn": try timed(workload, flag("--n", 5_000_000)) { for _ in 0..<$0 { try Fiber.spawnLocal {}.join() } }
    case "xpong": try timed(workload, flag("--n", 500_000), crossPong)
    case "park": try park(flag("--n", 1_000_000))
    case "timers": try timers(flag("--n", 100_000))
    case "chan0": try timed(workload, flag("--n", 5_000_000)) { try channel(.rendezvous, $0) }
    case "chan128": try timed(workload, flag("--n", 10_000_000)) { try channel(.bounded(128), $0) }
    case "chanU": try timed(workload, flag("--n", 10_000_000)) { try channel(.unbounded, $0) }
    case "ring": try timed(workload, flag("--n", 10_000_000)) { try ring(fibers: 503, $0) }
    case "ring20k": try timed(workload, flag("--n", 4_000_000)) { try ring(fibers: 20_011, $0) }
    case "skynet":
        try skynet(leaves: 10_000)
        let start = wall()
        try skynet(leaves: flag("--n", 1_000_000))
        emit(workload, (wall() - start) / 1e6, "ms")
    case "mutex": try timed(workload, flag("--n", 2_000_000)) { try mutex(fibers: 100, $0) }
    case "mutex1": try timed(workload, flag("--n", 20_000_000)) { try mutex(fibers: 1, $0) }
    case "mpmc": try timed(workload, flag("--n", 1_000_000)) { try crossChannel(pairs: 2, $0) }
    case "xspsc": try timed(workload, flag("--n", 1_000_000)) { try crossChannel(pairs: 1, $0) }
    default:
        print("unsupported 1 bool")
        exit(3)
    }
}
