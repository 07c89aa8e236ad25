// SPDX-License-Identifier: Apache-2.0

// Who holds a lock, and what is known of it: fibers and plain threads by numbers that are unique in the process and never used again.
//
// Invariants:
//   * an address says nothing about who holds a lock, since records, stacks and threads are used again; a number does, for as long as the process runs;
//   * nothing here looks into a record of another worker. That worker is asked by a message, and answers if it is there;
//   * holders that will never unlock are noted: fibers that a runtime leaves behind, before their stacks are unmapped, and threads that end with a lock. So the wait for such a lock, which would
//     never end, stops the program with a message.
// Any thread, except where it says worker. Only rare paths come here: misuse, the end of a runtime, the first lock of a thread.

import CFiber
import Synchronization

/// Who holds a lock: a number, and below it two bits that say what it counts. 0 is nobody. The lowest bit is for the word that a lock stores it in.
typealias Holder = UInt

extension Holder {
    init(fiber id: UInt64) { self = UInt(id) &<< UInt(CFIBER_HOLDER_SHIFT) }

    /// The number of a fiber, its id; nil for a thread.
    var fiberID: UInt64? { self & UInt(CFIBER_HOLDER_KIND) == 0 ? UInt64(self &>> UInt(CFIBER_HOLDER_SHIFT)) : nil }

    /// The fiber or thread that calls. On a worker's own stack that is its thread.
    @inline(__always)
    static var caller: Holder {
        if let context = cfiber_current() { return UInt(context.pointee.life) }
        let thread = UInt(cfiber_thread_holder())
        return _fastPath(thread != 0) ? thread : Holders.numberThread()
    }
}

enum Holders {
    private struct Table {
        /// What workers are asked by, of each runtime that runs.
        var runtimes: [ObjectIdentifier: [Inbox]] = [:]
        /// Threads that have had to do with locks, by the kernel's numbers of them.
        var threads: [Holder: Int32] = [:]
        /// Holders that will never unlock what they hold, by name.
        var gone: [Holder: String] = [:]
    }

    private static let table = Guarded(Table())
    private static let nextThread = Atomic<UInt>(1)
    private static let nextWorker = Atomic<UInt64>(1)
    private static let nextBlock = Atomic<UInt64>(1)
    private static let goneCount = Atomic<Int>(0)

    /// How long a worker may take to tell the name of a fiber. It comes to its messages in less, unless it computes or is stuck.
    private static var patience: Int64 { 200_000_000 }

    // Numbers.

    /// The first of `count` fibers' ids; the first of all is 1.
    static func takeIDs(_ count: UInt64) -> UInt64 { nextBlock.add(count, ordering: .relaxed).oldValue }

    static func takeWorkerNumber() -> UInt64 { nextWorker.add(1, ordering: .relaxed).oldValue }

    /// The calling thread's number; it is given one when it asks first.
    @inline(never)
    static func numberThread() -> Holder {
        if cfiber_thread_holder() != 0 { return UInt(cfiber_thread_holder()) }
        let number = nextThread.add(1, ordering: .relaxed).oldValue
        let thread = number &<< UInt(CFIBER_HOLDER_SHIFT) | UInt(CFIBER_HOLDER_THREAD)
        table.withLock { $0.threads[thread] = cfiber_thread_id() }
        // Where that fails, the table keeps a thread that is gone.
        _ = cfiber_note_thread_end(UInt64(thread)) { thread, openLocks in Holders.noteThreadEnd(Holder(thread), openLocks) }
        return thread
    }

    private static func noteThreadEnd(_ thread: Holder, _ openLocks: Int) {
        if openLocks > 0 { noteGone([(thread, "\(describe(thread)), which has ended,")]) }
        table.withLock { $0.threads[thread] = nil }
    }

    // Runtimes.

    /// Whether fibers run in this process.
    static var isAnyRuntimeRunning: Bool { !table.value.runtimes.isEmpty }

    static func noteStart(of workers: WorkerSet, _ inboxes: [Inbox]) {
        table.withLock { $0.runtimes[ObjectIdentifier(workers)] = inboxes }
    }

    static func noteEnd(of workers: WorkerSet) {
        table.withLock { $0.runtimes[ObjectIdentifier(workers)] = nil }
    }

