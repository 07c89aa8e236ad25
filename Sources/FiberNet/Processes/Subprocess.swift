// SPDX-License-Identifier: Apache-2.0

// A child process.
//
// Invariants:
//   * the process is known by its descriptor, which this object owns; what the descriptor names is never another process, whatever becomes of the
//     number;
//   * the child is reaped once: by the first `wait` that finds it ended, which keeps the status for the others, or after the object has gone, by a
//     thread made for it. So no zombie stays;
//   * descriptors of pipes are this process's alone: the child gets copies of its ends, and those here are closed when it has been started.
// Owner worker only.

import CFiber
import Fibers
import Glibc
public import SystemPackage

/// A program that runs as a child process.
///
/// ```swift
/// let result = try Subprocess.run(.init("gzip", ["-c"]), input: bytes)
/// ```
///
/// ``run(_:input:outputLimit:)`` is for programs that take some bytes and give some; ``withSubprocess(_:input:output:errors:_:)`` for conversations;
/// ``spawn(_:input:output:errors:)`` for a child whose life no call bounds.
///
/// A child that is let go of before ``wait()`` has said that it ended is killed, and never becomes a zombie: keep it for as long as it shall
/// run. It gets its three standard streams and no other descriptor; no signal is blocked or ignored in it. It belongs to the worker that made it.
/// Processes that the child starts itself are its own.
public final class Subprocess {
    /// What to run.
    public struct Command: Hashable, Sendable {
        /// A path, or a name without a slash to look for in this process's `PATH`.
        public var program: String
        /// What comes after the program's name.
        public var arguments: [String]
        /// The child's whole environment; nil for this process's own.
        public var environment: [String: String]?
        /// The child's working directory; nil for this process's own. A relative path of the program begins there.
        public var directory: String?

        public init(_ program: String, _ arguments: [String] = [], environment: [String: String]? = nil, directory: String? = nil) {
            self.program = program
            self.arguments = arguments
            self.environment = environment
            self.directory = directory
        }
    }

    /// Where the child's standard input comes from.
    public enum Input: Sendable {
        /// From where this process's own comes.
        case inherit
        /// From nowhere: it is at its end.
        case null
        /// From ``Subprocess/input``.
        case pipe
        /// From a descriptor, which stays the caller's. A pipe that is non-blocking, as those of this library are, blocks for the child alone. Anything
        /// else the child shares as it is, and most programs expect that not to be non-blocking.
        case descriptor(FileDescriptor)
    }

    /// Where the child's standard output or its standard error goes.
    public enum Output: Sendable {
        /// To where this process's own goes.
        case inherit
        /// Nowhere.
        case null
        /// To ``Subprocess/output`` or ``Subprocess/errors``.
        case pipe
        /// To a descriptor, which stays the caller's; otherwise as ``Input/descriptor(_:)``.
        case descriptor(FileDescriptor)
        /// For standard error: to where the child's standard output goes.
        case standardOutput
    }

    /// How a process ended.
    public enum Status: Hashable, Sendable, CustomStringConvertible {
        /// By itself, with this code, 0 to 255.
        case exited(Int32)
        /// By a signal.
        case signalled(Signal)
        /// It has ended, and how is not known: do not take it for success. Linux forgets how a child ended when this process ignores SIGCHLD, or when other code in it waits for all
        /// children. Linux 6.15 and later remember it, unless the child ended while it was being started.
        case unknown

        /// It ended by itself, with 0.
        public var isSuccess: Bool { self == .exited(0) }

        public var description: String {
            switch self {
            case .exited(let code): "exit code \(code)"
            case .signalled(let signal): "ended by \(signal)"
            case .unknown: "ended, nobody knows how"
            }
        }
    }

    /// The process id, which may become another process's once this one has ended and ``wait()`` has said so; signals are sent by
    /// ``kill(_:)``.
    public let id: Int32
    /// The program's name as it was given.
    public let program: String
    /// What the child reads; nil unless it is a pipe. Close it when there is no more.
    public private(set) var input: DescriptorStream?
    /// What the child writes; nil unless it is a pipe.
    public private(set) var output: DescriptorStream?
    /// What the child writes to its standard error; nil unless it is a pipe.
    public private(set) var errors: DescriptorStream?
    /// How it ended, once ``wait()`` has found that out.
    public private(set) var status: Status?
    private let process: Int32
    /// The number of the worker that made it: unlike its address, never that of another one later.
    private let owner: UInt64

