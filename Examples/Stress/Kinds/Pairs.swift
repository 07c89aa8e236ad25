// SPDX-License-Identifier: Apache-2.0

// Socket pairs: both ends in fibers of this job.

import FiberNet
import Fibers

extension Account {
    static let bytesPaired = Account("bytes through pairs", "written", "read")
    static let messages = Account("bytes of several writers", "reported as written", "read and in one piece")
}

extension Kind {
    /// Each end sends at its own pace and verifies what the other sends.
    static let pairs = Kind("pairs", weight: 10, descriptors: 2, accounts: [.bytesPaired]) { job in
        let (a, b) = try job.pair()
        let ends = try [a, b].map { stream in
            try job.spawn { end in
                let total = end.size(upTo: 300_000)
                let connection = Visit(isOrderly: false)
                let sender = try end.spawn { sender in
                    try sender.send(total, on: stream, connection)
                    try stream.shutdown(.write)
                    Account.bytesPaired.left += total
                }
                var received = 0
                while let count = try end.receive(on: stream, at: received) { received += count }
                Account.bytesPaired.right += received
                try sender.join()
            }
        }
        for end in ends { try end.join() }
        job.close(a, b)
    }

    /// Several fibers write one message each to one stream, some of them only for so long or until they are cancelled. The reader must find every message whole, or
    /// as much of it as its writer was told had gone, and none inside another.
    static let writers = Kind("writers", weight: 6, descriptors: 2, accounts: [.messages]) { job in
        let (a, b) = try job.pair()
        // Little room in the kernel and a slow reader, so that there is always somebody who waits for his turn.
        try a.setOption(.sendBufferSize, to: 8192)
        let count = job.random(2...6)
        var written = [Int](repeating: 0, count: count)
        let writers = try (0..<count).map { number in
            try job.spawn { writer in
                // The first byte of a message is its writer's number.
                let message = [UInt8(number)] + Pattern.bytes(UInt64(number), at: 0, count: writer.random(1...40_000))
                let timeout = writer.chance(2) ? Duration.microseconds(writer.random(0...5000)) : nil
                writer.step("write among others")
                do {
                    defer { Account.messages.left += written[number] }
                    try withTimeout(timeout) { try a.writeAll(message, written: &written[number]) }
                } catch is TimeoutError where timeout != nil {
                    Count.expectedErrors += 1
                } catch is CancellationError where Fiber.isCancelled {
                    Count.expectedErrors += 1
                }
            }
        }
        let reader = try job.spawn { reader in
            var bytes: [UInt8] = []
            while true {
                reader.step("read what several write")
                let some = try b.read(upTo: reader.random(1...60_000))
                if some.isEmpty { return bytes }
                bytes += some
                try Fiber.sleep(for: .microseconds(reader.random(0...2000)))
            }
        }
        while job.chance(2) {
            try Fiber.sleep(for: .microseconds(job.random(0...5000)))
            writers[job.random(0...count - 1)].cancel()
        }
        for writer in writers { try writer.join() }
        try a.shutdown(.write)
        let bytes = try reader.join()
        var position = 0
        while position < bytes.count {
            let number = Int(bytes[position])
            try Violation.unless(
                number < count && written[number] > 0, "at byte \(position) of \(bytes.count) no message begins that was written")
            let end = position + written[number]
            try Violation.unless(end <= bytes.count, "a message of \(written[number]) bytes ends after \(bytes.count - position)")
            let isWhole = bytes[(position + 1)..<end].withUnsafeBytes { Pattern.matches(UInt64(number), at: 0, $0) }
            try Violation.unless(isWhole, "the message of writer \(number) at byte \(position) is mixed with another")
            Account.messages.right += written[number]
            written[number] = 0
            position = end
        }
        job.close(a, b)
    }
}
