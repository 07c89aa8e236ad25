// SPDX-License-Identifier: Apache-2.0

import Fibers

/// The lines of a file or a stream, one after the other.
///
/// ```swift
/// let lines = file.lines()
/// while let line = try lines.next() { … }
/// ```
///
/// A line ends at `\n`, which is not part of it; a `\r` before it is. The last one may end with the file instead; an empty line behind the last `\n`
/// is none. Bytes that are no UTF-8 become U+FFFD in ``next()``; ``nextBytes()`` leaves them as they are.
///
/// It reads ahead, so use the file or stream by nothing else meanwhile. It belongs to the worker that made it.
public final class Lines {
    private let subject: String
    private let limit: Int
    private let read: (Int) throws -> [UInt8]
    private var buffer: [UInt8] = []
    /// Where the next line begins in the buffer.
    private var start = 0
    /// Up to where it has been searched for the line's end.
    private var searched = 0
    private var isAtEnd = false
    private var count = 0
    private var failure: IOError?

    /// - Parameter read: gives some bytes, at most so many, and none at the end.
    init(of subject: String, limit: Int, _ read: @escaping (Int) throws -> [UInt8]) {
        require(limit >= 1, "lines(limit:) takes at least 1 byte for a line, not \(limit)")
        self.subject = subject
        self.limit = limit
        self.read = read
    }

    /// The next line as text; nil behind the last one.
    ///
    /// - Throws: ``IOError`` with `limitExceeded` when a line is longer than the limit, and then for each later call, too; otherwise what reading
    ///   throws, and then no bytes are lost: a later call goes on.
    /// - Note: parks
    public func next() throws -> String? {
        guard let line = try nextBytes() else { return nil }
        return String(decoding: line, as: UTF8.self)
    }

    /// The next line as it is; otherwise as ``next()``.
    /// - Note: parks
    public func nextBytes() throws -> [UInt8]? {
        if let failure { throw failure }
        // Lines that are in the buffer need no wait, and many of them must neither starve others nor outlast a cancellation.
        let worker = Worker.here("Lines.next()")
        if worker.refusesOperation() { throw worker.running.cancellation }
        worker.chargeOperation()
        while true {
            if let end = buffer[searched...].firstIndex(of: UInt8(ascii: "\n")) {
                if end - start > limit { throw tooLong() }
                return take(to: end, skipping: 1)
            }
            searched = buffer.count
            // Without its end it may be one byte longer: that byte may be the end.
            if searched - start > limit { throw tooLong() }
            if isAtEnd { return searched > start ? take(to: searched, skipping: 0) : nil }
            buffer.removeSubrange(..<start)
            searched -= start
            start = 0
            let more = try read(64 * 1024)
            if more.isEmpty { isAtEnd = true } else { buffer += more }
        }
    }

    private func take(to end: Int, skipping: Int) -> [UInt8] {
        let line = Array(buffer[start..<end])
        start = end + skipping
        searched = start
        count += 1
        return line
    }

    private func tooLong() -> IOError {
        let error = IOError(
            .limitExceeded, operation: "read a line of", subject: "\(subject): line \(count + 1) is longer than \(limit) bytes")
        failure = error
        buffer = []
        return error
    }
}
