// SPDX-License-Identifier: Apache-2.0

// Bytes through a descriptor of any kind.
//
// Invariants:
//   * the driver has a number of this object's own, which shares what is open with others at most; it is taken out of epoll before it is closed,
//     which closing alone would not do while somebody else has the same thing open;
//   * what epoll refuses is never waited for: `file` is set then, and the pool reads and writes;
//   * the flag O_NONBLOCK of something that other processes use is set only where there is no other way, and restored at the end; see `SharedFlags`.
// Owner worker only.

import CFiber
import Fibers
import Glibc
public import SystemPackage

/// A stream of bytes through a descriptor: a pipe, a FIFO, a terminal, a socket, or something that is always ready, such as a regular file or
/// `/dev/null`.
///
/// Reading and writing park the fiber, never the thread. Who reads gets what is there; what several write with `writeAll` is never mixed. Where the
/// descriptor can be waited for, calls wait on the reactor; where it cannot (regular files, `/dev/null`), threads of the blocking pool make the
/// calls, as for ``File``, and ``Endpoint/waitReadable()`` and ``Endpoint/waitWritable()`` throw `unsupported`.
///
/// Writing to a pipe that nobody reads any more throws an ``IOError`` with the code `reset`; SIGPIPE is not raised.
public final class DescriptorStream: Endpoint {
    private let kind: Int32
    /// What the pool works on, where epoll refuses the descriptor.
    private let file: File?
    /// For messages.
    private let name: String
    /// Reads nothing before somebody has opened it for writing, which is not the end.
    private let awaitsWriter: Bool
    /// What is shared and was made non-blocking.
    private var shared: [SharedFlags] = []

    /// Takes all descriptors over, also when it fails. Those of pipes and terminals must be non-blocking.
    init(_ adopted: Adopted, name: String, awaitsWriter: Bool = false) throws(IOError) {
        kind = adopted.kind
        self.name = name
        self.awaitsWriter = awaitsWriter
        var file: File?
        var shortage: Int32 = 0
        if adopted.kind == CFIBER_KIND_FILE {
            // A job of the pool may run longer than the registration.
            let second = Int32(Worker.here("DescriptorStream").driver.call(.duplicate(adopted.fd)))
            if second < 0 { shortage = second } else { file = File(second, path: name) }
        }
        self.file = file
        shared = adopted.shared
        if shortage < 0 {
            adopted.discard()
            throw IOError(Int(shortage), "open", subject: name)
        }
        do {
            try super.init(adopted.fd, exact: true, driver: Worker.here("DescriptorStream").driver, "open")
        } catch {
            SharedFlags.end(adopted.shared)
            throw error
        }
    }

    deinit { end() }

