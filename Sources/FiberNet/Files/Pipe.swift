// SPDX-License-Identifier: Apache-2.0

import CFiber
import Fibers
import Glibc

/// A pipe: what is written at one end is read at the other.
///
/// ```swift
/// let pipe = try Pipe.make()
/// try pipe.writer.writeAll("hello")
/// pipe.writer.close()
/// let text = try pipe.reader.read(upTo: 100)
/// ```
public struct Pipe {
    public let reader: DescriptorStream
    /// While it is open, reading waits for more; close it, or let go of it, to end the stream.
    public let writer: DescriptorStream

    /// Makes a pipe whose ends child processes do not inherit.
    /// - Throws: ``IOError`` with `resources`.
    public static func make() throws(IOError) -> Pipe {
        let driver = Worker.here("Pipe.make").driver
        let (reader, writer) = try driver.makePipe(readerBlocks: false, writerBlocks: false)
        let first: DescriptorStream
        do { first = try DescriptorStream(Adopted(fd: reader, kind: Int32(CFIBER_KIND_FIFO)), name: "pipe") } catch {
            _ = driver.call(.close(writer))
            throw error
        }
        return Pipe(reader: first, writer: try DescriptorStream(Adopted(fd: writer, kind: Int32(CFIBER_KIND_FIFO)), name: "pipe"))
    }
}

extension Driver {
    /// The two ends of a pipe.
    func makePipe(readerBlocks: Bool, writerBlocks: Bool) throws(IOError) -> (reader: Int32, writer: Int32) {
        var (reader, writer): (Int32, Int32) = (-1, -1)
        let status = withUnsafeMutablePointer(to: &reader) { reader in
            withUnsafeMutablePointer(to: &writer) {
                call(.pipe(reader, $0, readerNonBlocking: readerBlocks ? 0 : 1, writerNonBlocking: writerBlocks ? 0 : 1))
            }
        }
        if status < 0 { throw IOError(status, "pipe") }
        return (reader, writer)
    }
}

/// The process's standard input as a stream, whatever it is: a terminal, a pipe, a file, `/dev/null`.
///
/// ```swift
/// let lines = try StandardInput.open().lines()
/// while let line = try lines.next() { … }
/// ```
public enum StandardInput {
    /// Opens it, as ``DescriptorStream/adopt(_:closing:)`` without owning descriptor 0. Each call makes a stream of its own; what one reads no other
    /// does.
    ///
    /// A process that was started without standard input has `/dev/null` for it: reading finds the end.
    /// - Throws: ``IOError``; `system` when the program has closed it.
    /// - Note: parks
    public static func open() throws -> DescriptorStream {
        try DescriptorStream.adopt(STDIN_FILENO, closing: false, name: "standard input")
    }
}

/// The process's standard output as a stream, so that a reader who is slow, or a terminal that has been stopped, holds up a fiber and not the worker,
/// as `print` would.
public enum StandardOutput {
    /// Opens it, as ``DescriptorStream/adopt(_:closing:)`` without owning descriptor 1. What `print` has in its buffer is not ordered with what is
    /// written here.
    ///
    /// A process that was started without standard output has `/dev/null` for it.
    /// - Throws: ``IOError``; `system` when the program has closed it.
    /// - Note: parks
    public static func open() throws -> DescriptorStream {
        try DescriptorStream.adopt(STDOUT_FILENO, closing: false, name: "standard output")
    }
}
