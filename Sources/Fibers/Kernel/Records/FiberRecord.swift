// SPDX-License-Identifier: Apache-2.0

// The fiber record as Swift sees it. C declares the layout (cfiber_record.h); here are the types of the words that are opaque there.
//
//     slab slot │guard│ ......... usable stack ......... │record│colour│
//               └ faults         ↑ frames grow down       ↑ FiberPointer
//
// Invariants:
//   * the record is valid from the first use of its stack until the runtime ends or the stack is trimmed, and keeps counting epochs from
//     life to life, so that a waiter of an earlier life can never be claimed;
//   * an accessor touches one field. A computed property of the record itself, `|=` on a field or `&fiber.pointee.field` would be an access to the whole record, while the thread that has
//     claimed the fiber's park may be linking it into an inbox;
//   * owner worker only, except the claim word, and that a thread that has claimed a shared park writes `outcome` and `next`.

package import CFiber

package typealias FiberPointer = UnsafeMutablePointer<FiberRecord>
package typealias FiberRecord = cfiber_record

/// Runs the body of a life. In a struct, since a pointer to a bare closure has it in the representation of generic code, and each assignment would allocate a thunk. For the same reason it is
/// not optional.
struct BodyRunner {
    var run: FiberBodyRunner
}

private func noBody(_: FiberCore, _: UnsafeMutableRawPointer) {}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    /// Lays a new record here.
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

    /// Releases what the record holds. It must not be used any more.
    func destroy() {
        _ = runner.move()
        _ = localsField.move()
        _ = coreField.move()
    }

    @inline(__always)
    package var worker: Worker { pointee.worker.unsafelyUnwrapped.assumingMemoryBound(to: WorkerState.self) }

    /// What ended the last park.
    @inline(__always)
    package var outcome: Outcome {
        get { unsafeBitCast(pointee.outcome, to: Outcome.self) }
        nonmutating set { pointee.outcome = newValue.rawValue }
    }

    /// Why the fiber waits, for dumps; meaningful while parked.
    package var reason: WaitReason {
        @inline(__always) get { WaitReason(unsafeBitCast(pointee.reason_kind, to: WaitReason.Kind.self), pointee.reason_subject) }
        @inline(__always) nonmutating set {
            pointee.reason_kind = newValue.kind.rawValue
            pointee.reason_subject = newValue.subject
        }
    }

    // Waiting.

    /// Where the fiber's parks are claimed.
    @inline(__always)
    var claimWord: ClaimWord { UnsafeMutableRawPointer(self).assumingMemoryBound(to: UInt64.self) }

    /// The fiber with a claim word.
    @inline(__always)
    init(claimWord: ClaimWord) { self = UnsafeMutableRawPointer(claimWord).assumingMemoryBound(to: FiberRecord.self) }

    /// The wait in the frame of a fiber that is in wait queues: marked by the lowest bit, on the line that every park touches.
    @inline(__always)
    var wait: UnsafeMutablePointer<Wait>? {
        get {
            let word = UInt(bitPattern: pointee.touches.0)
            return word & 1 == 0 ? nil : UnsafeMutablePointer<Wait>(bitPattern: word & ~1)
        }
        nonmutating set { pointee.touches.0 = UnsafeRawPointer(bitPattern: newValue.map { UInt(bitPattern: $0) | 1 } ?? 0) }
    }

    /// The cell that a fiber waits in, which its waiting call retains: in the same word, marked by the next bit.
    @inline(__always)
    var cell: Unmanaged<WaitCell>? {
        get {
            let word = UInt(bitPattern: pointee.touches.0)
            return word & 2 == 0 ? nil : UnsafeRawPointer(bitPattern: word & ~2).map { .fromOpaque($0) }
        }
        nonmutating set { pointee.touches.0 = UnsafeRawPointer(bitPattern: newValue.map { UInt(bitPattern: $0.toOpaque()) | 2 } ?? 0) }
    }

    /// Fetches the saved registers and the frame next to them: for one of many fibers, each of which does little in its turn.
    @inline(__always)
    func prefetchContext() {
        let sp = UInt(bitPattern: pointee.sp)
        for line in 0..<3 { cfiber_prefetch(UnsafeRawPointer(bitPattern: sp &+ UInt(bitPattern: line &* 64))) }
    }

    /// Fetches what the fiber will touch when it goes on: its frames nearest to the switch, as far as those of `serve` and `withTimeout` around a read. `sp` must be at hand.
    ///
    /// A call: within each of the places that switch it keeps the compiler from inlining those.
    @inline(never)
    func prefetchFrames() {
        // By numbers: a pointer that may be nil would be tested for each line.
        let sp = UInt(bitPattern: pointee.sp)
        for line in 0..<11 { cfiber_prefetch(UnsafeRawPointer(bitPattern: sp &+ UInt(bitPattern: line &* 64))) }
        cfiber_prefetch(pointee.touches.0)
        let other = UInt(bitPattern: pointee.touches.1)
        // Another fiber's stack: its time comes later.
        if other & Self.isFiber != 0 { return }
        cfiber_prefetch(UnsafeRawPointer(bitPattern: other))
        cfiber_prefetch(UnsafeRawPointer(bitPattern: other &+ 32))
    }

    /// Notes two pieces of memory that the fiber will touch when it resumes: for a fiber that waits without a `Wait`.
    func noteTouches(_ first: UnsafeRawPointer, _ second: UnsafeRawPointer?) { pointee.touches = (first, second) }

    /// The fiber that will probably go on a while after this one: a hint, which may name any fiber of the worker's stacks, also between lives. `noteTouches` overwrites it.
    var foreseen: FiberPointer? {
        @inline(__always) get {
            let word = UInt(bitPattern: pointee.touches.1)
            return word & Self.isFiber == 0 ? nil : FiberPointer(bitPattern: word & ~Self.isFiber)
        }
        @inline(__always) nonmutating set {
            // To write to a stack that was given back would take a page.
            guard (wait != nil || pointee.touches.0 == nil) && pointee.life != 0 else { return }
            pointee.touches.1 = UnsafeRawPointer(bitPattern: UInt(bitPattern: newValue) | Self.isFiber)
        }
    }

    /// In `touches.1`, whose addresses are even.
    private static var isFiber: UInt { 1 }

    /// The next fiber in the queue that this one is in.
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

    /// The outermost scope, the fiber's life; in the record. Between lives it is as it was made.
    @inline(__always)
    var base: ScopePointer { cfiber_base(self).assumingMemoryBound(to: CancelScope.self) }

    // Lives.

    /// Fibers that wait in `join` for the end of this life: the list itself, in the record.
    @inline(__always)
    var joiners: UnsafeMutablePointer<WaitList> { cfiber_joiners(self).assumingMemoryBound(to: WaitList.self) }

    /// Holds the heap part of the present life. Afterwards that stays for the next one, if it holds nothing and nobody else holds it by then: a short life with a trivial
    /// result then allocates nothing.
    @inline(__always)
    var coreField: UnsafeMutablePointer<FiberCore?> { cfiber_core(self).assumingMemoryBound(to: FiberCore?.self) }

    /// The core of the present life, borrowed from the record, without counting a reference. Nil for the root.
    @inline(__always)
    var core: Unmanaged<FiberCore>? { UnsafeRawPointer(cfiber_core(self)).load(as: Unmanaged<FiberCore>?.self) }

    /// Makes sure that there is a core for a new life.
    @inline(__always)
    func renewCore(for worker: Worker) {
        if !isKnownUniquelyReferenced(&coreField.pointee) { coreField.pointee = FiberCore(home: worker) }
    }

    /// Holds the values of fiber-locals that were set around the spawn or since; nil while there are none.
    @inline(__always)
    var localsField: UnsafeMutablePointer<FiberLocalNode?> { cfiber_locals(self).assumingMemoryBound(to: FiberLocalNode?.self) }

    @inline(__always)
    var locals: FiberLocalNode? {
        get { localsField.pointee }
        nonmutating set { localsField.pointee = newValue }
    }

    /// Where the body of the present life lies until it runs.
    @inline(__always)
    var body: UnsafeMutableRawPointer { cfiber_body(self) }

    @inline(__always)
    var runner: UnsafeMutablePointer<BodyRunner> { cfiber_runner(self).assumingMemoryBound(to: BodyRunner.self) }

    package var name: String? { pointee.is_named == 0 ? nil : String(cString: cfiber_name(self)) }
}
