// SPDX-License-Identifier: Apache-2.0

import CFiber
import Fibers
import Glibc
import Synchronization

/// A regular file, a directory or a device that never waits, such as `/dev/null`: what has no readiness to wait for, so that threads kept for
/// blocking calls work on it and the fiber parks.
///
/// ```swift
/// let file = try File.open("/var/log/app.log", .readWrite, options: [.create, .append])
/// try file.writeAll("ready\n")
/// try file.sync()
/// try file.close()
/// ```
///
/// It may be used by fibers of all workers, several at a time. Calls that go on where the last one ended take turns; those with `at:` do not. A read
/// gives as many bytes as were asked for unless the file ends; a write writes all.
///
/// In a cancelled fiber each call throws at once. When the fiber is cancelled during a call, the call is taken back if it has not begun. A read that
/// runs takes no bytes: the position in the file is moved back behind it. A write that runs may still write what it has in hand, at most 1 MiB, and
/// no more; ``writeAll(_:written:)-([UInt8],_)`` tells how many bytes are written for certain. Writing, ``truncate(to:)`` and ``sync(dataOnly:)`` wait for
/// that before they begin, so that it never undoes what comes later; another `File`, of the same file, does not wait.
///
/// A file is closed by ``close()``, or when the last reference goes, on the thread where that happens; closing the last descriptor of a large deleted
/// file takes its time, so close it.
public final class File: Sendable {
    /// What may be done with it.
    public enum Access: Sendable {
        case read, write, readWrite
    }

    /// How it is opened.
    public struct Options: OptionSet, Sendable {
        public let rawValue: Int32
        public init(rawValue: Int32) { self.rawValue = rawValue }

        /// Make the file if it is not there (`O_CREAT`).
        public static let create = Options(rawValue: O_CREAT)
        /// With ``create``: it must not be there (`O_EXCL`).
        public static let exclusive = Options(rawValue: O_EXCL)
        /// Make it empty (`O_TRUNC`).
        public static let truncate = Options(rawValue: O_TRUNC)
        /// Each write goes to the end, wherever that is by then (`O_APPEND`).
        public static let append = Options(rawValue: O_APPEND)
        /// Refuse a symbolic link as the last part of the path (`O_NOFOLLOW`).
        public static let noFollow = Options(rawValue: O_NOFOLLOW)
    }

    let file: OpenFile
    /// Where it was opened, for messages.
    public let path: String

    /// Takes `fd` over.
    init(_ fd: Int32, path: String) {
        file = OpenFile(fd)
        self.path = path
    }

