// SPDX-License-Identifier: Apache-2.0

// A descriptor that threads of the blocking pool use while a fiber may close it.
//
// Invariants:
//   * the number is closed when nobody uses it: by `close`, or by the last use that was running then. So no call ever touches the number's next
//     owner;
//   * calls that use the position in the file have the turn, so that each is whole, and one that nobody waits for any more can be taken back;
//   * a call that changes the file, and whose fiber has gone on without it, is among the strays until it has ended, from before the fiber goes on. No
//     other that changes the file begins meanwhile. So the fiber's later calls are not undone by an earlier one.
// Any thread.

import CFiber
import Fibers
import Glibc

final class OpenFile: @unchecked Sendable {
    private struct State {
        var fd: Int32
        var users = 0
        var isClosed = false
        /// Calls that change the file and run.
        var changes: Set<ObjectIdentifier> = []
        /// Those among them whose fibers have gone on.
        var strays: Set<ObjectIdentifier> = []
        /// Tells that a stray has ended; made by the first that waits for it.
        var strayEnded: ThreadCondition?
    }

    private let lock = ThreadLock()
    private var state: State
    /// Held on a thread of the pool, by a call that uses the position in the file.
    private let turn = ThreadLock()

    /// Takes `fd` over.
    init(_ fd: Int32) { state = State(fd: fd) }

    deinit { _ = close() }

    var isOpen: Bool { lock.withLock { !state.isClosed } }

    /// Lends the descriptor; nil when it is closed.
    func use<Result>(_ body: (Int32) -> Result) -> Result? {
        let fd = lock.withLock { () -> Int32? in
            if state.isClosed { return nil }
            state.users += 1
            return state.fd
        }
        guard let fd else { return nil }
        let result = body(fd)
        let isLast = lock.withLock {
            state.users -= 1
            return state.isClosed && state.users == 0
        }
        if isLast { _ = cfiber_close(fd) }
        return result
    }

    /// The same, with the turn, unless the call's fiber has gone on meanwhile: then it is not made at all.
    func useInTurn<Value>(_ call: PoolCall<Value>, _ body: (Int32) -> Void, orClosed: () -> Void) {
        turn.withLock {
            if call.isWanted && use(body) == nil { orClosed() }
        }
    }

    /// The same for a call that changes the file.
    func change<Value>(_ call: PoolCall<Value>, _ body: (Int32) -> Void, orClosed: () -> Void) {
        let id = ObjectIdentifier(call)
        let begins = lock.withLock {
            waitForStrays()
            // Looked at with the lock held: from here on `abandon` finds it.
            if call.isWanted { state.changes.insert(id) }
            return state.changes.contains(id)
        }
        guard begins else { return }
        if use(body) == nil { orClosed() }
        lock.withLock {
            state.changes.remove(id)
            if state.strays.remove(id) != nil { state.strayEnded?.broadcast() }
        }
    }

    /// The same for one that also uses the position.
    func changeInTurn<Value>(_ call: PoolCall<Value>, _ body: (Int32) -> Void, orClosed: () -> Void) {
        turn.withLock { change(call, body, orClosed: orClosed) }
    }

    /// The fiber of a call goes on without it.
    func abandon<Value>(_ call: PoolCall<Value>) {
        lock.withLock {
            let id = ObjectIdentifier(call)
            if state.changes.contains(id) { state.strays.insert(id) }
        }
    }

    /// Waits until nothing is written any more for fibers that have gone on. Blocks.
    func settle() { lock.withLock { waitForStrays() } }

    /// With the lock held.
    private func waitForStrays() {
        while !state.strays.isEmpty {
            let ended = state.strayEnded ?? ThreadCondition(lock)
            state.strayEnded = ended
            ended.wait(until: .max)
        }
    }

    /// No use begins any more. Returns the number if the caller is to close it now, nil if that was or will be done by somebody else.
    func beginClosing() -> Int32? {
        lock.withLock {
            if state.isClosed { return nil }
            state.isClosed = true
            return state.users == 0 ? state.fd : nil
        }
    }

    /// 0 or a negative errno. May block.
    func close() -> Int32 {
        guard let fd = beginClosing() else { return 0 }
        return cfiber_close(fd)
    }
}
