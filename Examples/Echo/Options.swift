// SPDX-License-Identifier: Apache-2.0

// The command line of the echo server.

import FiberNet
import Glibc
import Synchronization

struct Options {
    var address = SocketAddress.loopback(port: 7777)
    /// Nil for one per CPU.
    var workers: Int?
    var stackSize = 256 * 1024
    var idleTimeout: Duration?
    var drainLimit = Duration.seconds(10)

    static let usage = """
        usage: Echo [--port PORT] [--host ADDRESS | --unix PATH] [--workers N] [--stack-size KIB]
                    [--idle-timeout SECONDS] [--drain SECONDS]

          --port PORT              port to listen on, 0 for any free one (7777)
          --host ADDRESS           address to listen on, IPv4 or IPv6 (127.0.0.1)
          --unix PATH              listen on a Unix socket instead
          --workers N              threads that run fibers (one for each CPU)
          --stack-size KIB         address space for each connection's stack: 128, 256, 512 … (256)
          --idle-timeout SECONDS   close connections that are silent for so long (never)
          --drain SECONDS          how long open connections may take to finish once it ends (10)

        The first SIGTERM or SIGINT stops accepting and lets open connections finish, the second ends them. Exit status 0: all connections had
        finished; 3: some were cut off; 1: the server failed; 2: the command line is wrong.
        """

    static func parse(_ arguments: ArraySlice<String>) -> Options {
        var options = Options()
        var host = "127.0.0.1"
        var port = 7777
        var unixPath: String?
        var rest = arguments
        while let flag = rest.popFirst() {
            if flag == "--help" || flag == "-h" {
                print(usage)
                exit(0)
            }
            guard ["--port", "--host", "--unix", "--workers", "--stack-size", "--idle-timeout", "--drain"].contains(flag) else {
                fail("unknown option \(flag); see --help", status: 2)
            }
            guard let value = rest.popFirst() else { fail("\(flag) needs a value; see --help", status: 2) }
            switch flag {
            case "--port": port = number(flag, value, 0...65535)
            case "--host": host = value
            case "--unix": unixPath = value
            case "--workers": options.workers = number(flag, value, 1...1024)
            case "--stack-size":
                let kib = number(flag, value, 128...1_048_576)
                guard kib & (kib - 1) == 0 else { fail("--stack-size must be a power of two, such as 256; it is \(kib)", status: 2) }
                options.stackSize = kib * 1024
            case "--drain": options.drainLimit = .seconds(number(flag, value, 0...1_000_000))
            default: options.idleTimeout = .seconds(number(flag, value, 1...1_000_000))
            }
        }
        do {
            options.address = try unixPath.map { try .unix(path: $0) } ?? SocketAddress(host: host, port: port)
        } catch {
            fail("\(error)", status: 2)
        }
        return options
    }

    private static func number(_ flag: String, _ text: String, _ range: ClosedRange<Int>) -> Int {
        guard let value = Int(text), range.contains(value) else {
            fail("\(flag) takes a number from \(range.lowerBound) to \(range.upperBound), not \"\(text)\"", status: 2)
        }
        return value
    }
}

/// A sum that fibers of all workers add to.
final class Total: Sendable {
    private let sum = Atomic(0)
    var value: Int { sum.load(ordering: .relaxed) }
    func add(_ amount: Int) { sum.add(amount, ordering: .relaxed) }
}

/// Prints a line that is seen at once, also through a pipe.
func printNow(_ line: String) {
    print(line)
    fflush(nil)
}

enum Ending: Int32 {
    case drained = 0
    case cancelled = 3
}

func exitNow(_ ending: Ending) -> Never { exit(ending.rawValue) }

/// Ends the program with one line on standard error.
func fail(_ message: String, status: Int32) -> Never {
    var line = "Echo: \(message)\n"
    line.withUTF8 { _ = write(STDERR_FILENO, $0.baseAddress, $0.count) }
    exit(status)
}
