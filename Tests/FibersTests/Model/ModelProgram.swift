// Programs of the model test: what they are made of, how they are made at random, and how they are printed.
//
// Invariants:
//   * fibers and operations are numbered, and each is started once at most: there are no loops. What an operation refers to may not be there, since it comes later, was
//     skipped or was shrunk away; then it does nothing;
//   * a wait inside a shield stands under a timeout inside that shield, so that whatever a program does, a shutdown ends it;
//   * after what may end together with something else a fiber makes a pause of random length, which nothing cuts short. So nearly all that a program does is done
//     at an instant of its own, and neither model nor kernel has to say in which order things happen within one.

struct ModelProgram {
    let seed: UInt64
    /// The root is the runtime's main fiber, whose error shuts the runtime down; else a fiber that main spawned.
    var rootIsMain: Bool
    /// By number; the first is the root.
    var fibers: [ModelFiber]
}

struct ModelFiber {
    /// At its start.
    var pause: Int64
    var body: [ModelOperation]
    /// What it returns at the end of its body.
    var result: Int
}

struct ModelOperation {
    indirect enum Kind {
        case sleep(Int64)
        case spawn(Int, group: Int?, isDaemon: Bool)
        case cancel(Int)
        case join(Int)
        case timeout(Int64, [ModelOperation])
        case shield([ModelOperation])
        case group(limit: Int?, keepsResults: Bool, [ModelOperation])
        case local(Int, value: Int, [ModelOperation])
        case next(group: Int)
        case waitForAll(group: Int)
        case cancelGroup(Int)
        case count(group: Int)
        case check
        case isCancelled
        case readLocal(Int)
        case fail
        case end
        case shutDown
    }

    enum Catching { case nothing, timeouts, all }

    let number: Int
    var kind: Kind
    var catching = Catching.nothing
    /// Afterwards, however it has ended; 0 for none.
    var pause: Int64 = 0
}

// MARK: What can be observed

/// An error, as the model knows it and as the kernel's are translated.
indirect enum ModelFailure: Error, Equatable {
    case cancelled
    case timeout(limit: Int64)
    /// Thrown by the operation of that number.
    case thrown(Int)
    case several(first: ModelFailure, others: [ModelFailure])
    case unexpected(String)
}

/// What a fiber saw of itself.
struct ModelEvent: Equatable {
    enum What: Equatable {
        case began
        case done
        /// What was referred to is not there.
        case absent
        case value(Int?)
        case flag(Bool)
        case failed(ModelFailure)
        /// The pause after the operation was cut short.
        case pauseFailed(ModelFailure)
        case returned(Int)
    }

    let time: Int64
    /// Nil for the fiber's own beginning and end.
    let operation: Int?
    let what: What
}

/// All that can be seen of one run.
struct ModelObservation: Equatable {
    /// By fiber.
    var events: [[ModelEvent]]
    /// When all fibers waited for each other, and the runtime was shut down for that.
    var deadlock: Int64?
    /// What `run` threw.
    var failure: ModelFailure?
    /// By fiber: an error that nobody joined.
    var unhandled: [Int: ModelFailure] = [:]
    /// Warnings of the runtime, and what the driver could not make sense of.
    var complaints: [String] = []
}

extension ModelOperation {
    func catches(_ failure: ModelFailure) -> Bool {
        switch (catching, failure) {
        case (.all, _), (.timeouts, .timeout): true
        default: false
        }
    }

    /// The operations inside.
    var body: [ModelOperation]? {
        get {
            switch kind {
            case .timeout(_, let body), .shield(let body), .group(_, _, let body), .local(_, _, let body): body
            default: nil
            }
        }
        set {
            guard let newValue else { return }
            switch kind {
            case .timeout(let limit, _): kind = .timeout(limit, newValue)
            case .shield: kind = .shield(newValue)
            case .group(let limit, let keepsResults, _): kind = .group(limit: limit, keepsResults: keepsResults, newValue)
            case .local(let index, let value, _): kind = .local(index, value: value, newValue)
            default: break
            }
        }
    }
}

// MARK: Printing

extension ModelProgram: CustomStringConvertible {
    var description: String {
        var lines: [String] = []
        write(0, title: rootIsMain ? "fiber 0 is main" : "fiber 0", indent: "", to: &lines)
        return lines.joined(separator: "\n")
    }

