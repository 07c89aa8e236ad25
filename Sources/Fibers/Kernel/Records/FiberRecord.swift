// SPDX-License-Identifier: Apache-2.0

// The fiber record as Swift sees it. C declares the layout (cfiber_record.h); this file gives types to the fields that are opaque there.
//
//     slab slot │guard│ ......... usable stack ......... │record│colour│
//               └ faults         ↑ frames grow down       ↑ FiberPointer
//
// Invariants:
//   * the record is valid from the first use of its stack until the runtime ends or the stack is trimmed. It keeps counting epochs from one
//     fiber to the next, so a waiter of an earlier fiber can never be claimed;
//   * an accessor touches one field. A computed property of the record itself, `|=` on a field or `&fiber.pointee.field` would be an access
//     to the whole record, while a thread that has claimed the fiber's park may be linking it into an inbox;
//   * owner worker only, except the claim word, and except that a thread that has claimed a shared park writes `outcome` and `next`.

package import CFiber

package typealias FiberPointer = UnsafeMutablePointer<FiberRecord>
package typealias FiberRecord = cfiber_record

/// Runs the body of a fiber. Wrapped in a struct, because a pointer to a bare closure uses the representation of generic code, and each
/// assignment would allocate a thunk. Not optional, for the same reason.
struct BodyRunner {
    var run: FiberBodyRunner
}

