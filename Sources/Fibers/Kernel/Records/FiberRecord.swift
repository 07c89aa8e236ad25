// The fiber record: everything the kernel knows of one fiber, lying at the top of that fiber's own stack.
//
//     slab slot │guard│ ......... usable stack ......... │record│colour│
//               └ faults         ↑ frames grow down       ↑ FiberPointer
//
// Invariants:
//   * the first cache line holds what every park and switch touches: the first half of the Swift side and, `contextOffset` behind the start, the first
//     half of `cfiber_context`. With many connections each line of a fiber that wakes is a miss;
//   * the record is valid from the first use of its stack until the runtime ends or the stack is trimmed, and keeps counting epochs from
//     life to life, so that a waiter of an earlier life can never be claimed;
//   * owner worker only, except the claim word, and that a thread that has claimed a shared park writes `outcome` and the link by which the fiber is in the inbox.

package import CFiber
import Synchronization

package typealias FiberPointer = UnsafeMutablePointer<FiberRecord>

package struct FiberRecord: ~Copyable {
    /// See `Waiter`. First, so that a pointer to it is one to the record.
    fileprivate var parking: UInt64 = 0
    /// What ended the last park; written by whoever claimed it.
    package var outcome = Outcome.ready
    fileprivate var reasonKind = WaitReason.Kind.none
    /// What the next park must heed (`Attention`).
    var attention: UInt8 = 0
    fileprivate var reasonSubject: Int32 = 0
    /// What the fiber will touch first when it goes on: fetched in time, never followed, but for the first while it has the mark of a `wait`. The second has the distance of a second line in its upper
    /// bits, in words.
    var touches: (UnsafeRawPointer?, UnsafeRawPointer?) = (nil, nil)
    package var context = cfiber_context()
    package var worker: Worker
    /// Position in the worker's timer queue, -1 outside.
    var timerIndex: Int32 = -1
    /// The locks that the fiber has taken by `lock()` and not unlocked, as the sum of their addresses: 0 where there is none, and of one its own.
    var openLocks: UInt = 0
    /// When the present park ends, at a deadline; `Int64.max` for never. The timer queue may hold an earlier time, which is put right when it comes.
    var wakeAt = Int64.max
    /// The innermost scope.
    var scope: ScopePointer
    /// The values of fiber-locals that were set around the spawn or since; nil while there are none.
    var locals: FiberLocalNode?
    /// The children of a group, linked in the order in which they were spawned.
    var nextSibling: FiberPointer?
    var previousSibling: FiberPointer?
    /// The heap part of the present life. Afterwards it stays for the next one, if it holds nothing and nobody else holds it by then: a short life with a trivial
    /// result then allocates nothing.
    var core: FiberCore?
    /// The closure of the present life, of a type that only `runner` knows, until it runs.
    var body: (UInt, UInt) = (0, 0)
    /// Not optional: a closure inside an optional is of another representation, and converting it would allocate at each life.
    var runner: FiberBodyRunner = noBody
    // Others reach for these while the fiber is parked, by their offsets: they are the last.
    /// Fibers that wait in `join` for the end of this life.
    var joiners = WaitList()
    /// The outermost scope, the fiber's life. Between lives it is as it was made.
    var base: CancelScope

    fileprivate init(worker: Worker, at place: FiberPointer) {
        self.worker = worker
        base = CancelScope(.fiber, of: place)
        // Known once the record lies there.
        scope = ScopePointer(bitPattern: 64).unsafelyUnwrapped
    }

    /// Where the context lies in a record.
    @inline(__always) static var contextOffset: Int { 32 }
    @inline(__always) static var coreOffset: Int {
        joinersOffset - MemoryLayout<FiberBodyRunner>.size - MemoryLayout<(UInt, UInt)>.size - MemoryLayout<FiberCore?>.size
    }
    @inline(__always) static var joinersOffset: Int { baseOffset - MemoryLayout<WaitList>.stride }
    @inline(__always) static var baseOffset: Int { MemoryLayout<FiberRecord>.size - MemoryLayout<CancelScope>.size }
}

