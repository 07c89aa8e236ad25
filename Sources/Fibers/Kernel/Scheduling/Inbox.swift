// SPDX-License-Identifier: Apache-2.0

// The inbox of a worker, through which other threads hand it woken fibers and messages, and the sleep protocol that makes sure that the
// worker reads it.
//
// Invariants (all orders sequentially consistent):
//   * A worker announces `sleeping`, then checks the inbox once more, then blocks.
//   * A sender pushes, then reads `sleeping`. The sender that changes it from true to false uses the waker of the worker's event source,
//     once.
// Either the worker sees the push or the sender sees the announcement, so nothing stays in the inbox of a sleeping worker; and a worker
// that is awake costs its senders no system call. Tests/Models/wake.pml models this protocol, together with a shared park, for a model
// checker.
//
// Thread rule: `push` on any thread, the rest on the owner worker only. Senders hold a reference while they push, since their message may
// end the runtime before `push` returns.

import CFiber
import Synchronization

/// Work for the root of another worker. It may start and cancel fibers. It must not run user code, release user objects, or park.
final class Message {
    fileprivate var next: UInt = 0
    /// The fiber that the message is about, if any. It is not captured by the closure, since the closure releases its captures at the
    /// root.
    private var core: FiberCore?
    /// The runtime does not end before the message has arrived.
    var isAwaited = false
    private let deliver: (Worker, FiberCore?) -> Void

    init(about core: FiberCore? = nil, _ deliver: @escaping (_ home: Worker, FiberCore?) -> Void) {
        self.core = core
        self.deliver = deliver
    }

    func arrive(at worker: Worker) {
        deliver(worker, core)
        // The last reference to a result is released in a fiber, because its deinit may wait. Other references by other threads do not
        // help, since those threads may release them at any moment. But the group of a child that has come back here also refers to it, and
        // that group is on this worker.
        if core?.object != nil, core?.home == worker || isKnownUniquelyReferenced(&core), let last = core {
            core = nil
            worker.release(last)
        }
        if isAwaited { worker.pointee.workers.noteArrival(at: worker) }
    }
}

final class Inbox: @unchecked Sendable {
    /// A stack, newest first, of claimed fibers, linked through their records, and of messages, which are marked by the lowest bit.
    private let head = Atomic<UInt>(0)
    private let sleeping = Atomic<Bool>(false)
    /// The time counter when the sleeping worker was last woken by a sender; 0 if no sender has done so since it fell asleep. A slow sender
    /// may still write an older time.
    private let sentForAt = Atomic<UInt64>(0)
    /// Wakes the worker from its sleep.
    private let waker: any Waker

    init(_ waker: any Waker) { self.waker = waker }

    deinit {
        // Releases messages that arrived after the worker's last fiber had ended.
        drain(fiber: { _ in }, message: { _ in })
    }

    /// Hands a claimed fiber to its worker. Lock-free.
    func push(_ fiber: FiberPointer) {
        push(UInt(bitPattern: fiber)) { fiber.next = FiberPointer(bitPattern: $0) }
    }

    /// Hands over a message. Lock-free.
    func push(_ message: Message) {
        push(UInt(bitPattern: Unmanaged.passRetained(message).toOpaque()) | 1) { message.next = $0 }
    }

    @inline(__always)
    private func push(_ word: UInt, linkTo: (UInt) -> Void) {
        var old = head.load(ordering: .relaxed)
        while true {
            linkTo(old)
            let (done, now) = head.compareExchange(expected: old, desired: word, ordering: .sequentiallyConsistent)
            if done { break }
            old = now
        }
        if sleeping.load(ordering: .sequentiallyConsistent), sleeping.exchange(false, ordering: .sequentiallyConsistent) {
            sentForAt.store(cfiber_counter(), ordering: .relaxed)
            waker.wake()
        }
    }

    @inline(__always)
    var isEmpty: Bool { head.load(ordering: .relaxed) == 0 }

    /// Calls one of the two closures with each entry, in the order of the pushes.
    @inline(never)
    func drain(fiber: (FiberPointer) -> Void, message: (Message) -> Void) {
        var newest = head.exchange(0, ordering: .sequentiallyConsistent)
        var oldest: UInt = 0
        while newest != 0 {
            let word = newest
            newest = Self.exchangeLink(of: word, with: oldest)
            oldest = word
        }
        while oldest != 0 {
            let word = oldest
            oldest = Self.exchangeLink(of: word, with: 0)
            if word & 1 == 0 {
                fiber(FiberPointer(bitPattern: word).unsafelyUnwrapped)
            } else {
                message(Self.message(word).takeRetainedValue())
            }
        }
    }

    private static func exchangeLink(of word: UInt, with other: UInt) -> UInt {
        if word & 1 == 0 {
            let fiber = FiberPointer(bitPattern: word).unsafelyUnwrapped
            let link = UInt(bitPattern: fiber.next)
            fiber.next = FiberPointer(bitPattern: other)
            return link
        }
        return message(word).withObject { message in
            let link = message.next
            message.next = other
            return link
        }
    }

    private static func message(_ word: UInt) -> Unmanaged<Message> {
        .fromOpaque(UnsafeRawPointer(bitPattern: word & ~1).unsafelyUnwrapped)
    }

    /// Announces sleep. Returns false if an entry has arrived, and then the worker must not sleep.
    func beginSleep() -> Bool {
        sentForAt.store(0, ordering: .relaxed)
        sleeping.store(true, ordering: .sequentiallyConsistent)
        if head.load(ordering: .sequentiallyConsistent) == 0 { return true }
        sleeping.store(false, ordering: .relaxed)
        return false
    }

    /// - Returns: the value of the time counter when a sender woke the worker; 0 if none has, or if its store has not arrived yet.
    func endSleep() -> UInt64 {
        // A faster sender has cleared the flag itself. Then the eventfd is readable and is drained as an event.
        sleeping.store(false, ordering: .relaxed)
        return sentForAt.load(ordering: .relaxed)
    }
}
