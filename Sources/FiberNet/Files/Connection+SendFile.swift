// SPDX-License-Identifier: Apache-2.0

// From a file to a connection without a copy in between: sendfile(2), which waits for the disk, so that a thread of the pool makes it, piece by
// piece; for the peer the fiber waits.
//
// Invariants:
//   * the thread has a descriptor of the socket of its own, so that a stream that is closed meanwhile leaves no number behind that another call uses;
//   * no piece is under way when the call ends: what went is known exactly, and what others write comes behind it. So a fiber that is cancelled
//     during a piece waits for its end, which the disk decides and not the peer.

import CFiber
import Fibers
import Glibc
import Synchronization

extension Connection {
    /// Sends a part of a file, in one piece: what other fibers write comes before or after. The position in the file is neither used nor moved.
    ///
    /// - Parameters:
    ///   - file: a regular file that may be read. One that Linux cannot send from directly, in `/proc` for instance, is read and written.
    ///   - range: which bytes of it, nil for all that it has when they are sent.
    /// - Returns: how many bytes went: fewer than the range has only when the file ends before.
    /// - Throws: ``IOError`` with `reset`, `closed`, `timedOut`, `resources`, `system`; `CancellationError` or `TimeoutError` when the fiber is cancelled. Some of the bytes may have been sent then:
    ///   ``send(_:range:written:)`` tells how many.
    /// - Note: parks
    @discardableResult
    public func send(_ file: File, range: Range<Int>? = nil) throws -> Int {
        var written = 0
        try send(file, range: range, written: &written)
        return written
    }

    /// Sends a part of a file, and tells how many bytes of it went, however the call ends; otherwise as ``send(_:range:)``.
    ///
    /// - Parameter written: set to the number of bytes, also when this throws.
    /// - Note: parks
    public func send(_ file: File, range: Range<Int>? = nil, written: inout Int) throws {
        written = 0
        let range = range ?? 0..<Int.max
        require(
            range.lowerBound >= 0,
            "Connection.send takes a range from the beginning of the file, not one that begins at \(range.lowerBound)"
        )
        let second = driver.call(on: descriptor) { .duplicate($0) }
        if second < 0 { throw failure(second, "sendfile", subject: file.path) }
        let socket = OpenFile(Int32(second))
        defer { _ = socket.close() }
        let turn = driver.beginSending(descriptor)
        if turn < 0 { throw failure(turn, "sendfile", subject: file.path) }
        defer { driver.endSending(descriptor) }
        var sent = 0
        var result = 0
        while result == 0 && sent < range.count {
            let (before, wanted) = (sent, min(range.count - sent, Self.pieceSize))
            defer { written = sent }
            let status = try piece(of: wanted, from: file.file, to: socket, at: range.lowerBound + sent, &sent, file.path)
            // What is short without an error ends where the file does.
            if status == 0 && (sent - before < wanted || sent == range.count) { return }
            if status == -Int(EAGAIN) {
                result = driver.wait(descriptor, .write)
            } else {
                result = status
            }
            if result == 0 && !descriptor.isOpen { result = IOCode.closed }
        }
        if result < 0 { throw failure(file: result, "sendfile", file.path, bytesTransferred: sent) }
    }

    /// How many bytes go before others hear of it. Short enough that a cancellation does not wait for long.
    private static var pieceSize: Int { 1 << 20 }

    /// Sends as much as the kernel takes now, and counts it, also when this throws. 0 or a negative errno; with 0 fewer than `size` only where the file ends.
    private func piece(
        of size: Int, from file: OpenFile, to socket: OpenFile, at offset: Int, _ sent: inout Int, _ path: String
    ) throws -> Int {
        let outcome = PieceOutcome()
        do {
            _ = try PoolCall<Int>.perform("sendfile", path) { call in
                outcome.run {
                    guard call.isWanted else { return (0, 0) }
                    let done = file.use { file in
                        socket.use { socket in
                            var count = 0
                            while count < size {
                                let n = cfiber_send_file(socket, file, Int64(offset + count), size - count)
                                if n <= 0 { return (count, n) }
                                count += n
                            }
                            return (count, 0)
                        } ?? (0, IOCode.closed)
                    }
                    return done ?? (0, IOCode.closed)
                }
                _ = call.deliver(0)
            }
        } catch {
            // What is under way goes on sending; when it has ended, so that nothing is mixed in, it is known how far it came.
            if outcome.hasBegun {
                withCancellationShield { _ = try? withBlockingThread(name: "sendfile") { outcome.waitForEnd() } }
                // Without a thread to wait on, the worker waits: a piece ends by itself.
                outcome.waitForEnd()
            }
            sent += outcome.value.0
            guard let error = error as? IOError else { throw error }
            throw IOError(error.code, errno: error.errno, operation: error.operation, subject: error.subject, bytesTransferred: sent)
        }
        let (count, status) = outcome.value
        sent += count
        return status
    }
}

/// What became of a piece, or will have.
private final class PieceOutcome: Sendable {
    private let begun = Atomic<Bool>(false)
    private let outcome = Guarded((0, 0))

    /// True from before the first byte goes.
    var hasBegun: Bool { begun.load(ordering: .sequentiallyConsistent) }
    var value: (Int, Int) { outcome.withLock { $0 } }

    /// The lock is held meanwhile, on a thread of the pool.
    func run(_ body: () -> (Int, Int)) {
        outcome.withLock { outcome in
            begun.store(true, ordering: .sequentiallyConsistent)
            outcome = body()
        }
    }

    func waitForEnd() { outcome.withLock { _ in } }
}