    /// Opens a file. Its descriptor is not inherited by child processes.
    ///
    /// FIFOs, sockets and terminals are refused with `unsupported`, since somebody else must do something before one of their calls ends: open them
    /// by ``DescriptorStream/open(_:_:)``. A FIFO is not even opened.
    ///
    /// When the fiber is cancelled meanwhile, the file may have been made; it is closed again.
    ///
    /// - Parameters:
    ///   - path: where it is; relative paths begin at the working directory of the process.
    ///   - access: what may be done with it.
    ///   - options: how it is opened; none for a file that must be there.
    ///   - permissions: of a file that is made, less the process's umask.
    /// - Throws: ``IOError`` with `notFound`, `exists`, `notPermitted`, `unsupported`, `resources` or `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public static func open(
        _ path: String, _ access: Access = .read, options: Options = [], permissions: UInt32 = 0o666
    ) throws -> File {
        let flags = options.rawValue | access.flags
        let opened = try Opened.perform("open", path, flags, permissions) { path, flags, permissions in
            // Opening a FIFO alone is noticed by who waits for a reader or a writer there.
            let kind = cfiber_path_kind(path)
            if kind == CFIBER_KIND_FIFO || kind == CFIBER_KIND_SOCKET { return Opened(result: Int32(IOCode.unsupported), kind: kind) }
            var opened = Opened.open(path, flags, permissions)
            if opened.result >= 0 && opened.kind != CFIBER_KIND_FILE {
                _ = cfiber_close(opened.result)
                opened.result = Int32(IOCode.unsupported)
            }
            return opened
        }
        if opened.result == Int32(IOCode.unsupported) {
            throw IOError(
                .unsupported, operation: "open",
                subject: "\(path) as a file, since it is a FIFO, a socket or a terminal; DescriptorStream.open or Connection.connect can:")
        }
        if opened.result < 0 { throw IOError(file: Int(opened.result), "open", path) }
        return File(opened.result, path: path)
    }

    /// False once it has been closed.
    public var isOpen: Bool { file.isOpen }

    // Reading.

    /// Reads on from the position, and moves it: `limit` bytes, fewer only at the end of the file, none behind it.
    /// - Throws: ``IOError`` with `closed`, `resources` (also where there is no memory for so many bytes) or `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled,
    ///   and then no byte is lost.
    /// - Note: parks
    public func read(upTo limit: Int) throws -> [UInt8] {
        try bytes(
            of: try PoolCall.perform("read", path) { [file] call in
                file.useInTurn(call) { fd in
                    let read = Transfer.read(fd, limit, at: nil)
                    if !call.deliver(read) && read.result > 0 { _ = cfiber_seek(fd, -Int64(read.result), SEEK_CUR) }
                } orClosed: {
                    _ = call.deliver(.closed)
                }
            })
    }

    /// Reads from an offset, without using the position; otherwise as ``read(upTo:)``.
    /// - Note: parks
    public func read(upTo limit: Int, at offset: Int) throws -> [UInt8] {
        require(offset >= 0, "File.read(upTo:at:) takes an offset from the beginning of the file, not \(offset)")
        return try bytes(
            of: try PoolCall.perform("read", path) { [file] call in
                _ = call.deliver(file.use { Transfer.read($0, limit, at: Int64(offset)) } ?? .closed)
            })
    }

    private func bytes(of transfer: Transfer) throws -> [UInt8] {
        if transfer.result < 0 { throw IOError(file: transfer.result, "read", path) }
        return transfer.bytes
    }

    /// The lines from the position on, each without its `\n`. See ``Lines``.
    /// - Parameter limit: bytes that a line may have, at least 1.
    public func lines(limit: Int = 1 << 20) -> Lines {
        Lines(of: path, limit: limit) { try self.read(upTo: $0) }
    }

    // Writing.

    /// Writes all bytes at the position, which it moves, or at the end with ``Options/append``.
    /// - Throws: ``IOError`` with `closed`, `resources` (also when the disk is full) or `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled. Some of the bytes may have been
    ///   written then: ``writeAll(_:written:)-([UInt8],_)`` tells how many.
    /// - Note: parks
    public func writeAll(_ bytes: [UInt8]) throws {
        var written = 0
        try writeAll(bytes, written: &written)
    }

    /// Writes all bytes at the position, and tells how many of them are written for certain, however the call ends.
    ///
    /// - Parameter written: set to the number of bytes, also when this throws. After a cancellation up to 1 MiB more may follow.
    /// - Throws: as ``writeAll(_:)-([UInt8])``.
    /// - Note: parks
    public func writeAll(_ bytes: [UInt8], written: inout Int) throws {
        written = 0
        try finish(
            try PoolCall.perform("write", path, changing: file, written: &written) { [file] call in
                file.changeInTurn(call) { fd in
                    _ = call.deliver(.write(fd, bytes, at: nil, for: call))
                } orClosed: {
                    _ = call.deliver(.closed)
                }
            }, &written)
    }

    /// Writes all bytes at an offset, without using the position; otherwise as `writeAll`. Not with ``Options/append``: Linux writes at the end
    /// then. What would lie behind the offset `Int.max` is refused as `system` (EFBIG).
    /// - Note: parks
    public func writeAll(_ bytes: [UInt8], at offset: Int) throws {
        var written = 0
        try writeAll(bytes, at: offset, written: &written)
    }

    /// Writes all bytes at an offset, and tells how many of them are written for certain, however the call ends; otherwise as ``writeAll(_:at:)``.
    /// - Note: parks
    public func writeAll(_ bytes: [UInt8], at offset: Int, written: inout Int) throws {
        require(offset >= 0, "File.writeAll(_:at:) takes an offset from the beginning of the file, not \(offset)")
        written = 0
        try finish(
            try PoolCall.perform("write", path, changing: file, written: &written) { [file] call in
                file.change(call) { fd in
                    _ = call.deliver(.write(fd, bytes, at: Int64(offset), for: call))
                } orClosed: {
                    _ = call.deliver(.closed)
                }
            }, &written)
    }

    /// Writes the UTF-8 of a string.
    /// - Note: parks
    public func writeAll(_ text: String) throws { try writeAll(Array(text.utf8)) }

    /// Writes the UTF-8 of a string, and tells how many bytes of it are written for certain, however the call ends.
    /// - Note: parks
    public func writeAll(_ text: String, written: inout Int) throws { try writeAll(Array(text.utf8), written: &written) }

    private func finish(_ transfer: Transfer, _ written: inout Int) throws {
        written = transfer.count
        if transfer.result < 0 { throw IOError(file: transfer.result, "write", path, bytesTransferred: transfer.count) }
    }

    // The rest.

    /// The length in bytes.
    /// - Note: parks
    public func size() throws -> Int { try number("fstat") { cfiber_file_size($0) } }

    /// Makes the file so many bytes long, by cutting it or by adding zeros. The position stays.
    /// - Note: parks
    public func truncate(to size: Int) throws {
        let result: Int32 = try PoolCall.perform("ftruncate", path, changing: file) { [file] call in
            file.change(call) { fd in
                _ = call.deliver(cfiber_truncate(fd, Int64(size)))
            } orClosed: {
                _ = call.deliver(Int32(IOCode.closed))
            }
        }
        if result < 0 { throw IOError(file: Int(result), "ftruncate", path) }
    }

    /// Waits until the disk has what was written.
    /// - Parameter dataOnly: not the times of the file and other things that reading it again does not need (`fdatasync`).
    /// - Note: parks
    public func sync(dataOnly: Bool = false) throws {
        _ = try number(dataOnly ? "fdatasync" : "fsync") { [file] fd in
            file.settle()
            return Int64(cfiber_sync(fd, dataOnly ? 1 : 0))
        }
    }

    /// Where ``read(upTo:)`` and `writeAll` go on, in bytes from the beginning.
    /// - Note: parks
    public func position() throws -> Int { try move("lseek", 0, SEEK_CUR) }

    /// Moves the position to so many bytes from the beginning.
    /// - Note: parks
    public func seek(to offset: Int) throws { _ = try move("lseek", Int64(offset), SEEK_SET) }

    /// Moves the position to the end, and returns it.
    /// - Note: parks
    @discardableResult
    public func seekToEnd() throws -> Int { try move("lseek", 0, SEEK_END) }

    private func move(_ operation: String, _ offset: Int64, _ whence: Int32) throws -> Int {
        let result: Int64 = try PoolCall.perform(operation, path) { [file] call in
            file.useInTurn(call) {
                _ = call.deliver(cfiber_seek($0, offset, whence))
            } orClosed: {
                _ = call.deliver(Int64(IOCode.closed))
            }
        }
        if result < 0 { throw IOError(file: Int(result), operation, path) }
        return Int(result)
    }

    private func number(_ operation: String, _ body: @escaping @Sendable (Int32) -> Int64) throws -> Int {
        let result: Int64 = try PoolCall.perform(operation, path) { [file] call in
            _ = call.deliver(file.use(body) ?? Int64(IOCode.closed))
        }
        if result < 0 { throw IOError(file: Int(result), operation, path) }
        return Int(result)
    }

    /// Closes the file. Calls that begin later throw `closed`; those that run end as if it were open. A second close does nothing.
    ///
    /// Where calls run, the last of them closes the descriptor, whose number nobody else gets before that, and this does not wait for it. Such a call may be a write that its
    /// cancelled fiber has left behind: ``sync(dataOnly:)`` before closing waits for that. What the kernel says of losses so late nobody hears.
    ///
    /// In a cancelled fiber, too, the file is closed, without an error, but on the worker's own thread.
    /// - Throws: ``IOError`` with `system` or `resources` when the kernel says only now that something that was written is lost (network file
    ///   systems, quotas).
    /// - Note: parks
    public func close() throws {
        // From here on nobody else closes the number.
        guard let fd = file.beginClosing() else { return }
        let isTaken = Once()
        let status: Int32
        do {
            status = try PoolCall.perform("close", path) { call in
                _ = call.deliver(isTaken.take() ? cfiber_close(fd) : 0)
            }
        } catch {
            // On its way, if it has begun.
            if isTaken.take() { _ = cfiber_close(fd) }
            return
        }
        if status < 0 { throw IOError(file: Int(status), "close", path) }
    }

    // Whole files.

    /// All bytes of a file.
    /// - Parameters:
    ///   - path: where it is.
    ///   - limit: bytes that it may have; a file with more throws `limitExceeded`.
    /// - Throws: as ``open(_:_:options:permissions:)`` and ``read(upTo:)``.
    /// - Note: parks
    public static func readAll(_ path: String, limit: Int = 1 << 30) throws -> [UInt8] {
        let file = try open(path)
        let result = Result { try file.read(upTo: limit < .max ? limit + 1 : limit) }
        // Nothing was written that could be lost.
        try? file.close()
        let bytes = try result.get()
        if bytes.count > limit {
            throw IOError(.limitExceeded, operation: "read", subject: "\(path), which has more than the \(limit) bytes that it may have")
        }
        return bytes
    }

    /// Makes a file of these bytes, in place of what it held if it was there. Readers may see it half written.
    /// - Throws: as ``open(_:_:options:permissions:)`` and `writeAll`.
    /// - Note: parks
    public static func write(_ bytes: [UInt8], to path: String, permissions: UInt32 = 0o666) throws {
        let file = try open(path, .write, options: [.create, .truncate], permissions: permissions)
        do { try file.writeAll(bytes) } catch {
            try? file.close()
            throw error
        }
        try file.close()
    }
}

