// SPDX-License-Identifier: Apache-2.0

// What a program must do, by the documentation alone: a discrete-event interpreter in plain data, which knows neither the kernel nor fibers. Written to be right at a
// glance, not to be fast.
//
// Rules that the documentation leaves open, as decided here:
//   * a deadline whose time has come ends its scope at the first moment at which somebody under it (no shield in between) waits, or would wait, or asks. So a scope that
//     is cancelled before that is not ended by its deadline, and an error that leaves it before that is not turned into a `TimeoutError`;
//   * a limit less than zero has passed when it is set, and not before;
//   * what ends at the instant of a deadline around it is ended by the deadline;
//   * a join of a fiber that has ended gives its result, also to a caller that is cancelled;
//   * a join that throws what the joined fiber threw makes that the caller's error, too, and for a group in which both are that is one failure;
//   * an error of a fiber that was not cancelled itself is no cancellation, also if it is a `CancellationError` (of a fiber that it joined);
//   * a child that ends by a cancellation is cut short if that came from outside its group; daemons, which are there to be cancelled, never are;
//   * within one instant, fibers run in any order.

struct ModelInterpreter {
    /// In which order fibers that could all go on do so.
    enum Order {
        case inTurn
        case random(SeededGenerator)
    }

    /// Runs a program. If all fibers come to wait for each other, they are cancelled at that instant, or at the later one given.
    static func run(_ program: ModelProgram, _ order: Order, from start: Int64, shutDownAt: Int64? = nil) -> ModelObservation {
        let machine = Machine(program, order, start, shutDownAt)
        machine.run()
        return machine.observation
    }
}

private final class Scope {
    enum Kind { case fiber, timeout, group, shield }

    let kind: Kind
    /// The fiber in which it is.
    let fiber: Int
    let outer: Scope?
    /// Its own; `Int64.max` for none.
    let deadline: Int64
    let limit: Int64
    /// Which scope's cancellation or deadline has reached it first: itself or one around it, which therefore lives as long.
    unowned var cause: Scope?

    init(_ kind: Kind, of fiber: Int, in outer: Scope?, deadline: Int64 = .max, limit: Int64 = 0) {
        self.kind = kind
        self.fiber = fiber
        self.outer = outer
        self.deadline = deadline
        self.limit = limit
        if kind != .shield { cause = outer?.cause }
    }

    /// Whether a cancellation of another scope reaches this one.
    func isInside(_ other: Scope) -> Bool {
        self === other || (kind != .shield && outer?.isInside(other) == true)
    }

    /// This scope and those around it, up to the nearest shield, from the inside out.
    private var reachable: [Scope] { kind == .shield ? [self] : [self] + (outer?.reachable ?? []) }

    /// The earliest deadline that counts here.
    var earliestDeadline: Int64 { reachable.map(\.deadline).min() ?? .max }

    /// The scope to which that belongs: of several the outermost.
    var bound: Scope { reachable.last { $0.deadline == earliestDeadline } ?? self }
}

private final class Group {
    let scope: Scope
    let limit: Int
    let keepsResults: Bool
    /// Children that are no daemons, and those about to be spawned by fibers that waited for that.
    var running = 0
    var daemons = 0
    /// Fibers that wait to spawn, in order.
    var queue: [Fiber] = []
    var results: [Int] = []
    var errors: [ModelFailure] = []
    var wasCutShort = false
    /// How the body ended, once it has.
    var body: Completion?
    var hasEnded = false

    init(_ scope: Scope, limit: Int, keepsResults: Bool) {
        self.scope = scope
        self.limit = limit
        self.keepsResults = keepsResults
    }
}

/// How an operation or a sequence of them ends.
private enum Completion {
    case done(ModelEvent.What)
    /// The fiber returns a value.
    case returned(Int)
    case failed(ModelFailure)
}

