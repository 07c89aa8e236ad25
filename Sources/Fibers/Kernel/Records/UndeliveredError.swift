// SPDX-License-Identifier: Apache-2.0

// The errors of fibers on their way to those who join, or to the handler of unhandled errors; and which fiber an error comes from that others pass on. What a fiber has had is its
// own worker's; an error may be taken on any worker.

import Synchronization

/// An error that a fiber threw, until somebody takes it. If nobody ever does, the runtime's handler hears of it, once.
@usableFromInline
package final class UndeliveredError {
    let error: any Error
    /// The failure of another fiber that this one had and passed on.
    private let passedOn: UndeliveredError?
    private let id: UInt64
    private let name: String?
    /// Whose handler hears of it.
    private let workers: WorkerSet
    private let isDelivered: Atomic<Bool>

    @usableFromInline
    init(_ error: any Error, of core: FiberCore) {
        let record = core.record.unsafelyUnwrapped
        // A cancelled fiber that ends because of that is no news for anybody.
        let wasCancelled = record.base.pointee.cause != nil && error is CancellationError
        self.error = wasCancelled ? CancellationError() : error
        passedOn = core.failuresHad?.failure(with: error)
        isDelivered = Atomic(wasCancelled)
        id = core.id
        name = record.name
        workers = record.worker.pointee.workers
    }

    /// Of a life that could not begin.
    init(_ error: any Error, of core: FiberCore, name: String?, isDelivered: Bool) {
        self.error = error
        passedOn = nil
        self.isDelivered = Atomic(isDelivered)
        id = core.id
        self.name = name
        workers = core.home.pointee.workers
    }

    /// The failure that this one is, wherever it has come by.
    var origin: UndeliveredError { passedOn ?? self }

    /// The error, for the group whose child has failed.
    func take() -> any Error {
        isDelivered.store(true, ordering: .relaxed)
        return error
    }

    /// The error, for a caller that joins.
    @usableFromInline
    func deliver() -> any Error {
        if let worker = Worker.current { worker.running.noteHad(origin) }
        return take()
    }

    deinit {
        guard !isDelivered.load(ordering: .relaxed) else { return }
        workers.settings.report(UnhandledFiberError(fiberID: id, fiberName: name, error: error))
    }
}

/// The failures of other fibers that a fiber has had, by joining or from a group of its own. So a failure that it passes on is known for what it is.
///
/// It holds them weakly: a fiber that joins others all its life must not keep their errors. A failure that matters is held by the ledger of the group that has counted it.
final class FailuresHad {
    private struct Entry {
        weak var failure: UndeliveredError?
    }

    /// By where the error lies. As long as the failure is there, no other error lies in the same place.
    private var entries: [UInt: Entry] = [:]
    private var limit = 8

    func note(_ failure: UndeliveredError) {
        if entries.count >= limit {
            entries = entries.filter { $0.value.failure != nil }
            limit = max(8, 2 * entries.count)
        }
        entries[Self.place(of: failure.error)] = Entry(failure: failure)
    }

    func failure(with error: any Error) -> UndeliveredError? { entries[Self.place(of: error)]?.failure }

    // The coercion says that the existential itself is meant, which is one pointer, and not what is in it.
    private static func place(of error: any Error) -> UInt { unsafeBitCast(error as any Error, to: UInt.self) }
}

extension FiberCore {
    fileprivate var failuresHad: FailuresHad? { object as? FailuresHad }
}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    /// Remembers that the running fiber, which may be the root, has got the failure of another one.
    func noteHad(_ failure: UndeliveredError) {
        core?.withObject { core in
            // Not in the last moments of a life, whose result is there.
            guard core.record != nil, core.object == nil || core.object is FailuresHad else { return }
            let had = core.failuresHad ?? FailuresHad()
            had.note(failure)
            core.object = had
        }
    }

    /// The failure by which the running fiber has got an error, if it has it from another one.
    func failureHad(_ error: any Error) -> UndeliveredError? {
        core.flatMap { $0.withObject { $0.failuresHad?.failure(with: error) } }
    }
}
