// SPDX-License-Identifier: Apache-2.0

// Serving on every worker: a listener each, one fiber per connection, and hand-off where the kernel's spread is uneven.
//
// Invariants:
//   * a listener's descriptor belongs to its `ListeningSocket`, so that any thread can end its listening at once; the listener of a worker has it on loan;
//   * `open` counts a connection from when a worker is chosen for it until its handler has ended, so those who choose see what others have chosen;
//   * a slot of `ConnectionSlots` is held for a connection from before it is accepted until its handler has ended, and never while there is none to accept;
//   * a connection that is handed over is nobody's object on the way: a number in a `Handover`, which closes it if it never arrives, and at once where it is refused: to let go of
//     the fiber's body takes a stack, which is what the other worker lacks, and the slot would be lost to all meanwhile.

import CFiber
import Fibers
import Glibc
import Synchronization

/// Waits for connections on all workers of a runtime: TCP, or a Unix stream socket, depending on the address.
///
/// ```swift
/// let server = try TCPServer.bind(to: .any(port: 7777))
/// try server.serve { stream in
///     while try stream.readAvailable({ try stream.writeAll($0) }) {}
/// }
/// ```
///
/// Each worker has a listener of its own (`SO_REUSEPORT`), between which the kernel spreads connections by a hash of their addresses. A worker that has clearly more than
/// another hands what it accepts to that one. A connection stays on the worker where its handler began. Workers of one Unix socket take turns at it.
///
/// The handler runs on several threads at a time, so what it captures must be safe there. A server may be closed from any fiber of its runtime.
public final class TCPServer: Sendable {
    /// Where it listens, with the port that the system chose if it was bound to port 0.
    public let address: SocketAddress
    private let workers: [WorkerPlace]
    /// The file to remove at the end, for Unix sockets.
    private let file: SocketFile?
    private let phase = Atomic(Phase.bound.rawValue)

    private enum Phase: Int {
        case bound, serving, closed
    }

    /// What one worker has to do with it.
    fileprivate final class WorkerPlace: Sendable {
        let socket: ListeningSocket
        let open = Atomic<Int>(0)
        let accepted = Atomic<Int>(0)
        let handedOver = Atomic<Int>(0)
        let stop = FiberEvent()

        init(_ descriptor: Int32) { socket = ListeningSocket(descriptor) }
    }

    private init(_ address: SocketAddress, _ descriptors: [Int32], _ file: SocketFile? = nil) {
        self.address = address
        self.file = file
        workers = descriptors.map { WorkerPlace($0) }
    }

    deinit { close() }

    /// Starts to listen on all workers of the calling fiber's runtime. Connections that arrive from now on wait in the kernel's queues until ``serve(maxConnections:draining:onError:_:)``.
    ///
    /// - Parameters:
    ///   - address: where; port 0 lets the system choose. A Unix path must not exist yet.
    ///   - backlog: length of each of the kernel's queues, at most `net.core.somaxconn`.
    ///   - removesFile: of a Unix socket: whether closing the server removes its file, and no other, as in ``Listener/bind(to:backlog:reusePort:removesFile:)``.
    /// - Throws: ``IOError`` with `addressInUse`, `addressNotAvailable`, `notPermitted`, `resources` or `system`.
    public static func bind(to address: SocketAddress, backlog: Int = 4096, removesFile: Bool = true) throws(IOError) -> TCPServer {
        let count = FiberRuntime.workerCount
        let driver = Worker.here("TCPServer.bind").driver
        if address.family == .unix || count == 1 {
            let listener = try Listener.bind(to: address, backlog: backlog, removesFile: removesFile)
            let (bound, file) = (listener.address, listener.file)
            let first = try listener.relinquish()
            var descriptors = [first]
            while descriptors.count < count {
                let copy = driver.call(.duplicate(first))
                if copy < 0 {
                    // The listener that would have removed it has given it away.
                    file?.remove()
                    for fd in descriptors { _ = driver.call(.close(fd)) }
                    throw IOError(copy, "bind", subject: address.description)
                }
                descriptors.append(Int32(copy))
            }
            return TCPServer(bound, descriptors, file)
        }
        // A socket that shares its port would share it with another program of the same user, too, and take a part of its connections without a word. So the first takes the
        // address alone, which fails where somebody else has it, shared or not, and lets the others join when it is its own.
        let first = try Listener.bind(to: address, backlog: backlog)
        let bound = first.address
        try first.setOption(.reusePort, to: true)
        var descriptors = [try first.relinquish()]
        do throws(IOError) {
            while descriptors.count < count {
                descriptors.append(try Listener.bind(to: bound, backlog: backlog, reusePort: true).relinquish())
            }
        } catch {
            for fd in descriptors { _ = driver.call(.close(fd)) }
            throw error
        }
        return TCPServer(bound, descriptors)
    }