private enum ModelWait: Equatable {
    case sleep(until: Int64)
    case join(Int)
    case slot
    case change(group: Int)
    case groupEnd(group: Int)
}

/// With what a fiber goes on.
private enum Signal {
    /// Into the frame on top.
    case go
    case again
    case complete(Completion)
}

private enum Frame {
    case sequence([ModelOperation], next: Int)
    /// Inside the operation.
    case operation(ModelOperation)
    /// In the pause after it, or, without one, before the fiber's body.
    case pause(ModelOperation?, then: Completion)
}

private final class Fiber {
    enum State {
        case ready(Signal)
        case waiting(ModelWait)
        case ended
    }

    let number: Int
    let base: Scope
    let group: Group?
    let isDaemon: Bool
    var scope: Scope
    /// Settings, innermost last.
    var locals: [(index: Int, value: Int)]
    var frames: [Frame]
    var state: State
    /// What a join gets, once it has ended.
    var result: Completion?

    init(_ number: Int, _ frames: [Frame], in group: Group?, isDaemon: Bool, locals: [(index: Int, value: Int)]) {
        self.number = number
        self.frames = frames
        self.group = group
        self.isDaemon = isDaemon
        self.locals = locals
        base = Scope(.fiber, of: number, in: group?.scope)
        scope = base
        state = .ready(.go)
    }

    var returnsVoid: Bool { isDaemon || group?.keepsResults == false }
    var isCancelled: Bool { scope.cause != nil }

    /// What an operation throws that the cancellation ends.
    var cancellation: ModelFailure {
        scope.kind == .timeout && scope.cause === scope ? .timeout(limit: scope.limit) : .cancelled
    }

    var wait: ModelWait? {
        if case .waiting(let wait) = state { wait } else { nil }
    }

    /// Whether it waits and a cancellation would end that.
    var canBeInterrupted: Bool {
        switch wait {
        case nil, .groupEnd: false
        default: true
        }
    }
}

private final class Machine {
    private let program: ModelProgram
    private var order: ModelInterpreter.Order
    private let shutDownAt: Int64?
    private(set) var observation: ModelObservation
    private var now: Int64
    /// In the order in which they were spawned.
    private var spawned: [Fiber] = []
    private var fibers: [Int: Fiber] = [:]
    private var ready: [Fiber] = []
    private var groups: [Int: Group] = [:]
    /// Those that are entered and not left.
    private var scopes: [Scope] = []
    private var isShuttingDown = false
    /// Errors that nobody has had yet.
    private var undelivered: [Int: ModelFailure] = [:]

    init(_ program: ModelProgram, _ order: ModelInterpreter.Order, _ start: Int64, _ shutDownAt: Int64?) {
        self.program = program
        self.order = order
        self.shutDownAt = shutDownAt
        now = start
        observation = ModelObservation(events: Array(repeating: [], count: program.fibers.count))
    }

    func run() {
        spawn(0, in: nil, isDaemon: false, locals: [])
        while true {
            while let fiber = nextReady() { goOn(fiber) }
            if spawned.allSatisfy({ $0.result != nil }) { break }
            if let time = nextTime() {
                advance(to: time)
            } else if observation.deadlock == nil {
                let time = max(now, shutDownAt ?? now)
                observation.deadlock = time
                advance(to: time)
                shutDown()
            } else {
                observation.complaints.append("a program that a shutdown does not end")
                break
            }
        }
        observation.unhandled = undelivered
    }

    private func nextReady() -> Fiber? {
        if ready.isEmpty { return nil }
        switch order {
        case .inTurn: return ready.removeFirst()
        case .random(var random):
            let index = Int(random.next() % UInt64(ready.count))
            order = .random(random)
            return ready.remove(at: index)
        }
    }

    // MARK: Time

