// SPDX-License-Identifier: Apache-2.0

// What the tests of locks and their like share: both kinds of each under one name, and crowds of fibers and threads that use them.

import CFiber
import Fibers
import Testing

protocol Waitable: AnyObject {
    func hasNoWaiters() -> Bool
}

protocol LockLike: Waitable {
    func lock() throws
    func tryLock() -> Bool
    func unlock()
}

final class LocalLock: LockLike {
    let mutex = LocalMutex<Void>()
    func lock() throws { try mutex.lock() }
    func tryLock() -> Bool { mutex.tryLock() }
    func unlock() { mutex.unlock() }
    func hasNoWaiters() -> Bool { mutex.hasNoWaiters() }
}

final class SharedLock: LockLike, Sendable {
    let mutex = FiberMutex<Void>()
    func lock() throws { try mutex.lock() }
    func tryLock() -> Bool { mutex.tryLock() }
    func unlock() { mutex.unlock() }
    func hasNoWaiters() -> Bool { mutex.hasNoWaiters() }
}

protocol ReadWriteLike: Waitable {
    func read<Result>(_ body: (Int) throws -> Result) throws -> Result
    func write<Result>(_ body: (inout Int) throws -> Result) throws -> Result
    func tryRead() -> Bool
    func tryWrite() -> Bool
}

final class LocalReadWrite: ReadWriteLike {
    let lock = LocalRWLock(0)
    func read<Result>(_ body: (Int) throws -> Result) throws -> Result { try lock.withReadLock { try body($0) } }
    func write<Result>(_ body: (inout Int) throws -> Result) throws -> Result { try lock.withWriteLock { try body(&$0) } }
    func tryRead() -> Bool { lock.withReadLockIfAvailable { _ in true } ?? false }
    func tryWrite() -> Bool { lock.withWriteLockIfAvailable { _ in true } ?? false }
    func hasNoWaiters() -> Bool { lock.hasNoWaiters() }
}

final class SharedReadWrite: ReadWriteLike, Sendable {
    let lock = FiberRWLock(0)
    func read<Result>(_ body: (Int) throws -> Result) throws -> Result { try lock.withReadLock { try body($0) } }
    func write<Result>(_ body: (inout Int) throws -> Result) throws -> Result { try lock.withWriteLock { try body(&$0) } }
    func tryRead() -> Bool { lock.withReadLockIfAvailable { _ in true } ?? false }
    func tryWrite() -> Bool { lock.withWriteLockIfAvailable { _ in true } ?? false }
    func hasNoWaiters() -> Bool { lock.hasNoWaiters() }
}

protocol SemaphoreLike: Waitable {
    func acquire(_ count: Int) throws
    func tryAcquire(_ count: Int) -> Bool
    func release(_ count: Int)
    var availablePermits: Int { get }
}

extension FiberSemaphore: SemaphoreLike {}
extension LocalSemaphore: SemaphoreLike {}

protocol WaitGroupLike: Waitable {
    func add(_ count: Int)
    func done()
    func wait() throws
    var count: Int { get }
}

extension WaitGroup: WaitGroupLike {}
extension LocalWaitGroup: WaitGroupLike {}

protocol BarrierLike: Waitable {
    func wait() throws -> Bool
    var waitingCount: Int { get }
}

extension Barrier: BarrierLike {}
extension LocalBarrier: BarrierLike {}

protocol OnceLike: Waitable {
    var value: Int { get throws }
    var valueIfMade: Int? { get }
}

extension FiberOnce: Waitable {}
extension FiberOnce: OnceLike where Value == Int {}
extension LocalOnce: Waitable {}
extension LocalOnce: OnceLike where Value == Int {}

func makeLock(shared: Bool) -> any LockLike { shared ? SharedLock() : LocalLock() }
func makeReadWrite(shared: Bool) -> any ReadWriteLike { shared ? SharedReadWrite() : LocalReadWrite() }
func makeSemaphore(_ permits: Int, shared: Bool) -> any SemaphoreLike { shared ? FiberSemaphore(permits) : LocalSemaphore(permits) }
func makeWaitGroup(shared: Bool) -> any WaitGroupLike { shared ? WaitGroup() : LocalWaitGroup() }
func makeBarrier(parties: Int, shared: Bool) -> any BarrierLike { shared ? Barrier(parties: parties) : LocalBarrier(parties: parties) }

/// Who uses what is shared at the same time.
struct Crowd: Sendable, CustomTestStringConvertible {
    var workers: Int
    var threads: Int
    var testDescription: String { "\(workers) workers and \(threads) threads" }

    static var all: [Crowd] {
        [.init(workers: 1, threads: 0), .init(workers: 2, threads: 0), .init(workers: 4, threads: 2), .init(workers: 1, threads: 3)]
    }
    static let fibersPerWorker = 3
    var members: Int { workers * Self.fibersPerWorker + threads }

    /// Runs `body` in fibers of all workers and in threads, each with a generator of its own, and returns when all have ended.
    func run(seed: UInt64, _ body: @Sendable @escaping (_ member: Int, inout SeededGenerator) throws -> Void) throws {
        let threads = (0..<threads).map { index in
            Thread {
                var random = SeededGenerator(seed: seed &+ 1_000 &+ UInt64(index))
                do { try body(index, &random) } catch { Issue.record(error) }
            }
        }
        try onWorkers(workers) {
            try withFiberGroup { group in
                for index in 0..<workers * Self.fibersPerWorker {
                    try group.spawn(on: index % workers) {
                        var random = SeededGenerator(seed: seed &+ UInt64(index))
                        try body(self.threads + index, &random)
                    }
                }
            }
        }
        for thread in threads { thread.join() }
    }
}

/// Makes a call that waits, in a fiber sometimes under a deadline that may come at any moment of it, and says whether it returned. In a thread it always does.
func tryUnderADeadline(_ random: inout SeededGenerator, _ body: () throws -> Void) -> Bool {
    let limit = random.next() % 12
    do {
        if Fiber.current != nil && limit < 8 {
            try withTimeout(.microseconds(Int(limit)), body)
        } else {
            try body()
        }
    } catch { return false }
    return true
}

/// Lets some time go by, or others run.
func dawdle(_ random: inout SeededGenerator) {
    switch random.next() % 8 {
    case 0: if Fiber.current != nil { Fiber.yield() }
    case 1: for i in 0..<random.next() % 500 { _ = opaque(Int(i)) }
    case 2: if Fiber.current != nil { try? Fiber.sleep(for: .microseconds(Int(random.next() % 20))) }
    default: break
    }
}