extension File.Access {
    var flags: Int32 {
        switch self {
        case .read: O_RDONLY
        case .write: O_WRONLY
        case .readWrite: O_RDWR
        }
    }
}

/// True for the first who asks.
private final class Once: Sendable {
    private let isTaken = Atomic<Bool>(false)
    func take() -> Bool { !isTaken.exchange(true, ordering: .acquiringAndReleasing) }
}

/// A descriptor that was opened, or why it was not.
struct Opened: Sendable {
    /// The descriptor, a negative errno, or a code of `IOCode`.
    var result: Int32
    var kind: Int32

    static func open(_ path: String, _ flags: Int32, _ permissions: UInt32) -> Opened {
        var kind: Int32 = 0
        let fd = cfiber_open(path, flags, mode_t(permissions), &kind)
        return Opened(result: fd, kind: kind)
    }

    /// Opens on a thread of the pool. What is opened when nobody waits for it any more is closed.
    static func perform(
        _ operation: String, _ path: String, _ flags: Int32, _ permissions: UInt32,
        _ body: @escaping @Sendable (String, Int32, UInt32) -> Opened
    ) throws -> Opened {
        // The C library would take the part before it for the path.
        if path.utf8.contains(0) { throw IOError(-Int(EINVAL), operation, subject: "\(path.debugDescription), which has a NUL in it") }
        return try PoolCall.perform(operation, path) { call in
            guard call.isWanted else { return }
            let opened = body(path, flags, permissions)
            if !call.deliver(opened) && opened.result >= 0 { _ = cfiber_close(opened.result) }
        }
    }
}

