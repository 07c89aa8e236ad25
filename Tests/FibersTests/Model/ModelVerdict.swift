// SPDX-License-Identifier: Apache-2.0

// Whether kernel and model saw the same of a program, and if not, where they part.

enum ModelVerdict {
    case equal(ModelObservation)
    /// The order of what happened at one instant matters, and the kernel's is one that the model allows.
    case equalInAnotherOrder
    /// The order matters, and whether the kernel's is allowed could not be found out.
    case tied
    case different(ModelDifference)

    init(_ program: ModelProgram, orders: Int = 200) {
        let seen = ModelExecution.run(program) { reason in
            // A main that is stuck stops the process, so everything is said before.
            if program.rootIsMain { writeToStandardError("model: \(reason); again with FIBERS_MODEL_SEED=\(program.seed)\n\(program)\n") }
        }
        func expected(_ order: ModelInterpreter.Order) -> ModelObservation {
            ModelInterpreter.run(program, order, from: ModelExecution.start, shutDownAt: seen.deadlock)
        }
        let first = expected(.inTurn)
        if seen == first {
            self = .equal(seen)
            return
        }
        var isTied = false
        for i in 0..<orders {
            let other = expected(.random(SeededGenerator(seed: UInt64(i))))
            if other == seen {
                self = .equalInAnotherOrder
                return
            }
            if other != first { isTied = true }
        }
        self = isTied ? .tied : .different(ModelDifference(seen: seen, expected: first))
    }
}

/// Where kernel and model part.
struct ModelDifference: CustomStringConvertible {
    let description: String

    init(seen: ModelObservation, expected: ModelObservation) {
        var lines: [String] = []
        var earliest: (time: Int64, fiber: Int, index: Int)?
        for fiber in seen.events.indices {
            let (a, b) = (seen.events[fiber], expected.events[fiber])
            guard let index = (0..<max(a.count, b.count)).first(where: { $0 >= a.count || $0 >= b.count || a[$0] != b[$0] }) else {
                continue
            }
            let time = min(index < a.count ? a[index].time : .max, index < b.count ? b[index].time : .max)
            if time < earliest?.time ?? .max { earliest = (time, fiber, index) }
        }
        if let (_, fiber, index) = earliest {
            lines.append("fiber \(fiber), after \(index) equal events:")
            for event in seen.events[fiber].prefix(index).suffix(3) { lines.append("    both:   \(event)") }
            for (name, events) in [("kernel: ", seen.events[fiber]), ("model:  ", expected.events[fiber])] {
                lines.append("    \(name)" + (index < events.count ? "\(events[index])" : "nothing more"))
            }
        }
        if seen.deadlock != expected.deadlock {
            lines.append("shut down for a deadlock: kernel \(text(seen.deadlock)), model \(text(expected.deadlock))")
        }
        if seen.failure != expected.failure { lines.append("run throws: kernel \(text(seen.failure)), model \(text(expected.failure))") }
        if seen.unhandled != expected.unhandled {
            lines.append("errors that nobody joined, by fiber: kernel \(seen.unhandled), model \(expected.unhandled)")
        }
        if seen.complaints != expected.complaints { lines.append("complaints: kernel \(seen.complaints), model \(expected.complaints)") }
        description = lines.joined(separator: "\n")
    }
}

private func text<Value>(_ value: Value?) -> String { value.map { "\($0)" } ?? "no" }

extension ModelEvent: CustomStringConvertible {
    var description: String {
        "at \(time - ModelExecution.start) \(operation.map { "#\($0)" } ?? "the fiber") \(what)"
    }
}
