// SPDX-License-Identifier: Apache-2.0

// Who holds a lock is known by a number that nobody has later: fibers that end with a lock, fibers that a runtime leaves behind, and threads that have ended.

import CFiber
import Fibers
import Glibc
import Testing

extension KernelTests {
    @Suite struct HolderTests {
        @Test func ids_areNeverUsedAgain_byLaterRuntimes() throws {
            var ids: [UInt64] = []
            for _ in 0..<3 {
                try onWorkers(2) {
                    ids.append(Fiber.current!.id)
                    for worker in 0..<2 { ids.append(try Fiber.spawn(on: worker) { Fiber.current!.id }.join()) }
                }
            }
            #expect(Set(ids).count == 9)
        }

        /// Each way to have a lock and to be without it again.
        @Test(arguments: [false, true])
        func fiber_endsQuietly_whenItHasUnlockedWhatItLocked(shared: Bool) throws {
            var ends = 0
            try onWorkers(1) {
                let (lock, other) = (makeLock(shared: shared), makeLock(shared: shared))
                for cancels in [false, true] {
                    let fibers = try (0..<4).map { _ in
                        try Fiber.spawnLocal {
                            defer { ends += 1 }
                            try lock.lock()
                            defer { lock.unlock() }
                            if other.tryLock() {
                                Fiber.yield()
                                other.unlock()
                            }
                            Fiber.yield()
                        }
                    }
                    Fiber.yield()
                    // One that waits never has it, one that was given it in this moment has.
                    if cancels { for fiber in fibers { fiber.cancel() } }
                    for fiber in fibers { _ = try? fiber.join() }
                }
                let mutex = LocalMutex<Void>()
                let condition = LocalCondition()
                let waiter = try Fiber.spawnLocal {
                    try mutex.lock()
                    try condition.wait(mutex)
                    mutex.unlock()
                    ends += 1
                }
                settle()
                condition.signal()
                try waiter.join()
                // What goes away together with its lock leaves nothing locked.
                try Fiber.spawnLocal {
                    let lock = makeLock(shared: shared)
                    try lock.lock()
                    ends += 1
                }.join()
            }
            #expect(ends == 10)
        }

        @Test func thread_keepsItsLock_whenARuntimeHasRunOnItMeanwhile() throws {
            let outcome = onThread { () -> [Bool] in
                let lock = SharedLock()
                var results: [Bool] = []
                do {
                    try lock.lock()
                    try FiberRuntime.run(.init(workers: 1)) { results.append(lock.tryLock()) }
                    lock.unlock()
                    results.append(lock.tryLock())
                    lock.unlock()
                } catch { Issue.record(error) }
                return results
            }
            #expect(outcome == [false, true])
        }

        #if compiler(>=6.2)
            @Test(arguments: [false, true])
            func fiber_stopsTheProgram_whenItEndsWithALock(shared: Bool) async {
                let one = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) { [shared] in
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 1)) {
                            let lock = makeLock(shared: shared)
                            try withExtendedLifetime(lock) {
                                try Fiber.spawnLocal(name: "forgetful") { try lock.lock() }.join()
                                // On the same stack; it must neither be taken for the other one nor wait for it.
                                try withTimeout(.seconds(10)) { try Fiber.spawnLocal { try lock.lock() }.join() }
                            }
                        }
                    }
                }
                expectMessage(
                    one, "fiber #2 \"forgetful\" has ended and left a \(shared ? "FiberMutex" : "LocalMutex") locked (the one at 0x")
                let several = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) { [shared] in
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 1)) {
                            let locks = (0..<5).map { _ in makeLock(shared: shared) }
                            // A fiber may end with a mutex that goes away with it.
                            try withExtendedLifetime(locks) {
                                try Fiber.spawnLocal(name: "forgetful") {
                                    for lock in locks { try lock.lock() }
                                    for lock in locks.prefix(2) { lock.unlock() }
                                    throw TestError()
                                }.join()
                            }
                        }
                    }
                }
                expectMessage(several, "fiber #2 \"forgetful\" has ended and left several mutexes locked")
            }

            @Test func mutex_stopsTheProgram_whenItGoesAwayWhileAnotherHoldsIt() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 1)) {
                            let lock = Box<SharedLock?>(SharedLock())
                            let borrowed = Unmanaged.passUnretained(lock.value!)
                            try Fiber.spawnLocal(name: "borrower") {
                                try borrowed._withUnsafeGuaranteedRef { try $0.lock() }
                                try Fiber.sleep(for: long)
                            }
                            settle()
                            lock.value = nil
                            FiberRuntime.shutDown()
                        }
                    }
                }
                expectMessage(result, "the last reference to a FiberMutex went away while fiber #2 \"borrower\" holds it")
            }

            @Test(arguments: Misdeed.allCases)
            func misdeed_stopsTheProgram_whenTheHolderWasLeftBehindByAnEarlierRuntime(misdeed: Misdeed) async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) { [misdeed] in
                    reportingErrors {
                        endByAlarm()
                        let locks = Locks()
                        try leaveBehind { try locks.hold() }
                        try misdeed.doIt(to: locks)
                    }
                }
                expectMessage(result, misdeed.message)
            }

            /// The next thread has the same pthread_t, most often.
            @Test func lock_stopsTheProgram_whenAThreadHasEndedWithIt() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        endByAlarm()
                        let lock = SharedLock()
                        onThread {
                            cfiber_name_thread("forgetful")
                            reportingErrors { try lock.lock() }
                        }
                        onThread { reportingErrors { try lock.lock() } }
                    }
                }
                expectMessage(result, "outside the runtime waits for a FiberMutex that thread ")
                expectMessage(result, "\"forgetful\" outside the runtime, which has ended, holds: the wait would never end")
            }

            @Test func unlocking_namesTheHolder_ofAnotherWorkerThatIsBusy() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 2)) {
                            let lock = SharedLock()
                            let isHeld = FiberEvent()
                            try Fiber.spawn(name: "holder", on: 1) {
                                try lock.lock()
                                isHeld.signal()
                                while true { Fiber.yield() }
                            }
                            try isHeld.wait()
                            lock.unlock()
                        }
                    }
                }
                expectMessage(result, "fiber #1 \"main\" unlocks a mutex that fiber #2 \"holder\" holds: only the holder unlocks it")
            }
        #endif
    }
}