/// What a read or a write has done, in memory of its own.
struct Transfer: Sendable {
    /// Bytes, a negative errno, or a code of `IOCode`.
    var result: Int
    /// What was read.
    var bytes: [UInt8] = []
    /// What was written.
    var count = 0

    static let closed = Transfer(result: IOCode.closed)
    private static var largestPiece: Int { 1 << 20 }

    /// Reads on until there are `limit` bytes or the end comes. An error after some bytes is left to the next call to find.
    static func read(_ fd: Int32, _ limit: Int, at offset: Int64?) -> Transfer {
        var read = Transfer(result: 0)
        // What is there is known of most files, so that memory is taken once; others, in /proc for instance, say 0.
        let start = Int(offset ?? max(0, cfiber_seek(fd, 0, SEEK_CUR)))
        let rest = max(0, Int(cfiber_file_size(fd)) - start)
        // A file ends at the largest offset, and the system refuses a call that would reach beyond it.
        let limit = min(limit, Int.max - start)
        // One more than there is, which finds the end, but not one more than an Int can count.
        var next = min(limit, max(rest < .max ? rest + 1 : rest, 4096))
        while read.result < limit && next > 0 {
            // Arrays end the program where memory is short.
            if !isThereMemory(for: next, besides: read.bytes) {
                if offset == nil { _ = cfiber_seek(fd, -Int64(read.result), SEEK_CUR) }
                return Transfer(result: -Int(ENOMEM))
            }
            var count = 0
            let piece = [UInt8](unsafeUninitializedCapacity: next) { buffer, initialized in
                while initialized < next {
                    count = cfiber_read_at(
                        fd, buffer.baseAddress! + initialized, next - initialized,
                        offset.map { $0 + Int64(read.result + initialized) } ?? -1)
                    if count <= 0 { return }
                    initialized += count
                }
            }
            if read.bytes.isEmpty { read.bytes = piece } else { read.bytes += piece }
            read.result += piece.count
            if count <= 0 {
                if count < 0 && read.result == 0 { read.result = count }
                return read
            }
            next = min(limit - read.result, largestPiece)
        }
        return read
    }