    /// When something happens by itself that ends somebody's wait.
    private func nextTime() -> Int64? {
        var next = Int64.max
        for fiber in spawned {
            if case .sleep(let time) = fiber.wait { next = min(next, time) }
            if fiber.canBeInterrupted, !fiber.isCancelled { next = min(next, fiber.scope.earliestDeadline) }
        }
        return next == .max ? nil : next
    }

    private func advance(to time: Int64) {
        now = time
        for fiber in spawned where fiber.canBeInterrupted { heedDeadline(fiber) }
        for fiber in spawned {
            if case .sleep(let time) = fiber.wait, time <= now { wake(fiber, .complete(.done(.done))) }
        }
    }

    // MARK: Cancelling

    /// Ends what a deadline around a fiber that waits, or asks, should have ended by now.
    private func heedDeadline(_ fiber: Fiber) {
        if !fiber.isCancelled, fiber.scope.earliestDeadline <= now { cancel(fiber.scope.bound) }
    }

    private func isCancelled(_ fiber: Fiber) -> Bool {
        heedDeadline(fiber)
        return fiber.isCancelled
    }

    private func cancel(_ top: Scope) {
        if top.cause != nil { return }
        for scope in scopes where scope.cause == nil && scope.isInside(top) { scope.cause = top }
        for fiber in spawned where fiber.canBeInterrupted && fiber.isCancelled {
            if let group = group(of: fiber) { group.queue.removeAll { $0 === fiber } }
            wake(fiber, .complete(.failed(fiber.cancellation)))
        }
    }

    /// In whose queue for a slot the fiber waits.
    private func group(of fiber: Fiber) -> Group? { groups.values.first { $0.queue.contains { $0 === fiber } } }

    private func shutDown() {
        isShuttingDown = true
        for fiber in spawned.reversed() where fiber.result == nil && fiber.group == nil { cancel(fiber.base) }
        for fiber in spawned.reversed() where fiber.result == nil { cancel(fiber.base) }
    }

    private func enter(_ scope: Scope, _ fiber: Fiber) {
        scopes.append(scope)
        fiber.scope = scope
    }

    private func leave(_ fiber: Fiber) -> Scope {
        let scope = fiber.scope
        scopes.removeAll { $0 === scope }
        fiber.scope = scope.outer ?? fiber.base
        return scope
    }

    // MARK: Fibers

    private func spawn(_ number: Int, in group: Group?, isDaemon: Bool, locals: [(index: Int, value: Int)]) {
        let frames = [Frame.sequence(program.fibers[number].body, next: 0)]
        let fiber = Fiber(number, frames, in: group, isDaemon: isDaemon, locals: locals)
        scopes.append(fiber.base)
        if isShuttingDown { cancel(fiber.base) }
        spawned.append(fiber)
        fibers[number] = fiber
        ready.append(fiber)
    }

    private func wake(_ fiber: Fiber, _ signal: Signal) {
        fiber.state = .ready(signal)
        ready.append(fiber)
    }

    private func record(_ fiber: Fiber, _ operation: ModelOperation?, _ what: ModelEvent.What) {
        observation.events[fiber.number].append(ModelEvent(time: now, operation: operation?.number, what: what))
    }

