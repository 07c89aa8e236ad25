// SPDX-License-Identifier: Apache-2.0

// Waiting for descriptors that belong to somebody else: the way to use a C client with a non-blocking interface from a fiber.

import CFiber
import Fibers
public import SystemPackage

/// Waits until a descriptor of anybody's is readable, at its end, or in error.
///
/// The descriptor may be anything that epoll takes: sockets, pipes, ttys, eventfds, inotify. Several fibers may wait for one descriptor, for reading and
/// for writing, and streams may use it, too. The caller still owns it.
///
/// Each wait takes a second descriptor for the same thing while it lasts. So one that is closed meanwhile stays open, for its peer too, until the wait ends, and closing it ends
/// no wait: cancel the fiber that waits, and then close it. Where the process has locked what it waits for by `F_SETLK`, closing that second one ends the lock, as closing any
/// does; files are waited for without one, and keep their locks.
///
/// - Throws: ``IOError`` with `unsupported` (a directory or a regular file, which is always ready), `resources` (no descriptor is left, for instance) or `system` (no such descriptor, or a negative
///   number); `CancellationError` or `TimeoutError` when the fiber is cancelled.
/// - Note: parks
public func waitReadable(_ descriptor: FileDescriptor) throws {
    try wait(descriptor, .read, "wait until readable")
}

/// Waits until a descriptor of anybody's is writable or in error; otherwise as ``waitReadable(_:)``.
/// - Note: parks
public func waitWritable(_ descriptor: FileDescriptor) throws {
    try wait(descriptor, .write, "wait until writable")
}

private func wait(_ descriptor: FileDescriptor, _ direction: Direction, _ operation: String) throws {
    let driver = Worker.here("waitReadable and waitWritable").driver
    let result = driver.wait(forDescriptor: descriptor.rawValue, direction)
    if result < 0 { throw failure(result, operation, subject: "descriptor \(descriptor.rawValue)") }
}
