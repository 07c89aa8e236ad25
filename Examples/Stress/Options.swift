// SPDX-License-Identifier: Apache-2.0

// The command line.

import Glibc

struct Options {
    var seconds = 60
    var seed = UInt64.random(in: 0...UInt64.max)
    var fibers = 1000
    /// Nil for the runtime's own choice.
    var workers: Int?
    var port = 0
    var kinds = Kind.all

    static let usage = """
        usage: Stress [--seconds N] [--seed N] [--fibers N] [--workers N] [--port N] [--kinds NAME,…]

        Does everything that fibers can do, at random and at once, against itself, and keeps books. Exit status 0: nothing was lost and nothing leaked.

          --seconds N    how long, in rounds of about ten seconds with a runtime each (60)
          --seed N       what the decisions of each fiber derive from (random, and printed)
          --fibers N     how many jobs at a time; each may spawn a few fibers more (1000)
          --workers N    how many workers each runtime has (one per CPU, or FIBERS_WORKERS)
          --port N       the port of the first worker's servers on 127.0.0.1 and ::1; the others have those that follow. 0 for any free ones (0)
          --kinds A,B    only these kinds of job: \(Kind.all.map(\.name).joined(separator: ", "))
        """

    static func parse(_ arguments: ArraySlice<String>) -> Options {
        var options = Options()
        var rest = arguments
        while let flag = rest.popFirst() {
            if flag == "--help" || flag == "-h" {
                print(usage)
                exit(0)
            }
            guard ["--seconds", "--seed", "--fibers", "--workers", "--port", "--kinds"].contains(flag) else {
                fail("unknown option \(flag); see --help")
            }
            guard let value = rest.popFirst() else { fail("\(flag) needs a value; see --help") }
            switch flag {
            case "--seconds": options.seconds = number(flag, value, 1...1_000_000)
            case "--seed": options.seed = number(flag, value, 0...UInt64.max)
            case "--fibers": options.fibers = number(flag, value, 1...1_000_000)
            case "--workers": options.workers = number(flag, value, 1...1024)
            case "--port": options.port = number(flag, value, 0...65535)
            default:
                options.kinds = value.split(separator: ",").map { name in
                    guard let kind = Kind.all.first(where: { $0.name == name }) else { fail("there is no kind \"\(name)\"; see --help") }
                    return kind
                }
                if options.kinds.isEmpty { fail("--kinds needs at least one name; see --help") }
            }
        }
        return options
    }

    private static func number<N: FixedWidthInteger>(_ flag: String, _ text: String, _ range: ClosedRange<N>) -> N {
        guard let value = N(text), range.contains(value) else {
            fail("\(flag) takes a number from \(range.lowerBound) to \(range.upperBound), not \"\(text)\"")
        }
        return value
    }

    private static func fail(_ message: String) -> Never {
        say("Stress: \(message)")
        exit(2)
    }
}

/// Writes one line to standard error in one system call; any thread.
func say(_ text: String) {
    var line = text + "\n"
    line.withUTF8 { _ = write(STDERR_FILENO, $0.baseAddress, $0.count) }
}