    /// Runs a fiber until it waits or ends.
    private func goOn(_ fiber: Fiber) {
        guard case .ready(var signal) = fiber.state else { return }
        if observation.events[fiber.number].isEmpty {
            record(fiber, nil, .began)
            if program.fibers[fiber.number].pause > 0 { return pause(fiber, program.fibers[fiber.number].pause, nil, then: .done(.done)) }
        }
        while let frame = fiber.frames.popLast() {
            switch (frame, signal) {
            case (.sequence, .complete(.returned)), (.sequence, .complete(.failed)):
                break
            case (.sequence(let body, let next), _):
                if next == body.count {
                    signal = .complete(.done(.done))
                } else {
                    fiber.frames.append(.sequence(body, next: next + 1))
                    fiber.frames.append(.operation(body[next]))
                    signal = .go
                }
            case (.operation(let operation), .go), (.operation(let operation), .again):
                fiber.frames.append(frame)
                guard let next = begin(operation, fiber, signal) else { return }
                signal = next
            case (.operation(let operation), .complete(let completion)):
                guard let outcome = end(operation, fiber, completion) else {
                    fiber.frames.append(frame)
                    return
                }
                switch outcome {
                case .done(let what): record(fiber, operation, what)
                case .returned: record(fiber, operation, .done)
                case .failed(let failure): record(fiber, operation, .failed(failure))
                }
                if operation.pause > 0 { return pause(fiber, operation.pause, operation, then: outcome) }
                signal = .complete(handle(outcome, operation))
            case (.pause(let operation, let outcome), _):
                _ = leave(fiber)
                signal = .complete(operation.map { handle(outcome, $0) } ?? outcome)
            }
        }
        guard case .complete(let completion) = signal else { fatalError("a fiber ended by nothing") }
        end(fiber, completion)
    }

    /// What the sequence around an operation hears.
    private func handle(_ outcome: Completion, _ operation: ModelOperation) -> Completion {
        if case .failed(let failure) = outcome, operation.catches(failure) { return .done(.done) }
        return outcome
    }

    private func pause(_ fiber: Fiber, _ duration: Int64, _ operation: ModelOperation?, then completion: Completion) {
        enter(Scope(.shield, of: fiber.number, in: fiber.scope), fiber)
        fiber.frames.append(.pause(operation, then: completion))
        fiber.state = .waiting(.sleep(until: now + duration))
    }

    // MARK: Operations

    /// Starts an operation: with what its fiber goes on at once, nil if it waits or lets others run.
    private func begin(_ operation: ModelOperation, _ fiber: Fiber, _ signal: Signal) -> Signal? {
        switch operation.kind {
        case .sleep(let duration):
            if refuses(fiber) { return nil }
            if duration <= 0 {
                wake(fiber, .complete(.done(.done)))
            } else {
                fiber.state = .waiting(.sleep(until: now + duration))
            }
            return nil
        case .spawn(let number, let name, let isDaemon):
            guard let name else {
                spawn(number, in: nil, isDaemon: false, locals: fiber.locals)
                return .complete(.done(.done))
            }
            guard let group = openGroup(name) else { return .complete(.done(.absent)) }
            if isDaemon {
                group.daemons += 1
            } else {
                if refuses(fiber) { return nil }
                guard group.running < group.limit else {
                    group.queue.append(fiber)
                    fiber.state = .waiting(.slot)
                    return nil
                }
                group.running += 1
            }
            spawn(number, in: group, isDaemon: isDaemon, locals: fiber.locals)
            return .complete(.done(.done))
        case .cancel(let number):
            guard let other = fibers[number], !isHidden(number) else { return .complete(.done(.absent)) }
            if other.result == nil { cancel(other.base) }
            return .complete(.done(.done))
        case .join(let number):
            guard let other = fibers[number], !isHidden(number), other !== fiber else { return .complete(.done(.absent)) }
            if other.result != nil { return .complete(result(of: other)) }
            if refuses(fiber) { return nil }
            fiber.state = .waiting(.join(number))
            return nil
        case .timeout(let limit, let body):
            let (deadline, overflow) = now.addingReportingOverflow(max(0, limit))
            enter(Scope(.timeout, of: fiber.number, in: fiber.scope, deadline: overflow ? .max : deadline, limit: limit), fiber)
            fiber.frames.append(.sequence(body, next: 0))
            return .go
        case .shield(let body):
            enter(Scope(.shield, of: fiber.number, in: fiber.scope), fiber)
            fiber.frames.append(.sequence(body, next: 0))
            return .go
        case .group(let limit, let keepsResults, let body):
            let scope = Scope(.group, of: fiber.number, in: fiber.scope)
            enter(scope, fiber)
            groups[operation.number] = Group(scope, limit: limit ?? .max, keepsResults: keepsResults)
            fiber.frames.append(.sequence(body, next: 0))
            return .go
        case .local(let index, let value, let body):
            fiber.locals.append((index, value))
            fiber.frames.append(.sequence(body, next: 0))
            return .go
        case .next(let name):
            guard let group = group(name, signal) else { return .complete(.done(.absent)) }
            if case .go = signal, refuses(fiber) { return nil }
            if !group.results.isEmpty { return .complete(.done(.value(group.results.removeFirst()))) }
            if group.running == 0 { return .complete(.done(.value(nil))) }
            return waitForChange(fiber, name)
        case .waitForAll(let name):
            guard let group = group(name, signal) else { return .complete(.done(.absent)) }
            if case .go = signal, refuses(fiber) { return nil }
            if group.running == 0 { return .complete(.done(.done)) }
            return waitForChange(fiber, name)
        case .cancelGroup(let name):
            guard let group = openGroup(name) else { return .complete(.done(.absent)) }
            cancel(group.scope)
            return .complete(.done(.done))
        case .count(let name):
            return .complete(.done(openGroup(name).map { .value($0.running) } ?? .absent))
        case .check:
            return .complete(isCancelled(fiber) ? .failed(fiber.cancellation) : .done(.done))
        case .isCancelled:
            return .complete(.done(.flag(isCancelled(fiber))))
        case .readLocal(let index):
            return .complete(.done(.value(fiber.locals.last { $0.index == index }?.value ?? 0)))
        case .fail:
            return .complete(.failed(.thrown(operation.number)))
        case .end:
            return .complete(.returned(operation.number))
        case .shutDown:
            shutDown()
            return .complete(.done(.done))
        }
    }

