// SPDX-License-Identifier: Apache-2.0

// Unix sockets whose paths are taken over by their successors while they close, from any worker.

import FiberNet
import Fibers
import Glibc

extension Account {
    static let takeovers = Account("paths of Unix sockets", "taken over", "still the successor's when all before it had closed")
}

extension Kind {
    /// Each successor takes the path as a program does that is started anew: it renames its own file over the old one, or removes that and binds. The old socket closes before,
    /// meanwhile or later, and must leave the successor's file alone.
    static let takingOver = Kind("taking-over", weight: 4, descriptors: 20, accounts: [.takeovers]) { job in
        let path = "/tmp/swift-fibers-stress-\(getpid())-\(job.serial)"
        // A file that was renamed is not removed by its owner.
        defer { unlink(path) }
        var owner = try job.owner(bindingTo: path)
        var closing: [FiberHandle<Void>] = []
        for generation in 1...job.random(1...3) {
            job.step("take a path over")
            let before = owner
            if job.chance(2) {
                let name = "\(path).\(generation)"
                owner = try job.owner(bindingTo: name)
                closing.append(try before.close(job))
                try job.pause()
                try Violation.unless(rename(name, path) == 0, "the file of a Unix socket cannot be renamed: error \(errno)")
            } else {
                owner = try job.owner(replacing: path)
                closing.append(try before.close(job))
            }
            Account.takeovers.left += 1
        }
        for ended in closing { try ended.join() }
        job.step("look for the last successor")
        var info = stat()
        try Violation.unless(lstat(path, &info) == 0, "the file of a Unix socket was removed by a socket before it")
        if owner.isStream {
            let client = try job.opened { try Connection.connect(to: .unix(path: path)) }
            job.close(client)
        }
        // Each listener but the last lost the path to its successor.
        Account.takeovers.right += closing.count
        try owner.close(job).join()
    }
}

/// A socket that has a file.
private struct Owner {
    let isStream: Bool
    /// Closes it in another fiber, after some time.
    let close: (Job) throws -> FiberHandle<Void>
}

extension Job {
    fileprivate func owner(bindingTo path: String) throws -> Owner {
        let address = try SocketAddress.unix(path: path)
        switch random(0...2) {
        case 0:
            let listener = try listen(on: address)
            return Owner(isStream: true) { job in
                try job.spawn { child in
                    try child.pause()
                    child.close(listener)
                }
            }
        case 1:
            let socket = try opened { try DatagramSocket.bind(to: address) }
            return Owner(isStream: false) { job in
                try job.spawn { child in
                    try child.pause()
                    child.close(socket)
                }
            }
        default:
            let server = try patiently { try TCPServer.bind(to: address) }
            Account.sockets.left += 1
            return Owner(isStream: true) { job in
                try job.spawn(on: job.somewhere()) { child in
                    try child.pause()
                    server.close()
                    Account.sockets.right += 1
                }
            }
        }
    }

    /// Takes the place of whatever is there.
    fileprivate func owner(replacing path: String) throws -> Owner {
        while true {
            unlink(path)
            // A socket that closes may have had the file in its hands, to look whose it is, and have put it back.
            do { return try owner(bindingTo: path) } catch let error as IOError where error.code == .addressInUse {
                Count.expectedErrors += 1
            }
        }
    }
}
