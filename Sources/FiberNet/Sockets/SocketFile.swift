// SPDX-License-Identifier: Apache-2.0

// The file of a bound Unix socket, and its removal when the socket closes.
//
// Invariants:
//   * the file is identified by device, inode number and time of creation, read right after `bind`. Another file that has taken its path
//     since (a successor's socket, a regular file) differs in one of them and is left alone;
//   * the file is removed before the socket closes. The kernel keeps the inode of a bound socket until then, so no other file can have its
//     number. The number can be reused only if the runtime has already closed the socket. Then the time of creation tells the two files
//     apart if they were made in different ticks of the kernel's clock;
//   * the path is absolute where the working directory is known, so that a change of directory neither hides the file nor leads to another
//     one;
//   * the file is removed at most once.
// A file that takes the path in the few microseconds between `bind` and the identification is mistaken for the socket's own file. Linux
// reveals the file of a bound socket only by netlink, which sandboxes forbid, or to privileged processes.
// Any thread.

import CFiber
import Fibers
import Glibc
import Synchronization

final class SocketFile: Sendable {
    /// Terminated by a NUL. Bytes, since a path need not be UTF-8.
    private let path: [CChar]
    private let identity: cfiber_file_identity
    private let isRemoved = Atomic(false)

    private init(_ path: [CChar], _ identity: cfiber_file_identity) {
        self.path = path
        self.identity = identity
    }

    /// Binds a socket. Returns 0 or a negative errno, and the file if the address names one.
    static func bind(_ socket: Descriptor, of driver: Driver, to address: SocketAddress) -> (status: Int, file: SocketFile?) {
        let given = address.pathBytes.map { $0.map { CChar(truncatingIfNeeded: $0) } + [0] }
        // Before `bind`: if another thread changes the directory in between, the two names lead to different files, and none is removed.
        let path = given.map(absolute)
        let status = address.withSockaddr { name, length in driver.call(on: socket) { .bind($0, name, length) } }
        guard status == 0, let given, let path else { return (status, nil) }
        var identity = cfiber_file_identity()
        guard cfiber_identify(path, &identity) == 0, cfiber_names(given, &identity) != 0 else { return (0, nil) }
        return (0, SocketFile(path, identity))
    }

    /// Removes the file if it is still the file that was bound.
    func remove() {
        if isRemoved.exchange(true, ordering: .acquiringAndReleasing) { return }
        withUnsafePointer(to: identity) { cfiber_remove_file(path, $0) }
    }

    private static var slash: CChar { CChar(truncatingIfNeeded: UInt8(ascii: "/")) }

    private static func absolute(_ path: [CChar]) -> [CChar] {
        guard path.first != slash, let directory = getcwd(nil, 0) else { return path }
        defer { free(directory) }
        return Array(UnsafeBufferPointer(start: directory, count: strlen(directory))) + [slash] + path
    }
}
