// SPDX-License-Identifier: Apache-2.0

// Runs a program on fibers and notes what can be seen of it.

import Fibers

final class ModelExecution {
    private let program: ModelProgram
    private var observation: ModelObservation
    private var time: VirtualTime?
    private var handles: [Int: Handle] = [:]
    private var groups: [Int: any RunningGroup] = [:]
    private var numbers: [UInt64: Int] = [:]

    /// Where the clock begins: late enough for deadlines in the past.
    static var start: Int64 { 1_000_000_000_000 }

    /// Runs a program. If all its fibers come to wait for each other, the runtime is shut down, and when that was is noted.
    ///
    /// `onNonsense` hears of a runtime that does not come to an end by itself, before it is ended by force.
    static func run(_ program: ModelProgram, onNonsense: @escaping (String) -> Void = { _ in }) -> ModelObservation {
        let execution = ModelExecution(program)
        execution.run(onNonsense)
        // Errors that nobody has had are told when the handles go.
        execution.handles = [:]
        return execution.observation
    }

    private init(_ program: ModelProgram) {
        self.program = program
        observation = ModelObservation(events: Array(repeating: [], count: program.fibers.count))
    }

    private func run(_ onNonsense: @escaping (String) -> Void) {
        let time = VirtualTime(
            from: Self.start,
            onDeadlock: { [unowned self] in
                observation.deadlock = now
                FiberRuntime.shutDown()
            },
            onNonsense: { [unowned self] in
                if observation.complaints.isEmpty { onNonsense($0) }
                observation.complaints.append($0)
            })
        self.time = time
        var configuration = FiberRuntime.Configuration()
        configuration.makeBackend = time.makeBackend
        configuration.workers = 1
        configuration.shutdownLimit = VirtualTime.shutdownLimit
        let hearers = Box<ModelExecution>(self)
        configuration.onUnhandledError = { hearers.value.note($0) }
        configuration.onWarning = { hearers.value.observation.complaints.append($0) }
        do {
            try FiberRuntime.run(configuration) {
                if program.rootIsMain {
                    _ = try body(0)
                } else {
                    note(.number(try Fiber.spawnLocal { try self.body(0) }), of: 0)
                }
            }
        } catch {
            observation.failure = ModelFailure(error)
        }
    }

    private var now: Int64 { time?.now ?? 0 }

    private func note(_ handle: Handle, of fiber: Int) {
        handles[fiber] = handle
        numbers[handle.fiber.id] = fiber
    }

    private func note(_ unhandled: UnhandledFiberError) {
        let failure = ModelFailure(unhandled.error)
        if let fiber = numbers[unhandled.fiberID], observation.unhandled[fiber] == nil {
            observation.unhandled[fiber] = failure
        } else {
            observation.complaints.append("unhandled: \(unhandled)")
        }
    }

    private func record(_ fiber: Int, _ operation: ModelOperation?, _ what: ModelEvent.What) {
        observation.events[fiber].append(ModelEvent(time: now, operation: operation?.number, what: what))
    }

    // MARK: Fibers

    private func body(_ fiber: Int) throws -> Int {
        record(fiber, nil, .began)
        pause(program.fibers[fiber].pause, fiber, nil)
        do {
            let value = try run(program.fibers[fiber].body, fiber) ?? program.fibers[fiber].result
            record(fiber, nil, .returned(value))
            return value
        } catch {
            record(fiber, nil, .failed(ModelFailure(error)))
            throw error
        }
    }

    /// Nil, or what the fiber is to return now.
    private func run(_ body: [ModelOperation], _ fiber: Int) throws -> Int? {
        for operation in body {
            if let value = try run(operation, fiber) { return value }
        }
        return nil
    }

    private func run(_ operation: ModelOperation, _ fiber: Int) throws -> Int? {
        let outcome: (seen: ModelEvent.What, returned: Int?)
        do {
            outcome = try perform(operation, fiber)
        } catch {
            let failure = ModelFailure(error)
            record(fiber, operation, .failed(failure))
            pause(operation.pause, fiber, operation)
            if operation.catches(failure) { return nil }
            throw error
        }
        record(fiber, operation, outcome.seen)
        pause(operation.pause, fiber, operation)
        return outcome.returned
    }

    private func pause(_ duration: Int64, _ fiber: Int, _ operation: ModelOperation?) {
        if duration == 0 { return }
        do {
            try withCancellationShield { try Fiber.sleep(for: .nanoseconds(duration)) }
        } catch {
            record(fiber, operation, .pauseFailed(ModelFailure(error)))
        }
    }