    private func openGroup(_ name: Int) -> Group? { groups[name].flatMap { $0.hasEnded ? nil : $0 } }

    /// A fiber that is not of the group may have waited for its children, and goes on when it has ended.
    private func group(_ name: Int, _ signal: Signal) -> Group? {
        if case .again = signal { groups[name] } else { openGroup(name) }
    }

    /// Of main there is no handle.
    private func isHidden(_ number: Int) -> Bool { number == 0 && program.rootIsMain }

    /// A call that may wait ends at once in a cancelled fiber, after the others had a turn.
    private func refuses(_ fiber: Fiber) -> Bool {
        guard isCancelled(fiber) else { return false }
        wake(fiber, .complete(.failed(fiber.cancellation)))
        return true
    }

    private func waitForChange(_ fiber: Fiber, _ name: Int) -> Signal? {
        if !refuses(fiber) { fiber.state = .waiting(.change(group: name)) }
        return nil
    }

    /// Takes the result of a fiber that has ended.
    private func result(of fiber: Fiber) -> Completion {
        undelivered[fiber.number] = nil
        switch fiber.result {
        case .returned(let value): return .done(.value(fiber.returnsVoid ? nil : value))
        case .failed(let failure): return .failed(failure)
        default: fatalError("a fiber without a result was joined")
        }
    }

    /// How an operation ends whose inside has ended so; nil if it still waits.
    private func end(_ operation: ModelOperation, _ fiber: Fiber, _ completion: Completion) -> Completion? {
        switch operation.kind {
        case .join(let number):
            // Woken by the end of the other.
            if case .done(.done) = completion, let other = fibers[number] { return result(of: other) }
            return completion
        case .spawn(let number, let name?, _):
            // Its turn to spawn has come.
            if case .done(.done) = completion, fibers[number] == nil, let group = groups[name] {
                spawn(number, in: group, isDaemon: false, locals: fiber.locals)
            }
            return completion
        case .timeout:
            let scope = leave(fiber)
            if case .failed(.cancelled) = completion, scope.cause === scope { return .failed(.timeout(limit: scope.limit)) }
            return completion
        case .shield:
            _ = leave(fiber)
            return completion
        case .local:
            fiber.locals.removeLast()
            return completion
        case .group:
            return endGroup(operation.number, fiber, completion)
        default:
            return completion
        }
    }

