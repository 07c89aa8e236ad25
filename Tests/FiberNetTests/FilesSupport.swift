// SPDX-License-Identifier: Apache-2.0

// What the tests of files, pipes and child processes share: scratch files, a pool of threads that is busy, and descriptors by name.

import CFiber
import FiberNet
import Fibers
import Glibc
import Synchronization
import Testing

/// A file with bytes in it.
func makeFile(_ bytes: [UInt8]) throws -> String {
    let path = freshPath()
    let file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard file >= 0 else { throw TestError(text: "no file: error \(errno)") }
    defer { close(file) }
    var done = 0
    while done < bytes.count {
        let n = bytes.withUnsafeBytes { write(file, $0.baseAddress! + done, $0.count - done) }
        guard n > 0 else { throw TestError(text: "the file cannot be written: error \(errno)") }
        done += n
    }
    return path
}

func makeFIFO() throws -> String {
    let path = freshPath()
    guard mkfifo(path, 0o600) == 0 else { throw TestError(text: "no FIFO: error \(errno)") }
    return path
}

/// A pseudo-terminal: the descriptor of its master, and the path of the terminal.
func makeTerminal() throws -> (master: Int32, path: String) {
    let master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)
    var (lock, number): (Int32, UInt32) = (0, 0)
    // TIOCSPTLCK and TIOCGPTN, which are macros that Swift does not read.
    guard master >= 0, ioctl(master, 0x4004_5431, &lock) == 0, ioctl(master, 0x8004_5430, &number) == 0 else {
        throw TestError(text: "no terminal: error \(errno)")
    }
    return (master, "/dev/pts/\(number)")
}

/// The bytes of a file, read by other means.
func content(of path: String) throws -> [UInt8] {
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { throw TestError(text: "no file: error \(errno)") }
    defer { close(file) }
    var all: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 1 << 16)
    while case let n = read(file, &piece, piece.count), n > 0 { all += piece[..<n] }
    return all
}

/// Runs `body` while the only thread for blocking calls is busy, so that every such call waits in line; it gets what frees the thread.
func withBusyPool(seconds: Int = 30, _ body: (_ free: () -> Void) throws -> Void) throws {
    var configuration = FiberRuntime.Configuration()
    configuration.blockingThreads = 1
    try inRuntime(configuration, seconds: seconds) {
        let gate = Gate()
        defer { gate.open() }
        let busy = try Fiber.spawnLocal { try withBlockingThread { gate.wait() } }
        try waitUntil { gate.arrivals == 1 }
        try body {
            gate.open()
            try? busy.join()
        }
        gate.open()
        try busy.join()
    }
}

/// Lets the pool finish what it has, and the fibers take it.
func letPoolSettle() throws {
    var quiet = 0
    for _ in 0..<20_000_000 {
        let statistics = FiberRuntime.blockingStatistics
        quiet = statistics.idle == statistics.threads && statistics.queued == 0 ? quiet + 1 : 0
        if quiet == 300 { return }
        Fiber.yield()
    }
    throw TestError(text: "the pool is never idle")
}

/// What the open descriptors of this process lead to. In exit tests: the test library opens some when it likes.
func openDescriptors() -> [Int32: String] {
    guard let directory = opendir("/proc/self/fd") else { return [:] }
    defer { closedir(directory) }
    var found: [Int32: String] = [:]
    while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(cString: $0.bindMemory(to: CChar.self).baseAddress!) }
        guard let number = Int32(name), number != dirfd(directory) else { continue }
        var target = [UInt8](repeating: 0, count: 512)
        let n = readlink("/proc/self/fd/" + name, &target, target.count)
        if n > 0 { found[number] = String(decoding: target[..<n], as: UTF8.self) }
    }
    return found
}

/// How many descriptors lead to pipes, processes or scratch files.
func openFilesAndPipes() -> Int {
    openDescriptors().values.count {
        $0.hasPrefix("pipe:") || $0.hasPrefix("/tmp/fibernet-") || $0.contains("pidfd") || $0.hasPrefix("socket:")
    }
}

/// Runs a fiber that should wake each millisecond, and returns how late it was at worst.
func latenessOfATicker(during body: () throws -> Void) throws -> Duration {
    let isOver = Box(false)
    let worst = Box(Duration.zero)
    let clock = ContinuousClock()
    let ticking = try Fiber.spawnLocal {
        while !isOver.value {
            let due = clock.now + .milliseconds(1)
            try Fiber.sleep(for: .milliseconds(1))
            worst.value = max(worst.value, clock.now - due)
        }
    }
    defer { isOver.value = true }
    try body()
    isOver.value = true
    try ticking.join()
    return worst.value
}
