// SPDX-License-Identifier: Apache-2.0

// Setting up and destroying a worker. On its own thread.

import CFiber
import Glibc

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Makes a worker for the calling thread.
    static func make(_ workers: WorkerSet, index: Int) throws(ResourceError) -> Worker {
        let worker = Worker.allocate(capacity: 1)
        do {
            try worker.setUp(workers, index)
        } catch {
            worker.deallocate()
            throw error
        }
        return worker
    }

    private func setUp(_ workers: WorkerSet, _ index: Int) throws(ResourceError) {
        let worker = self
        let settings = workers.settings
        let events = try settings.makeEvents(worker, index)
        var isSetUp = false
        // Nothing else would return the system resources of the event source.
        defer { if !isSetUp { events.stop() } }
        let inbox = Inbox(events.waker)
        let clock = events.clock
        guard let ready = ReadyQueue() else { throw .memory(ENOMEM, "making the ready queue", bytes: 512) }
        var overflowState: UnsafeMutableRawPointer?
        let status = cfiber_overflow_enter(&overflowState)
        if status < 0 {
            ready.destroy()
            throw .memory(-status, "mapping an alternate signal stack", bytes: 1 << 17)
        }
        let root = FiberPointer.allocate(capacity: 1)
        root.initialize(for: worker)
        worker.initialize(
            to: WorkerState(
                ready: ready, inbox: inbox, lentInbox: .passUnretained(inbox), events: events, lentEvents: events, clock: clock,
                pool: StackPool(stackSize: settings.stackSize, guards: settings.guards, trimInterval: settings.trimInterval),
                foresight: Foresight(root), numbers: NumberSource(seed: settings.randomSeed.map { $0 &+ UInt64(index) }),
                workers: workers, home: UnsafeRawPointer(Unmanaged.passUnretained(workers).toOpaque()), index: index,
                number: Holders.takeWorkerNumber(), root: root,
                overflowState: overflowState))
        isSetUp = true
        // Code on the thread's own stack holds locks under the identity of the thread.
        root.pointee.life = UInt64(Holder.caller)
        cfiber_thread_enter(root, worker)
    }

    /// Called on the worker's thread when no fiber of the runtime is left.
    func destroy() {
        let root = pointee.root
        pointee.events.stop()
        pointee.pool.destroy(abandoned: live > 0)
        pointee.timers.destroy()
        pointee.ready.destroy()
        pointee.foresight.destroy()
        cfiber_thread_leave(root)
        cfiber_overflow_leave(pointee.overflowState)
        deinitialize(count: 1)
        deallocate()
        root.destroy()
        root.deallocate()
    }
}