    private func write(_ fiber: Int, title: String, indent: String, to lines: inout [String]) {
        let pause = fibers[fiber].pause > 0 ? "pause \(fibers[fiber].pause); " : ""
        lines.append("\(indent)\(title) { \(pause)returns \(fibers[fiber].result)")
        write(fibers[fiber].body, indent: indent + "    ", to: &lines)
        lines.append("\(indent)}")
    }

    private func write(_ body: [ModelOperation], indent: String, to lines: inout [String]) {
        for operation in body {
            var suffix = ""
            switch operation.catching {
            case .nothing: break
            case .timeouts: suffix += ", catches TimeoutError"
            case .all: suffix += ", catches all"
            }
            if operation.pause > 0 { suffix += ", pause \(operation.pause)" }
            let title = "#\(operation.number) \(operation.kind.title)\(suffix)"
            if case .spawn(let fiber, _, _) = operation.kind {
                write(fiber, title: title, indent: indent, to: &lines)
            } else if let inner = operation.body {
                lines.append("\(indent)\(title) {")
                write(inner, indent: indent + "    ", to: &lines)
                lines.append("\(indent)}")
            } else {
                lines.append(indent + title)
            }
        }
    }
}

extension ModelOperation.Kind {
    fileprivate var title: String {
        switch self {
        case .sleep(let duration): "sleep(\(duration))"
        case .spawn(let fiber, nil, _): "spawn fiber \(fiber)"
        case .spawn(let fiber, let group?, let isDaemon): "spawn \(isDaemon ? "daemon" : "child") fiber \(fiber) in group #\(group)"
        case .cancel(let fiber): "cancel(fiber \(fiber))"
        case .join(let fiber): "join(fiber \(fiber))"
        case .timeout(let limit, _): "withTimeout(\(limit == .max ? "for ever" : "\(limit)"))"
        case .shield: "withCancellationShield"
        case .group(let limit, let keepsResults, _):
            "withFiberGroup(\(keepsResults ? "of: Int" : "of: Void"), limit: \(limit.map { "\($0)" } ?? "nil"))"
        case .local(let index, let value, _): "local\(index).withValue(\(value))"
        case .next(let group): "group #\(group) next()"
        case .waitForAll(let group): "group #\(group) waitForAll()"
        case .cancelGroup(let group): "group #\(group) cancel()"
        case .count(let group): "group #\(group) count"
        case .check: "checkCancellation()"
        case .isCancelled: "isCancelled"
        case .readLocal(let index): "local\(index).value"
        case .fail: "throw"
        case .end: "return"
        case .shutDown: "shutDown()"
        }
    }
}

// MARK: Making

extension ModelProgram {
    /// The program of a seed.
    init(seed: UInt64) {
        var generator = ModelGenerator(seed: seed)
        self = generator.program()
    }
}

private struct ModelGenerator {
    private struct Place {
        let fiber: Int
        var depth = 0
        /// Groups that are there, and those of them that the fiber itself runs.
        var groups: [Int] = []
        var ownGroups: [Int] = []
        /// Inside a shield, with no timeout in between.
        var mustEnd = false
        /// The limit of a timeout around that began at the same instant.
        var openLimit: Int64?
    }

    private let seed: UInt64
    private var random: SeededGenerator
    private var fibers: [ModelFiber] = []
    private var fibersLeft = 0
    private var operationsLeft = 0
    private var operations = 0
    /// How many of the pauses are made.
    private var pauses = 1.0
    /// By fiber and by group: what they have spawned.
    private var spawned: [Int: [Int]] = [:]
    private var children: [Int: Int] = [:]

    init(seed: UInt64) {
        self.seed = seed
        random = SeededGenerator(seed: seed)
    }

    mutating func program() -> ModelProgram {
        // Mostly small ones: they find as much, and faster.
        fibersLeft = chance(0.1) ? number(1...40) : number(1...12)
        operationsLeft = fibersLeft * number(3...8) + number(0...8)
        pauses = chance(0.6) ? 0.95 : chance(0.5) ? 0.6 : 0.1
        let rootIsMain = chance(0.3)
        _ = fiber(in: Place(fiber: 0), atMost: number(3...10))
        return ModelProgram(seed: seed, rootIsMain: rootIsMain, fibers: fibers)
    }

    private mutating func chance(_ probability: Double) -> Bool { Double(random.next() >> 11) * 0x1p-53 < probability }
    private mutating func number(_ range: ClosedRange<Int>) -> Int { range.lowerBound + Int(random.next() % UInt64(range.count)) }
    private mutating func duration() -> Int64 { 1 + Int64(random.next() % 1_000_000_000) }
    private mutating func element(of array: [Int]) -> Int { array[number(0...array.count - 1)] }

