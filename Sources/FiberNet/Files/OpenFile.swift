// A descriptor that threads of the blocking pool use while a fiber may close it.
//
// Invariants:
//   * the number is closed when nobody uses it: by `close`, or by the last use that was running then. So no call ever touches the number's next
//     owner;
//   * calls that use the position in the file have the turn, so that each is whole, and one that nobody waits for any more can be taken back.
// Any thread.

import CFiber
import Fibers
import Glibc

final class OpenFile: Sendable {
    private struct State {
        var fd: Int32
        var users = 0
        var isClosed = false
    }

    private let state: Guarded<State>
    /// Held on a thread of the pool, by a call that uses the position in the file.
    private let turn = ThreadLock()

    /// Takes `fd` over.
    init(_ fd: Int32) { state = Guarded(State(fd: fd)) }

    deinit { _ = close() }

    var isOpen: Bool { state.withLock { !$0.isClosed } }

    /// Lends the descriptor; nil when it is closed.
    func use<Result>(_ body: (Int32) -> Result) -> Result? {
        let fd = state.withLock { state -> Int32? in
            if state.isClosed { return nil }
            state.users += 1
            return state.fd
        }
        guard let fd else { return nil }
        let result = body(fd)
        let isLast = state.withLock { state in
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

    /// No use begins any more. Returns the number if the caller is to close it now, nil if that was or will be done by somebody else.
    func beginClosing() -> Int32? {
        state.withLock { state in
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
