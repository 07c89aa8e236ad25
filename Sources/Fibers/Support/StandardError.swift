// SPDX-License-Identifier: Apache-2.0

import Glibc

/// Writes one line to standard error in one system call, so that the lines of several threads are not mixed.
@usableFromInline
func printLineToStandardError(_ text: String) {
    var line = String(decoding: text.utf8.map { $0 == 10 || $0 == 13 ? 32 : $0 } + [10], as: UTF8.self)
    line.withUTF8 { bytes in
        var written = 0
        while written < bytes.count {
            let count = write(STDERR_FILENO, bytes.baseAddress.unsafelyUnwrapped + written, bytes.count - written)
            // A signal may interrupt a write to a full pipe, before it begins or in the middle.
            if count == 0 || count < 0 && errno != EINTR { return }
            written += max(count, 0)
        }
    }
}