    /// Fibers that will never run again, before their records go. On their worker.
    static func noteLeftBehind(_ fibers: [FiberPointer]) {
        noteGone(fibers.map { (Holder(fiber: $0.id), "\($0.numberAndName), which was left behind when its runtime ended,") })
    }

    private static func noteGone(_ holders: [(Holder, name: String)]) {
        table.withLock { table in
            // Counted first: a caller that sees the count waits for the table.
            goneCount.add(holders.count, ordering: .releasing)
            for (holder, name) in holders { table.gone[holder] = name }
        }
    }

    // Names.

    /// The name of a holder that will never unlock what it holds; nil for all others.
    @inline(__always)
    static func nameIfGone(_ holder: Holder) -> String? {
        _fastPath(goneCount.load(ordering: .acquiring) == 0) ? nil : table.withLock { $0.gone[holder] }
    }

    /// Whom messages speak of: a fiber with its number and name, or a thread with the kernel's number and its name.
    static func describe(_ holder: Holder) -> String {
        if holder == 0 { return "nobody" }
        let (gone, thread) = table.withLock { ($0.gone[holder], $0.threads[holder]) }
        if let gone { return gone }
        guard let id = holder.fiberID else {
            guard let thread else { return "a thread that has ended" }
            return describeThread(thread) + " outside the runtime"
        }
        return "fiber #\(id)\(nameOfFiber(id).map { " \"\($0)\"" } ?? "")"
    }

    /// The fiber that runs, or the thread.
    static func describeCaller() -> String {
        if let fiber = Worker.current?.running, fiber.id != 0 { return fiber.numberAndName }
        return describe(.caller)
    }

    private static func describeThread(_ id: Int32) -> String { "thread \(id)\(quotedName(ofThread: id))" }

    /// The calling thread.
    static func describeThread() -> String { describeThread(cfiber_thread_id()) }

    private static func quotedName(ofThread id: Int32) -> String {
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: 16) { name in
            cfiber_thread_name(id, name.baseAddress)
            let text = String(cString: name.baseAddress.unsafelyUnwrapped)
            return text.isEmpty ? "" : " \"\(text)\""
        }
    }

    /// The name of a fiber of this worker, or of another one that is asked; nil where it has none, or no worker knows it.
    private static func nameOfFiber(_ id: UInt64) -> String? {
        if let name = Worker.current?.nameOfFiber(id) { return name }
        let own = Worker.current?.pointee.inbox
        let inboxes = table.value.runtimes.values.joined().filter { $0 !== own }
        let inquiry = Inquiry(of: inboxes.count)
        for inbox in inboxes { inbox.push(Message { worker, _ in inquiry.answer(worker.nameOfFiber(id)) }) }
        return inquiry.wait(until: cfiber_now() + patience)
    }
}

/// A question to several workers, of which one at most knows the answer.
private final class Inquiry: @unchecked Sendable {
    private let lock = ThreadLock()
    private let change: ThreadCondition
    private var missing: Int
    private var answer: String?

    init(of workers: Int) {
        missing = workers
        change = ThreadCondition(lock)
    }

    func answer(_ name: String?) {
        lock.withLock {
            missing -= 1
            answer = answer ?? name
            change.broadcast()
        }
    }

    func wait(until deadline: Int64) -> String? {
        lock.withLock {
            while answer == nil && missing > 0 && cfiber_now() < deadline { change.wait(until: deadline) }
            return answer
        }
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Nil where no fiber of the worker has that number, or it has no name. Owner worker only.
    ///
    /// - Complexity: linear in the number of stacks.
    fileprivate func nameOfFiber(_ id: UInt64) -> String? {
        var name: String?
        if !pointee.ending.isAbandoned { pointee.pool.forEachLive { if $0.id == id { name = $0.name } } }
        return name
    }
}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    /// The number of the fiber that lives here; 0 between lives, and for the root.
    @inline(__always)
    package var id: UInt64 { cfiber_id(self) }

    /// For messages. Its own worker only.
    var numberAndName: String { "fiber #\(id)\(name.map { " \"\($0)\"" } ?? "")" }
}
