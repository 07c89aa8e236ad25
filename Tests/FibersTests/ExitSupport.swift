// SPDX-License-Identifier: Apache-2.0

// What exit tests share. Functions, since closures in the arguments of `#expect` that itself stands in a closure are miscompiled by Swift 6.3.

import Testing

#if compiler(>=6.2)
    /// As `#expect`, to be used inside the body of an exit test.
    func expect(_ condition: Bool, _ comment: @autoclosure () -> String = "", sourceLocation: SourceLocation = #_sourceLocation) {
        if !condition { Issue.record("it is not so \(comment())", sourceLocation: sourceLocation) }
    }

    /// Expects words so many times on standard error of a process.
    func expectCount(of words: String, _ count: Int, _ result: ExitTest.Result?, sourceLocation: SourceLocation = #_sourceLocation) {
        guard let result else { return }
        let text = String(decoding: result.standardErrorContent, as: UTF8.self)
        #expect(text.ranges(of: words).count == count, "\(text)", sourceLocation: sourceLocation)
    }
#endif
