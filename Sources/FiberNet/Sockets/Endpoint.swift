// SPDX-License-Identifier: Apache-2.0

// The common part of streams, listeners and datagram sockets: a descriptor, the driver that works on it, and closing.
//
// Invariants:
//   * the descriptor is open from `init` to `close`; `deinit` closes it at the latest, so none leaks;
//   * only fibers of the worker that made the object use it.

package import CFiber
package import Fibers
import Glibc
public import SystemPackage

/// A socket or another descriptor: the common base of streams, listeners and datagram sockets, which create it.
///
/// It belongs to the worker that made it, and only fibers of that worker may use it. It is closed by ``close()``, by the release of the
/// last reference, or at the end of its runtime, whichever comes first.
public class Endpoint {
    package final let driver: Driver
    package final let descriptor: Descriptor

    /// Takes ownership of `fd`, and closes it on failure.
    package init(_ fd: Int32, exact: Bool, driver: Driver, _ operation: String) throws(IOError) {
        guard let descriptor = driver.register(fd, exact: exact) else {
            _ = driver.call(.close(fd))
            throw IOError(-Int(ENOMEM), operation)
        }
        self.driver = driver
        self.descriptor = descriptor
        descriptor.noteUser(self)
    }

    deinit {
        driver.close(descriptor)
    }

    /// Closes the socket. Every fiber that waits on it throws an ``IOError`` with the code `closed` at once, and so does every later call.
    /// A second close does nothing.
    ///
    /// The kernel still delivers the written bytes, with one exception: if input has arrived that was not read, TCP resets the connection,
    /// and bytes in flight are lost. Where the peer may have sent more than was read, end the sending half by ``Connection/shutdown(_:)``,
    /// read to the end of the stream, and then close. A Unix stream delivers all written bytes; with unread input the peer gets `reset`
    /// instead of the end of the stream.
    ///
    /// Duplicates of the descriptor, in this process or in a child, stay open and are independent of this object from here on. The peer
    /// sees the end of the stream when the last of them is closed.
    public func close() {
        driver.close(descriptor)
    }

    /// Transfers ownership of the open descriptor to the caller; from here on this object is closed.
    func relinquish() throws(IOError) -> Int32 {
        let fd = try number("hand over")
        driver.release(descriptor)
        return fd
    }

    /// False once it has been closed on this side.
    public final var isOpen: Bool { descriptor.isOpen }

    /// Calls `body` with the descriptor, for system calls that this type does not offer. This object keeps ownership; the descriptor must
    /// stay non-blocking and must not be closed.
    ///
    /// After reading or writing by other means, wait with ``waitReadable()`` and ``waitWritable()``, which ask the kernel.
    public final func withFileDescriptor<R>(_ body: (FileDescriptor) throws -> R) throws -> R {
        try body(FileDescriptor(rawValue: try number("withFileDescriptor")))
    }

    /// Waits until a read would return at once with bytes, the end of the stream or an error, or until there is a connection to accept.
    /// - Throws: ``IOError`` with `closed`; `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public final func waitReadable() throws {
        let result = driver.wait(descriptor, .read)
        if result < 0 { throw failure(result, "wait until readable") }
    }

    /// Waits until a write would take at least some bytes or fail at once.
    /// - Throws: ``IOError`` with `closed`; `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public final func waitWritable() throws {
        let result = driver.wait(descriptor, .write)
        if result < 0 { throw failure(result, "wait until writable") }
    }

    /// Sets an option.
    public final func setOption(_ option: SocketOption<Bool>, to value: Bool) throws(IOError) {
        try setOption(SocketOption<Int>(level: option.level, name: option.name), to: value ? 1 : 0)
    }

    /// Sets an option.
    public final func setOption(_ option: SocketOption<Int>, to value: Int) throws(IOError) {
        guard let value = Int32(exactly: value) else { throw IOError(-Int(EINVAL), "setsockopt") }
        let status = driver.call(on: descriptor) { .setOption($0, level: option.level, name: option.name, value: value) }
        if status < 0 { throw IOError(status, "setsockopt") }
    }

    /// The value of an option.
    public final func option(_ option: SocketOption<Bool>) throws(IOError) -> Bool {
        try self.option(SocketOption<Int>(level: option.level, name: option.name)) != 0
    }

    /// The value of an option.
    public final func option(_ option: SocketOption<Int>) throws(IOError) -> Int {
        var value: Int32 = 0
        let status = withUnsafeMutablePointer(to: &value) { value in
            driver.call(on: descriptor) { .option($0, level: option.level, name: option.name, value) }
        }
        if status < 0 { throw IOError(status, "getsockopt") }
        return Int(value)
    }

    /// The address of this end, with the port that the system chose if it was bound to port 0.
    public final func localAddress() throws(IOError) -> SocketAddress {
        try address("getsockname") { .localAddress($0, $1, $2) }
    }

    package final func address(
        _ operation: String, _ call: (Int32, UnsafeMutablePointer<sockaddr_storage>, UnsafeMutablePointer<socklen_t>) -> SystemCall
    ) throws(IOError) -> SocketAddress {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let status = withUnsafeMutablePointer(to: &storage) { storage in
            withUnsafeMutablePointer(to: &length) { length in driver.call(on: descriptor) { call($0, storage, length) } }
        }
        if status < 0 { throw IOError(status, operation) }
        let address = withUnsafePointer(to: &storage) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { SocketAddress($0, length: length) }
        }
        guard let address else { throw IOError(.unsupported, operation: operation, subject: "address family \(storage.ss_family)") }
        return address
    }

    package final func number(_ operation: String) throws(IOError) -> Int32 {
        guard let number = descriptor.number else { throw IOError(IOCode.closed, operation) }
        return number
    }
}
