// SPDX-License-Identifier: Apache-2.0

// Calls the program's handlers (`onWarning`, `onUnhandledError`), in a fiber if possible.
//
// Outside a fiber, because the runtime is ending or the thread is not one of its workers, a handler must not wait. A waiting call then
// stops the program with a message that names the handler. Any thread.

import CFiber

/// Calls a handler of the program. The call is shielded: a cancellation of the reporting fiber must not end the handler's own waits, for
/// example for its log.
func callHandler(_ name: StaticString, _ body: () -> Void) {
    if let worker = Worker.current, worker.running != worker.pointee.root { return worker.shielded(body) }
    let outer = cfiber_handler()
    cfiber_set_handler(UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self))
    defer { cfiber_set_handler(outer) }
    body()
}
