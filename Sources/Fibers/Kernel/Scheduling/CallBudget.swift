// SPDX-License-Identifier: Apache-2.0

// What fibers may do without waiting before they must let others run: so one that always finds what it asks for starves nobody, and meets its deadline. Owner worker only.

import CFiber

struct CallBudget: BitwiseCopyable {
    /// Successful I/O without a park left before the fiber must let others run.
    var operations = length
    /// Calls on channels, locks and their like that did not wait, left before they count as one of these operations: they take a hundredth of the time.
    var calls = length
    /// The fiber whose calls were counted last.
    var caller: FiberPointer?

    static var length: Int32 { 32 }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Counts an operation that succeeded without parking; now and then lets the others run, so that one busy socket starves nobody.
    @inline(__always)
    package func chargeOperation() {
        pointee.budget.operations &-= 1
        if _slowPath(pointee.budget.operations <= 0) {
            pointee.budget.operations = CallBudget.length
            // A handler that the root calls, at the end of a runtime, makes way for nobody.
            if running == pointee.root { return }
            // A deadline must come to a fiber that never has to wait, too.
            _ = isCancelled
            if isPollDue { endTick() }
            yield()
        }
    }

    /// Takes one from the calls that the running fiber may make before it must let others run and look at its deadline; false when that is due.
    @inline(__always)
    func spendsCall() -> Bool {
        // The budget is never less than 1, and to compare what is left with 0 saves a comparison.
        let left = pointee.budget.calls &- 1
        guard running.pointee.attention == 0 && left != 0 else { return false }
        pointee.budget.calls = left
        return true
    }

    /// Counts a call that never waits, which now and then lets others run, also in a cancelled fiber. On the worker's own stack, where some handlers run, nothing can let others run, and it only counts.
    @inline(__always)
    func countTry() { if _slowPath(!spendsCall()) { countTrySlowly() } }

    @inline(never)
    private func countTrySlowly() { chargeCalls() }

    /// Counts a budget of calls as one operation.
    @inline(__always)
    func chargeCalls() {
        pointee.budget.calls = CallBudget.length
        // Of two that talk, each has a budget of its own: else it might always be the receiver who lets the others run, and the sender be ahead of it without end.
        if pointee.budget.caller != running {
            pointee.budget.caller = running
            pointee.budget.operations = CallBudget.length
        }
        chargeOperation()
    }
}
