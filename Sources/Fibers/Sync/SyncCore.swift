// What all locks and their like have in common: how their calls begin and end, and whom they name in their messages. One worker, or any thread: see `WaitPoint`.

import CFiber
import Glibc

/// Who holds a lock: a fiber, by the address of its context, or a plain thread, by its id. Bit 1 says which, bit 0 is for whoever stores it.
typealias Holder = UInt

@usableFromInline
class SyncCore: WaitPoint, @unchecked Sendable {
    private static var threadBit: Holder { 2 }
    private static var addressBits: Holder { ~3 }

    /// The caller.
    @inline(__always)
    static var caller: Holder {
        if let context = cfiber_current() { return UInt(bitPattern: context) }
        return UInt(pthread_self()) | threadBit
    }

    /// For messages: the fiber with its id and name, or that it is a thread. A fiber of another worker must be kept from going on meanwhile.
    static func describe(_ holder: Holder) -> String {
        if holder & threadBit != 0 { return "a thread outside the runtime" }
        guard let context = UnsafeMutablePointer<cfiber_context>(bitPattern: holder & addressBits) else { return "nobody" }
        let fiber = FiberPointer(context: context)
        let id = fiber.pointee.context.id
        if id == 0 { return "a fiber that has ended" }
        return "fiber #\(id)\(fiber.name.map { " \"\($0)\"" } ?? "")"
    }

    /// What a call that may wait does first: a cancelled fiber is refused, and one that has not had to wait for long lets others run. It does so now and not when the call has succeeded, so that
    /// those others find nothing taken by a fiber that only waits for its next turn.
    @inline(__always)
    final func beginCall() throws {
        if _slowPath(!spendsCall()) { try beginCallSlowly() }
    }

    /// Takes one from the calls that the running fiber may make before it must look about itself; false when it must now, or is a thread.
    @inline(__always)
    final func spendsCall() -> Bool {
        guard let worker = Worker.current, worker.running.pointee.attention == 0 && worker.pointee.callBudget > 1 else { return false }
        worker.pointee.callBudget &-= 1
        return true
    }

    @inline(never)
    private final func beginCallSlowly() throws {
        guard let worker = Worker.current else { return requireWorker() }
        worker.pointee.callBudget = Worker.callBudgetLength
        worker.chargeOperation()
        try worker.refuseIfCancelled()
    }

    /// For calls that never wait.
    @inline(__always)
    final func requireWorker() {
        require(
            isShared || Worker.current != nil,
            "a Local… thing was used on a thread without fibers: use the one without Local, which is for all threads")
    }

    /// Throws what a wait that did not end well says.
    @inline(__always)
    final func check(_ outcome: Outcome) throws {
        if _slowPath(outcome != .ready), let worker = Worker.current { try worker.check(outcome) }
    }

    /// Nobody stands in line, for tests.
    package final var isLineEmpty: Bool { withLock { first.pointee.isEmpty } }
}
