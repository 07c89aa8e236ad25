// Where other threads put fibers that they have woken, and the sleep protocol that makes sure that the worker looks.
//
// Invariants (all orders sequentially consistent):
//   * a worker announces `sleeping`, then looks into the inbox once more, then blocks;
//   * a sender pushes, then looks at `sleeping`; whoever turns it from true to false writes the eventfd, once.
// Either the worker sees the push or the sender sees the announcement, so no fiber stays in the inbox of a sleeping worker; and a worker
// that is awake costs its senders no system call.
//
// Thread rule: `push` any thread, the rest owner worker only. Senders hold a reference while they push: the fiber they sent may end
// its runtime before they are done.

import CFiber
import Synchronization

final class Inbox: @unchecked Sendable {
    /// A stack of claimed fibers, linked through their records, newest first.
    private let head = Atomic<UInt>(0)
    private let sleeping = Atomic<Bool>(false)
    /// An eventfd, watched by the worker's driver.
    let wakeDescriptor: Int32

    init() throws(ResourceError) {
        wakeDescriptor = cfiber_wake_create()
        if wakeDescriptor < 0 { throw .descriptors(-wakeDescriptor, "eventfd") }
    }

    deinit {
        if wakeDescriptor >= 0 { _ = cfiber_close(wakeDescriptor) }
    }

    /// Hands a claimed fiber to its worker. Lock-free.
    func push(_ fiber: FiberPointer) {
        var old = head.load(ordering: .relaxed)
        while true {
            fiber.next = FiberPointer(bitPattern: old)
            let (done, now) = head.compareExchange(expected: old, desired: UInt(bitPattern: fiber), ordering: .sequentiallyConsistent)
            if done { break }
            old = now
        }
        if sleeping.load(ordering: .sequentiallyConsistent), sleeping.exchange(false, ordering: .sequentiallyConsistent) {
            _ = cfiber_wake_send(wakeDescriptor)
        }
    }

    @inline(__always)
    var isEmpty: Bool { head.load(ordering: .relaxed) == 0 }

    /// Calls `body` with each fiber in the order in which they were pushed.
    @inline(never)
    func drain(_ body: (FiberPointer) -> Void) {
        var newest = FiberPointer(bitPattern: head.exchange(0, ordering: .sequentiallyConsistent))
        var oldest: FiberPointer?
        while let fiber = newest {
            newest = fiber.next
            fiber.next = oldest
            oldest = fiber
        }
        while let fiber = oldest {
            oldest = fiber.next
            body(fiber)
        }
    }

    /// Announces sleep. False when something has arrived, and then there is no sleep.
    func beginSleep() -> Bool {
        sleeping.store(true, ordering: .sequentiallyConsistent)
        if head.load(ordering: .sequentiallyConsistent) == 0 { return true }
        sleeping.store(false, ordering: .relaxed)
        return false
    }

    func endSleep() {
        // A sender that was faster has taken the flag down itself; its eventfd is then readable and drained as an event.
        sleeping.store(false, ordering: .relaxed)
    }
}
