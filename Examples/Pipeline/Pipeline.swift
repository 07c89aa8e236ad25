// SPDX-License-Identifier: Apache-2.0

// Counts primes: fibers that talk through channels, in a pipeline with a pool of workers in the middle.
//
//     generate ──ranges──▶ count (one on each worker) ──tallies──▶ collect
//
// Each stage is a function that makes a channel, starts the fibers that send into it, and returns its receiving end. Those fibers have the only
// senders, so when they end the channel closes, the loop of the next stage ends, and so on to the last: nobody has to say that it is over.
// To make this a program of yours, change what goes through the channels, and `primes(in:)`.

import FiberNet
import Fibers
import Glibc

@main
struct Pipeline {
    static func main() {
        let arguments = CommandLine.arguments.dropFirst()
        if arguments == ["--help"] { return print(usage) }
        guard arguments.count <= 1, let limit = Int(arguments.first ?? "20000000"), limit >= 1 else {
            log("takes one number, at least 1; see --help")
            exit(2)
        }
        do {
            let total = try FiberRuntime.run { try run(upTo: limit) }
            print("\(total.primes) primes among \(total.numbers) numbers")
            exit(total.numbers == limit ? 0 : 3)
        } catch {
            log("\(error)")
            exit(1)
        }
    }

    static let usage = """
        usage: Pipeline [LIMIT]

        Counts the primes from 1 to LIMIT (20000000) on all CPUs, and reports its progress on standard error. The first SIGTERM or SIGINT ends it
        with what it has, the second at once. Exit status 0: all numbers were looked at; 3: only some; 1: it failed; 2: the command line is wrong.
        """

    /// What was found in some of the numbers, or in all.
    struct Tally: Sendable { var (primes, numbers) = (0, 0) }

    static func run(upTo limit: Int) throws -> Tally {
        let signals = try Signals.of(.interrupt, .terminate)
        return try withFiberGroup { group in
            let (generator, ranges) = try generate(upTo: limit, in: group)
            let tallies = try count(ranges, in: group)
            try group.spawnDaemon(name: "signals") {
                log("\(try signals.next()): finishing what has begun")
                signals.close()  // the next one does what it does everywhere
                generator.cancel()  // the first stage; the others end with it
            }
            return try collect(tallies, of: limit)
        }
    }

    /// Cuts the work into pieces. The channel has room for a few: where the workers are slower than this fiber, it waits.
    static func generate(upTo limit: Int, in group: FiberGroup<Void>) throws -> (FiberHandle<Void>, Receiver<ClosedRange<Int>>) {
        let (sender, receiver) = makeChannel(of: ClosedRange<Int>.self, .bounded(64))
        let generator = try group.spawnLocal(name: "generator") {
            for first in stride(from: 1, through: limit, by: 1000) {
                try sender.send(first...(first + min(999, limit - first)))
            }
        }
        return (generator, receiver)
    }

    /// A pool: a fiber on each worker, each with a receiver of the same channel, so that each piece goes to whoever is free. A piece takes a
    /// millisecond or so; then the other fibers of the worker have their turn, the generator and the collector among them.
    static func count(_ ranges: Receiver<ClosedRange<Int>>, in group: FiberGroup<Void>) throws -> Receiver<Tally> {
        let (sender, receiver) = makeChannel(of: Tally.self, .bounded(64))
        for worker in 0..<FiberRuntime.workerCount {
            let mine = ranges.share()
            try group.spawn(name: "counter \(worker)", on: worker) {
                for range in mine {
                    try sender.send(Tally(primes: primes(in: range), numbers: range.count))
                    Fiber.yield()
                }
            }
        }
        return receiver
    }

    /// Adds up what comes, whenever it comes, and says every second how far it is.
    static func collect(_ tallies: Receiver<Tally>, of limit: Int) throws -> Tally {
        var total = Tally()
        var isOpen = true
        let ticker = Ticker(every: .seconds(1))
        while isOpen {
            try select {
                tallies.onReceive { tally in
                    total.primes += tally.primes
                    total.numbers += tally.numbers
                } end: {
                    isOpen = false
                }
                ticker.onTick { _ in log("\(total.numbers) of \(limit) numbers, \(total.primes) primes") }
            }
        }
        return total
    }

    /// The work itself, by trial division.
    static func primes(in range: ClosedRange<Int>) -> Int {
        range.count { number in
            if number < 4 || number.isMultiple(of: 2) { return number == 2 || number == 3 }
            var divisor = 3
            while divisor * divisor <= number {
                if number.isMultiple(of: divisor) { return false }
                divisor += 2
            }
            return true
        }
    }

    /// Writes a line to standard error: standard output is for the result.
    static func log(_ line: String) {
        var line = "Pipeline: \(line)\n"
        line.withUTF8 { _ = write(STDERR_FILENO, $0.baseAddress, $0.count) }
    }
}