    private init(_ spawned: Spawned, _ program: String) {
        id = spawned.id
        process = spawned.process
        if process < 0 { status = .unknown }
        self.program = program
        owner = Worker.here("Subprocess").number
    }

    deinit {
        // Once it has been reaped there is nothing to end.
        if status == nil { cfiber_child_abandon(process) } else if process >= 0 { _ = cfiber_close(process) }
    }

    /// Starts a program.
    ///
    /// When the fiber is cancelled meanwhile, a child that was started all the same is killed.
    ///
    /// A program that is open for writing somewhere cannot be started. While children are started by other threads, that may be so for a moment also after the program has been
    /// written and closed, since each child has the descriptors of its parent until it has loaded its own program. So it is tried again for half a second.
    ///
    /// - Returns: the child, whose program has been loaded.
    /// - Throws: ``IOError``, with the program or the directory as its subject: `notFound`, `notPermitted` (it may not be run), `resources`
    ///   or `system` (it is none that the system can run, or, as ETXTBSY, is still open for writing); `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public static func spawn(
        _ command: Command, input: Input = .null, output: Output = .inherit, errors: Output = .inherit
    ) throws -> Subprocess {
        try spawn(command, input: input, output: output, errors: errors) { usleep(UInt32($0 / .microseconds(1))) }
    }

    /// As the public one; `pausing` lets the time pass between two tries, on a thread that may block.
    package static func spawn(
        _ command: Command, input: Input, output: Output, errors: Output, pausing: @escaping @Sendable (Duration) -> Void
    ) throws -> Subprocess {
        try command.check()
        let streams = try ChildStreams(input, output, errors)
        let spawned: Spawned = try PoolCall.perform("spawn", command.program) { call in
            guard call.isWanted else { return }
            let spawned = Spawned.spawn(command, streams.numbers, pausing: pausing, while: { call.isWanted })
            if !call.deliver(spawned) { spawned.discard() }
        }
        if spawned.id < 0 { throw IOError(file: Int(spawned.id), "spawn", spawned.failed ?? command.program) }
        let child = Subprocess(spawned, command.program)
        (child.input, child.output, child.errors) = try streams.ends()
        return child
    }

    /// Waits until the child has ended, and says how. Its pipes stay open: what it wrote can still be read.
    ///
    /// Several fibers may wait, and one may wait again. One that is cancelled leaves the child as it is.
    ///
    /// - Returns: how it ended; ``Status/unknown`` when something else in the process waits for all children, or the process ignores SIGCHLD, so that nobody knows.
    /// - Throws: ``IOError`` with `resources` or `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    @discardableResult
    public func wait() throws -> Status {
        let worker = Worker.here("Subprocess.wait")
        require(
            worker.number == owner,
            "\(worker.describeCaller()) waits for the process \(id) (\(program)), which belongs to another worker: wait for it in fibers of the worker that started it"
        )
        if worker.refusesOperation() { throw worker.running.cancellation }
        while true {
            if let status { return status }
            var value: Int32 = 0
            let found = cfiber_child_status(process, &value)
            if found < 0 { throw IOError(file: Int(found), "wait for", program) }
            if found > 0 {
                let status: Status = found == 1 ? .exited(value) : found == 2 ? .signalled(Signal(value)) : .unknown
                self.status = status
                return status
            }
            try waitForEnd(worker)
        }
    }

    private func waitForEnd(_ worker: Worker) throws {
        let result = worker.driver.wait(forDescriptor: process, .read)
        if result < 0 { throw failure(result, "wait for", subject: program) }
    }

    /// Sends the child a signal. Nothing happens if it has ended.
    /// - Throws: ``IOError`` with `notPermitted` when the child has become another user's process, `system` when there is no such signal.
    public func kill(_ signal: Signal = .kill) throws(IOError) {
        guard status == nil else { return }
        let result = cfiber_child_signal(process, signal.number)
        if result < 0 && result != -ESRCH { throw IOError(Int(result), "send \(signal) to", subject: program) }
    }

    /// Closes the pipes, and kills and reaps the child if nobody has waited for its end. Parks; cancellation does not hold it up.
    fileprivate func end() {
        for stream in [input, output, errors] { stream?.close() }
        if status != nil { return }
        _ = cfiber_child_signal(process, SIGKILL)
        // If that fails the descriptor's end sees to it.
        _ = try? withCancellationShield { try wait() }
    }
}

