// SPDX-License-Identifier: Apache-2.0

// The core of `select`: it waits until one of several arms can happen. The arms are already laid out in memory.
//
// Invariants:
//   * Exactly one arm takes effect: before the park by one attempt, in the park by one claim.
//   * If an arm turns out to be ready while the select is entering wait queues, the select takes its park back by the same claim that any
//     other caller would use. If that claim fails, another caller has already served an arm, and that arm takes effect.
//   * The locks of at most one channel are held at a time.
//   * The select enters wait queues channel by channel, in the order of the channels' addresses, and all queues of one channel at once. Of
//     two selects that could meet, the one that finds the other queued takes its park back, and the other does not. Without a common order,
//     both could take their parks back again and again.
//   * Two arms of one select never meet each other: once the select is queued at a channel, it does not look at other arms of that channel.
//
// Each ready arm is equally likely to be chosen, in one pass over the arms (J. Vitter, "Random sampling with a reservoir", 1985). The same
// holds for arms that wait at one channel: they enter its wait queues in a random order, drawn when the select begins. A timeout is for the
// case that nothing else happens, so expired timeouts are checked last.
// Runs on one worker or, if all channels are shared, on any thread.

import CFiber

@usableFromInline typealias ArmPointer = UnsafeMutablePointer<ArmRecord>

/// An arm of a running select, in the frame of its caller. Its wait-queue entry and its message slot follow the record in memory.
@usableFromInline
struct ArmRecord: BitwiseCopyable {
    @usableFromInline
    enum Kind: UInt8, BitwiseCopyable {
        /// A `timeout` is checked last, after no other arm was found ready. A `deadline` that has passed is as likely to be chosen as any
        /// other ready arm.
        case receive, send, deadline, timeout, cancellation, otherwise, never
    }

    @usableFromInline let kind: Kind
    /// The arm has a handler for the end of its channel. An arm without one is ignored once its channel is closed.
    @usableFromInline let wantsEnd: Bool
    /// The channel is closed and, for a receive, empty.
    @usableFromInline var hasEnded = false
    @usableFromInline var isOut = false
    @usableFromInline var hasPlace = false
    @usableFromInline let channel: Unmanaged<ChannelBase>?
    @usableFromInline let deadline: Int64
    @usableFromInline var next: ArmPointer?
    /// The message slot of an arm with a channel.
    @usableFromInline let slot: UnsafeMutableRawPointer?

    @inlinable @inline(__always)
    init(
        _ kind: Kind, _ channel: ChannelBase? = nil, slot: UnsafeMutableRawPointer? = nil, deadline: Int64 = .max, wantsEnd: Bool = false
    ) {
        self.slot = slot
        self.kind = kind
        self.channel = channel.map { .passUnretained($0) }
        self.deadline = deadline
        self.wantsEnd = wantsEnd
    }

    /// The size in bytes of a record and the memory after it. The record's address is a multiple of 16; Swift aligns no type to more.
    @inlinable @inline(__always)
    static func space(slot: Int) -> Int { (offsetOfSlot &+ slot &+ 15) & ~15 }

    @inlinable @inline(__always)
    static var offsetOfSlot: Int { (MemoryLayout<ArmRecord>.stride &+ MemoryLayout<Place>.stride &+ 15) & ~15 }
}

extension UnsafeMutablePointer where Pointee == ArmRecord {
    fileprivate var slot: UnsafeMutableRawPointer { pointee.slot.unsafelyUnwrapped }

    fileprivate var place: PlacePointer { UnsafeMutableRawPointer(self + 1).assumingMemoryBound(to: Place.self) }

    fileprivate var isServed: Bool { pointee.hasPlace && place.pointee.isServed }
}

/// The arms of one select.
@usableFromInline
struct Selection {
    private var first: ArmPointer?
    /// The address of the first arm in memory.
    private var base: ArmPointer?
    private var otherwise: ArmPointer?
    private var cancellation: ArmPointer?
    private var isShared = false
    private var hasDeadlines = false
    private var hasTimeouts = false

    @usableFromInline
    init() {}

    /// Adds an arm. Its record must stay valid until the selection is over.
    @usableFromInline
    mutating func add(_ arm: ArmPointer) {
        if base == nil { base = arm }
        switch arm.pointee.kind {
        case .never: return
        case .otherwise:
            require(otherwise == nil, "a select has two otherwise { … }: leave one out")
            otherwise = arm
        case .cancellation:
            require(cancellation == nil, "a select has two onCancellation { … }: leave one out")
            cancellation = arm
        case .deadline, .timeout:
            // This deadline never passes.
            if arm.pointee.deadline == .max { return }
            if arm.pointee.kind == .deadline { hasDeadlines = true } else { hasTimeouts = true }
            insert(arm)
        case .receive, .send:
            arm.withChannel { $0.requireWorker() }
            if arm.withChannel({ $0.isShared }) { isShared = true }
            insert(arm)
        }
    }

