// SPDX-License-Identifier: Apache-2.0

// The base of channels, locks and similar objects: wait queues, either for the fibers of one worker, or, protected by a lock, for fibers of
// any worker and plain threads.
//
//     frame of who waits     Wait ←─────── Place ←→ Place ←→ …      the lines of a wait point
//                            who, and how to claim       in line, what it brings or wants
//
// Invariants:
//   * a `Place` is in a wait queue only while its `Wait` is in progress: the waiter removes it, with the lock held, before its frame ends.
//     So a thread that finds a `Place` in a queue, with the lock held, may access it and the record of its fiber;
//   * a wait is claimed as any other (`Waiter`): the lock keeps its claim word valid;
//   * the claimant marks the `Place` as served, fills or empties its slot, and then calls `resume`, preferably after it has released the
//     lock. After `resume` it must not touch the `Place`. On a single worker it may resume the waiter first, because the waiter does not
//     run before the worker's next switch;
//   * a local wait point remembers the worker whose fibers are in its queues. If another worker waits there, or resumes one of those
//     waiters, the program stops. While its queues are empty it may move to another worker, for example one of a later runtime. The
//     remembered worker runs as long as its fibers wait, so its address identifies it.
// Local wait points: one worker. Shared wait points: any thread.

import CFiber

@usableFromInline typealias PlacePointer = UnsafeMutablePointer<Place>
typealias Line = UnsafeMutablePointer<WaitList>

/// The wait of a fiber or a plain thread, in one queue or several.
struct Wait: BitwiseCopyable {
    /// Used by threads; fibers use their record. First, so that a pointer to the wait is also a pointer to it.
    fileprivate var thread = ThreadPark()
    fileprivate var waiter = Waiter.none
    /// The `Place` that was entered last.
    fileprivate var last: PlacePointer?
}

/// A wait-queue node, with the data that claimants need.
@usableFromInline
struct Place: BitwiseCopyable {
    /// First, so that a pointer to the node is also a pointer to the `Place`.
    fileprivate let node: WaitNode
    fileprivate let wait: UnsafeMutablePointer<Wait>
    /// The value that the waiter offers, or the memory for the value that it waits for. The subclass knows the type.
    @usableFromInline let slot: UnsafeMutableRawPointer?
    /// The amount that the waiter asks for, in queues where amounts differ.
    var amount: Int
    /// Set by the claimant that served the waiter through this node.
    fileprivate(set) var isServed = false
    /// The wait point and the queue that it is in.
    fileprivate let point: Unmanaged<WaitPoint>
    fileprivate let line: Line
    /// The `Place` that the same wait entered before this one.
    fileprivate let previous: PlacePointer?

    init(_ wait: UnsafeMutablePointer<Wait>, _ point: WaitPoint, _ line: Line, _ slot: UnsafeMutableRawPointer?, _ amount: Int) {
        node = WaitNode(wait.pointee.waiter)
        self.wait = wait
        self.point = .passUnretained(point)
        self.line = line
        self.slot = slot
        self.amount = amount
        previous = wait.pointee.last
    }
}

extension UnsafeMutablePointer where Pointee == Wait {
    /// The wait point it waits on, for prefetching; nil if it is in no queue.
    var point: UnsafeMutableRawPointer? { pointee.last?.pointee.point.toOpaque() }

    private var thread: ThreadParkPointer { UnsafeMutableRawPointer(self).assumingMemoryBound(to: ThreadPark.self) }

    @inline(__always)
    private var isThread: Bool { pointee.waiter.isOf(.thread) }

    /// Begins a wait of the calling fiber, or, on a shared wait point, of the calling thread. From here on it can be claimed.
    @inline(__always)
    func begin(isShared: Bool) {
        if let worker = Worker.current {
            pointee.waiter = worker.beginPark(as: isShared ? .sharedFiber : .localFiber)
            // Shutdown uses this to remove an abandoned fiber from its queues.
            pointee.waiter.fiber.wait = self
        } else {
            require(isShared, WaitPoint.noFibers)
            pointee.waiter = thread.begin()
        }
    }

    /// Removes the nodes that are still queued. Called when the wait is over; nothing else is needed after that.
    @inline(__always)
    func end() {
        if !isThread { pointee.waiter.fiber.wait = nil }
        if let last = pointee.last, !last.pointee.isServed || last.pointee.previous != nil { leaveLines() }
    }

