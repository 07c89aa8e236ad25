// SPDX-License-Identifier: Apache-2.0

// Messages for calls that need a fiber but are made outside one. Any thread.

import CFiber

/// Stops the program because a thread or a task made a call that only fibers can make. The message depends on whether any runtime is
/// running in the process.
@inline(never)
func stopOutsideFibers(_ call: String) -> Never {
    if cfiber_handler() != nil || !Holders.isAnyRuntimeRunning {
        misuse(messageOutsideFibers("\(call) was called outside a fiber", "wrap the program in FiberRuntime.run { … }"))
    }
    let isInTask = withUnsafeCurrentTask { $0 != nil }
    let place = isInTask ? "in a task of Swift concurrency" : "on \(Holders.describeThread())"
    misuse(
        "\(call) was called outside a fiber, \(place), while a FiberRuntime runs on other threads: only its fibers can make this call. Make it in a fiber, and let the \(isInTask ? "task" : "thread") talk to that by what works anywhere: makeChannel, makeOneShot, FiberEvent, FiberMutex"
    )
}

/// The message for a call that needs a fiber but was made outside one.
///
/// - Parameters:
///   - problem: what was done, up to and including "outside a fiber".
///   - remedy: what to do instead. A handler gets other advice, because it cannot choose where it runs.
func messageOutsideFibers(_ problem: String, _ remedy: String) -> String {
    guard let handler = cfiber_handler() else { return "\(problem): \(remedy)" }
    return
        "\(problem), in the \(String(cString: handler)) handler: at the end of a runtime no fiber is left to run it in, so let it only do there what never waits, such as to print"
}
