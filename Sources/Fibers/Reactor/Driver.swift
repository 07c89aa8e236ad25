// SPDX-License-Identifier: Apache-2.0

// The driver: the part that every operation on a descriptor has in common, whatever the backend. It refuses cancelled callers, takes the
// direction lock, tries or submits, parks, charges, and hands the lock over.
//
// Invariants:
//   * a `Descriptor` is valid for one registration: after `close` every operation on it, running or new, ends with `IOCode.closed` and
//     touches neither the descriptor number nor its next owner;
//   * each direction of a descriptor has a first-in first-out lock (the turn, in names). A fiber holds it for one operation, parks
//     included;
//   * an operation parks until it is done or the fiber is cancelled, and a failed operation has no partial effect. In a cancelled fiber an
//     operation fails at once, even where it need not park, so that cancellation also reaches fibers that always find data;
//   * an operation that did not park is charged, however it ended. Otherwise a loop over an error or the end of a stream would never let
//     other fibers run and would never notice that the deadline of its scope has passed;
//   * operations return a count (or a descriptor) >= 0, a negative errno, or a code of `IOCode`;
//   * while a backend performs a request, its memory and its descriptor stay valid. A fiber whose wait ended for another reason cancels the
//     request and waits for its completion, and the descriptor is closed when the last request on it has completed.
// Owner worker only.

import CFiber
import Glibc

/// A registered descriptor: a slot of the table, and the generation that identifies this use of it.
package struct Descriptor: BitwiseCopyable {
    let registration: RegistrationPointer
    let generation: UInt32

    /// Records the object whose fibers use the descriptor, so that it is prefetched when one of them resumes.
    package func noteUser(_ user: AnyObject) {
        registration.pointee.user = UnsafeRawPointer(Unmanaged.passUnretained(user).toOpaque())
    }

    @inline(__always)
    package var isOpen: Bool { registration.pointee.generation == generation }

    /// The descriptor number, for calls that the driver does not offer and for messages; nil after `close`.
    package var number: Int32? { isOpen ? registration.pointee.fd : nil }
}