#if compiler(>=6.2)
    /// Locks of each kind, of which one fiber holds all.
    private final class Locks: Sendable {
        let mutex = FiberMutex<Void>()
        let value = FiberMutex(0)
        let readWrite = FiberRWLock(0)
        let condition = FiberCondition()
        let once = FiberOnce<Int> {
            try withCancellationShield { try Fiber.sleep(for: long) }
            return 1
        }

        func hold() throws {
            try mutex.lock()
            _ = try value.withLock { _ in try readWrite.withWriteLock { _ in try once.value } }
        }
    }

    /// What later fibers and threads may do to these locks.
    enum Misdeed: String, CaseIterable, Codable, Sendable {
        case lock, useValue, lockOnAThread, unlock, unlockOnAThread, wait, read, write, make

        fileprivate func doIt(to locks: Locks) throws {
            switch self {
            case .lockOnAThread: try locks.mutex.lock()
            case .unlockOnAThread: locks.mutex.unlock()
            default:
                try FiberRuntime.run(.init(workers: 1)) {
                    // The one that was left behind was the second of its runtime, too, so it lay in the same place.
                    try withTimeout(.seconds(10)) { try Fiber.spawnLocal(name: "next") { try doItHere(to: locks) }.join() }
                }
            }
        }

        private func doItHere(to locks: Locks) throws {
            switch self {
            case .lock, .lockOnAThread: try locks.mutex.lock()
            case .useValue: try locks.value.withLock { _ in }
            case .unlock, .unlockOnAThread: locks.mutex.unlock()
            case .wait: try locks.condition.wait(locks.mutex)
            case .read: try locks.readWrite.withReadLock { _ in }
            case .write: try locks.readWrite.withWriteLock { _ in }
            case .make: _ = try locks.once.value
            }
        }

        var message: String {
            let keeper = "fiber #2 \"keeper\", which was left behind when its runtime ended,"
            return switch self {
            case .lock, .useValue: "\"next\" waits for a FiberMutex that \(keeper) holds: the wait would never end"
            case .lockOnAThread: "outside the runtime waits for a FiberMutex that \(keeper) holds: the wait would never end"
            case .unlock: "\"next\" unlocks a mutex that \(keeper) holds: only the holder unlocks it"
            case .unlockOnAThread: "outside the runtime unlocks a mutex that \(keeper) holds: only the holder unlocks it"
            case .wait: "wait on a condition was called without its mutex"
            case .read, .write: "\"next\" waits for a FiberRWLock that \(keeper) has locked to write: the wait would never end"
            case .make: "\"next\" waits for a FiberOnce that \(keeper) makes: the wait would never end"
            }
        }
    }

    /// Ends the process of an exit test in which a thread would wait for ever, without the message that the test expects.
    private func endByAlarm() { alarm(120) }

    /// Runs `body` in a fiber of a runtime that ends without it.
    private func leaveBehind(_ body: @escaping () throws -> Void) throws {
        var configuration = FiberRuntime.Configuration(workers: 1)
        configuration.onWarning = { _ in }
        try FiberRuntime.run(configuration) {
            try Fiber.spawnLocal(name: "keeper") { try withCancellationShield { try body() } }
            settle()
            FiberRuntime.shutDown(within: .milliseconds(1))
        }
    }
#endif
