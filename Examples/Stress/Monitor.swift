// SPDX-License-Identifier: Apache-2.0

// Watches from outside, on a thread of its own, so that it can still speak when the runtime no longer does: a line each second, and an end with what is
// known when no job has ended for long.

import Fibers
import Glibc
import Synchronization

/// The place of one job at a time, and what the monitor may see of it. Written by the worker, read by the monitor.
final class Slot: Sendable {
    private let serial = Atomic<UInt64>(0)
    private let kind = Atomic<Int>(-1)
    private let began = Atomic<Int64>(0)
    /// The text of a `StaticString`.
    private let stepText = Atomic<UInt>(0)

    func begin(_ serial: UInt64, _ kind: Kind) {
        self.serial.store(serial, ordering: .relaxed)
        self.kind.store(Kind.all.firstIndex { $0.finished === kind.finished } ?? -1, ordering: .relaxed)
        stepText.store(0, ordering: .relaxed)
        began.store(Deadline.now, ordering: .releasing)
    }

    func step(_ text: StaticString) { stepText.store(UInt(bitPattern: text.utf8Start), ordering: .relaxed) }
    func end() { began.store(0, ordering: .releasing) }

    struct Snapshot {
        let began: Int64
        let description: String
    }

    var snapshot: Snapshot? {
        let began = began.load(ordering: .acquiring)
        let kind = kind.load(ordering: .relaxed)
        guard began != 0, kind >= 0 else { return nil }
        let step = UnsafePointer<UInt8>(bitPattern: stepText.load(ordering: .relaxed)).map { String(cString: $0) } ?? "begin"
        let age = (Deadline.now - began) / 1_000_000
        return Snapshot(
            began: began, description: "job \(serial.load(ordering: .relaxed)) (\(Kind.all[kind].name)): \(step), begun \(age) ms ago")
    }
}

final class Monitor: Sendable {
    private let seed: UInt64
    private let slots: [Slot]
    private let begun = Deadline.now
    static let patience: Int64 = 20

    init(seed: UInt64, slots: [Slot]) {
        self.seed = seed
        self.slots = slots
    }

    /// Runs for as long as the process.
    func run() -> Never {
        print("seconds  fibers  spawns/s     ops/s  echoes/s    MB/s  connects/s  errors/s   RSS MiB")
        var last = Rates()
        var jobs = 0
        var quiet: Int64 = 0
        while true {
            sleep(1)
            let now = Rates()
            printLine(now.since(last))
            quiet = Count.jobs.value == jobs ? quiet + 1 : 0
            if quiet >= Self.patience { giveUp() }
            last = now
            jobs = Count.jobs.value
        }
    }

    private struct Rates {
        var counts = [
            Account.fibers.left.value, Count.operations.value, Count.echoes.value, Count.bytes.value, Account.connections.left.value,
            Count.expectedErrors.value,
        ]
        func since(_ last: Rates) -> [Int] { zip(counts, last.counts).map { $0 - $1 } }
    }

    private func printLine(_ rates: [Int]) {
        let megabytes = Int((Double(rates[3]) / 1e6).rounded())
        let columns = [
            (Int((Deadline.now - begun) / 1_000_000_000), 7), (Account.fibers.left.value - Account.fibers.right.value, 8), (rates[0], 10),
            (rates[1], 10), (rates[2], 10), (megabytes, 8), (rates[4], 12), (rates[5], 10), (Process.residentMiB(), 10),
        ]
        print(columns.map { padded("\($0)", $1) }.joined())
        fflush(nil)
    }

    private func giveUp() -> Never {
        say("STUCK: no job has ended for \(Self.patience) seconds; seed \(seed)")
        for account in Account.all where !account.isBalanced { say("  \(account.description)") }
        let stuck = slots.compactMap(\.snapshot).sorted { $0.began < $1.began }
        say("  \(stuck.count) jobs have not ended; the oldest:")
        for job in stuck.prefix(10) { say("    \(job.description)") }
        abort()
    }
}

/// Text at the right of a column.
func padded(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(0, width - text.count)) + text
}

/// Starts a thread that never ends and takes no signals.
func startThread(_ body: @escaping @Sendable () -> Never) {
    final class Box: Sendable {
        let body: @Sendable () -> Never
        init(_ body: @escaping @Sendable () -> Never) { self.body = body }
    }
    var thread = pthread_t()
    let box = Unmanaged.passRetained(Box(body)).toOpaque()
    let status = pthread_create(&thread, nil, { Unmanaged<Box>.fromOpaque($0!).takeRetainedValue().body() }, box)
    precondition(status == 0, "pthread_create failed with error \(status)")
}
