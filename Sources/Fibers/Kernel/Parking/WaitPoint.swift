// SPDX-License-Identifier: Apache-2.0

// What channels, locks and their like have in common: lines of waiters, of one worker's fibers alone, or of fibers of any worker and plain threads, behind a lock.
//
//     frame of who waits     Wait ←─────── Place ←→ Place ←→ …      the lines of a wait point
//                            who, and how to claim       in line, what it brings or wants
//
// Invariants:
//   * a place is in a line only while its `Wait` has not ended: whoever waits takes it out, with the lock held, before he leaves the frame. So whoever finds one in a
//     line, with the lock held, may touch it, and the record of its fiber;
//   * a wait is claimed as any other (`Waiter`): the lock keeps its claim word there;
//   * whoever has claimed it marks the place as served, fills or empties its slot, and then, best without the lock, lets it go on by `resume`, after which nothing of it
//     may be touched. On one worker it may be let go on first, since it does not run before its worker comes to the next switch.
//   * what is local remembers the worker whose fibers stand in its lines. Any other worker that comes to wait there, or to let a waiter go on, stops the program. While nobody waits it may come to
//     another worker, of a later runtime, say. That worker runs while its fibers wait, so here its address is enough.
// One worker, or, of what is shared, any thread.

import CFiber

@usableFromInline typealias PlacePointer = UnsafeMutablePointer<Place>
typealias Line = UnsafeMutablePointer<WaitList>

/// A fiber or a plain thread that waits, in one line or several.
struct Wait: BitwiseCopyable {
    /// Of a thread, where fibers have their record. First, so that a pointer to the wait is one to it.
    fileprivate var thread = ThreadPark()
    fileprivate var waiter = Waiter.none
    /// The place that was taken last.
    fileprivate var last: PlacePointer?
}

/// A place in a line.
@usableFromInline
struct Place: BitwiseCopyable {
    /// First, so that a pointer to the node of a place is one to the place.
    fileprivate let node: WaitNode
    fileprivate let wait: UnsafeMutablePointer<Wait>
    /// What it brings, or where it wants what it waits for; those who meet here know its type.
    @usableFromInline let slot: UnsafeMutableRawPointer?
    /// How much it wants, for lines where that differs.
    var amount: Int
    /// Claimed by another who came here.
    fileprivate(set) var isServed = false
    /// Where it stands.
    fileprivate let point: Unmanaged<WaitPoint>
    fileprivate let line: Line
    /// The place of the same wait that was taken before.
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
    /// What it waits for, for prefetching; nil when it stands in no line.
    var point: UnsafeMutableRawPointer? { pointee.last?.pointee.point.toOpaque() }

    private var thread: ThreadParkPointer { UnsafeMutableRawPointer(self).assumingMemoryBound(to: ThreadPark.self) }

    @inline(__always)
    private var isThread: Bool { pointee.waiter.isOf(.thread) }

    /// Begins a wait of the calling fiber, or, of what is shared, of the calling thread: from here on it can be claimed.
    @inline(__always)
    func begin(isShared: Bool) {
        if let worker = Worker.current {
            pointee.waiter = worker.beginPark(as: isShared ? .sharedFiber : .localFiber)
            // A fiber that is left behind must be found in no line afterwards.
            pointee.waiter.fiber.wait = self
        } else {
            require(isShared, WaitPoint.noFibers)
            pointee.waiter = thread.begin()
        }
    }

    /// Takes the places out of their lines that are still there. When the wait is over; it needs no more after that.
    @inline(__always)
    func end() {
        if !isThread { pointee.waiter.fiber.wait = nil }
        if let last = pointee.last, !last.pointee.isServed || last.pointee.previous != nil { leaveLines() }
    }

    @inline(never)
    func leaveLines() {
        while let place = pointee.last {
            pointee.last = place.pointee.previous
            // Whoever serves has taken it out.
            if !place.pointee.isServed { place.pointee.point.withObject { $0.leave(place) } }
        }
    }

    /// Takes a wait back that has begun, before it parks; false when it has been claimed, and then it must park and will go on at once.
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

/// Memory for the two sides of a wait point that has a lock for each, on a pair of cache lines of its own, since CPUs fetch them in pairs.
///
///     lock, 48 bytes | lock, 48 bytes | what the two sides share
struct WaitSides: BitwiseCopyable {
    static var bytesOfSide: Int { 48 }
    private static var stride: Int { 128 }
    fileprivate let base: UnsafeMutableRawPointer

    /// - Parameter extraBytes: for what the two sides share.
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

/// Something that fibers wait for in lines.
///
/// What has two sides that mostly do not meet may have a lock for each: the lines, and all else that both sides look at, are changed only with both, and may be looked at with either.
///
/// All of it lies in the object, and what every call of what is local looks at in 32 bytes of it:
///
///     16 lines │ 32 home or sides │ 40 lock │ 44 isShared, isDivided │ 46 what a subclass has
@usableFromInline
class WaitPoint {
    /// Used through their addresses, as those in line know them: see `lines`.
    private final var waitLists = (WaitList(), WaitList())
    /// Of what is local, the worker whose fibers stand in the lines, if there are any; of what is divided, its sides: by their addresses.
    @exclusivity(unchecked) private final var home: UInt
    /// Of what is not divided.
    private final var lockWord: UInt32 = 0
    @usableFromInline final let isShared: Bool
    /// It has two locks.
    final let isDivided: Bool