    /// Opens whatever a path names, without ever blocking the thread.
    ///
    /// - A regular file, a directory or a device that is always ready: reads and writes begin at the file's beginning. See ``File`` for more that can
    ///   be done with these.
    /// - A FIFO to read: is open at once. The first read waits until there is a writer and it has written or closed; after that, reading returns
    ///   nothing whenever all writers have closed.
    /// - A FIFO to write: waits until somebody has it open for reading. The system tells nobody of that, so it is tried again, up to 20 times a
    ///   second.
    /// - A FIFO for both, which Linux allows: is open at once, and as this end is a writer, too, reading never comes to an end.
    /// - A terminal: is open at once, and does not become the process's own.
    ///
    /// - Parameters:
    ///   - path: where it is; relative paths begin at the working directory of the process.
    ///   - access: what may be done with it.
    /// - Throws: ``IOError`` with `notFound`, `notPermitted`, `resources` or `system` (a socket's file cannot be opened: connect to it); `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public static func open(_ path: String, _ access: File.Access = .read) throws -> DescriptorStream {
        let worker = Worker.here("DescriptorStream.open")
        var backoff = Backoff.brief
        while true {
            let opened = try Opened.perform("open", path, access.flags, 0) { path, flags, permissions in
                var opened = Opened.open(path, flags, permissions)
                if opened.result == -ENXIO { opened.kind = cfiber_path_kind(path) }
                return opened
            }
            if opened.result >= 0 {
                return try DescriptorStream(
                    Adopted(fd: opened.result, kind: opened.kind), name: path,
                    awaitsWriter: opened.kind == CFIBER_KIND_FIFO && access == .read)
            }
            guard opened.result == -ENXIO && opened.kind == CFIBER_KIND_FIFO else { throw IOError(file: Int(opened.result), "open", path) }
            do { try worker.pause(&backoff) } catch is ResourceError { throw IOError(-Int(ENOMEM), "open", subject: path) }
        }
    }

    /// Works with a descriptor that was opened elsewhere.
    ///
    /// A descriptor that is to be `closed` is taken over: it becomes non-blocking and is closed with the stream, and also when this throws.
    ///
    /// One that is not stays its owner's, and works as before for other processes that share it. For that a pipe, FIFO or terminal is opened a second
    /// time, by `/proc/self/fd`, so that the stream's own descriptor can be non-blocking alone. Where the system refuses that (another user's
    /// terminal, devices other than terminals), what is shared is made non-blocking, and is as before once this stream and all others for it have been
    /// closed; a process that is killed before leaves it so. Sockets and files need neither.
    ///
    /// - Parameters:
    ///   - descriptor: an open descriptor, for reading, writing or both.
    ///   - closing: whether the stream owns the descriptor.
    /// - Throws: ``IOError`` with `resources`, `notPermitted` or `system` (no such descriptor, or a negative number); `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public static func adopt(_ descriptor: FileDescriptor, closing: Bool) throws -> DescriptorStream {
        try adopt(descriptor.rawValue, closing: closing, name: "descriptor \(descriptor.rawValue)")
    }

    static func adopt(_ number: Int32, closing: Bool, name: String) throws -> DescriptorStream {
        // From here on a negative number is an error.
        if number < 0 { throw IOError(-Int(EBADF), "adopt", subject: name) }
        // The owner may close its own while a thread looks at it.
        let fd = closing ? number : Int32(Worker.here("DescriptorStream.adopt").driver.call(.duplicate(number)))
        if fd < 0 { throw IOError(Int(fd), "adopt", subject: name) }
        let isTaken = Adopted.Ownership(fd)
        let adopted: Adopted = try PoolCall.perform("adopt", name) { call in
            guard call.isWanted, let fd = isTaken.take() else { return }
            let adopted = Adopted.make(fd, isShared: !closing)
            if !call.deliver(adopted) && adopted.fd >= 0 { adopted.discard() }
        }
        if adopted.fd < 0 { throw IOError(file: Int(adopted.fd), "adopt", name) }
        return try DescriptorStream(adopted, name: name)
    }

    // Reading.

    /// Reads some bytes: as many as are there and fit, at least one, or 0 at the end of the stream. An empty span returns 0 at once.
    ///
    /// - Throws: ``IOError`` with `closed` or `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled, and then no byte is lost.
    /// - Note: parks
    public func read(into span: inout MutableRawSpan) throws -> Int {
        if span.byteCount == 0 { return 0 }
        if let file {
            let bytes = try reading(file, upTo: span.byteCount)
            span.withUnsafeMutableBytes { $0.copyBytes(from: bytes) }
            return bytes.count
        }
        let result = span.withUnsafeMutableBytes { receive($0.baseAddress!, $0.count) }
        if result < 0 { throw failure(result, "read", subject: name) }
        return result
    }

    /// Reads some bytes, at most `limit` and at most 1 MiB at once; none at the end of the stream.
    /// - Note: parks
    public func read(upTo limit: Int) throws -> [UInt8] {
        if limit <= 0 { return [] }
        if let file { return try reading(file, upTo: limit) }
        var failure = 0
        let limit = min(limit, 1 << 20)
        let bytes = [UInt8](unsafeUninitializedCapacity: limit) { buffer, count in
            let result = receive(buffer.baseAddress!, limit)
            if result < 0 { failure = result } else { count = result }
        }
        if failure < 0 { throw FiberNet.failure(failure, "read", subject: name) }
        return bytes
    }

    /// The lines from here on, each without its `\n`. See ``Lines``.
    /// - Parameter limit: bytes that a line may have, at least 1.
    public func lines(limit: Int = 1 << 20) -> Lines {
        Lines(of: name, limit: limit) { try self.read(upTo: $0) }
    }

    /// The memory is the calling fiber's, which fills it itself.
    private func receive(_ memory: UnsafeMutableRawPointer, _ count: Int) -> Int {
        requireOwnWorker()
        return driver.read(descriptor, memory, count, kind: kind, awaitsWriter: awaitsWriter)
    }

    private func reading(_ file: File, upTo limit: Int) throws -> [UInt8] {
        guard isOpen else { throw IOError(driver.refuseClosed(), "read", subject: name) }
        // As with other streams, what is asked for is the most that may come, and no measure of the file.
        return try file.read(upTo: min(limit, 1 << 20))
    }

    // Writing.

    /// Writes all bytes, in one piece: the bytes of other fibers come before or after. Returns when the kernel has them.
    ///
    /// - Throws: ``IOError`` with `reset` (nobody reads any more), `closed` or `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled. Some of the bytes may have been written
    ///   then: ``writeAll(_:written:)-(RawSpan,_)`` tells how many.
    /// - Note: parks
    public func writeAll(_ span: RawSpan) throws {
        var written = 0
        try writeAll(span, written: &written)
    }

    /// Writes all bytes, and tells how many of them the kernel has, however the call ends.
    ///
    /// - Parameter written: set to the number of bytes, also when this throws.
    /// - Throws: as ``writeAll(_:)-(RawSpan)``.
    /// - Note: parks
    public func writeAll(_ span: RawSpan, written: inout Int) throws {
        if file != nil { return try writeAll(span.withUnsafeBytes { Array($0) }, written: &written) }
        var sent = 0
        let result = span.withUnsafeBytes { send($0, &sent) }
        written = sent
        if result < 0 { throw failure(result, "write", subject: name, bytesTransferred: sent) }
    }

    /// Writes the bytes of an array.
    /// - Note: parks
    public func writeAll(_ bytes: [UInt8]) throws {
        var written = 0
        try writeAll(bytes, written: &written)
    }

    /// Writes the bytes of an array, and tells how many of them the kernel has, however the call ends.
    /// - Note: parks
    public func writeAll(_ bytes: [UInt8], written: inout Int) throws {
        guard let file else { return try writeAll(bytes.span.bytes, written: &written) }
        written = 0
        guard isOpen else { throw IOError(driver.refuseClosed(), "write", subject: name) }
        try file.writeAll(bytes, written: &written)
    }

    /// Writes the UTF-8 of a string.
    /// - Note: parks
    public func writeAll(_ text: String) throws { try writeAll(Array(text.utf8)) }

    /// Writes the UTF-8 of a string, and tells how many bytes of it the kernel has, however the call ends.
    /// - Note: parks
    public func writeAll(_ text: String, written: inout Int) throws { try writeAll(Array(text.utf8), written: &written) }

    private func send(_ bytes: UnsafeRawBufferPointer, _ sent: inout Int) -> Int {
        requireOwnWorker()
        guard let start = bytes.baseAddress, bytes.count > 0 else { return descriptor.isOpen ? 0 : driver.refuseClosed() }
        return driver.writeAll(descriptor, start, bytes.count, kind: kind, sent: &sent)
    }

    private func requireOwnWorker() {
        let worker = Worker.here("a read or write")
        require(
            worker.driver === driver || !descriptor.isOpen,
            "\(worker.describeCaller()) used the stream \"\(name)\" (descriptor \(descriptor.number ?? -1)), which belongs to another worker: use a stream, and let go of it, in fibers of the worker that made it"
        )
    }

    // Ending.

    /// Closes the stream, as ``Endpoint/close()``; a descriptor that was adopted without being owned stays open under its own number.
    ///
    /// A file on a network file system may make it wait, and the worker with it; there, use ``File``, whose ``File/close()`` parks.
    public override func close() { end() }

    private func end() {
        driver.close(descriptor)
        _ = file?.file.close()
        SharedFlags.end(shared)
        shared = []
    }
}