    @inline(never)
    func leaveLines() {
        while let place = pointee.last {
            pointee.last = place.pointee.previous
            // The claimant has removed a served node.
            if !place.pointee.isServed { place.pointee.point.withObject { $0.leave(place) } }
        }
    }

    /// Takes back a wait that has begun but not parked. False if it has been claimed; then the caller must park, and resumes at once.
    func takeBack() -> Bool { isThread ? pointee.waiter.claimShared() : pointee.waiter.claim() }

    /// Parks the fiber, or blocks the thread, until the wait is claimed.
    @inline(__always)
    func park(_ reason: WaitReason, until deadline: Int64 = .max) -> Outcome {
        if _fastPath(!isThread) { return pointee.waiter.fiber.worker.park(reason, until: deadline) }
        return thread.block(pointee.waiter, until: deadline)
    }
}

extension UnsafeMutablePointer where Pointee == Place {
    @inline(__always)
    fileprivate init(_ node: UnsafeMutablePointer<WaitNode>) { self = UnsafeMutableRawPointer(node).assumingMemoryBound(to: Place.self) }

    @inline(__always)
    var node: UnsafeMutablePointer<WaitNode> { UnsafeMutableRawPointer(self).assumingMemoryBound(to: WaitNode.self) }

    @inline(__always)
    var isInLine: Bool { node.pointee.isLinked }
}

/// Memory for the two sides of a wait point that has one lock per side. Each side has its own pair of cache lines, because CPUs fetch lines
/// in pairs.
///
///     lock, 48 bytes | lock, 48 bytes | what the two sides share
struct WaitSides: BitwiseCopyable {
    static var bytesOfSide: Int { 48 }
    private static var stride: Int { 128 }
    fileprivate let base: UnsafeMutableRawPointer

    /// - Parameter extraBytes: size of the area that both sides share.
    init(extraBytes: Int) {
        base = .allocate(byteCount: 2 * Self.stride + extraBytes, alignment: Self.stride)
        for i in 0..<2 { _ = BriefLock(at: base + i * Self.stride) }
    }

    fileprivate init(_ base: UnsafeMutableRawPointer) { self.base = base }

    fileprivate func lock(ofSecond isSecond: Bool) -> BriefLock { BriefLock(over: isSecond ? base + Self.stride : base) }
    var first: UnsafeMutableRawPointer { base + 8 }
    var second: UnsafeMutableRawPointer { base + Self.stride + 8 }
    var extra: UnsafeMutableRawPointer { base + 2 * Self.stride }
}

/// An object with wait queues.
///
/// A wait point with two sides that rarely meet may have one lock per side. The queues, and everything else that both sides read, are then
/// changed only with both locks held, and may be read with either.
///
/// All state lies in the object. The part that every local call reads takes 32 bytes:
///
///     16 lines │ 32 home or sides │ 40 lock │ 44 isShared, isDivided │ 46 what a subclass has
@usableFromInline
class WaitPoint {
    /// Accessed only through their addresses, because the queued nodes point to them: see `lines`.
    private final var waitLists = (WaitList(), WaitList())
    /// An address. If local: the worker whose fibers are in the queues, if any. If divided: the memory of the sides.
    @exclusivity(unchecked) private final var home: UInt
    /// The lock, unless the wait point is divided.
    private final var lockWord: UInt32 = 0
    @usableFromInline final let isShared: Bool
    /// The wait point has one lock per side.
    final let isDivided: Bool

    init(isShared: Bool) {
        self.isShared = isShared
        isDivided = false
        home = 0
        _ = BriefLock(at: at(Self.offsetOfLock))
        assert(isLaidOut, "the compiler has laid out the wait point in another way")
    }

    /// Makes a divided wait point, which is always shared.
    init(_ sides: WaitSides) {
        isShared = true
        isDivided = true
        home = UInt(bitPattern: sides.base)
    }

    deinit { if isDivided { sides.base.deallocate() } }

    private static var offsetOfLines: Int { 16 }
    private static var offsetOfLock: Int { 40 }

    /// The address of a part of the object, by its offset. Swift lays the properties out in declaration order after its header of two
    /// words.
    @inline(__always)
    final func at(_ offset: Int) -> UnsafeMutableRawPointer { Unmanaged.passUnretained(self).toOpaque() + offset }

    @inline(__always)
    private final var lines: Line { at(Self.offsetOfLines).assumingMemoryBound(to: WaitList.self) }

    /// Whether the properties lie at the offsets assumed above.
    private final var isLaidOut: Bool {
        withUnsafeMutablePointer(to: &waitLists) { UnsafeMutableRawPointer($0) } == at(Self.offsetOfLines)
            && withUnsafeMutablePointer(to: &lockWord) { UnsafeMutableRawPointer($0) } == at(Self.offsetOfLock)
    }