    private func perform(_ operation: ModelOperation, _ fiber: Int) throws -> (ModelEvent.What, Int?) {
        switch operation.kind {
        case .sleep(let duration):
            try Fiber.sleep(for: .nanoseconds(duration))
        case .spawn(let number, nil, _):
            note(try spawn(number), of: number)
        case .spawn(let number, let name?, let isDaemon):
            guard let group = groups[name] else { return (.absent, nil) }
            note(
                isDaemon ? .void(try group.spawnDaemon(name: nil) { _ = try self.body(number) }) : try spawn(number, in: group), of: number)
        case .cancel(let number):
            guard let handle = handles[number] else { return (.absent, nil) }
            handle.cancel()
        case .join(let number):
            guard number != fiber, let handle = handles[number] else { return (.absent, nil) }
            return (.value(try handle.join()), nil)
        case .timeout(let limit, let body):
            return (.done, try withTimeout(limit == .max ? .seconds(limit) : .nanoseconds(limit)) { try run(body, fiber) })
        case .shield(let body):
            return (.done, try withCancellationShield { try run(body, fiber) })
        case .group(let limit, keepsResults: true, let body):
            defer { groups[operation.number] = nil }
            return try withFiberGroup(of: Int.self, limit: limit) { group in
                groups[operation.number] = group
                return (.done, try run(body, fiber))
            }
        case .group(let limit, keepsResults: false, let body):
            defer { groups[operation.number] = nil }
            return try withFiberGroup(limit: limit) { group in
                groups[operation.number] = group
                return (.done, try run(body, fiber))
            }
        case .local(let index, let value, let body):
            return (.done, try locals[index].withValue(value) { try run(body, fiber) })
        case .next(let name):
            guard let group = groups[name] else { return (.absent, nil) }
            return (.value(try group.nextNumber()), nil)
        case .waitForAll(let name):
            guard let group = groups[name] else { return (.absent, nil) }
            try group.waitForAll()
        case .cancelGroup(let name):
            guard let group = groups[name] else { return (.absent, nil) }
            group.cancel()
        case .count(let name):
            guard let group = groups[name] else { return (.absent, nil) }
            return (.value(group.count), nil)
        case .check:
            try Fiber.checkCancellation()
        case .isCancelled:
            return (.flag(Fiber.isCancelled), nil)
        case .readLocal(let index):
            return (.value(locals[index].value), nil)
        case .fail:
            throw TestError(number: operation.number)
        case .end:
            return (.done, operation.number)
        case .shutDown:
            FiberRuntime.shutDown()
        }
        return (.done, nil)
    }

    private func spawn(_ fiber: Int) throws -> Handle {
        // Every other result does not fit into a word.
        if fiber % 2 == 0 { return .number(try Fiber.spawnLocal { try self.body(fiber) }) }
        return .text(try Fiber.spawnLocal { "\(try self.body(fiber))" })
    }

    private func spawn(_ fiber: Int, in group: any RunningGroup) throws -> Handle {
        if let group = group as? FiberGroup<Int> { return .number(try group.spawnLocal { try self.body(fiber) }) }
        guard let group = group as? FiberGroup<Void> else { fatalError("groups of the model are of Int or Void") }
        return .void(try group.spawnLocal { _ = try self.body(fiber) })
    }
}

private let locals = [FiberLocal(0), FiberLocal(0)]

private protocol RunningGroup {
    var count: Int { get }
    func spawnDaemon(name: String?, _ body: @escaping () throws -> Void) throws -> FiberHandle<Void>
    func nextNumber() throws -> Int?
    func waitForAll() throws
    func cancel()
}

extension FiberGroup: RunningGroup {
    fileprivate func nextNumber() throws -> Int? { try next() as? Int }
}

private enum Handle {
    case number(FiberHandle<Int>)
    case text(FiberHandle<String>)
    case void(FiberHandle<Void>)

    var fiber: Fiber {
        switch self {
        case .number(let handle): handle.fiber
        case .text(let handle): handle.fiber
        case .void(let handle): handle.fiber
        }
    }

    func cancel() {
        switch self {
        case .number(let handle): handle.cancel()
        case .text(let handle): handle.cancel()
        case .void(let handle): handle.cancel()
        }
    }

    func join() throws -> Int? {
        switch self {
        case .number(let handle): return try handle.join()
        case .text(let handle): return Int(try handle.join())
        case .void(let handle):
            try handle.join()
            return nil
        }
    }
}

extension ModelFailure {
    fileprivate init(_ error: any Error) {
        switch error {
        case is CancellationError: self = .cancelled
        case let error as TimeoutError: self = .timeout(limit: nanoseconds(error.limit))
        case let error as TestError: self = .thrown(error.number)
        case let error as FiberGroupError:
            self = .several(first: ModelFailure(error.first), others: error.others.map { ModelFailure($0) })
        default: self = .unexpected("\(error)")
        }
    }
}

private func nanoseconds(_ duration: Duration) -> Int64 {
    duration.components.seconds * 1_000_000_000 + duration.components.attoseconds / 1_000_000_000
}