    /// Inserts an arm in the order of the channels' addresses. Arms with the same channel get a random order: they enter its wait queues in
    /// this order, and the first waiter is served first.
    private mutating func insert(_ arm: ArmPointer) {
        var (before, next): (ArmPointer?, ArmPointer?) = (nil, first)
        while let this = next, this.address < arm.address { (before, next) = (this, this.pointee.next) }
        var (count, rest): (UInt32, ArmPointer?) = (0, next)
        while let this = rest, this.address == arm.address { (count, rest) = (count + 1, this.pointee.next) }
        if count > 0 {
            for _ in 0..<randomNumber(below: count + 1) { (before, next) = (next, next.unsafelyUnwrapped.pointee.next) }
        }
        arm.pointee.next = next
        if let before { before.pointee.next = arm } else { first = arm }
    }

    /// Waits for an arm to happen and returns it.
    @usableFromInline
    func run() throws -> ArmPointer {
        let worker = Worker.current
        while true {
            if let worker, worker.isCancelled {
                worker.yield()
                return try cancelled(worker)
            }
            if let ready = chooseReady() {
                guard attempt(ready) else { continue }
                worker?.chargeOperation()
                return ready
            }
            if let otherwise {
                worker?.chargeOperation()
                return otherwise
            }
            try checkThatOneMayCome()
            if let happened = try wait(worker) { return happened }
        }
    }

    private func cancelled(_ worker: Worker) throws -> ArmPointer {
        guard let cancellation else { throw worker.running.cancellation }
        return cancellation
    }

    private func forEachArm(_ body: (ArmPointer) -> Bool) {
        var arm = first
        while let this = arm {
            arm = this.pointee.next
            if !this.pointee.isOut && !body(this) { return }
        }
    }

    /// Chooses one of the ready arms, each equally likely; a timeout only if no other arm is ready.
    private func chooseReady() -> ArmPointer? {
        let now = hasDeadlines || hasTimeouts ? Worker.current?.now ?? cfiber_now() : 0
        let ready = choose { arm in
            switch arm.pointee.kind {
            case .timeout: return false
            case .deadline: return arm.pointee.deadline <= now
            default: return arm.withChannel { $0.isReady(arm) }
            }
        }
        if ready != nil || !hasTimeouts { return ready }
        return choose { $0.pointee.kind == .timeout && $0.pointee.deadline <= now }
    }

    /// Chooses one of the arms that are ready. Each gets a random key, and the smallest key wins. A key is derived from one random number
    /// and the arm's position in memory, not from the order of the list, which depends on addresses. So the same seed makes the same choice
    /// in every run.
    @inline(__always)
    private func choose(_ isReady: (ArmPointer) -> Bool) -> ArmPointer? {
        var chosen: ArmPointer?
        var draw: UInt64 = 0
        var least: UInt32 = 0
        forEachArm { arm in
            guard isReady(arm) else { return true }
            if let other = chosen {
                if draw == 0 {
                    draw = UInt64(randomNumber(below: .max)) << 32 | 1 << 31
                    least = key(of: other, draw)
                }
                let key = key(of: arm, draw)
                if key >= least { return true }
                least = key
            }
            chosen = arm
            return true
        }
        return chosen
    }

    private func key(of arm: ArmPointer, _ draw: UInt64) -> UInt32 {
        var state = draw &+ UInt64(truncatingIfNeeded: UnsafeRawPointer(arm) - UnsafeRawPointer(base.unsafelyUnwrapped))
        return nextRandomNumber(&state, below: .max)
    }

    private func randomNumber(below limit: UInt32) -> UInt32 {
        if let worker = Worker.current { return worker.pointee.numbers.randomNumber(below: limit) }
        // A plain thread has no generator, and the system's generator would cost a system call for each number. The time counter has
        // advanced since the last call, so it serves as a seed.
        var state = cfiber_counter()
        return nextRandomNumber(&state, below: limit)
    }

    /// Performs the operation of an arm; returns false when another caller was faster.
    private func attempt(_ arm: ArmPointer) -> Bool {
        if arm.hasNoChannel { return true }
        switch arm.withChannel({ $0.attempt(isSend: arm.pointee.kind == .send, arm.slot) }) {
        case .sent: return true
        case .full: return false
        case .closed: return arm.noteEnd()
        }
    }

