// SPDX-License-Identifier: Apache-2.0

// What is Local… is for the fibers of one worker: another worker, or a thread, that meets its waiters stops the program with a message.

import Fibers
import Testing

extension KernelTests {
    @Suite struct ForeignUseTests {
        /// Of one worker at a time, and that may be another one when nobody waits.
        @Test func localThings_work_inOneRuntimeAfterTheOther_andOnOneWorkerAfterTheOther() throws {
            let (sender, receiver) = makeLocalChannel(of: Int.self, .rendezvous)
            let semaphore = LocalSemaphore(0)
            let things = Box((sender, receiver, semaphore, count: LocalCount()))
            let received = Counter()
            @Sendable func use() throws {
                let (sender, receiver, semaphore, count) = things.value
                try withFiberGroup { group in
                    try group.spawnLocal { received.add(try receiver.receive() ?? 0) }
                    try group.spawnLocal { try semaphore.acquire() }
                    for _ in 0..<2 { try group.spawnLocal { try count.addSlowly() } }
                    settle()
                    try sender.send(1)
                    semaphore.release()
                }
            }
            for _ in 0..<3 {
                // Each time a thread of its own, and a worker that may lie in the same place as the last one.
                let error = onThread {
                    failure { try onWorkers(2) { for worker in [0, 1, 0] { try Fiber.spawn(on: worker) { try use() }.join() } } }
                }
                #expect(error == nil)
            }
            #expect(received.value == 9)
            var sum = 0
            try onWorkers(1) { sum = try things.value.count.mutex.withLock { $0 } }
            #expect(sum == 18)
        }

        #if compiler(>=6.2)
            @Test(arguments: LocalThing.allCases)
            func localThing_stopsTheProgram_whenAnotherWorkerUsesIt(thing: LocalThing) async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) { [thing] in
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 2)) {
                            let calls = Box(try thing.awaited())
                            settle()
                            try withTimeout(.seconds(10)) { try Fiber.spawn(name: "stranger", on: 1) { try calls.value() }.join() }
                        }
                    }
                }
                expectMessage(result, "\"stranger\" used a \(thing.name) on worker 1, while fibers of another worker wait for it")
                expectMessage(result, "use a \(thing.remedy), which is for all")
            }

            @Test(arguments: [LocalThing.channelReceive, .semaphore, .oneShot])
            func localThing_stopsTheProgram_whenAThreadUsesIt(thing: LocalThing) async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) { [thing] in
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 1)) {
                            let calls = Box(try thing.awaited())
                            settle()
                            onThread { try? calls.value() }
                            try Fiber.sleep(for: .milliseconds(1))
                        }
                    }
                }
                expectMessage(
                    result,
                    thing == .channelReceive
                        ? "a Local… thing was used on a thread without fibers"
                        : "outside the runtime used a \(thing.name), while fibers of a worker wait for it")
            }

            @Test func localThing_namesWhatToUseInstead_onAThreadWithoutFibers() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    _ = LocalSemaphore(1).tryAcquire()
                }
                expectMessage(result, "use the one without Local, which is for all threads (a FiberSemaphore and not a LocalSemaphore)")
            }
        #endif
    }
}

private final class LocalCount {
    let mutex = LocalMutex(0)

    func addSlowly() throws {
        try mutex.withLock { value in
            let before = value
            Fiber.yield()
            value = before + 1
        }
    }
}