/// Descriptors for a stream, with nobody to look after them yet.
struct Adopted: Sendable {
    /// Or a negative errno.
    var fd: Int32
    var kind: Int32
    /// What had to be made non-blocking for it.
    var shared: [SharedFlags] = []

    /// Takes `fd` over, also when it fails. May block.
    static func make(_ fd: Int32, isShared: Bool) -> Adopted {
        var adopted = Adopted(fd: fd, kind: cfiber_kind(fd))
        var status = min(adopted.kind, 0)
        if adopted.kind == CFIBER_KIND_FIFO || adopted.kind == CFIBER_KIND_OTHER {
            let own = isShared ? cfiber_reopen(fd, adopted.kind) : -1
            if own >= 0 {
                _ = cfiber_close(fd)
                adopted.fd = own
            } else {
                status = SharedFlags.makeNonBlocking(fd, restoring: isShared, &adopted.shared)
            }
        }
        if status < 0 {
            _ = cfiber_close(fd)
            adopted.fd = status
        }
        return adopted
    }

    func discard() {
        SharedFlags.end(shared)
        _ = cfiber_close(fd)
    }

    /// Closes a descriptor that nobody has taken.
    final class Ownership: Sendable {
        private let fd: OpenFile
        init(_ fd: Int32) { self.fd = OpenFile(fd) }
        func take() -> Int32? { fd.beginClosing() }
    }
}
