// SPDX-License-Identifier: Apache-2.0

// What happens around posix_spawn: which descriptors the child gets, and the call itself, on a thread of the pool, since it blocks until the program
// has been loaded.

import CFiber
import Fibers
import Glibc
import SystemPackage

extension Subprocess.Command {
    /// The C library would take the part before a NUL for the whole.
    func check() throws(IOError) {
        let variables = (environment ?? [:]).flatMap { [$0.key, $0.value] }
        for text in [program, directory ?? ""] + arguments + variables where text.utf8.contains(0) {
            throw IOError(-Int(EINVAL), "spawn", subject: "\(program): \(text.debugDescription) has a NUL in it")
        }
        for name in (environment ?? [:]).keys where name.isEmpty || name.utf8.contains(UInt8(ascii: "=")) {
            throw IOError(-Int(EINVAL), "spawn", subject: "\(program): \(name.debugDescription) is no name for a variable")
        }
    }
}

/// A child that was started, or why it was not. Any thread.
struct Spawned: Sendable {
    /// The process id, or a negative errno.
    var id: Int32
    /// The process's descriptor, -1 if nothing is left of the process.
    var process: Int32 = -1
    /// What the error is about, if it is not just the program.
    var failed: String?

    /// As the system does it, but tries again for some time, by `pausing`, where the program is open for writing.
    ///
    /// On Linux this happens to programs that were closed before they are started, too: a child that another thread starts in between has a copy of all descriptors until it has loaded
    /// its own program. No lock here could prevent that, since other code of the process starts children as well.
    static func spawn(
        _ command: Subprocess.Command, _ streams: [Int32], pausing: (Duration) -> Void, while isWanted: () -> Bool
    ) -> Spawned {
        var spawned = spawn(command, streams)
        var backoff = Backoff(from: 1_000_000, to: 256_000_000)
        var left = longestWhileBusy
        while spawned.id == -ETXTBSY && left > 0 && isWanted() {
            let pause = min(backoff.next(), left)
            left -= pause
            pausing(.nanoseconds(pause))
            spawned = spawn(command, streams)
        }
        return spawned
    }

    /// In nanoseconds: a child that has loaded its program by then has closed its copies.
    private static var longestWhileBusy: Int64 { 512_000_000 }

    /// Blocks until the program has been loaded.
    private static func spawn(_ command: Subprocess.Command, _ streams: [Int32]) -> Spawned {
        let arguments = CStrings([command.program] + command.arguments)
        let environment = command.environment.map { CStrings($0.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }) }
        // A list that ends early would be taken for the whole.
        guard arguments.isComplete && environment?.isComplete != false else { return Spawned(id: -ENOMEM) }
        var process: Int32 = -1
        let id = command.program.withCString { program in
            withOptionalCString(command.directory) { directory in
                var request = cfiber_command()
                request.program = program
                request.arguments = UnsafePointer(arguments.pointers)
                request.environment = environment.map { UnsafePointer($0.pointers) }
                request.directory = directory
                request.streams = (streams[0], streams[1], streams[2])
                return cfiber_spawn(&request, &process)
            }
        }
        withExtendedLifetime((arguments, environment)) {}
        return Spawned(id: id, process: process, failed: id < 0 ? explanation(of: id, command) : nil)
    }

    /// The system says the same number for several things that can be missing.
    private static func explanation(of status: Int32, _ command: Subprocess.Command) -> String? {
        if status == -ETXTBSY { return "\(command.program), which some process has open for writing" }
        guard [-ENOENT, -ENOTDIR, -EACCES].contains(status) else { return nil }
        if let directory = command.directory {
            var info = stat()
            if stat(directory, &info) != 0 || info.st_mode & S_IFMT != S_IFDIR || access(directory, X_OK) != 0 {
                return "\(command.program) in the directory \(directory), which cannot be entered"
            }
        }
        guard command.program.utf8.contains(UInt8(ascii: "/")) else { return "\(command.program), looked for in PATH" }
        let isRelative = command.program.utf8.first != UInt8(ascii: "/")
        let path = isRelative && command.directory != nil ? "\(command.directory ?? "")/\(command.program)" : command.program
        if status == -ENOENT && access(path, F_OK) == 0 { return "\(command.program): the interpreter that its first line names" }
        return nil
    }

    /// Ends a child that nobody wants any more. Blocks.
    func discard() {
        guard process >= 0 else { return }
        cfiber_child_discard(process)
        _ = cfiber_close(process)
    }
}