private func noBody(_: FiberCore, _: UnsafeMutableRawPointer) {}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    @inline(__always)
    init(context: UnsafeMutablePointer<cfiber_context>) {
        self = (UnsafeMutableRawPointer(context) - FiberRecord.contextOffset).assumingMemoryBound(to: FiberRecord.self)
    }

    /// Lays a new record here.
    package func initialize(for worker: Worker) {
        initialize(to: FiberRecord(worker: worker, at: self))
        pointee.scope = base
    }

    @inline(__always)
    var context: UnsafeMutablePointer<cfiber_context> {
        (UnsafeMutableRawPointer(self) + FiberRecord.contextOffset).assumingMemoryBound(to: cfiber_context.self)
    }

    /// Why the fiber waits, for dumps; meaningful while parked.
    ///
    /// Here and not in the record: its setter would be an access to the whole record, while another thread claims the park.
    package var reason: WaitReason {
        @inline(__always) get { WaitReason(pointee.reasonKind, pointee.reasonSubject) }
        @inline(__always) nonmutating set {
            pointee.reasonKind = newValue.kind
            pointee.reasonSubject = newValue.subject
        }
    }

    /// The wait in the frame of a fiber that is in wait queues: marked by the lowest bit, on the line that every park touches.
    @inline(__always)
    var wait: UnsafeMutablePointer<Wait>? {
        get {
            let word = UInt(bitPattern: pointee.touches.0)
            return word & 1 == 0 ? nil : UnsafeMutablePointer<Wait>(bitPattern: word & ~1)
        }
        nonmutating set { pointee.touches.0 = UnsafeRawPointer(bitPattern: newValue.map { UInt(bitPattern: $0) | 1 } ?? 0) }
    }

    /// The cell that a fiber waits in, which its waiting call retains: in the same place, marked by the next bit.
    @inline(__always)
    var cell: Unmanaged<WaitCell>? {
        get {
            let word = UInt(bitPattern: pointee.touches.0)
            return word & 2 == 0 ? nil : UnsafeRawPointer(bitPattern: word & ~2).map { .fromOpaque($0) }
        }
        nonmutating set { pointee.touches.0 = UnsafeRawPointer(bitPattern: newValue.map { UInt(bitPattern: $0.toOpaque()) | 2 } ?? 0) }
    }

    /// The next fiber in the queue that this one stands in.
    @inline(__always)
    var next: FiberPointer? {
        get { pointee.context.next.map { FiberPointer(context: $0) } }
        nonmutating set { pointee.context.next = newValue?.context }
    }

    @inline(__always)
    var body: UnsafeMutableRawPointer { withUnsafeMutablePointer(to: &pointee.body) { UnsafeMutableRawPointer($0) } }

    /// The list itself, in the record: it stays where it is.
    ///
    /// By its offset: `&pointee.joiners` would be an access to the whole record, while another thread claims the park of its fiber.
    @inline(__always)
    var joiners: UnsafeMutablePointer<WaitList> {
        (UnsafeMutableRawPointer(self) + FiberRecord.joinersOffset).assumingMemoryBound(to: WaitList.self)
    }

    /// Where the fiber's parks are claimed.
    @inline(__always)
    var claimWord: ClaimWord { UnsafeMutableRawPointer(self).assumingMemoryBound(to: Atomic<UInt64>.self) }

    /// The fiber with a claim word.
    @inline(__always)
    init(claimWord: ClaimWord) { self = UnsafeMutableRawPointer(claimWord).assumingMemoryBound(to: FiberRecord.self) }

    /// The outermost scope, in the record; by its offset, too.
    @inline(__always)
    var base: ScopePointer {
        (UnsafeMutableRawPointer(self) + FiberRecord.baseOffset).assumingMemoryBound(to: CancelScope.self)
    }

    /// The core of the present life, borrowed from the record. Nil for the root.
    ///
    /// By its offset, too, and without counting a reference.
    @inline(__always)
    var core: Unmanaged<FiberCore>? {
        (UnsafeRawPointer(self) + FiberRecord.coreOffset).load(as: Unmanaged<FiberCore>?.self)
    }

    /// Makes sure that there is a core for a new life.
    @inline(__always)
    func renewCore(for worker: Worker) {
        if !isKnownUniquelyReferenced(&pointee.core) { pointee.core = FiberCore(home: worker) }
    }

    /// Fetches what the fiber will touch when it goes on: its frames nearest to the switch. `sp` must be at hand.
    ///
    /// A call: within each of the places that switch it keeps the compiler from inlining those.
    @inline(never)
    func prefetchFrames() {
        // By numbers: a pointer that may be nil would be tested for each line.
        let sp = UInt(bitPattern: pointee.context.sp)
        for line in 0..<8 { cfiber_prefetch(UnsafeRawPointer(bitPattern: sp &+ UInt(bitPattern: line &* 64))) }
        cfiber_prefetch(pointee.touches.0)
        let other = UInt(bitPattern: pointee.touches.1)
        let near = other & Self.addressMask
        cfiber_prefetch(UnsafeRawPointer(bitPattern: near))
        cfiber_prefetch(UnsafeRawPointer(bitPattern: near &+ ((other &>> 48) &<< 3)))
    }

    private static var addressMask: UInt { 0xffff_ffff_ffff }

    /// Notes which fiber this one has let go on, and where that waited in its frames. In a ring or a pipeline it will be the same fiber in the same place the next time, and there is nothing in the
    /// caches that leads to it: with 20,000 fibers the walk through the page tables to its stack is the longest part of a hop. A wrong guess fetches two lines in vain.
    @inline(__always)
    func noteMeeting(_ place: UnsafeRawPointer, of other: FiberPointer) {
        let distance = UInt(bitPattern: UnsafeRawPointer(other) - place) &>> 3
        pointee.touches.1 = UnsafeRawPointer(bitPattern: UInt(bitPattern: place) | (distance &<< 48))
    }

    /// Notes memory that the fiber will touch when it goes on, and which lies in two lines.
    func noteTouches(_ first: UnsafeRawPointer, _ second: UnsafeRawPointer?) {
        pointee.touches = (first, UnsafeRawPointer(bitPattern: UInt(bitPattern: second) | (4 &<< 48)))
    }

    package var name: String? {
        // A copy: `&context.pointee.name` would be an exclusive access to the context, while the thread that has claimed the fiber's park may be linking it into an inbox.
        withUnsafeBytes(of: context.pointee.name) { bytes in
            bytes[0] == 0 ? nil : String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
    }
}
