// SPDX-License-Identifier: Apache-2.0

// Random programs of fibers, deadlines, cancellations and groups, run in virtual time on the real kernel and by a model of the documentation: both must see the same.
//
//     FIBERS_MODEL_SECONDS=60    so long
//     FIBERS_MODEL_SEED=17       the program of this seed alone; with a time, those that follow, too

import CFiber
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
            let seconds = time ?? (given != nil ? 0 : isSanitized ? 5 : 3)
            let start = ContinuousClock.now
            let watchdog = ModelWatchdog()
            var tally = ModelTally()
            var report: String?
            var told = Duration.seconds(-1)
            for seed in first... {
                let elapsed = ContinuousClock.now - start
                if elapsed - told >= .seconds(1) {
                    // For the case that a program crashes.
                    writeToStandardError("model: on from FIBERS_MODEL_SEED=\(seed)\n")
                    told = elapsed
                }
                watchdog.begin(seed)
                let program = ModelProgram(seed: seed)
                if seconds == 0 { writeToStandardError("\(program)\n") }
                let verdict = ModelVerdict(program)
                tally.count(verdict)
                if case .different(let difference) = verdict {
                    let text = "\(program)\n\(difference)"
                    // Now, since a smaller program may not end.
                    writeToStandardError("model: with FIBERS_MODEL_SEED=\(seed) the kernel does not do what the model says\n\(text)\n")
                    report = shrink(program).map { "\($0.0)\n\($0.1)" } ?? text
                    break
                }
                if elapsed >= .seconds(seconds) { break }
            }
            watchdog.stop()
            print("model: \(tally); seeds from \(first)")
            if let report {
                Issue.record("the kernel does not do what the model says, here in the smallest program that was found:\n\(report)")
            }
            // With many ties the test would test little.
            #expect(tally.tied * 500 <= tally.programs + 500, "\(tally)")
            #expect(tally.isComplete || report != nil, "\(tally)")
        }
    }
}

private func number(_ variable: String) -> Int64? { getenv(variable).flatMap { Int64(String(cString: $0)) } }

/// What was tried, so that a generator that no longer makes anything of interest is noticed.
private struct ModelTally: CustomStringConvertible {
    var programs = 0
    var fibers = 0
    var cancellations = 0
    var timeouts = 0
    var groupErrors = 0
    var deadlocks = 0
    var otherOrders = 0
    var tied = 0

    mutating func count(_ verdict: ModelVerdict) {
        programs += 1
        switch verdict {
        case .equal(let observation): count(observation)
        case .equalInAnotherOrder: otherOrders += 1
        case .tied: tied += 1
        case .different: break
        }
    }

    private mutating func count(_ observation: ModelObservation) {
        if observation.deadlock != nil { deadlocks += 1 }
        for events in observation.events where !events.isEmpty {
            fibers += 1
            guard case .failed(let failure) = events.last?.what else { continue }
            switch failure {
            case .cancelled: cancellations += 1
            case .timeout: timeouts += 1
            case .several: groupErrors += 1
            default: break
            }
        }
    }

    /// Whether all of it has come about, which for so many programs is certain.
    var isComplete: Bool { programs < 2000 || min(cancellations, timeouts, groupErrors, deadlocks) > 0 }

    var description: String {
        """
        \(programs) programs, in which \(fibers) fibers ran; \(cancellations) ended by a CancellationError, \(timeouts) by a TimeoutError, \
        \(groupErrors) by a FiberGroupError; \(deadlocks) programs came to a deadlock; \(otherOrders) can be explained by another order only, \
        \(tied) were skipped for a tie
        """
    }
}

// MARK: Programs that do not end

func writeToStandardError(_ text: String) {
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
                writeToStandardError(
                    "model: a program does not end; again with FIBERS_MODEL_SEED=\(present)\n\(ModelProgram(seed: present))\n")
                abort()
            }
            last = present
        }
    }
}
