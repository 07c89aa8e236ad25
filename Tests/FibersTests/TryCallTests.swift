// SPDX-License-Identifier: Apache-2.0

// Calls that never wait, in loops: of those that find nothing each counts like a call that did not have to wait, so the fiber that would make one succeed has its turn.

import Fibers
import TestBackends
import Testing

/// A call that never waits, and fails at first.
enum TryCall: CaseIterable, CustomTestStringConvertible {
    case tryLock, withLockIfAvailable, tryAcquire, withReadLockIfAvailable, withWriteLockIfAvailable
    case oneShotTryReceive, broadcastTryReceive, broadcastTrySend, channelTrySend, channelTryReceive, selectOtherwise
    case hasChanged, valueIfMade, eventTake, isFinished
    case isSenderClosed, isReceiverClosed, isOneShotClosed
    /// These succeed each time, and what the loop waits for is something else.
    case tryLockThatSucceeds, tryAcquireThatSucceeds, trySendToNobody, receiveAtTheEnd, changedAtTheEnd

    var testDescription: String { "\(self)" }

    /// Arms of a select are refused in a cancelled fiber, and so are calls that may wait.
    var worksWhenCancelled: Bool { ![.selectOtherwise, .receiveAtTheEnd, .changedAtTheEnd].contains(self) }

    /// The call, true when it has found something. It will when a fiber that this starts has had its second turn.
    func prepare(_ reach: Reach) throws -> () throws -> Bool {
        let isShared = reach == .shared
        /// Does the first step now and the second in the next turn of its fiber.
        func inTurns(_ first: @escaping () throws -> Void = {}, _ second: @escaping () throws -> Void) throws {
            try Fiber.spawnLocal(startingNow: true) {
                try first()
                Fiber.yield()
                try second()
            }
        }
        switch self {
        case .tryLock:
            let lock = makeLock(shared: isShared)
            try inTurns(lock.lock, lock.unlock)
            return {
                let isTaken = lock.tryLock()
                if isTaken { lock.unlock() }
                return isTaken
            }
        case .withLockIfAvailable:
            let guarded: any ValueGuard = isShared ? SharedValue() : LocalValue()
            try Fiber.spawnLocal(startingNow: true) { try guarded.hold { Fiber.yield() } }
            return guarded.isAvailable
        case .tryAcquire:
            let semaphore = makeSemaphore(0, shared: isShared)
            try inTurns { semaphore.release(1) }
            return { semaphore.tryAcquire(1) }
        case .withReadLockIfAvailable:
            let lock = makeReadWrite(shared: isShared)
            try Fiber.spawnLocal(startingNow: true) { try lock.write { _ in Fiber.yield() } }
            return lock.tryRead
        case .withWriteLockIfAvailable:
            let lock = makeReadWrite(shared: isShared)
            try Fiber.spawnLocal(startingNow: true) { try lock.read { _ in Fiber.yield() } }
            return lock.tryWrite
        case .oneShotTryReceive:
            func found(_ result: consuming TryReceiveResult<Int>) -> Bool { if case .message = result { true } else { false } }
            if isShared {
                let (sender, receiver) = makeOneShot(of: Int.self)
                try inTurns { sender.send(1) }
                return { found(receiver.tryReceive()) }
            }
            let (sender, receiver) = makeLocalOneShot(of: Int.self)
            try inTurns { sender.send(1) }
            return { found(receiver.tryReceive()) }
        case .broadcastTryReceive:
            let (sender, receiver) = broadcast(reach, .dropOldest)
            try inTurns { try sender.send(1) }
            return { if case .message = try receiver.tryReceive() { true } else { false } }
        case .broadcastTrySend:
            let (sender, receiver) = broadcast(reach, .wait)
            try sender.send(1)
            try inTurns { _ = try receiver.receive() }
            return { sender.trySend(2) == .sent }
        case .channelTrySend:
            let (sender, receiver) = kind(reach).make(of: Int.self, .bounded(1))
            try sender.send(1)
            try inTurns { _ = try receiver.receive() }
            return { withExtendedLifetime(receiver) { sender.trySend(2) == .sent } }
        case .channelTryReceive:
            let (sender, receiver) = kind(reach).make(of: Int.self, .bounded(1))
            try inTurns { try sender.send(1) }
            return { if case .message = receiver.tryReceive() { true } else { false } }
        case .selectOtherwise:
            let (sender, receiver) = kind(reach).make(of: Int.self, .bounded(1))
            try inTurns { try sender.send(1) }
            return {
                try select {
                    receiver.onReceive { _ in true }
                    otherwise { false }
                }
            }
        case .hasChanged:
            let (sender, receiver) = watch(reach)
            try inTurns { sender.send(1) }
            return { receiver.hasChanged }
        case .valueIfMade:
            let once: any OnceLike = isShared ? FiberOnce { 1 } : LocalOnce { 1 }
            try inTurns { _ = try once.value }
            return { once.valueIfMade != nil }
        case .eventTake:
            let event = FiberEvent()
            try inTurns { event.signal() }
            return event.take
        case .isFinished:
            let handle = try Fiber.spawnLocal { Fiber.yield() }
            return { handle.fiber.isFinished }
        case .isSenderClosed:
            let (sender, receiver) = kind(reach).make(of: Int.self, .bounded(1))
            try inTurns { receiver.close() }
            return { sender.isClosed }
        case .isReceiverClosed:
            let (sender, receiver) = kind(reach).make(of: Int.self, .bounded(1))
            try inTurns { sender.close() }
            return { receiver.isClosed }
        case .isOneShotClosed:
            let (sender, receiver) = makeOneShot(of: Int.self)
            let end = Box<OneShotReceiver<Int>?>(receiver)
            try inTurns { end.value = nil }
            return { sender.isClosed }
        case .tryLockThatSucceeds:
            let (lock, flag) = (makeLock(shared: isShared), Box(false))
            try inTurns { flag.value = true }
            return {
                if lock.tryLock() { lock.unlock() }
                return flag.value
            }
        case .tryAcquireThatSucceeds:
            let (semaphore, flag) = (makeSemaphore(1, shared: isShared), Box(false))
            try inTurns { flag.value = true }
            return {
                if semaphore.tryAcquire(1) { semaphore.release(1) }
                return flag.value
            }
        case .trySendToNobody:
            let sender = emptyBroadcast(reach)
            let flag = Box(false)
            try inTurns { flag.value = true }
            return {
                _ = sender.trySend(1)
                return flag.value
            }
        case .receiveAtTheEnd:
            let receiver = broadcast(reach, .wait).1
            let flag = Box(false)
            try inTurns { flag.value = true }
            return { try receiver.receive() != nil || flag.value }
        case .changedAtTheEnd:
            let receiver = watch(reach).1
            let flag = Box(false)
            try inTurns { flag.value = true }
            return { try receiver.changed() != nil || flag.value }
        }
    }
}