package final class Driver: EventSource {
    private let owner: Worker
    /// The owner's index among the workers of its runtime.
    private let index: Int
    private let backend: any Backend
    /// Exactly one of the two is the backend, the other is nil.
    private let readiness: (any ReadinessBackend)?
    private let completion: (any CompletionBackend)?
    private let completes: Bool
    private let table: UnsafeMutablePointer<RegistrationTable>
    /// Behind a pointer: every change of a class property would be a checked access, which costs more than the change.
    let buffers: UnsafeMutablePointer<BufferPool>
    private var isStopped = false

    /// Creates the driver of a worker, which has index `index` in its runtime. The backend must be of exactly one of the two kinds.
    package init(_ backend: any Backend, owner: Worker, index: Int, bufferSize: Int) {
        self.backend = backend
        readiness = backend as? any ReadinessBackend
        completion = backend as? any CompletionBackend
        completes = completion != nil
        require((readiness == nil) != (completion == nil), "a backend either tells when descriptors are ready, or performs requests")
        self.owner = owner
        self.index = index
        table = .allocate(capacity: 1)
        table.initialize(to: RegistrationTable())
        buffers = .allocate(capacity: 1)
        buffers.initialize(to: BufferPool(size: bufferSize))
    }

    deinit {
        table.pointee.destroy()
        table.deallocate()
        buffers.pointee.destroy()
        buffers.deallocate()
    }

    // The event source of a worker.

    package var waker: any Waker { backend.waker }
    package var clock: (any WorkerClock)? { backend.clock }

    package func poll(timeout: Int64) { backend.poll(timeout: timeout, for: self) }

    package func stop() {
        isStopped = true
        completion?.drain(for: self)
        table.pointee.forEachOpen { slot in
            let fd = slot.pointee.fd
            end(slot)
            table.pointee.put(slot)
            _ = backend.call(.close(fd))
        }
        // Fibers that were abandoned do not close the descriptors that they waited for.
        table.pointee.forEachWithRequests { slot in
            if slot.pointee.closesAfterRequests { _ = backend.call(.close(slot.pointee.fd)) }
        }
        backend.stop()
    }

    // The owner.

    @inline(__always)
    private var worker: Worker {
        if _slowPath(Worker.current != owner) { stopForeignUse(nil) }
        return owner
    }

    /// The worker, for a call on a descriptor.
    @inline(__always)
    private func worker(for slot: RegistrationPointer) -> Worker {
        if _slowPath(Worker.current != owner) { stopForeignUse(slot) }
        return owner
    }

    @inline(never)
    private func stopForeignUse(_ slot: RegistrationPointer?) -> Never {
        let socket = slot.map { Self.describe($0.pointee.fd) } ?? "a socket"
        misuse(
            "\(Holders.describeCaller())\(Worker.current.map { " on worker \($0.pointee.index)" } ?? "") used or released \(socket), which belongs to worker \(index) of the runtime that made it: use a socket, and let go of it, in fibers of its own worker, and let others send those messages"
        )
    }

    private static func describe(_ fd: Int32) -> String {
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: 512) { text in
            cfiber_describe(fd, text.baseAddress, text.count)
            return String(cString: text.baseAddress.unsafelyUnwrapped)
        }
    }

    // Registrations.

    /// Registers a descriptor, which must be non-blocking. `exact`: a short count does not mean that the kernel's buffer is empty (on Unix
    /// sockets a message that carries descriptors ends a read early). Returns nil when memory is short. The caller keeps the descriptor if
    /// this fails.
    package func register(_ fd: Int32, exact: Bool) -> Descriptor? {
        guard let slot = table.pointee.take(fd: fd, exact: exact) else { return nil }
        return Descriptor(registration: slot, generation: slot.pointee.generation)
    }

    /// Ends a registration, wakes its waiters with `closed` and closes the descriptor.
    package func close(_ d: Descriptor) {
        guard d.isOpen else { return }
        let (slot, fd) = (d.registration, d.registration.pointee.fd)
        forget(slot)
        end(slot)
        if _slowPath(slot.pointee.requests > 0) { return slot.pointee.closesAfterRequests = true }
        table.pointee.put(slot)
        _ = backend.call(.close(fd))
    }

    /// Ends a registration, wakes its waiters with `closed`, and leaves the descriptor open.
    package func release(_ d: Descriptor) {
        guard d.isOpen else { return }
        let slot = d.registration
        forget(slot)
        end(slot)
        if slot.pointee.requests == 0 { table.pointee.put(slot) }
    }

    /// Removes the descriptor from the backend, unless no fiber has ever waited for it and so it was never added. The kernel does not say
    /// whether a duplicate exists, so the removal is always made. It adds little to the cost of closing: the kernel need not do it again.
    private func forget(_ slot: RegistrationPointer) {
        if slot.pointee.flags.contains(.watchesRead) { readiness?.forget(slot) }
    }

    /// Ends the use of the slot: from here on its descriptor is closed for every holder of the `Descriptor`.
    private func end(_ slot: RegistrationPointer) {
        let worker = worker(for: slot)
        slot.pointee.end()
        worker.wakeAll(&slot.pointee.readers, .closed)
        worker.wakeAll(&slot.pointee.writers, .closed)
        worker.wakeAll(&slot.pointee.readTurns, .closed)
        worker.wakeAll(&slot.pointee.writeTurns, .closed)
    }

    /// Returns a buffer to the pool.
    @inline(__always)
    package func giveBack(_ buffer: UnsafeMutableRawPointer) { buffers.pointee.put(buffer) }

    // Calls that do not wait.

    /// Makes a call that does not block. Returns its result, or a negative errno.
    package func call(_ call: SystemCall) -> Int { backend.call(call) }

    /// The same for a call on a registered descriptor.
    package func call(on d: Descriptor, _ call: (Int32) -> SystemCall) -> Int {
        guard let fd = d.number else { return IOCode.closed }
        return backend.call(call(fd))
    }

    /// Makes a call through the driver of the calling fiber's worker, or directly to the system outside fibers. Any thread.
    package static func callAnywhere(_ call: SystemCall) -> Int { Worker.current?.driver.call(call) ?? call.make() }

    /// Makes a call that may block, as on files. With the system as the backend, a thread of the blocking pool makes it. Throws when the
    /// fiber is cancelled; the call may then still run. Parks.
    package func callBlocking(_ name: String, _ body: @escaping () -> Void) throws { try backend.callBlocking(name, for: worker, body) }

    func noteSendingEnded(_ d: Descriptor) {
        let slot = d.registration
        slot.pointee.marks.insert(.sendEnded)
        slot.pointee.writable = true
        // Each writer tries again and fails, then hands the lock to the next, which fails, too.
        worker.wakeAll(&slot.pointee.writers, .ready)
    }

    // Direction locks.

    @inline(__always)
    private func takeTurn(_ d: Descriptor, _ turn: Registration.Flags, _ worker: Worker) -> Int {
        if _slowPath(d.registration.pointee.flags.contains(turn)) { return waitForTurn(d, turn, worker) }
        d.registration.pointee.flags.insert(turn)
        return 0
    }

    @inline(never)
    private func waitForTurn(_ d: Descriptor, _ turn: Registration.Flags, _ worker: Worker) -> Int {
        let slot = d.registration
        let reads = turn == .reading
        let outcome = worker.park(
            in: reads ? slot.readTurns : slot.writeTurns, WaitReason(reads ? .read : .write, slot.pointee.fd))
        if outcome != .ready { return code(outcome) }
        // The lock was handed over, unless the descriptor has been closed since.
        return d.isOpen ? 0 : IOCode.closed
    }

    /// Hands the lock to the first waiter, if there is one.
    @inline(__always)
    private func endTurn(_ d: Descriptor, _ turn: Registration.Flags) {
        guard d.isOpen else { return }
        let list = turn == .reading ? d.registration.readTurns : d.registration.writeTurns
        if _fastPath(list.pointee.isEmpty) {
            d.registration.pointee.flags.remove(turn)
        } else {
            handOver(d, turn, list)
        }
    }

    @inline(never)
    private func handOver(_ d: Descriptor, _ turn: Registration.Flags, _ list: UnsafeMutablePointer<WaitList>) {
        // A waiter that has timed out at this moment is still in the queue, and cannot be woken.
        while let node = list.pointee.popFirst() {
            if worker.unpark(node.pointee.waiter, .ready) { return }
        }
        d.registration.pointee.flags.remove(turn)
    }

    /// Takes the lock for sending, for several operations. Returns 0 once the fiber holds it; then `endSending` must follow. Parks.
    package func beginSending(_ d: Descriptor) -> Int {
        guard d.isOpen else { return refuseClosed() }
        let worker = worker(for: d.registration)
        if worker.refusesOperation() { return IOCode.cancelled }
        return takeTurn(d, .writing, worker)
    }

    package func endSending(_ d: Descriptor) { endTurn(d, .writing) }

    // Operations.

    /// The result of every operation on a closed descriptor, whichever worker makes the call. It is charged like an operation that makes a
    /// system call.
    @inline(never)
    package func refuseClosed() -> Int {
        Worker.current?.chargeOperation()
        return IOCode.closed
    }

    /// Performs an operation that succeeds without a system call. Returns 0, unless the fiber is cancelled.
    @inline(never)
    func performNothing() -> Int {
        let worker = worker
        if worker.refusesOperation() { return IOCode.cancelled }
        worker.chargeOperation()
        return 0
    }

    /// Performs an operation. Parks.
    @inline(__always)
    func perform<O: Operation>(_ operation: inout O, on d: Descriptor) -> Int {
        guard d.isOpen else { return refuseClosed() }
        let worker = worker(for: d.registration)
        if worker.refusesOperation() { return IOCode.cancelled }
        if O.takesTurn {
            let code = takeTurn(d, O.turn, worker)
            if code != 0 { return code }
        }
        let result = run(&operation, on: d, worker)
        if O.takesTurn { endTurn(d, O.turn) }
        worker.chargeOperation()
        return result
    }

    /// Performs an operation for a fiber that holds the direction lock. Parks.
    @inline(__always)
    func performInTurn<O: Operation>(_ operation: inout O, on d: Descriptor) -> Int {
        guard d.isOpen else { return refuseClosed() }
        let worker = worker(for: d.registration)
        let result = run(&operation, on: d, worker)
        worker.chargeOperation()
        return result
    }

    @inline(__always)
    private func run<O: Operation>(_ operation: inout O, on d: Descriptor, _ worker: Worker) -> Int {
        if _slowPath(completes) { return submit(&operation, on: d, worker) }
        while true {
            if !O.trustsReadiness || d.registration.pointee.isReady(O.direction) {
                let result = operation.attempt(d.registration)
                if _fastPath(result != IOCode.notReady) {
                    if _fastPath(result > IOCode.again) { return result }
                    let code = goOn(after: result, &operation, d, worker)
                    if code != 0 { return code }
                    continue
                }
                if O.direction == .read && wasDenied(d, worker) {
                    guard d.isOpen else { return IOCode.closed }
                    continue
                }
                d.registration.pointee.noteNotReady(O.direction)
            }
            let code = park(d, O.direction, O.reason, worker)
            if code != 0 { return code }
            guard d.isOpen else { return IOCode.closed }
        }
    }

    /// Runs between two attempts of an operation that is not done. Returns 0 if the next attempt may follow.
    @inline(never)
    private func goOn<O: Operation>(
        after result: Int, _ operation: inout O, _ d: Descriptor, _ worker: Worker
    ) -> Int {
        if !d.isOpen { return IOCode.closed }
        if result == IOCode.again {
            worker.chargeOperation()
        } else {
            let code = pause(d, operation.nextPause(), O.direction, O.reason, worker)
            if code != 0 { return code }
        }
        return d.isOpen ? 0 : IOCode.closed
    }

    /// Whether `recv` has returned `EAGAIN` although there is data to receive. It does so at the mark of urgent data when a signal is
    /// pending. The signal is gone as soon as a system call returns, so the next `recv` gives the right answer, unless a second signal
    /// arrives within a fraction of a microsecond.
    @inline(__always)
    private func wasDenied(_ d: Descriptor, _ worker: Worker) -> Bool {
        _slowPath(d.registration.pointee.marks.contains(.urgent)) && isReadable(d, worker)
    }

    @inline(never)
    private func isReadable(_ d: Descriptor, _ worker: Worker) -> Bool {
        guard cfiber_is_ready(d.registration.pointee.fd, 0) == 1 else { return false }
        d.registration.pointee.readable = true
        // If `poll` and `recv` ever disagree for another reason, other fibers still get to run.
        worker.chargeOperation()
        return true
    }

    /// Parks until an event for the direction arrives. Returns 0 then; otherwise the reason why no event will arrive.
    @inline(__always)
    private func park(_ d: Descriptor, _ direction: Direction, _ kind: WaitReason.Kind, _ worker: Worker) -> Int {
        let watched = watchIfNew(d, direction)
        if _slowPath(watched < 0) { return watched }
        let slot = d.registration
        // Both addresses are even: an odd one would mark a `wait`.
        worker.running.noteTouches(UnsafeRawPointer(slot), slot.pointee.user)
        return code(worker.park(in: slot.waiters(direction), WaitReason(kind, slot.pointee.fd)))
    }

    /// Parks for a time and ignores events. Reacting to them could spin: a datagram that a Unix receiver has no room for itself raises an
    /// event, since the kernel counts it as sent for a moment. Returns 0 when the time has passed; otherwise the reason why the operation
    /// ends.
    private func pause(
        _ d: Descriptor, _ length: Int64, _ direction: Direction, _ kind: WaitReason.Kind, _ worker: Worker
    ) -> Int {
        let end = worker.now &+ length
        while true {
            let slot = d.registration
            let outcome = worker.park(in: slot.waiters(direction), WaitReason(kind, slot.pointee.fd), until: end)
            if outcome != .ready && outcome != .timedOut { return code(outcome) }
            guard d.isOpen else { return IOCode.closed }
            if outcome == .timedOut || worker.now >= end { return 0 }
        }
    }

    @inline(__always)
    private func code(_ outcome: Outcome) -> Int {
        switch outcome {
        // Only the pauses between attempts have a deadline of their own.
        case .ready, .timedOut: 0
        case .closed: IOCode.closed
        case .cancelled: IOCode.cancelled
        case .noTimer: -Int(ENOMEM)
        }
    }

    // Readiness backends.

    /// Returns 0 when the backend watches the descriptor in that direction, or is a completion backend.
    @inline(__always)
    func watchIfNew(_ d: Descriptor, _ direction: Direction) -> Int {
        let wanted: Registration.Flags = direction == .read ? .watchesRead : .watchesWrite
        return _fastPath(d.registration.pointee.flags.contains(wanted)) ? 0 : watch(d.registration, direction)
    }

    @inline(never)
    private func watch(_ slot: RegistrationPointer, _ direction: Direction) -> Int { readiness?.watch(slot, direction) ?? 0 }

    /// Waits like `wait`, for a descriptor that the driver does not own. Also returns -EMFILE, -EBADF or -ENOMEM. Parks.
    package func wait(forDescriptor foreign: Int32, _ direction: Direction) -> Int {
        let worker = worker
        // A cancelled fiber is refused even if the next line would fail.
        if worker.refusesOperation() { return IOCode.cancelled }
        let (second, watched) = readiness?.duplicate(foreign, toWatch: direction) ?? (backend.call(.duplicate(foreign)), direction)
        guard second >= 0 else {
            worker.chargeOperation()
            return second == -Int(EPERM) ? IOCode.unsupported : second
        }
        guard let registered = register(Int32(second), exact: true) else {
            _ = backend.call(.close(Int32(second)))
            return -Int(ENOMEM)
        }
        let result = wait(registered, watched)
        // Closing alone would not end the registration, since the open file remains open under the program's descriptor.
        close(registered)
        return result
    }

    /// The slot that a token names, for a backend that prefetches it.
    @inline(__always)
    func slot(_ token: UInt64) -> RegistrationPointer? { table.pointee.slot(token) }

    /// Handles a backend's event: wakes the fibers that wait for it. An event of an earlier use of the slot is dropped and counted.
    @inline(__always)
    package func becameReady(_ token: UInt64, _ readiness: Readiness) {
        guard let slot = table.pointee.find(token) else { return worker.pointee.statistics.staleEvents &+= 1 }
        if !readiness.isDisjoint(with: .endsReading) {
            slot.pointee.readable = true
            if !readiness.isDisjoint(with: .ended) { slot.pointee.flags.insert(.hungUp) }
            if _slowPath(readiness.contains(.urgent)) {
                slot.pointee.flags.insert(.exact)
                slot.pointee.marks.insert(.urgent)
            }
            worker.wakeAll(&slot.pointee.readers, .ready)
        }
        if !readiness.isDisjoint(with: .endsWriting) {
            slot.pointee.writable = true
            worker.wakeAll(&slot.pointee.writers, .ready)
        }
    }

    // Completion backends.

    @inline(never)
    private func submit<O: Operation>(_ operation: inout O, on d: Descriptor, _ worker: Worker) -> Int {
        while true {
            let request = operation.submission(d.registration.pointee.fd)
            let (result, ending) = perform(request, on: d, O.direction, O.reason, makesDescriptor: O.makesDescriptor, worker)
            guard d.isOpen else {
                operation.noteLate(result)
                return IOCode.closed
            }
            // A result that arrived despite a cancellation is not lost.
            let isCancelled = ending != 0 && result == -Int(ECANCELED)
            let outcome = operation.complete(result, d.registration)
            if isCancelled { return ending }
            // The fiber was woken for another reason: its half of the connection has ended. The next request reports that.
            if outcome == -Int(ECANCELED) { continue }
            if outcome != IOCode.notReady && outcome > IOCode.again { return outcome }
            if ending != 0 { return ending }
            if outcome == IOCode.notReady { continue }
            let next = goOn(after: outcome, &operation, d, worker)
            if next != 0 { return next }
        }
    }

    /// Has the backend perform a request. Returns the request's result, and the reason why the wait ended early, or 0. Parks.
    private func perform(
        _ request: Submission, on d: Descriptor, _ direction: Direction, _ kind: WaitReason.Kind, makesDescriptor: Bool, _ worker: Worker
    ) -> (result: Int, ending: Int) {
        let backend = completion.unsafelyUnwrapped
        let slot = d.registration
        var completion = Completion(fiber: worker.running, makesDescriptor: makesDescriptor)
        return withLocalPointer(to: &completion) { completion in
            if let result = backend.submit(request, completion) { return (result, 0) }
            slot.pointee.requests += 1
            let reason = WaitReason(kind, slot.pointee.fd)
            let outcome = worker.park(in: slot.waiters(direction), reason)
            if !completion.pointee.isDone {
                backend.cancel(completion)
                var nobodyElse = WaitList()
                withLocalPointer(to: &nobodyElse) { list in
                    while !completion.pointee.isDone { worker.parkShielded(in: list, reason) }
                }
            }
            let isOpen = d.isOpen
            noteCompleted(slot, isOpen: isOpen)
            let result = completion.pointee.result
            if !isOpen && makesDescriptor && result >= 0 { _ = backend.call(.close(Int32(result))) }
            return (result, code(outcome))
        }
    }

    /// Notes that a request on a slot has completed. If the registration has ended, the last request closes the descriptor.
    private func noteCompleted(_ slot: RegistrationPointer, isOpen: Bool) {
        slot.pointee.requests -= 1
        guard !isOpen && slot.pointee.requests == 0 else { return }
        let fd = slot.pointee.closesAfterRequests ? slot.pointee.fd : -1
        table.pointee.put(slot)
        if fd >= 0 { _ = backend.call(.close(fd)) }
    }

    /// Handles a backend's event: a request has completed.
    package func complete(_ completion: CompletionPointer, _ result: Int) {
        completion.pointee.finish(result)
        let fiber = completion.pointee.fiber
        // When the worker has stopped, the fiber never runs again.
        if isStopped {
            if completion.pointee.makesDescriptor && result >= 0 { _ = backend.call(.close(Int32(result))) }
            return
        }
        _ = owner.unpark(Waiter(fiber), .ready)
    }
}

extension Operation {
    @inline(__always)
    fileprivate static var turn: Registration.Flags { direction == .read ? .reading : .writing }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// The driver of the worker's descriptors, which is its event source.
    package var driver: Driver { unsafeDowncast(pointee.events, to: Driver.self) }
}
