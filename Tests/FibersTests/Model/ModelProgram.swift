// SPDX-License-Identifier: Apache-2.0

// Programs of the model test: what they are made of, what can be observed of them, and how they are printed.
//
// Invariants:
//   * fibers and operations are numbered, and each is started once at most: there are no loops. What an operation refers to may not be there, since it comes later, was
//     skipped or was shrunk away; then it does nothing.

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
indirect enum ModelFailure: Equatable, CustomStringConvertible {
    case cancelled
    case timeout(limit: Int64)
    /// Thrown by the operation of that number.
    case thrown(Int)
    case several(first: ModelFailure, others: [ModelFailure])
    case unexpected(String)

    var description: String {
        switch self {
        case .cancelled: "CancellationError"
        case .timeout(let limit): "TimeoutError(\(limit))"
        case .thrown(let operation): "the error of #\(operation)"
        case .several(let first, let others): "FiberGroupError(\(first), \(others))"
        case .unexpected(let text): text
        }
    }
}

/// What a fiber saw of itself.
struct ModelEvent: Equatable {
    enum What: Equatable, CustomStringConvertible {
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

        var description: String {
            switch self {
            case .began: "begins"
            case .done: "is done"
            case .absent: "finds nothing"
            case .value(let value): "gives \(value.map { "\($0)" } ?? "nil")"
            case .flag(let flag): "is \(flag)"
            case .failed(let failure): "throws \(failure)"
            case .pauseFailed(let failure): "is done, and the pause throws \(failure)"
            case .returned(let value): "returns \(value)"
            }
        }
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