    /// Makes a fiber and returns its number. Its place knows the groups around the spawn, if it is to be a child.
    private mutating func fiber(in place: Place, atMost count: Int) -> Int {
        fibersLeft -= 1
        let number = fibers.count
        fibers.append(ModelFiber(pause: 0, body: [], result: 1000 + number))
        var place = Place(fiber: number, groups: place.groups, openLimit: place.openLimit)
        if chance(place.openLimit == nil ? pauses : 0.5) {
            fibers[number].pause = duration()
            place.openLimit = nil
        }
        fibers[number].body = body(in: &place, atMost: count)
        if !place.groups.isEmpty, chance(0.15) { fibers[number].body.append(operation(in: &place) { _, _, _ in .fail }) }
        return number
    }

    private mutating func body(in place: inout Place, atMost count: Int) -> [ModelOperation] {
        var body: [ModelOperation] = []
        for _ in 0..<count where operationsLeft > 0 {
            body.append(operation(in: &place) { $0.kind($1, in: &$2) })
            if body[body.count - 1].endsTheBody { break }
        }
        return body
    }

    private mutating func operation(
        in place: inout Place, _ makeKind: (inout ModelGenerator, Int, inout Place) -> ModelOperation.Kind
    ) -> ModelOperation {
        let number = newNumber()
        operationsLeft -= 1
        var operation = ModelOperation(number: number, kind: makeKind(&self, number, &place), catching: catching())
        // In a shield nothing else would end it.
        if place.mustEnd, operation.kind.mayWaitForEver { operation = ModelOperation(number: newNumber(), kind: .timeout(duration(), [operation]), catching: catching()) }
        if operation.mayEndWithOthers { operation.pause = chance(pauses) ? duration() : 0 }
        if operation.pause > 0 || operation.mayPark { place.openLimit = nil }
        return operation
    }

    private mutating func newNumber() -> Int {
        operations += 1
        return operations
    }

    private mutating func catching() -> ModelOperation.Catching {
        switch random.next() % 10 {
        case 0...1: .timeouts
        case 2...5: .all
        default: .nothing
        }
    }

    private mutating func kind(_ name: Int, in place: inout Place) -> ModelOperation.Kind {
        if place.openLimit != nil, chance(0.5) { return kindWithTheOpenLimit(name, in: place) }
        while true {
            switch random.next() % 128 {
            case 0..<20: return chance(0.05) ? .sleep(chance(0.5) ? 0 : -5) : .sleep(duration())
            case 20..<29: if fibersLeft > 0 { return spawn(in: place) }
            case 29..<49: if fibersLeft > 0, !place.groups.isEmpty { return spawnChild(in: place, isDaemon: false) }
            case 49..<54: if fibersLeft > 0, !place.groups.isEmpty { return spawnChild(in: place, isDaemon: true) }
            case 54..<60: return .cancel(anyFiber(in: place))
            case 60..<67: return join(in: place)
            case 67..<76: if place.depth < 6 { return timeout(limit(), in: place) }
            case 76..<81: if place.depth < 6 { return shield(in: place) }
            case 81..<91: if place.depth < 6 { return group(name, in: place) }
            case 91..<94: if place.depth < 6 { return local(name, in: place) }
            case 94..<106: if let group = someGroup(in: place) { return .next(group: group) }
            case 106..<109: if let group = someGroup(in: place) { return .waitForAll(group: group) }
            case 109..<111: if !place.groups.isEmpty { return .cancelGroup(element(of: place.groups)) }
            case 111..<114: if !place.groups.isEmpty { return .count(group: element(of: place.groups)) }
            case 114..<116: return .check
            case 116..<119: return .isCancelled
            case 119..<122: return .readLocal(number(0...1))
            case 122..<125: return .fail
            case 125: if chance(0.7) { return .end }
            case 126: if chance(0.15) { return .shutDown }
            default: if chance(0.3) { return .sleep(duration() * 1000) }
            }
        }
    }

    /// Something that ends, or would end, when a timeout around it does.
    private mutating func kindWithTheOpenLimit(_ name: Int, in place: Place) -> ModelOperation.Kind {
        let limit = place.openLimit ?? 0
        switch random.next() % 6 {
        case 0: return .sleep(limit)
        case 1: return group(name, in: place)
        case 2: if fibersLeft > 0, !place.groups.isEmpty { return spawnChild(in: place, isDaemon: chance(0.3)) }
        case 3: if place.depth < 6 { return shield(in: place) }
        default: break
        }
        return timeout(limit, in: place)
    }

