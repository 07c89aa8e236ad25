// SPDX-License-Identifier: Apache-2.0

// Identities of lock holders, and the information kept about them: fibers and plain threads by numbers that are unique in the process and
// never reused.
//
// Invariants:
//   * an address does not identify the holder of a lock, because records, stacks and threads are reused. A number does, for as long as the
//     process runs;
//   * nothing here reads a record of another worker. That worker is asked by a message, and answers if it is running;
//   * holders that will never unlock are recorded: fibers that a runtime abandons, before their stacks are unmapped, and threads that end
//     while they hold a lock. A wait for such a lock would never end, so it stops the program with a message instead.
// Any thread, except where a comment says worker. Only rare paths come here: misuse, the end of a runtime, the first lock of a thread.

import CFiber
import Synchronization

/// The holder of a lock: a number, with two bits below it that say what it counts. 0 means no holder. The lowest bit is free for the word
/// in which a lock stores the holder.
typealias Holder = UInt

extension Holder {
    init(fiber id: UInt64) { self = UInt(id) &<< UInt(CFIBER_HOLDER_SHIFT) }

    /// The id of a fiber; nil for a thread.
    var fiberID: UInt64? { self & UInt(CFIBER_HOLDER_KIND) == 0 ? UInt64(self &>> UInt(CFIBER_HOLDER_SHIFT)) : nil }

    /// The calling fiber or thread. On a worker's own stack it is the thread.
    @inline(__always)
    static var caller: Holder {
        if let context = cfiber_current() { return UInt(context.pointee.life) }
        let thread = UInt(cfiber_thread_holder())
        return _fastPath(thread != 0) ? thread : Holders.numberThread()
    }
}

enum Holders {
    private struct Table {
        /// The inboxes of the workers of each running runtime.
        var runtimes: [ObjectIdentifier: [Inbox]] = [:]
        /// Threads that have used locks, with their kernel thread ids.
        var threads: [Holder: Int32] = [:]
        /// Holders that will never unlock what they hold, with their names.
        var gone: [Holder: String] = [:]
    }

    private static let table = Guarded(Table())
    private static let nextThread = Atomic<UInt>(1)
    private static let nextWorker = Atomic<UInt64>(1)
    private static let nextBlock = Atomic<UInt64>(1)
    private static let goneCount = Atomic<Int>(0)

    /// How long to wait for a worker to report the name of a fiber. A worker reads its messages sooner than that, unless it computes or is
    /// stuck.
    private static var patience: Int64 { 200_000_000 }

    // Numbers.

    /// The first of `count` consecutive fiber ids. Ids start at 1.
    static func takeIDs(_ count: UInt64) -> UInt64 { nextBlock.add(count, ordering: .relaxed).oldValue }

    static func takeWorkerNumber() -> UInt64 { nextWorker.add(1, ordering: .relaxed).oldValue }

    /// The calling thread's number, assigned by the first call.
    @inline(never)
    static func numberThread() -> Holder {
        if cfiber_thread_holder() != 0 { return UInt(cfiber_thread_holder()) }
        let number = nextThread.add(1, ordering: .relaxed).oldValue
        let thread = number &<< UInt(CFIBER_HOLDER_SHIFT) | UInt(CFIBER_HOLDER_THREAD)
        table.withLock { $0.threads[thread] = cfiber_thread_id() }
        // If that fails, the table keeps an entry for a thread that has ended.
        _ = cfiber_note_thread_end(UInt64(thread)) { thread, openLocks in Holders.noteThreadEnd(Holder(thread), openLocks) }
        return thread
    }

    private static func noteThreadEnd(_ thread: Holder, _ openLocks: Int) {
        if openLocks > 0 { noteGone([(thread, "\(describe(thread)), which has ended,")]) }
        table.withLock { $0.threads[thread] = nil }
    }

    // Runtimes.

    /// Whether a runtime is running in this process.
    static var isAnyRuntimeRunning: Bool { !table.value.runtimes.isEmpty }

    static func noteStart(of workers: WorkerSet, _ inboxes: [Inbox]) {
        table.withLock { $0.runtimes[ObjectIdentifier(workers)] = inboxes }
    }

    static func noteEnd(of workers: WorkerSet) {
        table.withLock { $0.runtimes[ObjectIdentifier(workers)] = nil }
    }

    /// Records fibers that will never run again, before their records are destroyed. On their worker.
    static func noteLeftBehind(_ fibers: [FiberPointer]) {
        noteGone(fibers.map { (Holder(fiber: $0.id), "\($0.numberAndName), which was left behind when its runtime ended,") })
    }

    private static func noteGone(_ holders: [(Holder, name: String)]) {
        table.withLock { table in
            // Counted first: a caller that sees the new count then waits for the lock, and finds the entries.
            goneCount.add(holders.count, ordering: .releasing)
            for (holder, name) in holders { table.gone[holder] = name }
        }
    }

    // Names.

    /// The name of a holder that will never unlock what it holds; nil for any other.
    @inline(__always)
    static func nameIfGone(_ holder: Holder) -> String? {
        _fastPath(goneCount.load(ordering: .acquiring) == 0) ? nil : table.withLock { $0.gone[holder] }
    }

    /// A holder for messages: a fiber with its number and name, or a thread with its kernel id and name.
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

    /// The running fiber, or the calling thread.
    static func describeCaller() -> String {
        if let fiber = Worker.current?.running, fiber.id != 0 { return fiber.numberAndName }
        return describe(.caller)
    }

    private static func describeThread(_ id: Int32) -> String { "thread \(id)\(quotedName(ofThread: id))" }

    /// The calling thread, for messages.
    static func describeThread() -> String { describeThread(cfiber_thread_id()) }

    private static func quotedName(ofThread id: Int32) -> String {
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: 16) { name in
            cfiber_thread_name(id, name.baseAddress)
            let text = String(cString: name.baseAddress.unsafelyUnwrapped)
            return text.isEmpty ? "" : " \"\(text)\""
        }
    }

    /// The name of a fiber of this worker, or of another worker, which is asked by message. Nil if the fiber has no name, or no worker
    /// knows it.
    private static func nameOfFiber(_ id: UInt64) -> String? {
        if let name = Worker.current?.nameOfFiber(id) { return name }
        let own = Worker.current?.pointee.inbox
        let inboxes = table.value.runtimes.values.joined().filter { $0 !== own }
        let inquiry = Inquiry(of: inboxes.count)
        for inbox in inboxes { inbox.push(Message { worker, _ in inquiry.answer(worker.nameOfFiber(id)) }) }
        return inquiry.wait(until: cfiber_now() + patience)
    }
}

/// A query to several workers, at most one of which knows the answer.
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
    /// The name of a fiber of this worker; nil if there is no such fiber, or it has no name. Owner worker only.
    ///
    /// - Complexity: linear in the number of stacks.
    fileprivate func nameOfFiber(_ id: UInt64) -> String? {
        var name: String?
        if !pointee.ending.isAbandoned { pointee.pool.forEachLive { if $0.id == id { name = $0.name } } }
        return name
    }
}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    /// The id of the fiber that uses this record; 0 while no fiber does, and for the root.
    @inline(__always)
    package var id: UInt64 { cfiber_id(self) }

    /// For messages. The fiber's own worker only.
    var numberAndName: String { "fiber #\(id)\(name.map { " \"\($0)\"" } ?? "")" }
}
