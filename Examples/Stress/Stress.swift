// SPDX-License-Identifier: Apache-2.0

// Everything that fibers can do, at random and at once, with books that must balance: see `Stress --help`.
//
// The program plays server and client in one process. Jobs (Kinds/) run as fibers, some thousand at a time, for rounds of about ten seconds; each round is a
// runtime of its own (Crew.swift), and each of its workers has its own part of the jobs, which send fibers to one another (Round.swift). After each, the books (Books.swift)
// must balance and the process must hold what it held before (Process.swift).

import Fibers
import Glibc

@main
struct Stress {
    static func main() {
        let options = Options.parse(CommandLine.arguments.dropFirst())
        print("seed \(options.seed)")
        fflush(nil)
        Process.useOneArena()
        let slots = (0..<options.fibers).map { _ in Slot() }
        Process.blockSignals(true)
        let wakingThread = WakingThread()
        startThread { wakingThread.run() }
        let monitor = Monitor(seed: options.seed, slots: slots)
        startThread { monitor.run() }

        Crew.warmUp(options)
        let before = Process.Holdings.settled()
        let begun = Deadline.now
        let end = begun + Int64(options.seconds) * 1_000_000_000
        var isInterrupted = false
        while !isInterrupted, Failures.all.isEmpty, Deadline.now < end {
            do {
                let roundEnd = min(end, Deadline.now + 10_000_000_000)
                isInterrupted = try Crew.run(options, slots, wakingThread, until: roundEnd)
            } catch {
                Failures.record("the runtime: \(error)")
            }
            Count.rounds += 1
            audit(before)
        }
        printSummary(seconds: Double(Deadline.now - begun) / 1e9)
        if Failures.all.isEmpty { exit(0) }
        say("FAILED with seed \(options.seed): \(Failures.all.joined(separator: "; "))")
        exit(1)
    }

    /// Looks for what is missing and what is left over, now that no fiber is alive.
    static func audit(_ before: Process.Holdings) {
        for account in Account.all where !account.isBalanced {
            Failures.record("does not balance: \(account.description)")
        }
        // A thread that has been joined stays in the kernel's books for a moment, and one that has woken a fiber may keep that worker's descriptor until it goes on.
        let patience = Deadline.now + 5_000_000_000
        var leaks = Process.Holdings.now().leaks(since: before)
        while !leaks.isEmpty && Deadline.now < patience {
            usleep(1000)
            leaks = Process.Holdings.now().leaks(since: before)
        }
        for leak in leaks { Failures.record("leaked \(leak)") }
    }

    static func printSummary(seconds: Double) {
        func row(_ name: String, _ value: Int) {
            print(padded("\(value)", 14), padded("\(Int(Double(value) / seconds))", 12) + "/s ", name)
        }
        print("\n\(Count.rounds.value) runtimes in \(Int(seconds)) seconds; \(Process.residentMiB()) MiB resident at the end\n")
        row("operations", Count.operations.value)
        row("echoes verified", Count.echoes.value)
        row("bytes echoed", Count.bytes.value)
        row("errors expected and met", Count.expectedErrors.value)
        row("shortages of descriptors or ports ridden out", Count.shortages.value)
        row("connections handed to another worker", Count.handedOver.value)
        print("")
        for kind in Kind.all { row("jobs: \(kind.name)", kind.finished.value) }
        print("")
        for account in Account.all {
            let sign = account.isBalanced ? "=" : "≠"
            print(
                padded("\(account.left.value)", 14), sign, padded("\(account.right.value)", 13),
                " \(account.subject): \(account.sides.0), \(account.sides.1)")
        }
        fflush(nil)
    }
}