private func withOptionalCString<Result>(_ text: String?, _ body: (UnsafePointer<CChar>?) -> Result) -> Result {
    guard let text else { return body(nil) }
    return text.withCString(body)
}

/// A list of strings as C wants it, with a null pointer at its end.
private final class CStrings {
    let pointers: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>
    private let count: Int

    init(_ strings: [String]) {
        count = strings.count
        pointers = .allocate(capacity: count + 1)
        for (i, text) in strings.enumerated() { (pointers + i).initialize(to: strdup(text)) }
        (pointers + count).initialize(to: nil)
    }

    /// False when there was no memory for one of them.
    var isComplete: Bool { !(0..<count).contains { pointers[$0] == nil } }

    deinit {
        for i in 0..<count { free(pointers[i]) }
        pointers.deallocate()
    }
}

/// The three standard streams of a child that is to be started. Descriptors of the caller are copied at once, so that the caller may close them
/// whenever it likes.
final class ChildStreams: Sendable {
    private struct Pipes: Sendable {
        /// What the child gets: descriptors that are closed when it has them, or codes.
        var given: [Int32] = []
        /// The ends of pipes that stay here, -1 where there is none.
        var kept: [Int32] = []
    }

    private let pipes: Guarded<Pipes>

    init(_ input: Subprocess.Input, _ output: Subprocess.Output, _ errors: Subprocess.Output) throws(IOError) {
        pipes = Guarded(Pipes())
        switch input {
        case .inherit: add(Int32(CFIBER_STREAM_INHERIT))
        case .null: add(Int32(CFIBER_STREAM_NULL))
        case .pipe: try addPipe(isInput: true)
        case .descriptor(let descriptor): try addCopy(of: descriptor)
        }
        for (stream, isErrors) in [(output, false), (errors, true)] {
            switch stream {
            case .inherit: add(Int32(CFIBER_STREAM_INHERIT))
            case .null: add(Int32(CFIBER_STREAM_NULL))
            case .pipe: try addPipe(isInput: false)
            case .descriptor(let descriptor): try addCopy(of: descriptor)
            case .standardOutput: add(Int32(isErrors ? CFIBER_STREAM_AS_OUTPUT : CFIBER_STREAM_INHERIT))
            }
        }
    }

    deinit {
        pipes.withLock { pipes in
            for fd in pipes.given + pipes.kept where fd >= 0 { _ = cfiber_close(fd) }
        }
    }

    private func add(_ given: Int32, kept: Int32 = -1) {
        pipes.withLock {
            $0.given.append(given)
            $0.kept.append(kept)
        }
    }

    private func addPipe(isInput: Bool) throws(IOError) {
        // The child's end blocks, as programs expect.
        let (reader, writer) = try Worker.here("Subprocess.spawn").driver.makePipe(readerBlocks: isInput, writerBlocks: !isInput)
        add(isInput ? reader : writer, kept: isInput ? writer : reader)
    }

    private func addCopy(of descriptor: FileDescriptor) throws(IOError) {
        let copy = cfiber_duplicate_for_child(descriptor.rawValue)
        if copy < 0 { throw IOError(Int(copy), "spawn", subject: "descriptor \(descriptor.rawValue)") }
        add(copy)
    }

    /// What the child gets. They stay open as long as this object.
    var numbers: [Int32] { pipes.withLock { $0.given } }

    /// The ends that stay here, as streams. Once; the child must have been started, and from here on it alone has its ends.
    func ends() throws(IOError) -> (DescriptorStream?, DescriptorStream?, DescriptorStream?) {
        let kept = pipes.withLock { pipes in
            for fd in pipes.given where fd >= 0 { _ = cfiber_close(fd) }
            pipes.given = []
            defer { pipes.kept = [] }
            return pipes.kept
        }
        var streams: [DescriptorStream?] = []
        for (i, fd) in kept.enumerated() {
            do {
                streams.append(
                    fd < 0 ? nil : try DescriptorStream(Adopted(fd: fd, kind: Int32(CFIBER_KIND_FIFO)), name: "pipe of a child process"))
            } catch {
                // That one is closed already.
                for rest in kept[(i + 1)...] where rest >= 0 { _ = cfiber_close(rest) }
                throw error
            }
        }
        return (streams[0], streams[1], streams[2])
    }
}
