// SPDX-License-Identifier: Apache-2.0

// Operations on fibers of other workers: spawn, join, cancel, and groups. Each is a message to the fiber's home worker, since no other
// thread may touch the fiber's state.
//
// Invariants:
//   * A message about a fiber arrives after the message that brought the fiber, because every handle comes from the sender of that
//     message. So an operation on a fiber that has not arrived yet is a message, too, even on the fiber's own worker.
//   * A fiber that joins waits in a `RemoteJoin`, which the joined fiber's home worker keeps until that fiber ends or the waiter withdraws
//     it.
//   * A child on another worker counts in its group like any other child, and its end arrives as a message; the group exists until then.

import CFiber
import Synchronization

/// The wait of a fiber for the end of a fiber on another worker. Many waiters may give up at once, in any order, so each leaves the list
/// without a search.
private final class RemoteJoin: WaitCell, ListElement, @unchecked Sendable {
    /// Home worker of the joined fiber only.
    @exclusivity(unchecked) var links = ListLinks<RemoteJoin>()
}

/// The remote relations of a fiber: the waiters on other workers that join it, and its group, if that is on another worker. Home worker
/// only, once the fiber has arrived.
final class RemoteLife {
    fileprivate var joins = ObjectList<RemoteJoin>()
    fileprivate let group: GroupPointer?
    /// The worker of that group.
    fileprivate let groupHome: Worker?
    /// If no stack was available for the child, the group does not fail.
    fileprivate let mayBeRefused: Bool

    init(group: GroupPointer? = nil, on home: Worker? = nil, mayBeRefused: Bool = false) {
        self.group = group
        groupHome = home
        self.mayBeRefused = mayBeRefused
    }

    func endWaits() {
        while let join = joins.popFirst() { join.unparkFromAnyThread(.ready) }
    }
}

/// The data of a fiber that starts on another worker.
struct Departure {
    let name: String?
    let locals: FiberLocalNode?
    /// The parts that belong to the group of the fiber.
    var deadline = Int64.max
    var isCancelled = false
    /// Called at the root of a worker that cannot start the fiber. The captures of the body are released in a fiber, which may have to
    /// wait for a stack until other fibers end; resources that others wait for are released here. The closure must not park, and neither
    /// it nor its captures may belong to the user.
    var onRefusal: (@Sendable () -> Void)?
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// The worker with an index, or the least loaded worker.
    func target(_ index: Int?) -> Worker {
        let workers = pointee.workers
        guard let index else { return workers.leastLoaded(from: self) }
        require(
            workers.all.indices.contains(index),
            "there is no worker \(index): the runtime has \(workers.all.count), numbered from 0 (FiberRuntime.workerCount)")
        return workers.all[index]
    }

    /// Makes the core of a fiber on another worker.
    func makeCore(on worker: Worker, _ remote: RemoteLife) -> FiberCore {
        let core = FiberCore(home: worker)
        core.id = pointee.numbers.takeID()
        core.remote = remote
        core.noteSent()
        return core
    }

    /// Sends a fiber to its worker.
    func send(_ core: FiberCore, _ departure: Departure, _ runner: @escaping FiberBodyRunner, _ body: any Departing) {
        let message = Message(about: core) { home, core in home.receive(core.unsafelyUnwrapped, departure, runner, body) }
        core.home.pointee.load.arriving.add(1, ordering: .relaxed)
        pointee.workers.send(message, to: core.home)
    }

    private func receive(
        _ core: FiberCore, _ departure: Departure, _ runner: @escaping FiberBodyRunner, _ body: any Departing
    ) {
        var refusal: (any Error)?
        if pointee.ending.isAbandoned {
            refusal = CancellationError()
        } else {
            do throws(ResourceError) {
                body.move(to: try start(core, name: departure.name, locals: departure.locals, runner))
                let fiber = core.record.unsafelyUnwrapped
                if departure.deadline != .max { fiber.bound(by: departure.deadline) }
                if departure.isCancelled { cancel(fiber.base) }
            } catch {
                refusal = error
            }
        }
        if let refusal {
            departure.onRefusal?()
            release(body.takenOut())
            core.object = UndeliveredError(refusal, of: core, name: departure.name, isDelivered: refusal is CancellationError)
            core.record = nil
            endRemote(core, wasCancelled: refusal is CancellationError, fromOutside: true, wasRefused: true)
        }
        pointee.load.arriving.subtract(1, ordering: .relaxed)
    }

    /// Ends a fiber that fibers on other workers may join.
    func endRemote(_ fiber: FiberPointer) {
        let core = fiber.coreField.pointee.unsafelyUnwrapped
        guard core.remote != nil else { return }
        let cause = fiber.base.pointee.cause
        endRemote(
            core, wasCancelled: cause != nil,
            fromOutside: cause == fiber.base && (fiber.base.pointee.deadline <= now || pointee.ending.abandonAt != .max))
    }

    private func endRemote(_ core: FiberCore, wasCancelled: Bool, fromOutside: Bool, wasRefused: Bool = false) {
        guard let remote = core.remote else { return }
        core.remote = nil
        remote.endWaits()
        if let group = remote.group, let home = remote.groupHome {
            let isFailure = !(wasRefused && remote.mayBeRefused)
            home.pointee.inbox.push(
                Message(about: core) { _, core in
                    group.remoteChildEnded(
                        core.unsafelyUnwrapped, wasCancelled: wasCancelled, fromOutside: fromOutside, counts: isFailure)
                })
        }
    }

    /// Parks the running fiber until a fiber on another worker has ended.
    func joinRemote(_ core: FiberCore) throws {
        require(
            pointee.workers.contains(core.home),
            "join() was called on a fiber of another runtime: join it in a fiber of its own, or after its FiberRuntime.run has returned")
        try refuseIfCancelled()
        let join = RemoteJoin()
        beginPark(in: join)
        core.home.pointee.inbox.push(
            Message(about: core) { _, core in
                let core = core.unsafelyUnwrapped
                if core.isFinished {
                    join.unparkFromAnyThread(.ready)
                } else {
                    if core.remote == nil { core.remote = RemoteLife() }
                    core.remote.unsafelyUnwrapped.joins.append(join)
                }
            })
        let outcome = park(in: join, .join(core.id))
        if outcome != .ready {
            let message = Message(about: core) { _, core in core.unsafelyUnwrapped.remote?.joins.remove(join) }
            pointee.workers.send(message, to: core.home)
        }
        try check(outcome)
    }

    /// Cancels a fiber on any worker.
    func cancel(_ core: FiberCore) {
        // The caller's worker has abandoned its fibers: other workers and their fibers may be gone.
        if core.isFinished || pointee.ending.isAbandoned { return }
        if core.home == self && !core.isOnItsWay {
            if let record = core.record { cancel(record.base) }
            return
        }
        require(
            pointee.workers.contains(core.home),
            "cancel() was called on a fiber of another runtime: cancel it in a fiber of its own")
        pointee.workers.send(Message(about: core) { home, core in home.cancel(core.unsafelyUnwrapped) }, to: core.home)
    }
}