/// Starts a program, runs `body`, and returns when the child has ended: one that still runs when the body ends, or throws because it is cancelled, is
/// killed.
///
/// ```swift
/// try withSubprocess(.init("sort"), input: .pipe, output: .pipe) { sort in
///     for name in names { try sort.input?.writeAll(name + "\n") }
///     sort.input?.close()
///     let lines = sort.output!.lines()
///     while let line = try lines.next() { print(line) }
///     return try sort.wait()
/// }
/// ```
///
/// Its pipes are closed at the end, too. Let the body call ``Subprocess/wait()`` if the program is to come to its own end.
///
/// - Throws: ``IOError`` as ``Subprocess/spawn(_:input:output:errors:)``, and whatever `body` throws.
/// - Note: parks
@discardableResult
public func withSubprocess<Result>(
    _ command: Subprocess.Command, input: Subprocess.Input = .null, output: Subprocess.Output = .inherit,
    errors: Subprocess.Output = .inherit,
    _ body: (Subprocess) throws -> Result
) throws -> Result {
    let child = try Subprocess.spawn(command, input: input, output: output, errors: errors)
    defer { child.end() }
    return try body(child)
}

extension Subprocess {
    /// What a program has given.
    public struct Completed: Hashable, Sendable {
        public let status: Status
        public let output: [UInt8]
        public let errors: [UInt8]
    }

    /// Runs a program to its end: feeds it all of `input`, and collects what it writes to standard output and standard error.
    ///
    /// A program that ends without reading all of its input is none the worse for it. The call returns when the program has ended and nobody has its
    /// output open any more, which may be a process that it has left behind; what of the input nobody has taken by then is dropped. When the fiber is
    /// cancelled, or there is too much output, the program is killed.
    ///
    /// - Parameters:
    ///   - command: what to run.
    ///   - input: what its standard input gives; with none that is at its end at once.
    ///   - outputLimit: bytes that each of the two may have.
    /// - Returns: what it gave, also if it failed or nobody knows how it ended: look at ``Completed/status``.
    /// - Throws: ``IOError`` as ``spawn(_:input:output:errors:)``; `limitExceeded` when it writes more than the limit.
    /// - Note: parks
    public static func run(_ command: Command, input: [UInt8] = [], outputLimit: Int = 1 << 24) throws -> Completed {
        try withSubprocess(command, input: input.isEmpty ? .null : .pipe, output: .pipe, errors: .pipe) { child in
            var (output, errors): ([UInt8], [UInt8]) = ([], [])
            let status = try withFiberGroup { group in
                if let stream = child.input {
                    // What the program has left behind may hold its input open and never read it, so nobody waits for the feeder.
                    try group.spawnDaemon(name: "input of a program") {
                        defer { stream.close() }
                        do { try stream.writeAll(input) } catch let error as IOError where error.code == .reset {}
                    }
                }
                try group.spawnLocal(name: "errors of a program") {
                    errors = try child.collect(child.errors, "standard error", outputLimit)
                }
                output = try child.collect(child.output, "standard output", outputLimit)
                return try child.wait()
            }
            return Completed(status: status, output: output, errors: errors)
        }
    }

    private func collect(_ stream: DescriptorStream?, _ name: String, _ limit: Int) throws -> [UInt8] {
        var bytes: [UInt8] = []
        while let more = try stream?.read(upTo: 64 * 1024), !more.isEmpty {
            bytes += more
            if bytes.count > limit {
                throw IOError(
                    .limitExceeded, operation: "read",
                    subject: "\(name) of \(program), which wrote more than the \(limit) bytes that it may")
            }
        }
        return bytes
    }
}

extension Signal {
    /// SIGKILL: ends a process, which cannot refuse.
    public static let kill = Signal(SIGKILL)
}
