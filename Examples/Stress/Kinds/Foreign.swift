// SPDX-License-Identifier: Apache-2.0

// Descriptors that are not the runtime's: somebody else makes the system calls, fibers only wait.

import FiberNet
import Fibers
import Glibc
import SystemPackage

extension Account {
    static let foreignBytes = Account("bytes through foreign pipes", "written", "read")
}

extension Kind {
    static let foreign = Kind("foreign", weight: 6, descriptors: 2, accounts: [.foreignBytes]) { job in
        let (output, input) = try FileDescriptor.pipe()
        Account.sockets.left += 2
        for end in [output, input] { _ = fcntl(end.rawValue, F_SETFL, O_NONBLOCK) }
        let total = job.size(upTo: 300_000)
        let writer = try job.spawn { writer in
            var written = 0
            while written < total {
                writer.step("wait until a pipe is writable")
                try waitWritable(input)
                let bytes = Pattern.bytes(writer.serial, at: written, count: min(total - written, 60_000))
                let count = write(input.rawValue, bytes, bytes.count)
                try Violation.unless(count > 0, "a pipe that is writable takes nothing: \(errno)")
                written += count
                Account.foreignBytes.left += count
                try writer.pause()
            }
            try input.close()
            Account.sockets.right += 1
        }
        var buffer = [UInt8](repeating: 0, count: 20_000)
        var count = 0
        while true {
            job.step("wait until a pipe is readable")
            do { try withTimeout(.milliseconds(5)) { try waitReadable(output) } } catch is TimeoutError {
                Count.expectedErrors += 1
                continue
            }
            let n = read(output.rawValue, &buffer, buffer.count)
            try Violation.unless(n >= 0, "a pipe that is readable has nothing: \(errno)")
            if n == 0 { break }
            try Violation.unless(buffer[..<n].withUnsafeBytes { Pattern.matches(job.serial, at: count, $0) }, "wrong bytes in a pipe")
            count += n
            Account.foreignBytes.right += n
        }
        try Violation.unless(count == total, "\(count) bytes of \(total) came through a pipe")
        try writer.join()
        try output.close()
        Account.sockets.right += 1
    }
}
