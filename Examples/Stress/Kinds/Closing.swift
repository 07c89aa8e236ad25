// SPDX-License-Identifier: Apache-2.0

// Sockets that are closed, or let go of, while others wait on them.

import FiberNet
import Fibers

extension Account {
    static let waits = Account("waits on sockets that were closed", "begun", "ended by the close")
}

extension Kind {
    static let closing = Kind("closing", weight: 6, descriptors: 3, accounts: [.waits]) { job in
        let (stream, peer) = try job.pair()
        let listener = try job.listen(on: .loopback(port: 0))
        let waits: [@Sendable (Job, Connection, Listener) throws -> Void] = [
            { _, stream, _ in _ = try stream.read(upTo: 10) },
            { _, stream, _ in while try stream.readAvailable({ _ in }) {} },
            { _, stream, _ in try stream.waitReadable() },
            // More than the kernel takes while nobody reads.
            { _, stream, _ in try stream.writeAll([UInt8](repeating: 0, count: 2_000_000)) },
            { _, stream, _ in try stream.writeAll(pieces: [[1], [UInt8](repeating: 0, count: 1_000_000)]) },
            { _, _, listener in _ = try listener.accept() },
            { _, _, listener in try listener.waitReadable() },
        ]
        let waiters = try (0..<job.random(1...6)).map { _ in
            let wait = waits[job.random(0...waits.count - 1)]
            return try job.spawn { child in
                Account.waits.left += 1
                try child.expect(.closed, "wait for what will be closed") { try wait(child, stream, listener) }
                Account.waits.right += 1
            }
        }
        try job.pause()
        job.step("close under those who wait")
        job.close(stream, listener)
        for waiter in waiters { try waiter.join() }
        try job.expect(.closed, "read after close") { _ = try stream.read(upTo: 1) }
        // The other end is left to its deinit.
        withExtendedLifetime(peer) { Account.sockets.right += 1 }
    }
}