private func kind(_ reach: Reach) -> ChannelKind { reach == .shared ? .shared : .local }

private func watch(_ reach: Reach) -> (WatchSendingEnd<Int>, WatchReceivingEnd<Int>) {
    switch reach {
    case .local: makeLocalWatch(0)
    case .shared: makeWatch(0)
    }
}

private func emptyBroadcast(_ reach: Reach) -> BroadcastSendingEnd<Int> {
    switch reach {
    case .local: makeLocalBroadcast(capacity: 1, .wait)
    case .shared: makeBroadcast(capacity: 1, .wait)
    }
}

/// With one subscriber, and room for one value.
private func broadcast(_ reach: Reach, _ policy: BroadcastPolicy) -> (BroadcastSendingEnd<Int>, BroadcastReceivingEnd<Int>) {
    switch reach {
    case .local:
        let sender = makeLocalBroadcast(of: Int.self, capacity: 1, policy)
        return (sender, sender.subscribe())
    case .shared:
        let sender = makeBroadcast(of: Int.self, capacity: 1, policy)
        return (sender, sender.subscribe())
    }
}

/// A mutex with a value, of either kind.
private protocol ValueGuard: AnyObject {
    func hold(_ body: () throws -> Void) throws
    func isAvailable() -> Bool
}

private final class SharedValue: ValueGuard {
    private let mutex = FiberMutex(0)
    func hold(_ body: () throws -> Void) throws { try mutex.withLock { _ in try body() } }
    func isAvailable() -> Bool { mutex.withLockIfAvailable { _ in } != nil }
}

private final class LocalValue: ValueGuard {
    private let mutex = LocalMutex(0)
    func hold(_ body: () throws -> Void) throws { try mutex.withLock { _ in try body() } }
    func isAvailable() -> Bool { mutex.withLockIfAvailable { _ in } != nil }
}

/// More calls than it takes until others have their turn.
private let manyCalls = 20_000

/// Whether the call has found something before so many were made.
private func hasCome(_ call: () throws -> Bool) rethrows -> Bool {
    for _ in 0..<manyCalls { if try call() { return true } }
    return false
}

