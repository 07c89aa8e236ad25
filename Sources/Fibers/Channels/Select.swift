// Waiting for whichever comes first: what `select` does once its arms are laid out.
//
// Invariants:
//   * one arm takes effect, and no other: before the park by one attempt, in the park by one claim;
//   * an arm that is found ready while the places are being taken takes the park back, by the same claim as everybody else's. Whoever was faster has served another arm,
//     and then that is the one;
//   * at most one lock is held at a time;
//   * a place of this select never meets another one of it.
//
// Among the ready arms each is as likely as any other: the choice is made while they are counted (J. Vitter, "Random sampling with a reservoir", 1985).
// One worker, or, where all channels are shared, any thread.

import CFiber

@usableFromInline typealias ArmPointer = UnsafeMutablePointer<ArmRecord>

/// An arm of a select that runs, in the frame of its caller; the slot for a message lies behind it.
@usableFromInline
struct ArmRecord: BitwiseCopyable {
    @usableFromInline
    enum Kind: UInt8, BitwiseCopyable {
        case receive, send, deadline, cancellation, otherwise, never
    }

    @usableFromInline let kind: Kind
    fileprivate let channel: Unmanaged<ChannelBase>?
    fileprivate let deadline: Int64
    /// It wants to be told when its channel is closed; else it then is as if it were not there.
    fileprivate let wantsEnd: Bool
    /// Its channel is closed, and has nothing more.
    @usableFromInline fileprivate(set) var hasEnded = false
    fileprivate var isOut = false
    fileprivate var place: Place?
    fileprivate var next: ArmPointer?

    @usableFromInline
    init(_ kind: Kind, _ channel: ChannelBase? = nil, deadline: Int64 = .max, wantsEnd: Bool = false) {
        self.kind = kind
        self.channel = channel.map { .passUnretained($0) }
        self.deadline = deadline
        self.wantsEnd = wantsEnd
    }

    /// Bytes of a record and the slot behind it.
    @inlinable
    static func space(slot: Int) -> Int { (MemoryLayout<ArmRecord>.stride &+ slot &+ 15) & ~15 }
}

extension UnsafeMutablePointer where Pointee == ArmRecord {
    @usableFromInline
    var slot: UnsafeMutableRawPointer { UnsafeMutableRawPointer(self + 1) }

    /// The place, where it is once it has been taken.
    fileprivate var place: PlacePointer {
        (UnsafeMutableRawPointer(self) + MemoryLayout<ArmRecord>.offset(of: \.place).unsafelyUnwrapped).assumingMemoryBound(to: Place.self)
    }

    fileprivate var isServed: Bool { pointee.place?.isServed == true }
}

/// The arms of one select.
@usableFromInline
struct Selection {
    private var first: ArmPointer?
    private var last: ArmPointer?
    private var otherwise: ArmPointer?
    private var cancellation: ArmPointer?
    private var isShared = false
    private var hasDeadlines = false

    @usableFromInline
    init() {}

    /// Adds an arm; its record lies there until the selection is over.
    @usableFromInline
    mutating func add(_ arm: ArmPointer) {
        switch arm.pointee.kind {
        case .never: return
        case .otherwise:
            require(otherwise == nil, "a select has two otherwise { … }: leave one out")
            otherwise = arm
        case .cancellation:
            require(cancellation == nil, "a select has two onCancellation { … }: leave one out")
            cancellation = arm
        case .receive, .send, .deadline:
            if arm.pointee.kind == .deadline { hasDeadlines = true }
            if arm.pointee.channel?._withUnsafeGuaranteedRef({ $0.isShared }) == true { isShared = true }
            if let last { last.pointee.next = arm } else { first = arm }
            last = arm
        }
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

    /// One of the arms that are ready, each as likely as any other.
    private func chooseReady() -> ArmPointer? {
        var chosen: ArmPointer?
        var count: UInt32 = 0
        let now = hasDeadlines ? Worker.current?.now ?? cfiber_now() : 0
        forEachArm { arm in
            if arm.pointee.kind == .deadline ? arm.pointee.deadline <= now : arm.channel.isReady(arm) {
                count += 1
                if count == 1 || randomNumber(below: count) == 0 { chosen = arm }
            }
            return true
        }
        return chosen
    }

    private func randomNumber(below limit: UInt32) -> UInt32 {
        guard let worker = Worker.current else { return .random(in: 0..<limit) }
        return worker.randomNumber(below: limit)
    }

    /// Does what an arm is there for; false when somebody else was faster.
    private func attempt(_ arm: ArmPointer) -> Bool {
        if arm.pointee.kind == .deadline { return true }
        switch arm.channel.attempt(isSend: arm.pointee.kind == .send, arm.slot) {
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
        if !mayCome { throw ChannelClosedError(()) }
    }

    /// Waits; nil when it has to be looked at anew.
    private func wait(_ worker: Worker?) throws -> ArmPointer? {
        var wait = Wait()
        return try _withUnprotectedUnsafeMutablePointer(to: &wait) { wait in
            wait.begin(isShared: isShared || worker == nil)
            var deadline = Int64.max
            var mayPark = true
            forEachArm { arm in
                if arm.pointee.kind == .deadline {
                    deadline = min(deadline, arm.pointee.deadline)
                    return true
                }
                if arm.channel.takePlace(arm, wait) { return true }
                // Else another arm has been served meanwhile.
                mayPark = !wait.takeBack()
                return false
            }
            let outcome = mayPark ? wait.park(.select, until: deadline) : nil
            wait.end()
            switch outcome {
            case nil: return nil
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
                return outcome == .ready || arm.noteEnd() ? arm : nil
            }
        }
    }

    private func earliest(_ deadline: Int64) -> ArmPointer? {
        var earliest: ArmPointer?
        forEachArm { arm in
            if arm.pointee.kind == .deadline && arm.pointee.deadline == deadline { earliest = arm }
            return earliest == nil
        }
        return earliest
    }
}

extension UnsafeMutablePointer where Pointee == ArmRecord {
    fileprivate var channel: ChannelBase { pointee.channel.unsafelyUnwrapped._withUnsafeGuaranteedRef { $0 } }

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
        withLock { isReady(isSend: arm.pointee.kind == .send, besides: nil) }
    }

    /// Takes the arm's place in line; false when it could happen now.
    fileprivate final func takePlace(_ arm: ArmPointer, _ wait: UnsafeMutablePointer<Wait>) -> Bool {
        lock()
        defer { unlock() }
        let isSend = arm.pointee.kind == .send
        if isReady(isSend: isSend, besides: wait) { return false }
        arm.pointee.place = makePlace(wait, isSend: isSend, arm.slot)
        enter(arm.place)
        return true
    }
}
