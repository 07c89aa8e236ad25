// SPDX-License-Identifier: Apache-2.0

// Makes a program that shows a difference smaller, so that the reason can be seen.

/// Takes away what is not needed for a difference, as long as that helps and for some seconds at most. Nil where the difference does not come again.
func shrink(_ program: ModelProgram) -> (ModelProgram, ModelDifference)? {
    guard case .different(var difference) = ModelVerdict(program) else { return nil }
    var smallest = program
    let start = ContinuousClock.now
    var helped = true
    while helped {
        helped = false
        for change in smallest.changes {
            if ContinuousClock.now - start > .seconds(20) { return (smallest, difference) }
            guard let smaller = smallest.applying(change), case .different(let found) = ModelVerdict(smaller, orders: 20) else { continue }
            (smallest, difference, helped) = (smaller, found, true)
        }
    }
    return (smallest, difference)
}

private enum ModelChange {
    /// Away with an operation and all in it.
    case drop(Int)
    /// What is in an operation takes its place.
    case unwrap(Int)
    case catchNothing(Int)
    case spawnMain
}

extension ModelProgram {
    fileprivate var changes: [ModelChange] {
        var numbers: [Int] = []
        func collect(_ body: [ModelOperation]) {
            for operation in body {
                numbers.append(operation.number)
                if case .spawn(let fiber, _, _) = operation.kind { collect(fibers[fiber].body) }
                if let inner = operation.body { collect(inner) }
            }
        }
        collect(fibers[0].body)
        return [.spawnMain] + numbers.map { .drop($0) } + numbers.map { .unwrap($0) } + numbers.map { .catchNothing($0) }
    }

    /// Nil where it changes nothing.
    fileprivate func applying(_ change: ModelChange) -> ModelProgram? {
        var copy = self
        var didChange = false
        func edited(_ body: [ModelOperation]) -> [ModelOperation] {
            body.flatMap { operation -> [ModelOperation] in
                var operation = operation
                switch change {
                case .drop(operation.number):
                    didChange = true
                    return []
                case .unwrap(operation.number):
                    guard let inner = operation.body else { return [operation] }
                    didChange = true
                    return inner
                case .catchNothing(operation.number):
                    didChange = operation.catching != .nothing
                    operation.catching = .nothing
                default: break
                }
                operation.body = operation.body.map(edited)
                return [operation]
            }
        }
        if case .spawnMain = change {
            guard rootIsMain else { return nil }
            copy.rootIsMain = false
            return copy
        }
        for fiber in fibers.indices { copy.fibers[fiber].body = edited(fibers[fiber].body) }
        return didChange ? copy : nil
    }
}
