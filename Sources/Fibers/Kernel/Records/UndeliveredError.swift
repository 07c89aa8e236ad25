// SPDX-License-Identifier: Apache-2.0

// Errors of fibers on their way to a joining fiber, or to the handler of unhandled errors. Also tracks the fiber in which an error began,
// when other fibers pass it on. The failures that a fiber has received belong to its own worker; an error may be taken on any worker.

import Synchronization

/// An error that a fiber threw, until it is taken. If it is never taken, the runtime's handler receives it, once.
@usableFromInline
package final class UndeliveredError {
    let error: any Error
    /// The failure of another fiber that this fiber received and passed on.
    private let passedOn: UndeliveredError?
    private let id: UInt64
    private let name: String?
    /// The workers whose handler receives the error.
    private let workers: WorkerSet
    private let isDelivered: Atomic<Bool>

    @usableFromInline
    init(_ error: any Error, of core: FiberCore) {
        let record = core.record.unsafelyUnwrapped
        // A cancelled fiber that ends with a `CancellationError` is not worth reporting.
        let wasCancelled = record.base.pointee.cause != nil && error is CancellationError
        self.error = wasCancelled ? CancellationError() : error
        passedOn = core.failuresHad?.failure(with: error)
        isDelivered = Atomic(wasCancelled)
        id = core.id
        name = record.name
        workers = record.worker.pointee.workers
    }

    /// The error of a fiber that could not start.
    init(_ error: any Error, of core: FiberCore, name: String?, isDelivered: Bool) {
        self.error = error
        passedOn = nil
        self.isDelivered = Atomic(isDelivered)
        id = core.id
        self.name = name
        workers = core.home.pointee.workers
    }

    /// The original failure, however many fibers have passed it on.
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

/// The failures of other fibers that a fiber has received, by joining or from a group of its own. They identify a failure that the fiber
/// passes on.
///
/// The references are weak: a fiber that joins others throughout its lifetime must not keep their errors alive. The ledger of the group
/// that has counted a failure keeps it alive as long as it matters.
final class FailuresHad {
    private struct Entry {
        weak var failure: UndeliveredError?
    }

    /// Keyed by the address of the error. While the failure is alive, no other error has the same address.
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

    // The coercion makes the compiler use the existential itself, which is one pointer, and not its contents.
    private static func place(of error: any Error) -> UInt { unsafeBitCast(error as any Error, to: UInt.self) }
}

extension FiberCore {
    fileprivate var failuresHad: FailuresHad? { object as? FailuresHad }
}

extension UnsafeMutablePointer where Pointee == FiberRecord {
    /// Records that the running fiber, which may be the root, has received the failure of another fiber.
    func noteHad(_ failure: UndeliveredError) {
        core?.withObject { core in
            // Not once the fiber has finished: the field then holds its result.
            guard core.record != nil, core.object == nil || core.object is FailuresHad else { return }
            let had = core.failuresHad ?? FailuresHad()
            had.note(failure)
            core.object = had
        }
    }

    /// The failure through which the running fiber received an error; nil if the error did not come from another fiber.
    func failureHad(_ error: any Error) -> UndeliveredError? {
        core.flatMap { $0.withObject { $0.failuresHad?.failure(with: error) } }
    }
}
