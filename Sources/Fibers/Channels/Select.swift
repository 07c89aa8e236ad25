// SPDX-License-Identifier: Apache-2.0

// Waiting for whichever comes first: what `select` does once its arms are laid out.
//
// Invariants:
//   * one arm takes effect, and no other: before the park by one attempt, in the park by one claim;
//   * an arm that is found ready while the places are being taken takes the park back, by the same claim as everybody else's. Whoever was faster has served another arm,
//     and then that is the one;
//   * at most the locks of one channel are held at a time;
//   * places are taken channel by channel in the order of their addresses, all those of one channel at once. So of two selects that could meet, the one that finds the other in line
//     takes its park back, and the other does not: they cannot keep each other from waiting for ever;
//   * a place of this select never meets another one of it: no other arm of a channel is looked at once there is a place there.
//
// Among the ready arms each is as likely as any other: the choice is made while they are counted (J. Vitter, "Random sampling with a reservoir", 1985). Among the arms that wait at one channel,
// too: they stand in its lines in a random order that is drawn when the select begins. A timeout is for the case that nothing else happens, so one that has passed is looked at last.
// One worker, or, where all channels are shared, any thread.

import CFiber

@usableFromInline typealias ArmPointer = UnsafeMutablePointer<ArmRecord>

/// An arm of a select that runs, in the frame of its caller. Behind it lie its place in line, once it has one, and the slot for a message.
@usableFromInline
struct ArmRecord: BitwiseCopyable {
    @usableFromInline
    enum Kind: UInt8, BitwiseCopyable {
        /// `timeout` is a time that comes last, after all else was found not to be ready, `deadline` one that is as good as any other arm once it has come.
        case receive, send, deadline, timeout, cancellation, otherwise, never
    }

    @usableFromInline let kind: Kind
    /// It wants to be told when its channel is closed; else it then is as if it were not there.
    @usableFromInline let wantsEnd: Bool
    /// Its channel is closed, and has nothing more.
    @usableFromInline var hasEnded = false
    @usableFromInline var isOut = false
    @usableFromInline var hasPlace = false
    @usableFromInline let channel: Unmanaged<ChannelBase>?
    @usableFromInline let deadline: Int64
    @usableFromInline var next: ArmPointer?
    /// Of those that have a channel.
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

    /// Bytes of a record and what lies behind it, from an address that 16 divides: Swift aligns no type to more.
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
    /// Where the arms begin.
    private var base: ArmPointer?
    private var otherwise: ArmPointer?
    private var cancellation: ArmPointer?
    private var isShared = false
    private var hasDeadlines = false
    private var hasTimeouts = false

    @usableFromInline
    init() {}

    /// Adds an arm; its record lies there until the selection is over.
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
            // It never comes.
            if arm.pointee.deadline == .max { return }
            if arm.pointee.kind == .deadline { hasDeadlines = true } else { hasTimeouts = true }
            insert(arm)
        case .receive, .send:
            arm.withChannel { $0.requireWorker() }
            if arm.withChannel({ $0.isShared }) { isShared = true }
            insert(arm)
        }
    }

    /// In the order of the channels' addresses; of those with the same channel each order is as likely as any other, since they stand in its lines in this order, and the first is served.
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

    /// The arm that has happened; waits for one.
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

    /// One of the arms that are ready, each as likely as any other; a timeout only if no other is.
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

    /// Each arm that is ready gets a random key, and the least wins. The key is made of one draw and of the arm's place among the arms, and not of the order of the list, which is that of addresses: so
    /// the same seed makes the same choice in every run.
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
        // A plain thread has no generator, and the system's would cost a system call for each number. The time counter has moved on since the last one.
        var state = cfiber_counter()
        return nextRandomNumber(&state, below: limit)
    }

    /// Does what an arm is there for; false when somebody else was faster.
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

    /// Waits; nil when it has to be looked at anew.
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
                // Else another arm has been served meanwhile.
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
    /// Of its channel; 0 without one.
    @inline(__always)
    fileprivate var address: UInt { UInt(bitPattern: pointee.channel?.toOpaque()) }

    /// It is for a time.
    @inline(__always)
    fileprivate var hasNoChannel: Bool { pointee.channel == nil }

    /// The next arm that is not of the same channel.
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

    /// The channel has ended: true when the arm is to be told, else it is out.
    fileprivate func noteEnd() -> Bool {
        pointee.hasEnded = true
        pointee.isOut = !pointee.wantsEnd
        return pointee.wantsEnd
    }
}

extension ChannelBase {
    /// Whether an arm could happen now, as far as others are concerned.
    fileprivate final func isReady(_ arm: ArmPointer) -> Bool {
        withLock { isReady(isSend: arm.pointee.kind == .send) }
    }

    /// Takes places in line for an arm and those behind it that are of the same channel; none, and false, when one of them could happen now.
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