extension KernelTests {
    @Suite struct TryCallTests {
        @Test(arguments: TryCall.allCases, Reach.allCases)
        func loop_ends_sinceTheOtherFiberHasItsTurn(_ call: TryCall, _ reach: Reach) throws {
            let isFound = try FiberRuntime.run(.init(workers: 1)) { try hasCome(call.prepare(reach)) }
            #expect(isFound)
        }

        @Test(arguments: TryCall.allCases, Reach.allCases)
        func loop_ends_underADeadlineThatIsFarAway(_ call: TryCall, _ reach: Reach) throws {
            let isFound = try FiberRuntime.run(.init(workers: 1)) {
                try withTimeout(.seconds(1_000)) { try hasCome(call.prepare(reach)) }
            }
            #expect(isFound)
        }

        @Test(arguments: TryCall.allCases.filter(\.worksWhenCancelled), Reach.allCases)
        func loop_ends_inACancelledFiber_whereTryCallsWork(_ call: TryCall, _ reach: Reach) throws {
            let isFound = try FiberRuntime.run(.init(workers: 1)) {
                let attempt = try call.prepare(reach)
                let isFound = Box(false)
                let fiber = try Fiber.spawnLocal { isFound.value = try hasCome(attempt) }
                fiber.cancel()
                try fiber.join()
                return isFound.value
            }
            #expect(isFound)
        }

        /// Handlers and drivers run on the worker's own stack, which cannot let others run.
        @Test func tryCalls_letNobodyRun_onTheWorkersOwnStack() throws {
            let (calls, log) = (Box<[() throws -> Bool]>([]), Box<[String]>([]))
            let event = FiberEvent()
            var configuration = FiberRuntime.Configuration(workers: 1)
            configuration.makeBackend = { _ in
                SimulatedBackend(clock: { 0 }) { _ in
                    guard Fiber.current == nil, !calls.value.isEmpty else { return }
                    let attempts = calls.value
                    calls.value = []
                    // Now a fiber is ready, which must not run before this has returned.
                    event.signal()
                    for attempt in attempts {
                        for _ in 0..<5_000 { _ = try? attempt() }
                    }
                    log.value.append("polled")
                }
            }
            try FiberRuntime.run(configuration) {
                let (sender, receiver) = makeChannel(of: Int.self, .rendezvous)
                let (subscriptions, (reply, answer)) = (makeBroadcast(of: Int.self, capacity: 1, .wait), makeOneShot(of: Int.self))
                let subscriber = subscriptions.subscribe()
                let (changes, watcher) = makeWatch(0)
                let (mutex, semaphore, once, unsignalled) = (SharedLock(), FiberSemaphore(0), FiberOnce { 1 }, FiberEvent())
                let lock = SharedReadWrite()
                try mutex.lock()
                let me = Fiber.current
                calls.value = [
                    { sender.trySend(1) == .sent }, { if case .message = receiver.tryReceive() { true } else { false } },
                    { if case .message = try subscriber.tryReceive() { true } else { false } }, { subscriptions.trySend(1) == .sent },
                    { if case .message = answer.tryReceive() { true } else { false } }, { watcher.hasChanged }, { once.valueIfMade != nil },
                    { unsignalled.take() }, { me?.isFinished ?? true }, { mutex.tryLock() }, { semaphore.tryAcquire(1) }, lock.tryRead,
                    lock.tryWrite, { sender.isClosed }, { receiver.isClosed }, { reply.isClosed },
                ]
                try event.wait()
                log.value.append("woken")
                mutex.unlock()
                withExtendedLifetime((reply, changes)) {}
            }
            #expect(log.value == ["polled", "woken"])
        }

        /// Threads have no others to let run.
        @Test func tryCalls_work_onAPlainThread() {
            let mutex = FiberMutex()
            #expect(mutex.tryLock() && !mutex.tryLock())
            mutex.unlock()
            let semaphore = FiberSemaphore(0)
            for _ in 0..<100 { #expect(!semaphore.tryAcquire()) }
            let event = FiberEvent()
            for _ in 0..<100 { #expect(!event.take()) }
            let (sender, receiver) = makeWatch(0)
            for _ in 0..<100 { #expect(!receiver.hasChanged) }
            sender.send(1)
            #expect(receiver.hasChanged)
            let once = FiberOnce { 1 }
            for _ in 0..<100 { #expect(once.valueIfMade == nil) }
            let (_, answer) = makeOneShot(of: Int.self)
            if case .ended = answer.tryReceive() {} else { Issue.record("its sender has gone") }
        }
    }
}