    init(isShared: Bool) {
        self.isShared = isShared
        isDivided = false
        home = 0
        _ = BriefLock(at: at(Self.offsetOfLock))
        assert(isLaidOut, "the compiler has laid out the wait point in another way")
    }

    /// Divided, and for all workers.
    init(_ sides: WaitSides) {
        isShared = true
        isDivided = true
        home = UInt(bitPattern: sides.base)
    }

    deinit { if isDivided { sides.base.deallocate() } }

    private static var offsetOfLines: Int { 16 }
    private static var offsetOfLock: Int { 40 }

    /// A part of the object by its distance from the start: behind Swift's header of two words the properties lie in the order of their declaration.
    @inline(__always)
    final func at(_ offset: Int) -> UnsafeMutableRawPointer { Unmanaged.passUnretained(self).toOpaque() + offset }

    @inline(__always)
    private final var lines: Line { at(Self.offsetOfLines).assumingMemoryBound(to: WaitList.self) }

    /// The properties lie where their addresses are taken to be.
    private final var isLaidOut: Bool {
        withUnsafeMutablePointer(to: &waitLists) { UnsafeMutableRawPointer($0) } == at(Self.offsetOfLines)
            && withUnsafeMutablePointer(to: &lockWord) { UnsafeMutableRawPointer($0) } == at(Self.offsetOfLock)
    }

    /// Of what is divided.
    @inline(__always)
    final var sides: WaitSides { WaitSides(UnsafeMutableRawPointer(bitPattern: home).unsafelyUnwrapped) }

    /// What messages call a wait point.
    struct Kind {
        let local: StaticString
        /// The one to use instead among workers.
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

    /// One of the two locks.
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

    /// Before a fiber of the worker is put into a line of what is local.
    @inline(__always)
    final func noteWaiter(of worker: Worker) {
        if _slowPath(home != UInt(bitPattern: worker)) { moveHome(to: worker) }
    }

    @inline(never)
    private final func moveHome(to worker: Worker) {
        guard first.pointee.isEmpty && second.pointee.isEmpty else { stopForeignUse() }
        home = UInt(bitPattern: worker)
    }

    /// A call of another worker, or of a thread without one, has met fibers that wait here.
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

    /// For calls of what is local that never wait.
    @inline(never)
    final func stopWithoutWorker() -> Never { misuse("\(Self.noFibers) (a \(kind.shared) and not a \(kind.local))") }

    /// The two lines.
    @inline(__always)
    final var first: Line { lines }
    @inline(__always)
    final var second: Line { lines + 1 }

    /// Puts the caller at the end of a line and lets it wait until somebody serves it, or something else ends the wait. Called with the lock held, returns without.
    @inline(__always)
    final func wait(
        in line: Line, slot: UnsafeMutableRawPointer? = nil, amount: Int = 1, _ reason: WaitReason, until deadline: Int64 = .max
    ) -> Outcome {
        var wait = Wait()
        return withLocalPointer(to: &wait) { wait in
            // The same as below for what is local, where a fiber is all that waits.
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

    /// As `wait`, of what is local.
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
            // Whoever serves has taken it out.
            if _slowPath(!place.pointee.isServed) { leave(place) }
            return outcome
        }
    }

    /// Puts a place at the end of its line. With the lock held. Of what is local, `noteWaiter` comes before.
    @inline(__always)
    final func enter(_ place: PlacePointer) {
        place.pointee.wait.pointee.last = place
        place.pointee.line.pointee.append(place.node)
    }

    /// Takes a place out of its line, if it is still there.
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

    /// A waiter has left its line, whom nobody has served: claims those who may go on because of that. With the lock held.
    func hasLeft(_ place: PlacePointer, _ claimed: inout WaitList) {}

    /// Ends the wait of a place, which has been taken out of its line; false when something else has. With the lock held.
    @inline(__always)
    final func claim(_ place: PlacePointer, isShared: Bool) -> Bool {
        let waiter = place.pointee.node.waiter
        guard isShared ? waiter.claimShared() : waiter.claim() else { return false }
        place.pointee.isServed = true
        return true
    }

    /// Takes the first out of a line whose wait nothing else has ended, and claims that; nil when there is none. With the lock held.
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

    /// As `claimFirst(of:)`, but nil, too, when the amount that the first in line wants is not admitted. That one may have ended its wait already and not yet left: then
    /// `hasLeft` is the next chance of those behind it. With the lock held.
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

    /// Takes the first out of a line, whether its wait has ended or not. With the lock held.
    @inline(__always)
    final func popFirst(of line: Line) -> PlacePointer? { line.pointee.popFirst().map { PlacePointer($0) } }

    /// Claims all in a line, and puts them into a list of the caller's. With the lock held.
    final func claimAll(of line: Line, into claimed: inout WaitList) {
        while let place = claimFirst(of: line) { claimed.append(place.node) }
    }

    /// Lets a claimed one go on.
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

    /// Lets all in a list of claimed ones go on, in order.
    final func resumeAll(_ claimed: inout WaitList, _ outcome: Outcome = .ready) {
        while let node = claimed.popFirst() { resume(PlacePointer(node), outcome) }
    }
}
