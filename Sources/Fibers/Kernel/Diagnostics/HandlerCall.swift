// SPDX-License-Identifier: Apache-2.0

// Calls of the program's handlers (`onWarning`, `onUnhandledError`), in a fiber where there is one.
//
// Where there is none, because the runtime ends or the thread is none of its workers, a handler may not wait. A call that would says which handler made it. Any thread.

import CFiber

/// Calls a handler of the program. A cancellation of the fiber that has something to tell must not keep the handler from waiting for its log, so it is shielded.
func callHandler(_ name: StaticString, _ body: () -> Void) {
    if let worker = Worker.current, worker.running != worker.pointee.root { return worker.shielded(body) }
    let outer = cfiber_handler()
    cfiber_set_handler(UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self))
    defer { cfiber_set_handler(outer) }
    body()
}