private func noBody(_: FiberCore, _: UnsafeMutableRawPointer) {}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    /// Initializes a new record.
    package func initialize(for worker: Worker) {
        require(
            MemoryLayout<CancelScope>.size == CFIBER_SCOPE_SIZE && MemoryLayout<BodyRunner>.size == CFIBER_CLOSURE_SIZE,
            "cfiber_record.h no longer says how large a scope and a closure are: correct it")
        cfiber_record_begin(self)
        pointee.worker = UnsafeMutableRawPointer(worker)
        runner.initialize(to: BodyRunner(run: noBody))
        base.initialize(to: CancelScope(.fiber, of: self))
        scope = base
    }

    /// Releases everything that the record owns. The record must not be used afterwards.
    func destroy() {
        _ = runner.move()
        _ = localsField.move()
        _ = coreField.move()
    }

    @inline(__always)
    package var worker: Worker { pointee.worker.unsafelyUnwrapped.assumingMemoryBound(to: WorkerState.self) }

    /// The outcome of the last park.
    @inline(__always)
    package var outcome: Outcome {
        get { unsafeBitCast(pointee.outcome, to: Outcome.self) }
        nonmutating set { pointee.outcome = newValue.rawValue }
    }

    /// The reason why the fiber waits, for dumps. Only meaningful while it is parked.
    package var reason: WaitReason {
        @inline(__always) get { WaitReason(unsafeBitCast(pointee.reason_kind, to: WaitReason.Kind.self), pointee.reason_subject) }
        @inline(__always) nonmutating set {
            pointee.reason_kind = newValue.kind.rawValue
            pointee.reason_subject = newValue.subject
        }
    }

    // Waiting.

    /// The word on which the fiber's parks are claimed.
    @inline(__always)
    var claimWord: ClaimWord { UnsafeMutableRawPointer(self).assumingMemoryBound(to: UInt64.self) }

    /// The fiber that owns a claim word.
    @inline(__always)
    init(claimWord: ClaimWord) { self = UnsafeMutableRawPointer(claimWord).assumingMemoryBound(to: FiberRecord.self) }

    /// The wait in the frame of a fiber that is in wait queues: marked by the lowest bit, in the cache line that every park touches.
    @inline(__always)
    var wait: UnsafeMutablePointer<Wait>? {
        get {
            let word = UInt(bitPattern: pointee.touches.0)
            return word & 1 == 0 ? nil : UnsafeMutablePointer<Wait>(bitPattern: word & ~1)
        }
        nonmutating set { pointee.touches.0 = UnsafeRawPointer(bitPattern: newValue.map { UInt(bitPattern: $0) | 1 } ?? 0) }
    }

    /// The cell in which the fiber waits; the waiting call retains it. Stored in the same word, marked by the next bit.
    @inline(__always)
    var cell: Unmanaged<WaitCell>? {
        get {
            let word = UInt(bitPattern: pointee.touches.0)
            return word & 2 == 0 ? nil : UnsafeRawPointer(bitPattern: word & ~2).map { .fromOpaque($0) }
        }
        nonmutating set { pointee.touches.0 = UnsafeRawPointer(bitPattern: newValue.map { UInt(bitPattern: $0.toOpaque()) | 2 } ?? 0) }
    }

    /// Prefetches the saved registers and the frame next to them: for one of many fibers, each of which does little when it runs.
    @inline(__always)
    func prefetchContext() {
        let sp = UInt(bitPattern: pointee.sp)
        for line in 0..<3 { cfiber_prefetch(UnsafeRawPointer(bitPattern: sp &+ UInt(bitPattern: line &* 64))) }
    }

    /// Prefetches the memory that the fiber will touch when it resumes: its frames nearest to the switch, deep enough for those of `serve`
    /// and `withTimeout` around a read. `sp` must already be cached.
    ///
    /// Never inlined: inlining it would keep the compiler from inlining the functions that switch.
    @inline(never)
    func prefetchFrames() {
        // Arithmetic on integers: an optional pointer would be tested for nil for each line.
        let sp = UInt(bitPattern: pointee.sp)
        for line in 0..<11 { cfiber_prefetch(UnsafeRawPointer(bitPattern: sp &+ UInt(bitPattern: line &* 64))) }
        cfiber_prefetch(pointee.touches.0)
        let other = UInt(bitPattern: pointee.touches.1)
        // That is another fiber's stack, which is prefetched later.
        if other & Self.isFiber != 0 { return }
        cfiber_prefetch(UnsafeRawPointer(bitPattern: other))
        cfiber_prefetch(UnsafeRawPointer(bitPattern: other &+ 32))
    }

    /// Records two addresses that the fiber will touch when it resumes: for a fiber that waits without a `Wait`.
    func noteTouches(_ first: UnsafeRawPointer, _ second: UnsafeRawPointer?) { pointee.touches = (first, second) }

    /// The fiber that will probably resume some switches after this one. A hint, which may name any record of the worker, even one that no
    /// fiber uses. `noteTouches` overwrites it.
    var foreseen: FiberPointer? {
        @inline(__always) get {
            let word = UInt(bitPattern: pointee.touches.1)
            return word & Self.isFiber == 0 ? nil : FiberPointer(bitPattern: word & ~Self.isFiber)
        }
        @inline(__always) nonmutating set {
            // Writing to a stack whose memory was given back would allocate a page.
            guard (wait != nil || pointee.touches.0 == nil) && pointee.life != 0 else { return }
            pointee.touches.1 = UnsafeRawPointer(bitPattern: UInt(bitPattern: newValue) | Self.isFiber)
        }
    }

    /// The mark in `touches.1`, whose addresses are otherwise even.
    private static var isFiber: UInt { 1 }

    /// The next fiber in the list that this one is in.
    @inline(__always)
    var next: FiberPointer? {
        get { pointee.next }
        nonmutating set { pointee.next = newValue }
    }

    // Scopes.

    /// The innermost scope.
    @inline(__always)
    var scope: ScopePointer {
        get { pointee.scope.unsafelyUnwrapped.assumingMemoryBound(to: CancelScope.self) }
        nonmutating set { pointee.scope = UnsafeMutableRawPointer(newValue) }
    }

    /// The outermost scope, which covers the fiber's whole lifetime; in the record. While no fiber uses the record it is in its initial
    /// state.
    @inline(__always)
    var base: ScopePointer { cfiber_base(self).assumingMemoryBound(to: CancelScope.self) }

    // Beginning and end.

    /// Fibers that wait in `join` for the end of this fiber: the list itself, in the record.
    @inline(__always)
    var joiners: UnsafeMutablePointer<WaitList> { cfiber_joiners(self).assumingMemoryBound(to: WaitList.self) }

    /// Holds the heap part of the current fiber. It is reused for the record's next fiber if it is empty and no other reference exists by
    /// then, so a short-lived fiber with a trivial result allocates nothing.
    @inline(__always)
    var coreField: UnsafeMutablePointer<FiberCore?> { cfiber_core(self).assumingMemoryBound(to: FiberCore?.self) }

    /// The core of the current fiber, borrowed from the record without counting a reference. Nil for the root.
    @inline(__always)
    var core: Unmanaged<FiberCore>? { UnsafeRawPointer(cfiber_core(self)).load(as: Unmanaged<FiberCore>?.self) }

    /// Ensures that the record has a core for a new fiber.
    @inline(__always)
    func renewCore(for worker: Worker) {
        if !isKnownUniquelyReferenced(&coreField.pointee) { coreField.pointee = FiberCore(home: worker) }
    }

    /// Holds the values of fiber-locals that were set around the spawn or since; nil if there are no such values.
    @inline(__always)
    var localsField: UnsafeMutablePointer<FiberLocalNode?> { cfiber_locals(self).assumingMemoryBound(to: FiberLocalNode?.self) }

    @inline(__always)
    var locals: FiberLocalNode? {
        get { localsField.pointee }
        nonmutating set { localsField.pointee = newValue }
    }

    /// The memory that holds the fiber's body until it runs.
    @inline(__always)
    var body: UnsafeMutableRawPointer { cfiber_body(self) }

    @inline(__always)
    var runner: UnsafeMutablePointer<BodyRunner> { cfiber_runner(self).assumingMemoryBound(to: BodyRunner.self) }

    package var name: String? { pointee.is_named == 0 ? nil : String(cString: cfiber_name(self)) }
}
