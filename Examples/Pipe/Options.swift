// SPDX-License-Identifier: Apache-2.0

// The command line of the pipe.

import FiberNet
import Glibc

struct Options {
    var file: String?
    var address: SocketAddress?
    var command = Subprocess.Command("cat")

    static let usage = """
        usage: Pipe [--file PATH] [--listen PORT] PROGRAM [ARGUMENT…]

          --file PATH      what the program reads, instead of standard input: a file, a FIFO, a device
          --listen PORT    run the program for each client of this port of the loopback interface (0 for any free one), and send its
                           output there; needs --file

        Exit status: the program's own; 1: something failed, or a signal ended the program; 2: the command line is wrong.
        """

    static func parse(_ arguments: ArraySlice<String>) -> Options {
        var options = Options()
        var rest = arguments
        while let flag = rest.first, flag.hasPrefix("-") {
            rest.removeFirst()
            if flag == "--help" || flag == "-h" {
                print(usage)
                exit(0)
            }
            guard flag == "--file" || flag == "--listen" else { fail("unknown option \(flag); see --help", status: 2) }
            guard let value = rest.popFirst() else { fail("\(flag) needs a value; see --help", status: 2) }
            if flag == "--file" {
                options.file = value
            } else {
                guard let port = UInt16(value) else { fail("--listen takes a number from 0 to 65535, not \"\(value)\"", status: 2) }
                options.address = .loopback(port: Int(port))
            }
        }
        guard let program = rest.popFirst() else { fail("no program was named; see --help", status: 2) }
        if options.address != nil && options.file == nil {
            fail("--listen needs --file, since standard input can be read once only", status: 2)
        }
        options.command = Subprocess.Command(program, Array(rest))
        return options
    }
}

/// Writes a line to standard error: standard output is for the program's.
func log(_ line: String) {
    var line = "Pipe: \(line)\n"
    line.withUTF8 { _ = write(STDERR_FILENO, $0.baseAddress, $0.count) }
}

/// Ends the program with one line on standard error.
func fail(_ message: String, status: Int32) -> Never {
    log(message)
    exit(status)
}