    /// Stops listening on all workers: connections are refused from now on, those in the kernel's queues are reset, and ``serve(maxConnections:draining:onError:_:)`` begins to drain.
    /// The file of a Unix socket goes, if it is still the one that was bound. A second close does nothing.
    public func close() {
        let before = phase.exchange(Phase.closed.rawValue, ordering: .acquiringAndReleasing)
        if before == Phase.closed.rawValue { return }
        // First, while the sockets keep its inode.
        file?.remove()
        for worker in workers {
            worker.socket.refuse()
            if before == Phase.bound.rawValue { worker.socket.close() }
            worker.stop.signal()
        }
    }

    /// What the workers have done, in their order.
    public struct WorkerConnections: Hashable, Sendable {
        /// Connections that are open there.
        public let open: Int
        /// Connections that it has accepted.
        public let accepted: Int
        /// Of those, the ones that it has handed to another worker.
        public let handedOver: Int
    }

    /// Counts of connections for each worker.
    public var connections: [WorkerConnections] {
        workers.map {
            WorkerConnections(
                open: $0.open.load(ordering: .relaxed), accepted: $0.accepted.load(ordering: .relaxed),
                handedOver: $0.handedOver.load(ordering: .relaxed))
        }
    }

    /// Accepts connections on all workers and runs `handler` in a fiber for each, until the server is closed; then lets those that are open finish. Once in the life of a server,
    /// which is closed when this returns or throws.
    ///
    /// Otherwise as ``Listener/serve(maxConnections:draining:onError:_:)``: here, too, idle connections make draining take its whole time unless their handlers give up by themselves.
    /// Streams belong to their workers, so a program that ends idle ones keeps a list of them on each worker.
    ///
    /// - Parameters:
    ///   - maxConnections: how many connections are served at a time, at least 1, on all workers together: however they are spread, a connection waits in the kernel's queues only
    ///     while there are so many. Nil for any number, up to the limit on descriptors.
    ///   - limit: how long connections may take to finish once the server was closed, idle ones included.
    ///   - onError: hears what handlers throw, in the fiber of the connection, and of connections that were closed because the worker that accepted them had no fiber for them. Nil
    ///     reports that to `FiberRuntime.Configuration.onUnhandledError`, except that the peer has reset its connection. That a worker had no fiber for a connection that another
    ///     had handed to it is reported there in any case.
    ///   - handler: gets the connection, which is closed when it returns or throws.
    /// - Returns: how many connections there were, and how they ended.
    /// - Throws: `CancellationError` or `TimeoutError` when the calling fiber is cancelled; ``IOError`` when a listener fails, and then all connections were cancelled.
    /// - Note: parks
    @discardableResult
    public func serve(
        maxConnections: Int? = nil, draining limit: Duration = .seconds(10), onError: (@Sendable (any Error) -> Void)? = nil,
        _ handler: @escaping @Sendable (Connection) throws -> Void
    ) throws -> ServeReport {
        require(
            maxConnections ?? 1 > 0, "serve(maxConnections:) takes at least 1, not \(maxConnections ?? 1): with none it would never accept")
        let (isFirst, now) = phase.compareExchange(
            expected: Phase.bound.rawValue, desired: Phase.serving.rawValue, ordering: .acquiringAndReleasing)
        require(isFirst || now == Phase.closed.rawValue, "TCPServer.serve was called twice: bind another server for that")
        if !isFirst { return ServeReport(connections: 0, finished: 0, cancelled: 0) }
        // Also where a worker never had its part: nobody would accept what comes there.
        defer {
            close()
            for worker in workers { worker.socket.close() }
        }
        let slots = maxConnections.map { ConnectionSlots($0, workers: workers.count) }
        return try withFiberGroup(of: ServeReport.self) { group in
            for index in workers.indices {
                try group.spawn(name: "serve", on: index) { try self.serve(on: index, slots, limit, onError, handler) }
            }
            var total = ServeReport(connections: 0, finished: 0, cancelled: 0)
            while let report = try group.next() { total = total + report }
            return total
        }
    }

    /// The part of one worker, in a fiber there.
    private func serve(
        on index: Int, _ slots: ConnectionSlots?, _ limit: Duration, _ onError: (@Sendable (any Error) -> Void)?,
        _ handler: @escaping @Sendable (Connection) throws -> Void
    ) throws -> ServeReport {
        let own = workers[index]
        defer {
            // Before the last worker's socket closes; once one of them has ended, all will.
            file?.remove()
            own.socket.close()
        }
        let listener = try own.socket.lend { number throws(IOError) in try Listener.adopt(number, address) }
        defer { listener.giveBack() }
        return try withFiberGroup { group in
            try group.spawnDaemon(name: "close") {
                try own.stop.wait()
                listener.giveBack()
                slots?.lookAgain(index)
            }
            let service = Service(workers, slots, isUnix: address.family == .unix, onError ?? reportUnhandled, handler)
            return try listener.serve(maxConnections: nil, draining: limit, service.report, next: { try next(listener, index, slots) }) {
                group, stream in
                own.accepted.add(1, ordering: .relaxed)
                let target = self.worker(from: index)
                service.noteArrival(at: target)
                guard target != index else {
                    do { try group.spawnReserved(name: "connection") { service.serve(stream, on: target) } } catch {
                        service.noteEnd(at: target)
                        throw error
                    }
                    return
                }
                own.handedOver.add(1, ordering: .relaxed)
                let handover = Handover(try stream.relinquish(), peer: stream.peer) { service.noteEnd(at: target) }
                try group.spawnReserved(name: "connection", on: target, onRefusal: { handover.giveUp() }) {
                    service.serve(handover, on: target)
                }
            }
        }
    }

