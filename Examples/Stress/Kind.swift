// SPDX-License-Identifier: Apache-2.0

// A kind of job, and one job: what the rest of the program does, as small pieces that know nothing of each other.
//
// A new part of the runtime joins by one file in Kinds/ and one word in `all`.

import FiberNet
import Fibers
import Glibc

struct Kind: Sendable {
    let name: String
    /// How often, relative to the others.
    let weight: Int
    /// The most descriptors that a job of this kind has open, the server's end of a connection included.
    var descriptors = 0
    /// The books that these jobs keep besides the common ones.
    var accounts: [Account] = []
    let finished = Tally()
    /// Does the work, within a second or so; throws for anything that must not be.
    let run: @Sendable (Job) throws -> Void

    init(_ name: String, weight: Int, descriptors: Int = 0, accounts: [Account] = [], run: @escaping @Sendable (Job) throws -> Void) {
        self.name = name
        self.weight = weight
        self.descriptors = descriptors
        self.accounts = accounts
        self.run = run
    }

    static let all: [Kind] = [
        .yielding, .sleeping, .joining, .throwing, .recursion, .exclusivity, .wakes,
        .echo, .hangUp, .pairs, .writers, .closing, .duplicates, .timeouts, .foreign, .signals, .handlers,
        .deadlines, .renewals, .cancelling, .accepting, .groups, .limits,
        .spreading, .recalling, .spanning, .impatient, .events, .blocking, .talking, .choosing, .takingOver,
    ]
}

/// One job in its fiber, or a child of it in another: its random numbers, and the ways to do things that keep the common books.
final class Job {
    let serial: UInt64
    let round: Round
    let slot: Slot
    private var generator: SplitMix64

    init(serial: UInt64, generator: SplitMix64, round: Round, slot: Slot) {
        self.serial = serial
        self.generator = generator
        self.round = round
        self.slot = slot
    }

    func random<N: FixedWidthInteger>(_ range: ClosedRange<N>) -> N { N.random(in: range, using: &generator) }
    func chance(_ oneIn: Int) -> Bool { random(1...oneIn) == 1 }
    /// A size: mostly small, sometimes up to the largest.
    func size(upTo largest: Int) -> Int { random(1...max(1, largest >> random(0...10))) }

    /// Says what the job is about to do, for the monitor.
    func step(_ text: StaticString) {
        slot.step(text)
        Count.operations += 1
    }

    /// Lets some time pass, in one of the ways to do so.
    func pause() throws {
        Count.operations += 1
        switch random(0...9) {
        case 0...3: Fiber.yield()
        case 4...5: for _ in 0..<random(1...20) { Fiber.yield() }
        case 6: try Fiber.sleep(for: .milliseconds(random(1...10)))
        default: break
        }
    }

    /// Spawns a fiber with random numbers of its own. Whoever spawns it must see to its end.
    func spawn<Value>(_ body: @escaping (Job) throws -> Value) throws -> FiberHandle<Value> {
        let child = child()
        return try round.spawn { try body(child) }
    }

    /// Spawns a fiber on the worker that is named, or on the least loaded one. Whoever spawns it must see to its end.
    func spawn<Value: Sendable>(on worker: Int?, _ body: @escaping @Sendable (Job) throws -> Value) throws -> FiberHandle<Value> {
        let traveller = traveller(to: worker)
        let handle = try Fiber.spawn(name: "traveller", on: worker) {
            defer { Account.fibers.right += 1 }
            return try body(traveller.arrive())
        }
        Account.fibers.left += 1
        return handle
    }

    /// A worker to name, or nil to leave it to the runtime.
    func somewhere() -> Int? { chance(2) ? nil : random(0...FiberRuntime.workerCount - 1) }

    func traveller(to worker: Int?) -> Traveller {
        Traveller(
            serial: serial, generator: SplitMix64(seed: generator.next(), serial: serial), crew: round.crew, slot: slot, target: worker)
    }

    /// The same job in another fiber, with random numbers of its own.
    func child() -> Job {
        Job(serial: serial, generator: SplitMix64(seed: generator.next(), serial: serial), round: round, slot: slot)
    }

    // Sockets, each counted when it is opened and when it is closed.

    /// Connects to one of the round's servers.
    func connect(to address: SocketAddress) throws -> Connection {
        let stream = try opened { try Connection.connect(to: address) }
        Account.connections.left += 1
        return stream
    }

    /// Ends a connection made by `connect`.
    func hangUp(_ stream: Connection, reset: Bool = false) {
        if reset { stream.reset() } else { stream.close() }
        Account.connections.right += 1
        Account.sockets.right += 1
    }

    func pair() throws -> (Connection, Connection) {
        let pair = try patiently { try Connection.pair() }
        Account.sockets.left += 2
        return pair
    }

    func listen(on address: SocketAddress, backlog: Int = 16) throws -> Listener {
        try opened { try Listener.bind(to: address, backlog: backlog) }
    }

    func opened<Socket: Endpoint>(_ open: () throws -> Socket) throws -> Socket {
        let socket = try patiently(open)
        Account.sockets.left += 1
        return socket
    }

    func close(_ sockets: Endpoint...) {
        for socket in sockets {
            socket.close()
            Account.sockets.right += 1
        }
    }

    /// Tries again while descriptors or ports are short: sessions of clients that have gone keep theirs for a moment, and closed connections keep ports.
    @discardableResult
    func patiently<Value>(_ body: () throws -> Value) throws -> Value {
        while true {
            do { return try body() } catch let error as IOError where [.resources, .addressNotAvailable].contains(error.code) {
                Count.shortages += 1
                try Fiber.sleep(for: .milliseconds(20))
            }
        }
    }

    /// Runs something that must end with this error, and returns the error.
    @discardableResult
    func expect(_ code: IOError.Code, _ what: StaticString, _ body: () throws -> Void) throws -> IOError {
        step(what)
        do {
            try body()
        } catch let error as IOError where error.code == code {
            Count.expectedErrors += 1
            return error
        }
        throw Violation("\(what): it succeeded, where \"\(code)\" was due")
    }
}

/// A part of a job on its way to another worker.
struct Traveller: Sendable {
    fileprivate let serial: UInt64
    fileprivate let generator: SplitMix64
    fileprivate let crew: Crew
    fileprivate let slot: Slot
    fileprivate let target: Int?

    /// What it is there.
    func arrive() throws -> Job {
        let worker = FiberRuntime.currentWorker
        try Violation.unless(target == nil || worker == target, "a fiber that was sent to worker \(target ?? -1) runs on \(worker ?? -1)")
        return Job(serial: serial, generator: generator, round: crew.round, slot: slot)
    }
}