    /// The two sides. Divided wait points only.
    @inline(__always)
    final var sides: WaitSides { WaitSides(UnsafeMutableRawPointer(bitPattern: home).unsafelyUnwrapped) }

    /// The names of a wait point in messages.
    struct Kind {
        let local: StaticString
        /// The type to use instead between workers.
        let shared: StaticString
    }

    var kind: Kind { Kind(local: "Local… thing", shared: "the one without Local") }
    final var name: StaticString { isShared ? kind.shared : kind.local }

    private final var mutex: BriefLock { BriefLock(over: at(Self.offsetOfLock)) }

    @inline(__always)
    final func lock() {
        guard isShared else { return }
        if _slowPath(isDivided) { return lockBoth() }
        mutex.lock()
    }

    @inline(__always)
    final func unlock() {
        guard isShared else { return }
        if _slowPath(isDivided) { return unlockBoth() }
        mutex.unlock()
    }

    @inline(never)
    private final func lockBoth() {
        lockSide(isSecond: false)
        lockSide(isSecond: true)
    }

    @inline(never)
    private final func unlockBoth() {
        unlockSide(isSecond: true)
        unlockSide(isSecond: false)
    }

    /// Locks one side.
    @inline(__always)
    final func lockSide(isSecond: Bool) { sides.lock(ofSecond: isSecond).lock() }

    @inline(__always)
    final func unlockSide(isSecond: Bool) { sides.lock(ofSecond: isSecond).unlock() }

    @inline(__always)
    final func withLock<Result>(_ body: () -> Result) -> Result {
        lock()
        defer { unlock() }
        return body()
    }

    /// Called before a fiber of the worker enters a queue of a local wait point.
    @inline(__always)
    final func noteWaiter(of worker: Worker) {
        if _slowPath(home != UInt(bitPattern: worker)) { moveHome(to: worker) }
    }

    @inline(never)
    private final func moveHome(to worker: Worker) {
        guard first.pointee.isEmpty && second.pointee.isEmpty else { stopForeignUse() }
        home = UInt(bitPattern: worker)
    }

    /// Stops the program: another worker, or a thread without one, has used a local wait point on which fibers wait.
    @inline(never)
    private final func stopForeignUse() -> Never {
        let place = Worker.current.map { " on worker \($0.pointee.index), while fibers of another worker" } ?? ", while fibers of a worker"
        misuse(
            "\(Holders.describeCaller()) used a \(kind.local)\(place) wait for it: what is Local… is for the fibers of one worker; use a \(kind.shared), which is for all"
        )
    }

    fileprivate static var noFibers: String {
        "a Local… thing was used on a thread without fibers: use the one without Local, which is for all threads"
    }

    /// For calls on local wait points that never wait.
    @inline(never)
    final func stopWithoutWorker() -> Never { misuse("\(Self.noFibers) (a \(kind.shared) and not a \(kind.local))") }

    /// The two wait queues.
    @inline(__always)
    final var first: Line { lines }
    @inline(__always)
    final var second: Line { lines + 1 }

    /// Appends the caller to a queue and parks it until a claimant serves it, or something else ends the wait. Called with the lock held;
    /// returns with the lock released.
    @inline(__always)
    final func wait(
        in line: Line, slot: UnsafeMutableRawPointer? = nil, amount: Int = 1, _ reason: WaitReason, until deadline: Int64 = .max
    ) -> Outcome {
        var wait = Wait()
        return withLocalPointer(to: &wait) { wait in
            // The local fast path: only a fiber can wait here.
            if !isShared, let worker = Worker.current { return waitLocally(worker, wait, line, slot, amount, reason, deadline) }
            wait.begin(isShared: isShared)
            var place = Place(wait, self, line, slot, amount)
            return withLocalPointer(to: &place) { place in
                enter(place)
                unlock()
                let outcome = wait.park(reason, until: deadline)
                wait.end()
                return outcome
            }
        }
    }

    /// As `wait`, for a local wait point.
    @inline(__always)
    final func waitLocally(_ worker: Worker, in line: Line, _ slot: UnsafeMutableRawPointer?, _ reason: WaitReason) -> Outcome {
        var wait = Wait()
        return withLocalPointer(to: &wait) { waitLocally(worker, $0, line, slot, 1, reason, .max) }
    }

