// Calls of the program's handlers (`onWarning`, `onUnhandledError`), in a fiber where there is one.
//
// Where there is none, because the runtime ends or the thread is none of its workers, a handler may not wait. A call that would says which handler made it. Any thread.

import CFiber

/// Calls a handler of the program. A cancellation of the fiber that has something to tell must not keep the handler from waiting for its log, so it is shielded.
func callHandler(_ name: StaticString, _ body: () -> Void) {
    if let worker = Worker.current, worker.running != worker.pointee.root { return withCancellationShield(body) }
    let outer = cfiber_handler()
    cfiber_set_handler(UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self))
    defer { cfiber_set_handler(outer) }
    body()
}

/// What a call says that needs a fiber and was made without one.
///
/// - Parameters:
///   - problem: what was done, up to and including "outside a fiber".
///   - remedy: what to do, unless a handler did it that has no choice where it runs.
func messageOutsideFibers(_ problem: String, _ remedy: String) -> String {
    guard let handler = cfiber_handler() else { return "\(problem): \(remedy)" }
    return
        "\(problem), in the \(String(cString: handler)) handler: at the end of a runtime no fiber is left to run it in, so let it only do there what never waits, such as to print"
}
