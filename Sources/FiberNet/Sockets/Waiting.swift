// SPDX-License-Identifier: Apache-2.0

// Waiting for descriptors that other code owns, so that a fiber can use a C client with a non-blocking interface.

import CFiber
import Fibers
public import SystemPackage

/// Waits until a descriptor that other code owns is readable, at its end, or in error.
///
/// The descriptor may be of any kind that epoll accepts: sockets, pipes, ttys, eventfds, inotify. Several fibers may wait for one
/// descriptor, for reading and for writing, and streams may use it too. The caller keeps ownership.
///
/// Each wait holds a duplicate of the descriptor. If the descriptor is closed during the wait, the duplicate keeps the socket or pipe open,
/// for its peer too, until the wait ends, and the wait continues: cancel the waiting fiber, and then close the descriptor. If the process
/// has locked the object by `F_SETLK`, closing the duplicate releases the lock, as closing any descriptor for it does. Waits for files take
/// no duplicate, so files keep their locks.
///
/// - Throws: ``IOError`` with `unsupported` (a directory or a regular file, which is always ready), `resources` (no descriptor is left, for
///   instance) or `system` (no such descriptor, or a negative number); `CancellationError` or `TimeoutError` when the fiber is cancelled.
/// - Note: parks
public func waitReadable(_ descriptor: FileDescriptor) throws {
    try wait(descriptor, .read, "wait until readable")
}

/// Waits until a descriptor that other code owns is writable or in error; otherwise like ``waitReadable(_:)``.
/// - Note: parks
public func waitWritable(_ descriptor: FileDescriptor) throws {
    try wait(descriptor, .write, "wait until writable")
}

private func wait(_ descriptor: FileDescriptor, _ direction: Direction, _ operation: String) throws {
    let driver = Worker.here("waitReadable and waitWritable").driver
    let result = driver.wait(forDescriptor: descriptor.rawValue, direction)
    if result < 0 { throw failure(result, operation, subject: "descriptor \(descriptor.rawValue)") }
}