    /// The next connection of a worker, with a slot where they are counted; nil once it does not listen any more.
    private func next(_ listener: Listener, _ index: Int, _ slots: ConnectionSlots?) throws -> Connection? {
        guard let slots else { return try listener.next() }
        while true {
            do {
                // First somebody to serve, then a slot: who waits for connections keeps none from those who have one.
                try listener.waitReadable()
                guard try slots.take(index, while: { listener.isOpen }) else { return nil }
                // Another worker may have been faster, at a Unix socket.
                var isUsed = false
                defer { if !isUsed { slots.give() } }
                if let stream = try listener.acceptNow() {
                    isUsed = true
                    return stream
                }
            } catch let error as IOError where error.code == .closed { return nil }
        }
    }

    /// Who serves the next connection that a worker has accepted: itself, unless another has clearly fewer.
    private func worker(from index: Int) -> Int {
        let own = workers[index].open.load(ordering: .relaxed)
        var least = (index, own)
        for (other, place) in workers.enumerated() {
            let open = place.open.load(ordering: .relaxed)
            if open < least.1 { least = (other, open) }
        }
        return own - least.1 > max(8, own / 32) ? least.0 : index
    }
}

/// State that all connections of a server share. The fiber of a connection captures one reference to it instead of several closures. Any thread.
private final class Service: Sendable {
    let report: @Sendable (any Error) -> Void
    private let workers: [TCPServer.WorkerPlace]
    private let slots: ConnectionSlots?
    private let isUnix: Bool
    private let handler: @Sendable (Connection) throws -> Void

    init(
        _ workers: [TCPServer.WorkerPlace], _ slots: ConnectionSlots?, isUnix: Bool, _ report: @escaping @Sendable (any Error) -> Void,
        _ handler: @escaping @Sendable (Connection) throws -> Void
    ) {
        self.workers = workers
        self.slots = slots
        self.isUnix = isUnix
        self.report = report
        self.handler = handler
    }

    func noteArrival(at worker: Int) { workers[worker].open.add(1, ordering: .relaxed) }

    func noteEnd(at worker: Int) {
        workers[worker].open.subtract(1, ordering: .relaxed)
        slots?.give()
    }

    /// The life of a connection, in its fiber.
    func serve(_ stream: Connection, on worker: Int) {
        defer { noteEnd(at: worker) }
        serveConnection(stream, report, handler)
    }

    /// The life of one that another worker has accepted.
    func serve(_ handover: Handover, on worker: Int) {
        let driver = Worker.here("serve").driver
        let stream: Connection
        do { stream = try Connection(handover.take(), peer: handover.peer, exact: isUnix, driver: driver, "accept") } catch {
            noteEnd(at: worker)
            return report(error)
        }
        serve(stream, on: worker)
    }
}

/// A descriptor that listens. Any thread.
private final class ListeningSocket: @unchecked Sendable {
    private let lock = ThreadLock()
    private var number: Int32

    init(_ number: Int32) { self.number = number }

    deinit { close() }

    /// Ends its listening, and leaves it open for those who have it on loan.
    func refuse() {
        // Where it has been done already the system says that it is not connected.
        lock.withLock { if number >= 0 { _ = Driver.callAnywhere(.shutdown(number, how: Int32(SHUT_RDWR))) } }
    }

    func close() {
        lock.withLock {
            if number >= 0 { _ = Driver.callAnywhere(.close(number)) }
            number = -1
        }
    }

    /// Calls `body` with the number; if that throws, the descriptor has been closed.
    func lend<Result>(_ body: (Int32) throws(IOError) -> Result) throws(IOError) -> Result {
        let number = lock.withLock { self.number }
        do { return try body(number) } catch {
            lock.withLock { self.number = -1 }
            throw error
        }
    }
}

/// A descriptor on its way from one worker to another.
private final class Handover: Sendable {
    private let number: Atomic<Int32>
    let peer: SocketAddress?
    /// Takes it out of the counts.
    private let leave: @Sendable () -> Void

    init(_ number: Int32, peer: SocketAddress?, _ leave: @escaping @Sendable () -> Void) {
        self.number = Atomic(number)
        self.peer = peer
        self.leave = leave
    }

    deinit { giveUp() }

    func take() -> Int32 { number.exchange(-1, ordering: .acquiringAndReleasing) }

    /// Closes it unless somebody has taken it. Never parks.
    func giveUp() {
        let number = take()
        guard number >= 0 else { return }
        _ = Driver.callAnywhere(.close(number))
        leave()
    }
}
