// Random programs of fibers, deadlines, cancellations and groups, run in virtual time on the real kernel and by a model of the documentation: both must see the same.
//
//     FIBERS_MODEL_SECONDS=60    so long
//     FIBERS_MODEL_SEED=17       the program of this seed alone; with a time, those that follow, too

import Fibers
import Glibc
import Synchronization
import Testing

extension KernelTests {
    @Suite struct ModelTests {
        @Test func programs_doWhatTheModelSays_whenTheyAreRandom() {
            let given = number("FIBERS_MODEL_SEED").map { UInt64(bitPattern: $0) }
            let time = number("FIBERS_MODEL_SECONDS")
            let first = given ?? UInt64.random(in: 0..<1 << 48)
            let seconds = time ?? (given != nil ? 0 : isSanitized ? 8 : 3)
            let start = ContinuousClock.now
            let watchdog = ModelWatchdog()
            var tally = ModelTally()
            var report: String?
            var told = Duration.seconds(-1)
            for seed in first... {
                let elapsed = ContinuousClock.now - start
                if elapsed - told >= .seconds(1) {
                    // For the case that a program crashes.
                    write("model: on from FIBERS_MODEL_SEED=\(seed)\n")
                    told = elapsed
                }
                watchdog.begin(seed)
                let program = ModelProgram(seed: seed)
                if seconds == 0 { write("\(program)\n") }
                let verdict = ModelVerdict(program)
                tally.count(program, verdict)
                if case .different(let difference) = verdict {
                    let text = "\(program)\n\(difference)"
                    // Now, since a smaller program may not end.
                    write("model: with FIBERS_MODEL_SEED=\(seed) the kernel does not do what the model says\n\(text)\n")
                    report = shrink(program).map { "\($0.0)\n\($0.1)" } ?? text
                    break
                }
                if elapsed >= .seconds(seconds) { break }
            }
            watchdog.stop()
            print("model: \(tally), seeds from \(first)")
            if let report { Issue.record("the kernel does not do what the model says, here in the smallest program that was found:\n\(report)") }
            // With many ties the test would test little.
            #expect(tally.tied * 50 <= tally.programs, "\(tally)")
        }
    }
}

private func number(_ variable: String) -> Int64? { getenv(variable).flatMap { Int64(String(cString: $0)) } }

/// What was tried, so that a generator that no longer makes anything of interest is noticed.
private struct ModelTally: CustomStringConvertible {
    var programs = 0
    var fibers = 0
    var deadlocks = 0
    var otherOrders = 0
    var tied = 0

    mutating func count(_ program: ModelProgram, _ verdict: ModelVerdict) {
        programs += 1
        fibers += program.fibers.count
        switch verdict {
        case .equal(let deadlocked): deadlocks += deadlocked ? 1 : 0
        case .equalInAnotherOrder: otherOrders += 1
        case .tied: tied += 1
        case .different: break
        }
    }

    var description: String {
        "\(programs) programs of \(fibers) fibers, \(deadlocks) with a deadlock, \(otherOrders) that only another order explains, \(tied) skipped for a tie"
    }
}

// MARK: Comparing

enum ModelVerdict {
    case equal(deadlocked: Bool)
    /// The order of what happened at one instant matters, and the kernel's is one that the model allows.
    case equalInAnotherOrder
    /// The order matters, and whether the kernel's is allowed could not be found out.
    case tied
    case different(ModelDifference)

    init(_ program: ModelProgram) {
        let seen = ModelExecution.run(program) { stopClearly(program, $0) }
        func expected(_ order: ModelInterpreter.Order) -> ModelObservation {
            ModelInterpreter.run(program, order, from: ModelExecution.start, shutDownAt: seen.deadlock)
        }
        let first = expected(.inTurn)
        if seen == first {
            self = .equal(deadlocked: seen.deadlock != nil)
            return
        }
        var isTied = false
        for i in 0..<200 {
            let other = expected(.random(SeededGenerator(seed: UInt64(i))))
            if other == seen {
                self = .equalInAnotherOrder
                return
            }
            if other != first { isTied = true }
        }
        self = isTied ? .tied : .different(ModelDifference(seen: seen, expected: first))
    }

    var isDifferent: Bool { if case .different = self { true } else { false } }
}

/// Where kernel and model part.
struct ModelDifference: CustomStringConvertible {
    let description: String

    init(seen: ModelObservation, expected: ModelObservation) {
        var lines: [String] = []
        var earliest: (time: Int64, fiber: Int, index: Int)?
        for fiber in seen.events.indices {
            let (a, b) = (seen.events[fiber], expected.events[fiber])
            guard let index = (0..<max(a.count, b.count)).first(where: { $0 >= a.count || $0 >= b.count || a[$0] != b[$0] }) else { continue }
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

// MARK: Shrinking

/// Takes away what is not needed for a difference, as long as that helps and for some seconds at most. Nil where the difference does not come again.
private func shrink(_ program: ModelProgram) -> (ModelProgram, ModelDifference)? {
    guard case .different(var difference) = ModelVerdict(program) else { return nil }
    var smallest = program
    let start = ContinuousClock.now
    var helped = true
    while helped {
        helped = false
        for change in smallest.changes {
            if ContinuousClock.now - start > .seconds(20) { return (smallest, difference) }
            guard let smaller = smallest.applying(change), case .different(let found) = ModelVerdict(smaller) else { continue }
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
        return numbers.map { .drop($0) } + [.spawnMain] + numbers.map { .unwrap($0) } + numbers.map { .catchNothing($0) }
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

// MARK: Programs that do not end

/// For a runtime that will not end: it may have to stop the process, so everything is said before.
private func stopClearly(_ program: ModelProgram, _ reason: String) {
    write("\(reason); again with FIBERS_MODEL_SEED=\(program.seed)\n\(program)\n")
}

private func write(_ text: String) {
    var text = text
    text.withUTF8 { _ = Glibc.write(STDERR_FILENO, $0.baseAddress, $0.count) }
}

/// Ends the process, and says with which program, when one takes a minute.
private final class ModelWatchdog: @unchecked Sendable {
    private let semaphore = UnsafeMutablePointer<sem_t>.allocate(capacity: 1)
    private let seed = Atomic<UInt64>(0)
    private var thread: Thread?

    init() {
        sem_init(semaphore, 0, 0)
        thread = Thread { [unowned self] in watch() }
    }

    deinit {
        sem_destroy(semaphore)
        semaphore.deallocate()
    }

    func begin(_ program: UInt64) { seed.store(program, ordering: .relaxed) }

    func stop() {
        sem_post(semaphore)
        thread?.join()
    }

    private func watch() {
        var last: UInt64?
        while true {
            var limit = timespec()
            clock_gettime(CLOCK_REALTIME, &limit)
            limit.tv_sec += 60
            var status: Int32
            repeat { status = sem_timedwait(semaphore, &limit) } while status != 0 && errno == EINTR
            if status == 0 { return }
            let present = seed.load(ordering: .relaxed)
            if present == last {
                write("a program does not end; again with FIBERS_MODEL_SEED=\(present)\n\(ModelProgram(seed: present))\n")
                abort()
            }
            last = present
        }
    }
}
