// SPDX-License-Identifier: Apache-2.0

// What the process holds, as the kernel sees it: the side of the books that this program cannot get wrong.

import Fibers
import Glibc

enum Process {
    struct Holdings: Equatable {
        var descriptors: Int
        var threads: Int
        var mappings: Int
        /// Writable anonymous memory outside the heap, in MiB: where stacks are.
        var mappedMiB: Int

        static func now() -> Holdings {
            var mappings = 0
            var bytes = 0
            for line in text("/proc/self/maps").split(separator: "\n") {
                mappings += 1
                let fields = line.split(separator: " ", omittingEmptySubsequences: true)
                guard fields.count == 5, fields[1].hasPrefix("rw"), fields[4] == "0" else { continue }
                let ends = fields[0].split(separator: "-").map { Int($0, radix: 16)! }
                bytes += ends[1] - ends[0]
            }
            return Holdings(
                descriptors: count("/proc/self/fd"), threads: count("/proc/self/task"), mappings: mappings, mappedMiB: bytes >> 20)
        }

        /// What is held when nothing has gone for a tenth of a second: a thread that has been joined stays in the kernel's books for a moment.
        static func settled() -> Holdings {
            var holdings = now()
            var since = Deadline.now
            while Deadline.now < since + 100_000_000 {
                usleep(1000)
                let later = now()
                if later.threads < holdings.threads || later.descriptors < holdings.descriptors { since = Deadline.now }
                holdings = later
            }
            return holdings
        }

        /// What is held now and was not before. Memory has some play, since the allocator keeps what it has had.
        func leaks(since before: Holdings) -> [String] {
            var leaks: [String] = []
            if descriptors != before.descriptors { leaks.append("descriptors: \(before.descriptors) before, \(descriptors) after") }
            if threads != before.threads { leaks.append("threads: \(before.threads) before, \(threads) after") }
            // The sanitizers map memory of their own as they go.
            if isSanitized { return leaks }
            if mappings > before.mappings + 16 { leaks.append("mappings: \(before.mappings) before, \(mappings) after") }
            if mappedMiB > before.mappedMiB + 3 { leaks.append("mapped memory: \(before.mappedMiB) MiB before, \(mappedMiB) MiB after") }
            return leaks
        }
    }

    static var isSanitized: Bool {
        dlsym(nil, "__asan_init") != nil || dlsym(nil, "__tsan_init") != nil
    }

    /// Has malloc use the heap alone, which is not counted here. Arenas of threads that have ended would stay mapped.
    static func useOneArena() {
        typealias Mallopt = @convention(c) (Int32, Int32) -> Int32
        let arenaMax: Int32 = -8
        if let mallopt = dlsym(nil, "mallopt") { _ = unsafeBitCast(mallopt, to: Mallopt.self)(arenaMax, 1) }
    }

    /// How many descriptors more the process may open.
    static func freeDescriptors() -> Int {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        return Int(min(limit.rlim_cur, 1 << 20)) - count("/proc/self/fd")
    }

    static func residentMiB() -> Int {
        let pages = text("/proc/self/statm").split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0
        return (pages * Int(getpagesize())) >> 20
    }

    /// Whether the signals that this program knows wait until they are let through again. New threads do as the one that starts them.
    static func blockSignals(_ block: Bool) {
        var set = sigset_t()
        sigemptyset(&set)
        for signal in [SIGINT, SIGTERM, SIGUSR1, SIGUSR2] { sigaddset(&set, signal) }
        pthread_sigmask(block ? SIG_BLOCK : SIG_UNBLOCK, &set, nil)
    }

    private static func count(_ directory: String) -> Int {
        guard let stream = opendir(directory) else { return -1 }
        defer { closedir(stream) }
        var count = 0
        while readdir(stream) != nil { count += 1 }
        return count
    }

    private static func text(_ path: String) -> String {
        guard let file = fopen(path, "re") else { return "" }
        defer { fclose(file) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while case let n = fread(&buffer, 1, buffer.count, file), n > 0 { bytes += buffer[..<n] }
        return String(decoding: bytes, as: UTF8.self)
    }
}