    private func checkThatOneMayCome() throws {
        var mayCome = cancellation != nil || first == nil
        forEachArm { _ in
            mayCome = true
            return false
        }
        if !mayCome { throw ChannelClosedError() }
    }

    /// Waits for an arm to happen. Returns nil when the arms must be checked again.
    private func wait(_ worker: Worker?) throws -> ArmPointer? {
        var wait = Wait()
        return try withLocalPointer(to: &wait) { wait in
            wait.begin(isShared: isShared || worker == nil)
            var deadline = Int64.max
            var mayPark = true
            var arm = first
            while let this = arm {
                if this.hasNoChannel { deadline = min(deadline, this.pointee.deadline) }
                arm = this.nextOfOtherChannel
                guard !this.pointee.isOut && !this.hasNoChannel else { continue }
                if this.withChannel({ $0.takePlaces(this, wait) }) { continue }
                // If the claim fails, another caller has served an arm in the meantime, so the fiber must park and is resumed at once.
                mayPark = !wait.takeBack()
                break
            }
            let outcome = mayPark ? wait.park(.select, until: deadline) : nil
            wait.end()
            switch outcome {
            case nil:
                forgetPlaces()
                return nil
            case .timedOut: return earliest(deadline)
            case .cancelled: return try cancelled(worker.unsafelyUnwrapped)
            case .noTimer:
                try worker.unsafelyUnwrapped.check(.noTimer)
                return nil
            case .ready, .closed:
                var served: ArmPointer?
                forEachArm { arm in
                    if arm.isServed { served = arm }
                    return served == nil
                }
                let arm = served.unsafelyUnwrapped
                if outcome == .ready || arm.noteEnd() { return arm }
                forgetPlaces()
                return nil
            }
        }
    }

    private func forgetPlaces() {
        forEachArm { arm in
            arm.pointee.hasPlace = false
            return true
        }
    }

    private func earliest(_ deadline: Int64) -> ArmPointer? {
        var earliest: ArmPointer?
        forEachArm { arm in
            if arm.hasNoChannel && arm.pointee.deadline == deadline { earliest = arm }
            return earliest == nil
        }
        return earliest
    }
}

extension UnsafeMutablePointer where Pointee == ArmRecord {
    /// The address of its channel; 0 without a channel.
    @inline(__always)
    fileprivate var address: UInt { UInt(bitPattern: pointee.channel?.toOpaque()) }

    /// True for timeouts and deadlines.
    @inline(__always)
    fileprivate var hasNoChannel: Bool { pointee.channel == nil }

    /// The next arm that has a different channel.
    @inline(__always)
    fileprivate var nextOfOtherChannel: ArmPointer? {
        var next = pointee.next
        while let this = next, this.address == address && !hasNoChannel { next = this.pointee.next }
        return next
    }

    @inline(__always)
    fileprivate func withChannel<Result>(_ body: (ChannelBase) -> Result) -> Result {
        pointee.channel.unsafelyUnwrapped.withObject(body)
    }

    /// Notes that the channel has ended. Returns true when the arm has a handler for that; otherwise the arm takes no further part.
    fileprivate func noteEnd() -> Bool {
        pointee.hasEnded = true
        pointee.isOut = !pointee.wantsEnd
        return pointee.wantsEnd
    }
}

extension ChannelBase {
    /// Whether an arm could happen now, as far as the state of the channel allows.
    fileprivate final func isReady(_ arm: ArmPointer) -> Bool {
        withLock { isReady(isSend: arm.pointee.kind == .send) }
    }

    /// Puts an arm, and the following arms of the same channel, into the channel's wait queues. If one of them could happen now, enters
    /// none and returns false.
    fileprivate final func takePlaces(_ first: ArmPointer, _ wait: UnsafeMutablePointer<Wait>) -> Bool {
        lock()
        defer { unlock() }
        if !isShared, let worker = Worker.current { noteWaiter(of: worker) }
        let end = first.nextOfOtherChannel
        var arm = first
        repeat {
            if isReady(isSend: arm.pointee.kind == .send) { return false }
            guard let next = arm.pointee.next else { break }
            arm = next
        } while arm != end
        arm = first
        repeat {
            let isSend = arm.pointee.kind == .send
            arm.place.initialize(to: makePlace(wait, isSend: isSend, arm.slot))
            arm.pointee.hasPlace = true
            enter(arm.place)
            guard let next = arm.pointee.next else { break }
            arm = next
        } while arm != end
        return true
    }
}
