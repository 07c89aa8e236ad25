// SPDX-License-Identifier: Apache-2.0

// Pipes standard input, or a file, through another program: to standard output, or to each client of a TCP port. Neither a slow reader nor the
// program holds up the worker.

import FiberNet
import Fibers
import Glibc

@main
struct PipeThrough {
    static func main() {
        let options = Options.parse(CommandLine.arguments.dropFirst())
        do {
            let status = try FiberRuntime.run { try run(options) }
            if case .exited(let code) = status { exit(code) }
            fail("\(options.command.program): \(status)", status: 1)
        } catch {
            fail("\(error)", status: 1)
        }
    }

    static func run(_ options: Options) throws -> Subprocess.Status {
        guard let address = options.address, let file = options.file else {
            let source = try options.file.map { try DescriptorStream.open($0) } ?? StandardInput.open()
            let sink = try StandardOutput.open()
            return try pipe(source, through: options.command) { try sink.writeAll($0) }
        }
        let listener = try Listener.bind(to: address)
        let signals = try Signals.of(.interrupt, .terminate)
        log("listening on \(listener.address)")
        try withFiberGroup { group in
            try group.spawnDaemon(name: "signals") {
                _ = try signals.next()
                listener.close()
            }
            try listener.serve { client in
                _ = try pipe(DescriptorStream.open(file), through: options.command) { try client.writeAll($0) }
            }
        }
        return .exited(0)
    }

    /// Returns how the program ended, once it has and all that it wrote has been passed on.
    static func pipe(
        _ source: DescriptorStream, through command: Subprocess.Command, to sink: ([UInt8]) throws -> Void
    ) throws -> Subprocess.Status {
        try withSubprocess(command, input: .pipe, output: .pipe) { child in
            guard let input = child.input, let output = child.output else { return try child.wait() }
            return try withFiberGroup { group in
                // A program that does not want all of its input ends while this one still waits for more.
                try group.spawnDaemon(name: "feeder") {
                    defer { input.close() }
                    do {
                        while case let bytes = try source.read(upTo: 64 * 1024), !bytes.isEmpty { try input.writeAll(bytes) }
                    } catch let error as IOError where error.code == .reset {}
                }
                while case let bytes = try output.read(upTo: 64 * 1024), !bytes.isEmpty { try sink(bytes) }
                // One that has closed its output may go on reading: it is fed until it has ended.
                return try child.wait()
            }
        }
    }
}
