// SPDX-License-Identifier: Apache-2.0

// What fibers have to do with those of other workers: spawn, join, cancel, and groups. All of it is done by messages to the worker where the fiber lives, since nobody else may
// touch what is there.
//
// Invariants:
//   * a message about a fiber comes after the one that brought it: who has its handle has it from the one who sent it. So on its own worker, too, what is done to a fiber
//     that is still on its way is done by a message;
//   * a fiber that joins waits in a `RemoteJoin`, which the joined fiber's home worker keeps until that fiber ends or the waiter takes it back;
//   * a child on another worker counts in its group like any other, and its end comes as a message; until then the group is there.

import CFiber
import Synchronization

/// The wait of a fiber for the end of one on another worker. Many may give up at once, in any order, so each leaves the list without a search.
private final class RemoteJoin: WaitCell, ListElement, @unchecked Sendable {
    /// Home worker of the joined fiber only.
    @exclusivity(unchecked) var links = ListLinks<RemoteJoin>()
}

/// Of a fiber: who waits on other workers for its end, and the group on another worker that it is a child of. Home worker only, once the fiber has arrived.
final class RemoteLife {
    fileprivate var joins = ObjectList<RemoteJoin>()
    fileprivate let group: GroupPointer?
    /// Where that is.
    fileprivate let groupHome: Worker?
    /// That there was no stack for it is not the group's failure.
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

/// What is sent of a fiber that shall begin elsewhere.
struct Departure {
    let name: String?
    let locals: FiberLocalNode?
    /// Of the group that it is a child of.
    var deadline = Int64.max
    var isCancelled = false
    /// Called at the root of the worker where the fiber cannot begin. What the body owns is let go of in a fiber, and that may have to wait for a stack as long as other fibers live;
    /// what others count on is given back here. It must not park, and neither it nor what it captures may be of users.
    var onRefusal: (@Sendable () -> Void)?
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// The worker that an index names, or the least loaded.
    func target(_ index: Int?) -> Worker {
        let workers = pointee.workers
        guard let index else { return workers.leastLoaded(from: self) }
        require(
            workers.all.indices.contains(index),
            "there is no worker \(index): the runtime has \(workers.all.count), numbered from 0 (FiberRuntime.workerCount)")
        return workers.all[index]
    }

    /// A core for a fiber on another worker.
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

    /// The life of a fiber that others may wait for elsewhere is over.
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

    /// Parks the running fiber until the life of one on another worker is over.
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

    /// Cancels a fiber wherever it is.
    func cancel(_ core: FiberCore) {
        // From a worker whose fibers were left behind: others may be gone, and theirs with them.
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