#if compiler(>=6.2)
    /// Each kind of what is Local…, and each way in which a stranger meets those that wait for it.
    enum LocalThing: String, CaseIterable, Codable, Sendable {
        case channelReceive, channelSend, channelQueue, selection, oneShot, watch, broadcast, broadcastReceive
        case mutex, read, write, semaphore, condition, once, barrier, waitGroup

        /// Makes one, lets a fiber of this worker wait for it, and returns a call for others.
        fileprivate func awaited() throws -> () throws -> Void {
            switch self {
            case .channelReceive, .channelSend, .channelQueue, .selection: return try awaitedChannel()
            case .oneShot:
                let (sender, receiver) = makeLocalOneShot(of: Int.self)
                try Fiber.spawnLocal { try receiver.receive() }
                return { sender.send(1) }
            case .watch:
                let (sender, receiver) = makeLocalWatch(0)
                try Fiber.spawnLocal { try receiver.changed() }
                return { sender.send(1) }
            case .broadcast, .broadcastReceive:
                let sender = makeLocalBroadcast(of: Int.self, capacity: 1, .wait)
                let (subscriber, other) = (sender.subscribe(), sender.subscribe())
                try Fiber.spawnLocal { try subscriber.receive() }
                return { if self == .broadcast { try sender.send(1) } else { _ = try other.receive() } }
            case .mutex:
                let lock = LocalLock()
                for _ in 0..<2 {
                    try Fiber.spawnLocal {
                        try lock.lock(); try Fiber.sleep(for: long)
                    }
                }
                return { try lock.lock() }
            case .read, .write:
                let lock = LocalReadWrite()
                for _ in 0..<2 { try Fiber.spawnLocal { try lock.write { _ in try Fiber.sleep(for: long) } } }
                return { if self == .read { try lock.read { _ in } } else { try lock.write { _ in } } }
            case .semaphore:
                let semaphore = LocalSemaphore(0)
                try Fiber.spawnLocal { try semaphore.acquire() }
                return { semaphore.release() }
            case .condition:
                let (lock, condition) = (LocalLock(), LocalCondition())
                try Fiber.spawnLocal {
                    try lock.lock(); try condition.wait(lock.mutex)
                }
                return { condition.signal() }
            case .once:
                let once = LocalOnce { try Fiber.sleep(for: long) }
                for _ in 0..<2 { try Fiber.spawnLocal { try once.value } }
                return { try once.value }
            case .barrier:
                let barrier = LocalBarrier(parties: 2)
                try Fiber.spawnLocal { try barrier.wait() }
                return { try barrier.wait() }
            case .waitGroup:
                let group = LocalWaitGroup()
                group.add()
                try Fiber.spawnLocal { try group.wait() }
                return { group.done() }
            }
        }

        private func awaitedChannel() throws -> () throws -> Void {
            let (sender, receiver) = makeLocalChannel(of: Int.self, self == .channelQueue ? .bounded(1) : .rendezvous)
            switch self {
            case .channelReceive:
                try Fiber.spawnLocal { try receiver.receive() }
                return { if sender.trySend(1) != .sent { throw TestError() } }
            case .channelSend, .channelQueue:
                for _ in 0..<2 { try Fiber.spawnLocal { try sender.send(1) } }
                return { _ = try receiver.receive() }
            default:
                // Open as long as a sender is there.
                try Fiber.spawnLocal { try withExtendedLifetime(sender) { try select { receiver.onReceive { _ in } } } }
                return { try select { receiver.onReceive { _ in } } }
            }
        }

        var name: String {
            switch self {
            case .channelReceive, .channelSend, .channelQueue, .selection: "channel of makeLocalChannel"
            case .oneShot: "one-shot of makeLocalOneShot"
            case .watch: "watch of makeLocalWatch"
            case .broadcast, .broadcastReceive: "broadcast of makeLocalBroadcast"
            case .mutex: "LocalMutex"
            case .read, .write: "LocalRWLock"
            case .semaphore: "LocalSemaphore"
            case .condition: "LocalCondition"
            case .once: "LocalOnce"
            case .barrier: "LocalBarrier"
            case .waitGroup: "LocalWaitGroup"
            }
        }

        var remedy: String {
            switch self {
            case .barrier: "Barrier"
            case .waitGroup: "WaitGroup"
            default: name.hasPrefix("Local") ? name.replacing("Local", with: "Fiber") : name.replacing("makeLocal", with: "make")
            }
        }
    }
#endif
