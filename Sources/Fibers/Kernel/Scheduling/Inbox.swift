// SPDX-License-Identifier: Apache-2.0

// Where other threads put what is for a worker: fibers that they have woken, and messages; and the sleep protocol that makes sure that the worker looks.
//
// Invariants (all orders sequentially consistent):
//   * a worker announces `sleeping`, then looks into the inbox once more, then blocks;
//   * a sender pushes, then looks at `sleeping`; whoever turns it from true to false uses the waker of the worker's event source, once.
// Either the worker sees the push or the sender sees the announcement, so nothing stays in the inbox of a sleeping worker; and a worker
// that is awake costs its senders no system call. Tests/Models/wake.pml is this protocol, together with a shared park, for a model checker.
//
// Thread rule: `push` any thread, the rest owner worker only. Senders hold a reference while they push: what they sent may end
// the runtime before they are done.

import CFiber
import Synchronization

/// Something to be done on another worker's thread, at its root: it may start and cancel fibers, and must not run code of users, release what is theirs, or park.
final class Message {
    fileprivate var next: UInt = 0
    /// The fiber that it is about, if any. Here and not in the closure, since what that releases is released at the root.
    private var core: FiberCore?
    /// The runtime does not end before it has arrived.
    var isAwaited = false
    private let deliver: (Worker, FiberCore?) -> Void

    init(about core: FiberCore? = nil, _ deliver: @escaping (_ home: Worker, FiberCore?) -> Void) {
        self.core = core
        self.deliver = deliver
    }

    func arrive(at worker: Worker) {
        deliver(worker, core)
        // A result that nobody else has any more goes in a fiber: its deinit may wait. That others have it now means nothing where they are other threads, which may
        // let go of it in this moment; what comes home from a child is its group's, too, which is here.
        if core?.object != nil, core?.home == worker || isKnownUniquelyReferenced(&core), let last = core {
            core = nil
            worker.release(last)
        }
        if isAwaited { worker.pointee.workers.noteArrival(at: worker) }
    }
}

final class Inbox: @unchecked Sendable {
    /// A stack, newest first: of claimed fibers, linked through their records, and of messages, which are marked by the lowest bit.
    private let head = Atomic<UInt>(0)
    private let sleeping = Atomic<Bool>(false)
    /// What the time counter showed when the sleeping worker was last sent for; 0 when it has not been since it fell asleep. A sender who is slow may still write an older time.
    private let sentForAt = Atomic<UInt64>(0)
    /// Ends the sleep of the worker.
    private let waker: any Waker

    init(_ waker: any Waker) { self.waker = waker }

    deinit {
        // Messages to a worker that had nobody left to do anything for.
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

    /// Calls one of the two with each thing, in the order in which they were pushed.
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

    /// Announces sleep. False when something has arrived, and then there is no sleep.
    func beginSleep() -> Bool {
        sentForAt.store(0, ordering: .relaxed)
        sleeping.store(true, ordering: .sequentiallyConsistent)
        if head.load(ordering: .sequentiallyConsistent) == 0 { return true }
        sleeping.store(false, ordering: .relaxed)
        return false
    }

    /// - Returns: what the time counter showed when somebody sent for the worker; 0 if nobody has, or his word is still on its way.
    func endSleep() -> UInt64 {
        // A sender that was faster has taken the flag down itself; its eventfd is then readable and drained as an event.
        sleeping.store(false, ordering: .relaxed)
        return sentForAt.load(ordering: .relaxed)
    }
}
