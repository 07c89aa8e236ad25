import CFiber

/// Stops the program because the programmer used the library in a way that cannot work; the message names the remedy.
///
/// Not `precondition`: that says nothing in release builds, which is where most programs run.
@inline(never)
@usableFromInline
package func misuse(_ message: String) -> Never {
    fatalError(message)
}

/// Stops the program with a message unless the condition holds.
@inline(__always)
@usableFromInline
package func require(_ condition: Bool, _ message: @autoclosure () -> String) {
    if _slowPath(!condition) { misuse(message()) }
}

/// Stops the program because a call that only fibers can make was made by a thread or a task. What is missing depends on whether fibers run somewhere in the process.
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