    private func endGroup(_ name: Int, _ fiber: Fiber, _ completion: Completion) -> Completion? {
        guard let group = groups[name] else { fatalError("a group ended twice") }
        if group.body == nil {
            // Later it is an end of children that wakes the fiber here.
            group.body = completion
            if case .failed(let failure) = completion {
                if failure != .cancelled || group.scope.cause == nil { note(failure, of: group) }
                cancel(group.scope)
            }
        }
        // Daemons are cancelled when the body and the other children have ended.
        if group.running == 0, group.daemons > 0 { cancel(group.scope) }
        if group.running > 0 || group.daemons > 0 {
            fiber.state = .waiting(.groupEnd(group: name))
            return nil
        }
        _ = leave(fiber)
        group.hasEnded = true
        if let first = group.errors.first {
            return .failed(group.errors.count == 1 ? first : .several(first: first, others: Array(group.errors.dropFirst())))
        }
        // The scope around the group may be what was cancelled.
        if group.wasCutShort { return .failed(fiber.cancellation) }
        if case .failed(.cancelled) = group.body { return .failed(fiber.cancellation) }
        return group.body
    }

    // MARK: The end of a fiber

    private func end(_ fiber: Fiber, _ completion: Completion) {
        switch completion {
        case .done:
            let value = program.fibers[fiber.number].result
            record(fiber, nil, .returned(value))
            fiber.result = .returned(value)
        case .returned(let value):
            record(fiber, nil, .returned(value))
            fiber.result = completion
        case .failed(let failure):
            record(fiber, nil, .failed(failure))
            fiber.result = completion
            if isHidden(fiber.number) {
                observation.failure = failure
                shutDown()
            } else if fiber.base.cause == nil || failure != .cancelled {
                undelivered[fiber.number] = failure
            }
        }
        fiber.state = .ended
        scopes.removeAll { $0 === fiber.base }
        for other in spawned where other.wait == .join(fiber.number) { wake(other, .complete(.done(.done))) }
        if let group = fiber.group { leaveGroup(group, fiber) }
    }

    /// An error that came to the group before, by a fiber that joined the one who failed, is no second failure. Errors that look the same may be two all the same, unless
    /// an operation has thrown them, which happens once: that is left open.
    private func note(_ failure: ModelFailure, of group: Group) {
        if group.errors.contains(failure) {
            if case .thrown = failure { return }
            switch order {
            case .inTurn: return
            case .random(var random):
                let isOne = Bool.random(using: &random)
                order = .random(random)
                if isOne { return }
            }
        }
        group.errors.append(failure)
    }

    private func leaveGroup(_ group: Group, _ fiber: Fiber) {
        switch fiber.result {
        case .returned(let value):
            if group.keepsResults, !fiber.isDaemon { group.results.append(value) }
        case .failed(.cancelled) where fiber.base.cause != nil:
            let isOwn = fiber.base.cause === fiber.base && !isShuttingDown
            if !fiber.isDaemon, !isOwn, fiber.base.cause !== group.scope { group.wasCutShort = true }
        case .failed(let failure):
            undelivered[fiber.number] = nil
            note(failure, of: group)
            cancel(group.scope)
        default: fatalError("a child left its group before it ended")
        }
        if fiber.isDaemon {
            group.daemons -= 1
        } else {
            group.running -= 1
            if !group.queue.isEmpty {
                group.running += 1
                wake(group.queue.removeFirst(), .complete(.done(.done)))
            }
        }
        for other in spawned {
            switch other.wait {
            case .change(let name) where groups[name] === group: wake(other, .again)
            case .groupEnd(let name) where groups[name] === group && group.running == 0: wake(other, .complete(.done(.done)))
            default: break
            }
        }
    }
}
