// SPDX-License-Identifier: Apache-2.0

// Call budgets: how much a fiber may do without waiting before it must let other fibers run. So a fiber whose calls always succeed at once
// does not starve the others, and still notices its deadline. Owner worker only.

import CFiber

struct CallBudget: BitwiseCopyable {
    /// Remaining I/O operations that may succeed without a park before the fiber must let other fibers run.
    var operations = length
    /// Remaining calls on channels and locks that do not wait, before they count as one I/O operation: each takes a hundredth of the time.
    var calls = length
    /// The fiber whose calls were charged last.
    var caller: FiberPointer?

    static var length: Int32 { 32 }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Counts an operation that succeeded without parking. From time to time it lets the other fibers run, so that a busy socket does not
    /// starve them.
    @inline(__always)
    package func chargeOperation() {
        pointee.budget.operations &-= 1
        if _slowPath(pointee.budget.operations <= 0) {
            pointee.budget.operations = CallBudget.length
            // A handler that the root calls at the end of a runtime does not yield.
            if running == pointee.root { return }
            // A deadline must also end a fiber that never has to wait.
            _ = isCancelled
            if isPollDue { endTick() }
            yield()
        }
    }

    /// Takes one call from the budget of the running fiber. Returns false if the fiber must now let others run and check its deadline.
    @inline(__always)
    func spendsCall() -> Bool {
        // The budget is never less than 1, so comparing the rest with 0 saves a comparison.
        let left = pointee.budget.calls &- 1
        guard running.pointee.attention == 0 && left != 0 else { return false }
        pointee.budget.calls = left
        return true
    }

    /// Counts a call that never waits. From time to time it lets other fibers run, also in a cancelled fiber. On the worker's own stack,
    /// where some handlers run, it cannot yield and only counts.
    @inline(__always)
    func countTry() { if _slowPath(!spendsCall()) { countTrySlowly() } }

    @inline(never)
    private func countTrySlowly() { chargeCalls() }

    /// Charges a full budget of calls as one operation.
    @inline(__always)
    func chargeCalls() {
        pointee.budget.calls = CallBudget.length
        // Of two fibers that communicate, each has a budget of its own. With a shared budget, the receiver might always be the one that
        // yields, and the sender would get ever further ahead.
        if pointee.budget.caller != running {
            pointee.budget.caller = running
            pointee.budget.operations = CallBudget.length
        }
        chargeOperation()
    }
}