    @inline(__always)
    private final func waitLocally(
        _ worker: Worker, _ wait: UnsafeMutablePointer<Wait>, _ line: Line, _ slot: UnsafeMutableRawPointer?, _ amount: Int,
        _ reason: WaitReason, _ deadline: Int64
    ) -> Outcome {
        noteWaiter(of: worker)
        let waiter = worker.beginPark()
        wait.pointee.waiter = waiter
        waiter.fiber.wait = wait
        var place = Place(wait, self, line, slot, amount)
        return withLocalPointer(to: &place) { place in
            enter(place)
            let outcome = worker.park(reason, until: deadline)
            waiter.fiber.wait = nil
            // The claimant has removed a served node.
            if _slowPath(!place.pointee.isServed) { leave(place) }
            return outcome
        }
    }

    /// Appends a `Place` to its queue. With the lock held. On a local wait point the caller calls `noteWaiter` first.
    @inline(__always)
    final func enter(_ place: PlacePointer) {
        place.pointee.wait.pointee.last = place
        place.pointee.line.pointee.append(place.node)
    }

    /// Removes a `Place` from its queue, if it is still queued.
    fileprivate final func leave(_ place: PlacePointer) {
        var claimed = WaitList()
        lock()
        if place.isInLine {
            place.pointee.line.pointee.remove(place.node)
            hasLeft(place, &claimed)
        }
        unlock()
        resumeAll(&claimed)
    }

    /// Called with the lock held after a waiter left its queue without being served. An override claims the waiters that can proceed
    /// because of that.
    func hasLeft(_ place: PlacePointer, _ claimed: inout WaitList) {}

    /// Claims the wait of a `Place` that has been removed from its queue. False if something else has ended the wait. With the lock held.
    @inline(__always)
    final func claim(_ place: PlacePointer, isShared: Bool) -> Bool {
        let waiter = place.pointee.node.waiter
        guard isShared ? waiter.claimShared() : waiter.claim() else { return false }
        place.pointee.isServed = true
        return true
    }

    /// Removes waiters from the front of a queue until one can be claimed, and returns that one; nil if there is none. With the lock held.
    @inline(__always)
    final func claimFirst(of line: Line) -> PlacePointer? { claimFirst(of: line, isShared: isShared) }

    @inline(__always)
    final func claimFirst(of line: Line, isShared: Bool) -> PlacePointer? {
        while let node = line.pointee.popFirst() {
            let place = PlacePointer(node)
            if claim(place, isShared: isShared) { return place }
        }
        return nil
    }

    /// As `claimFirst(of:)`, but also returns nil if the amount of the first waiter in the queue is not admitted. The wait of that waiter
    /// may have ended without its having left the queue yet; the waiters behind it then get their chance in `hasLeft`. With the lock held.
    @inline(__always)
    final func claimFirst(of line: Line, ifAdmitted isAdmitted: (_ amount: Int) -> Bool) -> PlacePointer? {
        while let node = line.pointee.first {
            let place = PlacePointer(node)
            guard isAdmitted(place.pointee.amount) else { return nil }
            line.pointee.remove(node)
            if claim(place, isShared: isShared) { return place }
        }
        return nil
    }

    /// Removes the first node of a queue, whether its wait has ended or not. With the lock held.
    @inline(__always)
    final func popFirst(of line: Line) -> PlacePointer? { line.pointee.popFirst().map { PlacePointer($0) } }

    /// Claims all waiters in a queue and moves them to a list of the caller's. With the lock held.
    final func claimAll(of line: Line, into claimed: inout WaitList) {
        while let place = claimFirst(of: line) { claimed.append(place.node) }
    }

    /// Resumes a claimed waiter.
    @inline(__always)
    final func resume(_ place: PlacePointer, _ outcome: Outcome = .ready) {
        if isShared { return place.pointee.node.waiter.resume(outcome) }
        resumeLocally(place, outcome)
    }

    @inline(__always)
    final func resumeLocally(_ place: PlacePointer, _ outcome: Outcome = .ready) {
        let worker = Worker.current
        if _slowPath(home != UInt(bitPattern: worker)) { stopForeignUse() }
        let fiber = place.pointee.node.waiter.fiber
        fiber.outcome = outcome
        worker.unsafelyUnwrapped.makeReady(fiber)
    }

    /// Resumes all claimed waiters in a list, in order.
    final func resumeAll(_ claimed: inout WaitList, _ outcome: Outcome = .ready) {
        while let node = claimed.popFirst() { resume(PlacePointer(node), outcome) }
    }
}
