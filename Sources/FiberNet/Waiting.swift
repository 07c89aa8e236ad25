// Waiting for descriptors that belong to somebody else: the way to use a C client with a non-blocking interface from a fiber.

import CFiber
import Fibers
public import SystemPackage

/// Waits until a descriptor of anybody's is readable, at its end, or in error.
///
/// The descriptor may be anything that epoll takes: sockets, pipes, ttys, eventfds, inotify. Several fibers may wait for one descriptor, for reading and
/// for writing; nobody may close it meanwhile.
///
/// - Throws: ``IOError`` with `timedOut`, `unsupported` (a regular file, which is always ready), `resources` or `system`.
/// - Note: parks
public func waitReadable(_ descriptor: FileDescriptor, timeout: Duration? = nil) throws(IOError) {
    try wait(descriptor, .read, timeout, "wait until readable")
}

/// Waits until a descriptor of anybody's is writable or in error; otherwise as ``waitReadable(_:timeout:)``.
/// - Note: parks
public func waitWritable(_ descriptor: FileDescriptor, timeout: Duration? = nil) throws(IOError) {
    try wait(descriptor, .write, timeout, "wait until writable")
}

private func wait(_ descriptor: FileDescriptor, _ direction: Direction, _ timeout: Duration?, _ operation: String) throws(IOError) {
    let driver = Worker.here("waitReadable and waitWritable").pointee.driver
    guard let registered = driver.register(descriptor.rawValue, exact: true) else {
        throw IOError(-Int(Errno.noMemory.rawValue), operation, subject: "descriptor \(descriptor.rawValue)")
    }
    let deadline = Deadline.after(timeout)
    var result = driver.wait(registered, direction, until: deadline)
    driver.release(registered)
    if result == -Int(Errno.fileExists.rawValue) {
        // Somebody else waits for it too, and epoll takes a number once: a second number for the same thing does.
        let second = cfiber_duplicate(descriptor.rawValue)
        if second < 0 { throw IOError(Int(second), operation, subject: "descriptor \(descriptor.rawValue)") }
        guard let again = driver.register(second, exact: true) else {
            _ = cfiber_close(second)
            throw IOError(-Int(Errno.noMemory.rawValue), operation, subject: "descriptor \(descriptor.rawValue)")
        }
        result = driver.wait(again, direction, until: deadline)
        // Closing alone would not end the registration, since the thing stays open under its first number.
        driver.release(again)
        _ = cfiber_close(second)
    }
    if result < 0 { throw IOError(result, operation, subject: "descriptor \(descriptor.rawValue)") }
}