    /// False where the system has no memory for so many bytes more. Little is taken without asking.
    private static func isThereMemory(for count: Int, besides bytes: [UInt8]) -> Bool {
        let sum = bytes.count + count
        // An array that has to grow takes twice as much at least, besides what it has.
        let wanted = bytes.isEmpty ? count : bytes.capacity < sum ? max(sum, 2 * bytes.capacity) : 0
        return wanted < askedFrom || cfiber_has_memory(wanted) != 0
    }

    /// Bytes from which on memory is asked for before it is taken.
    private static var askedFrom: Int { 64 << 20 }

    static func write(_ fd: Int32, _ bytes: [UInt8], at offset: Int64?, for call: PoolCall<Transfer>) -> Transfer {
        var written = Transfer(result: 0)
        // The system refuses a call that would reach beyond the largest offset, also the part of it that would not.
        let room = offset.map { Int.max - Int($0) } ?? .max
        bytes.withUnsafeBytes { bytes in
            while written.count < bytes.count && call.isWanted {
                let piece = min(bytes.count - written.count, room - written.count, largestPiece)
                let n =
                    piece > 0
                    ? cfiber_write_at(fd, bytes.baseAddress! + written.count, piece, offset.map { $0 + Int64(written.count) } ?? -1)
                    : -Int(EFBIG)
                if n < 0 {
                    written.result = n
                    return
                }
                written.count += n
                call.progress.store(written.count, ordering: .releasing)
            }
        }
        return written
    }
}