    private mutating func limit() -> Int64 {
        switch random.next() % 32 {
        case 0: 0
        case 1: -7
        case 2: .max
        case 3..<18: duration() * 4
        default: duration()
        }
    }

    /// Most often one that is there when the operation comes; those that will be made later are known by the numbers they are going to have.
    private mutating func anyFiber(in place: Place) -> Int {
        if let own = spawned[place.fiber], chance(0.6) { return element(of: own) }
        return chance(0.1) ? place.fiber : number(0...max(0, min(fibers.count + 2, fibers.count + fibersLeft) - 1))
    }

    private mutating func spawn(in place: Place) -> ModelOperation.Kind {
        let child = fiber(in: Place(fiber: 0), atMost: number(0...6))
        spawned[place.fiber, default: []].append(child)
        return .spawn(child, group: nil, isDaemon: false)
    }

    private mutating func spawnChild(in place: Place, isDaemon: Bool) -> ModelOperation.Kind {
        let group = chance(0.8) ? place.groups[place.groups.count - 1] : element(of: place.groups)
        let child = fiber(in: place, atMost: number(0...6))
        spawned[place.fiber, default: []].append(child)
        children[group, default: 0] += isDaemon ? 0 : 1
        return .spawn(child, group: group, isDaemon: isDaemon)
    }

    private mutating func join(in place: Place) -> ModelOperation.Kind {
        // Not the older ones, who may wait for this one; and if so, not for ever.
        if let own = spawned[place.fiber], chance(0.8) { return .join(element(of: own)) }
        let wait = ModelOperation.Kind.join(anyFiber(in: place))
        if chance(0.15) { return wait }
        return .timeout(duration(), [ModelOperation(number: newNumber(), kind: wait, catching: catching())])
    }

    /// A group whose children the fiber can wait for: not one that it is a child of, but rarely.
    private mutating func someGroup(in place: Place) -> Int? {
        if !place.ownGroups.isEmpty {
            let group = element(of: place.ownGroups)
            return children[group] != nil || chance(0.1) ? group : nil
        }
        return !place.groups.isEmpty && chance(0.03) ? element(of: place.groups) : nil
    }

    private mutating func timeout(_ limit: Int64, in place: Place) -> ModelOperation.Kind {
        var inner = place
        inner.depth += 1
        if limit != .max { inner.mustEnd = false }
        inner.openLimit = limit > 0 && limit != .max ? limit : nil
        return .timeout(limit, body(in: &inner, atMost: number(1...4)))
    }

    private mutating func shield(in place: Place) -> ModelOperation.Kind {
        var inner = place
        inner.depth += 1
        inner.mustEnd = true
        return .shield(body(in: &inner, atMost: number(1...4)))
    }

    private mutating func local(_ value: Int, in place: Place) -> ModelOperation.Kind {
        var inner = place
        inner.depth += 1
        return .local(number(0...1), value: value, body(in: &inner, atMost: number(1...4)))
    }

    private mutating func group(_ name: Int, in place: Place) -> ModelOperation.Kind {
        var inner = place
        inner.depth += 1
        inner.groups.append(name)
        inner.ownGroups.append(name)
        var start: [ModelOperation] = []
        if chance(0.6) {
            for _ in 0..<number(1...4) where fibersLeft > 0 {
                start.append(operation(in: &inner) { $0.spawnChild(in: $2, isDaemon: $0.chance(0.15)) })
            }
        }
        return .group(
            limit: chance(0.5) ? nil : number(1...3), keepsResults: chance(0.7), start + body(in: &inner, atMost: number(1...6)))
    }
}

extension ModelOperation {
    /// Whether it may end at the instant at which something else happens, or makes something happen at its own.
    fileprivate var mayEndWithOthers: Bool {
        switch kind {
        case .count, .check, .isCancelled, .readLocal, .fail, .end: false
        default: true
        }
    }

    fileprivate var mayPark: Bool {
        switch kind {
        case .sleep, .join, .next, .waitForAll, .timeout, .shield, .group, .local: true
        default: false
        }
    }

    fileprivate var endsTheBody: Bool {
        switch kind {
        case .fail: catching != .all
        case .end: true
        default: false
        }
    }
}

extension ModelOperation.Kind {
    /// Whether only others can end it.
    fileprivate var mayWaitForEver: Bool {
        switch self {
        case .join, .next, .waitForAll: true
        case .spawn(_, let group, let isDaemon): group != nil && !isDaemon
        default: false
        }
    }
}
