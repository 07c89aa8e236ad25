// SPDX-License-Identifier: Apache-2.0

// Makes programs at random, always the same of a seed.
//
// Invariants:
//   * a wait inside a shield stands under a timeout inside that shield, so that whatever a program does, a shutdown ends it;
//   * after what may end together with something else a fiber makes a pause of random length, which nothing cuts short. So what happens afterwards happens at an
//     instant of its own. In some programs most of the pauses are left out: then it may matter what comes first within one instant, and whoever compares must bear that.

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
        pauses = [0.95, 0.5, 0.05][number(0...2)]
        let rootIsMain = chance(0.3)
        let crowd = chance(0.03)
        _ = fiber(in: Place(fiber: 0), atMost: number(3...10))
        if crowd { addCrowd() }
        return ModelProgram(seed: seed, rootIsMain: rootIsMain, fibers: fibers)
    }

    /// Many short lives at once, before all others: afterwards there are so many stacks that some are given back.
    private mutating func addCrowd() {
        var spawns: [ModelOperation] = []
        for _ in 0..<number(34...40) {
            operationsLeft += 2
            spawns.append(ModelOperation(number: newNumber(), kind: spawn(in: Place(fiber: 0), atMost: 2)))
        }
        fibers[0].body.insert(contentsOf: spawns, at: 0)
    }

    private mutating func chance(_ probability: Double) -> Bool { Double(random.next() >> 11) * 0x1p-53 < probability }
    private mutating func number(_ range: ClosedRange<Int>) -> Int { range.lowerBound + Int(random.next() % UInt64(range.count)) }
    private mutating func duration() -> Int64 { 1 + Int64(random.next() % 1_000_000_000) }
    private mutating func element(of array: [Int]) -> Int { array[number(0...array.count - 1)] }

    /// Makes a fiber and returns its number. Its place knows the groups around the spawn, if it is to be a child.
    private mutating func fiber(in place: Place, atMost count: Int, isDaemon: Bool = false) -> Int {
        fibersLeft -= 1
        let number = fibers.count
        fibers.append(ModelFiber(pause: 0, body: [], result: 1000 + number))
        var place = Place(fiber: number, groups: place.groups, openLimit: place.openLimit)
        if chance(place.openLimit == nil ? pauses : 0.5) {
            fibers[number].pause = duration()
            place.openLimit = nil
        }
        if isDaemon, chance(0.5) { fibers[number].body = spawns(in: &place, atMost: 2) }
        fibers[number].body += body(in: &place, atMost: count)
        if !place.groups.isEmpty, chance(0.15) { fibers[number].body.append(operation(in: &place) { _, _, _ in .fail }) }
        return number
    }

    private mutating func body(in place: inout Place, atMost count: Int) -> [ModelOperation] {
        var body: [ModelOperation] = []
        for _ in 0..<count where operationsLeft > 0 {
            // What is left of a timed wait that ended early must not disturb the next one.
            let joins = body.last?.isTimedJoin == true && chance(0.6)
            body.append(operation(in: &place) { joins ? $0.join(in: $2) : $0.kind($1, in: &$2) })
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
        if place.mustEnd, operation.kind.mayWaitForEver {
            operation = ModelOperation(number: newNumber(), kind: .timeout(duration(), [operation]), catching: catching())
        }
        if operation.mayEndWithOthers { operation.pause = chance(operation.isTimedJoin ? pauses / 2 : pauses) ? duration() : 0 }
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

    private mutating func spawn(in place: Place, atMost count: Int = 6) -> ModelOperation.Kind {
        let child = fiber(in: Place(fiber: 0), atMost: number(0...count))
        spawned[place.fiber, default: []].append(child)
        return .spawn(child, group: nil, isDaemon: false)
    }

    private mutating func spawnChild(in place: Place, isDaemon: Bool) -> ModelOperation.Kind {
        let group = chance(0.8) ? place.groups[place.groups.count - 1] : element(of: place.groups)
        let child = fiber(in: place, atMost: number(0...6), isDaemon: isDaemon)
        spawned[place.fiber, default: []].append(child)
        children[group, default: 0] += isDaemon ? 0 : 1
        return .spawn(child, group: group, isDaemon: isDaemon)
    }

    private mutating func spawns(in place: inout Place, atMost count: Int) -> [ModelOperation] {
        var spawns: [ModelOperation] = []
        for _ in 0..<number(1...count) where fibersLeft > 0 {
            spawns.append(operation(in: &place) { $0.spawnChild(in: $2, isDaemon: $0.chance(0.2)) })
        }
        return spawns
    }

    private mutating func join(in place: Place) -> ModelOperation.Kind {
        if let own = spawned[place.fiber], chance(0.8) {
            let wait = ModelOperation.Kind.join(element(of: own))
            return chance(0.6) ? wait : timed(wait)
        }
        // Others may wait for this one.
        let wait = ModelOperation.Kind.join(anyFiber(in: place))
        return chance(0.15) ? wait : timed(wait)
    }

    private mutating func timed(_ wait: ModelOperation.Kind) -> ModelOperation.Kind {
        .timeout(duration() * 3, [ModelOperation(number: newNumber(), kind: wait, catching: catching())])
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
        let start = chance(0.6) ? spawns(in: &inner, atMost: 4) : []
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

    fileprivate var isTimedJoin: Bool {
        if case .timeout(_, let body) = kind, body.count == 1, case .join = body[0].kind { true } else { false }
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
