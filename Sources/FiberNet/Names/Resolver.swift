// SPDX-License-Identifier: Apache-2.0

// From names to addresses, by the system's resolver, on threads that may block.
//
// Invariants:
//   * `state` is read and written with its lock held, for a few instructions and never across a park;
//   * a look-up is in `lookUps` while new askers may join it: until it is over, is taken back, has taken too long, or the cache was flushed. Only one that is still in there is
//     cached, so what was asked before a flush is not found after it;
//   * a look-up belongs to no fiber: it is a job of the blocking pool, and goes on when the fiber that began it is cancelled. When nobody waits any more and no thread has
//     begun it, it is taken back;
//   * a waiter stands in its look-up while its fiber is parked for it, and the fiber takes it out with the lock held before it goes on.
// Any thread; waiting is for fibers.

import CFiber
import Fibers
import Glibc
import SystemPackage

/// Looks up the addresses of hosts by `getaddrinfo`, and parks the calling fiber meanwhile. Remembers them for a while.
///
/// ```swift
/// let addresses = try Resolver.default.resolve("localhost", port: 7777)
/// ```
///
/// `getaddrinfo` goes by the machine's configuration (`/etc/hosts`, `/etc/nsswitch.conf`, `/etc/resolv.conf`) and blocks, so it runs on a thread for blocking calls; see
/// `withBlockingThread`. At most half of these threads look names up at a time, so names whose servers do not answer hold up other names at worst, and never files.
/// Fibers that ask for the same name at the same time share one look-up. Numeric addresses are answered at once, without a thread or the cache.
///
/// Each runtime has one, ``default``; make others for other configurations. It may be used by fibers of several workers and runtimes at a time.
public final class Resolver: Sendable {
    /// How a resolver looks up and remembers.
    public struct Configuration: Hashable, Sendable {
        /// How long a fiber waits for a look-up. 5 seconds by default. Deadlines of the fiber count besides.
        ///
        /// A look-up that takes longer is left to itself, with its thread, and the next fiber that asks for the name begins another. A runtime that ends waits for it for
        /// `FiberRuntime.Configuration.shutdownLimit`, and names it if it has not ended by then.
        public var timeout: Duration
        /// How many answers are remembered; beyond that the least recently used is forgotten. 256 by default, 0 for none.
        public var capacity: Int
        /// How long addresses are remembered: `getaddrinfo` does not say how long they are good. 30 seconds by default, zero for not at all.
        public var timeToLive: Duration
        /// How long it is remembered that a host does not exist, or has no address. 5 seconds by default. Other failures are never remembered.
        public var negativeTimeToLive: Duration

        public init(
            timeout: Duration = .seconds(5), capacity: Int = 256, timeToLive: Duration = .seconds(30),
            negativeTimeToLive: Duration = .seconds(5)
        ) {
            self.timeout = timeout
            self.capacity = capacity
            self.timeToLive = timeToLive
            self.negativeTimeToLive = negativeTimeToLive
        }
    }

    /// What sockets a service is looked up for: it may have different ports for each.
    public enum Kind: Hashable, Sendable {
        /// TCP.
        case stream
        /// UDP.
        case datagram
    }

    /// What a resolver has done, and does.
    public struct Statistics: Hashable, Sendable {
        /// Questions that were answered from memory.
        public let hits: Int
        /// Questions that had to wait for a look-up, which they may have shared.
        public let misses: Int
        /// Answers that are remembered, those that have expired since included.
        public let entries: Int
        /// Look-ups that wait for a thread or run, those that nobody waits for any more included.
        public let inFlight: Int

        package init(hits: Int, misses: Int, entries: Int, inFlight: Int) {
            self.hits = hits
            self.misses = misses
            self.entries = entries
            self.inFlight = inFlight
        }
    }

    public let configuration: Configuration
    private let state: Guarded<ResolverState>
    private let ask: @Sendable (NameQuery) -> NameAnswer
    private let clock: @Sendable () -> Int64

    /// Makes a resolver with a cache of its own.
    public convenience init(_ configuration: Configuration = Configuration()) {
        self.init(configuration) { $0.askSystem() }
    }

    /// - Parameters:
    ///   - clock: monotonic nanoseconds, by which answers and look-ups grow old.
    ///   - ask: looks a name up; called on a thread that may block.
    package init(
        _ configuration: Configuration = Configuration(), clock: @escaping @Sendable () -> Int64 = { Worker.current?.now ?? cfiber_now() },
        ask: @escaping @Sendable (NameQuery) -> NameAnswer
    ) {
        require(configuration.capacity >= 0, "Resolver.Configuration.capacity must be at least 0; it is \(configuration.capacity)")
        self.configuration = configuration
        self.ask = ask
        self.clock = clock
        state = Guarded(ResolverState(cache: NameCache(capacity: configuration.capacity)))
    }

    /// The resolver of the calling fiber's runtime, which ends with it.
    public static var `default`: Resolver {
        Worker.here("Resolver.default").attachments.object(Resolver.self) { Resolver() }
    }

    /// The addresses of a host, each with the given port; they serve streams and datagrams alike.
    ///
    /// - Parameters:
    ///   - host: a name, also one that the machine's configuration completes, such as `localhost`; names that are not ASCII in their `xn--` form. Or an address:
    ///     `127.0.0.1`, `::1`, `[::1]`, `fe80::1%eth0`.
    ///   - port: 0 to 65535.
    /// - Returns: IPv4 and IPv6 addresses, at least one and none twice, in the order in which the system advises to try them (RFC 6724).
    /// - Throws: ``ResolveError`` with any of its codes; `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public func resolve(_ host: String, port: Int) throws -> [SocketAddress] {
        let service = "port \(port)"
        let name = try checked(host, service)
        guard let number = UInt16(exactly: port) else {
            throw ResolveError(.invalid, host: host, service: service, text: "a port is a number from 0 to 65535")
        }
        if let address = name.address {
            Worker.here("Resolver.resolve").chargeOperation()
            return [address.with(port: number)]
        }
        // Ports need no look-up, so all of them share one.
        let query = NameQuery(host: name.text, service: nil, kind: .stream)
        return try addresses(query, for: (host, service)).map { $0.with(port: number) }
    }

    /// The addresses of a host with the port of a service, by its name in `/etc/services`.
    ///
    /// - Parameters:
    ///   - host: as in ``resolve(_:port:)``.
    ///   - service: a name such as `https`, or a number from 0 to 65535 without sign and leading zeros.
    ///   - kind: what the service is used with.
    /// - Returns: as ``resolve(_:port:)``.
    /// - Throws: ``ResolveError`` with any of its codes; `notFound` also where the service is not known for the kind. `CancellationError` or `TimeoutError` when the fiber is cancelled.
    /// - Note: parks
    public func resolve(_ host: String, service: String, for kind: Kind = .stream) throws -> [SocketAddress] {
        let text = Array(service.utf8)
        if let port = SocketAddress.number(text[...]) { return try resolve(host, port: Int(port)) }
        let name = try checked(host, service)
        // The system would take other ways to write a number for one, and cut off what is too large.
        let digits = text.first == UInt8(ascii: "+") || text.first == UInt8(ascii: "-") ? text.dropFirst() : text[...]
        let isNumber = digits.allSatisfy { $0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9") }
        guard !isNumber, text.count <= 255, !text.contains(where: isSpaceOrControl) else {
            throw ResolveError(
                .invalid, host: host, service: service,
                text: "that is no service; give a name such as \"https\", or a number from 0 to 65535 (no sign, no leading zero)")
        }
        let query = NameQuery(host: name.text, service: service, kind: kind)
        return try addresses(query, for: (host, service))
    }

    /// Forgets all answers. Look-ups that have begun go on for those who wait for them; who asks from now on begins anew.
    public func flush() {
        state.withLock { state in
            state.cache.removeAll()
            state.lookUps = [:]
        }
    }

    public var statistics: Statistics {
        state.withLock { Statistics(hits: $0.hits, misses: $0.misses, entries: $0.cache.count, inFlight: $0.inFlight) }
    }

    // Asking.

    /// Answers from the cache, or waits for a look-up that runs or that it begins. Parks.
    private func addresses(
        _ query: NameQuery, for asked: (host: String, service: String)
    ) throws -> [SocketAddress] {
        let worker = Worker.here("Resolver.resolve")
        let now = clock()
        let lookUp: LookUp
        switch state.withLock({ $0.find(query, at: now, timeout: configuration.timeout) }) {
        case .known(let answer):
            worker.chargeOperation()
            return try addresses(answer, for: asked)
        case .running(let running):
            lookUp = running
        case .new(let new):
            lookUp = new
            begin(new)
        }
        let (answer, outcome) = wait(for: lookUp, worker, until: Deadline.after(configuration.timeout))
        // What ends a wait counts, also where the answer came before the fiber's turn; except for the resolver's own limit, which is there for lack of an answer.
        switch outcome {
        case .cancelled: throw worker.running.cancellation
        case .noTimer where answer == nil:
            throw ResolveError(
                .resources, host: asked.host, service: asked.service, errno: .noMemory, text: "no memory for the timer of the wait")
        default: break
        }
        guard let answer else {
            throw ResolveError(
                .timedOut, host: asked.host, service: asked.service, text: "no answer within \(configuration.timeout)")
        }
        return try addresses(answer, for: asked)
    }

    /// Parks until the look-up is over, or for another reason, and returns what is known by then.
    private func wait(for lookUp: LookUp, _ worker: Worker, until deadline: Int64) -> (NameAnswer?, Outcome) {
        let place = state.withLock { _ in lookUp.enter(worker) }
        let outcome = place.map { worker.park(in: $0.cell, .lookUp, until: deadline) } ?? .ready
        let answer = state.withLock { state in
            lookUp.leave(place?.index)
            if lookUp.isForNobody { state.takeBack(lookUp) }
            return lookUp.answer
        }
        return (answer, outcome)
    }

    /// Puts a look-up that is new in line for a thread; it is over at once where none is to be had.
    private func begin(_ lookUp: LookUp) {
        let call = DetachedCall(name: lookUp.query.title, refused: { self.finish(lookUp, .noThread($0)) }) {
            self.finish(lookUp, self.ask(lookUp.query))
        }
        state.withLock { _ in
            if lookUp.answer == nil { lookUp.call = call }
        }
    }

    /// Keeps the answer and wakes those who wait. Any thread.
    private func finish(_ lookUp: LookUp, _ answer: NameAnswer) {
        let now = clock()
        let life: Duration =
            switch answer.certainty {
            case .found: configuration.timeToLive
            case .absent: configuration.negativeTimeToLive
            case .unknown: .zero
            }
        state.withLock { state in
            state.inFlight -= 1
            if state.lookUps[lookUp.query] === lookUp {
                state.lookUps[lookUp.query] = nil
                if life > .zero { state.cache.store(answer, for: lookUp.query, until: Deadline.after(life, from: now)) }
            }
            lookUp.finish(answer)
        }
    }

    // Answers and errors.

    private func addresses(
        _ answer: NameAnswer, for asked: (host: String, service: String)
    ) throws(ResolveError) -> [SocketAddress] {
        switch answer {
        case .addresses(let addresses):
            if !addresses.isEmpty { return addresses }
            throw ResolveError(host: asked.host, service: asked.service, status: Int32(CFIBER_NAME_NODATA), errno: 0)
        case .failure(let status, let errno):
            throw ResolveError(host: asked.host, service: asked.service, status: status, errno: errno)
        case .noThread(let shortage):
            throw ResolveError(
                .resources, host: asked.host, service: asked.service, errno: Errno(rawValue: shortage.errno), text: "\(shortage)")
        }
    }

    /// A host as it is asked for, with the address if it is one. Throws where it can be none, and in a cancelled fiber.
    private func checked(_ host: String, _ service: String) throws -> (text: String, address: SocketAddress?) {
        let worker = Worker.here("Resolver.resolve")
        if worker.isCancelled {
            _ = worker.refusesOperation()
            throw worker.running.cancellation
        }
        var bytes = Array(host.utf8)
        func invalid(_ problem: String) -> ResolveError { ResolveError(.invalid, host: host, service: service, text: problem) }
        // A NUL would end the name early for the C functions.
        if bytes.isEmpty || bytes.count > 255 || bytes.contains(where: isSpaceOrControl) {
            throw invalid("that is no host: it is empty, has more than 255 bytes, or contains a space or control character")
        }
        if bytes.contains(UInt8(ascii: ":")) || bytes.first == UInt8(ascii: "[") {
            if bytes.first == UInt8(ascii: "["), bytes.last == UInt8(ascii: "]") { bytes = Array(bytes.dropFirst().dropLast()) }
            let literal = String(decoding: bytes, as: UTF8.self)
            guard bytes.contains(UInt8(ascii: ":")) else { throw invalid("brackets hold an IPv6 address, such as \"[::1]\"") }
            do { return (literal, try SocketAddress(host: literal, port: 0)) } catch { throw invalid(error.problem) }
        }
        // What else `getaddrinfo` takes for an address, such as "127.1", is left to it.
        let isNumeric = bytes.allSatisfy { $0 == UInt8(ascii: ".") || UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 }
        if isNumeric, let address = try? SocketAddress(host: host, port: 0) { return (host, address) }
        let lower = bytes.map { UInt8(ascii: "A")...UInt8(ascii: "Z") ~= $0 ? $0 | 0x20 : $0 }
        return (String(decoding: lower, as: UTF8.self), nil)
    }
}

private func isSpaceOrControl(_ byte: UInt8) -> Bool { byte <= 0x20 || byte == 0x7F }

private struct ResolverState {
    var cache: NameCache
    var lookUps: [NameQuery: LookUp] = [:]
    var inFlight = 0
    var hits = 0
    var misses = 0

    init(cache: NameCache) { self.cache = cache }

    enum Found {
        case known(NameAnswer)
        /// To be left when the fiber has waited for it.
        case running(LookUp)
        /// So, too, and to be begun by the caller.
        case new(LookUp)
    }

    mutating func find(_ query: NameQuery, at now: Int64, timeout: Duration) -> Found {
        if let answer = cache.answer(to: query, at: now) {
            hits += 1
            return .known(answer)
        }
        misses += 1
        if let running = lookUps[query], now < Deadline.after(timeout, from: running.begunAt) {
            running.users += 1
            return .running(running)
        }
        let lookUp = LookUp(query, at: now)
        lookUp.users = 1
        lookUps[query] = lookUp
        inFlight += 1
        return .new(lookUp)
    }

    /// Nobody waits for it: ends it unless it has begun.
    mutating func takeBack(_ lookUp: LookUp) {
        guard let call = lookUp.call, call.takeBack() else { return }
        // It holds the look-up.
        lookUp.call = nil
        inFlight -= 1
        if lookUps[lookUp.query] === lookUp { lookUps[lookUp.query] = nil }
    }
}

/// One question to the system, and who waits for its answer. Used with the resolver's lock held.
private final class LookUp: @unchecked Sendable {
    let query: NameQuery
    /// By the resolver's clock.
    let begunAt: Int64
    private(set) var answer: NameAnswer?
    /// Fibers between `find` and `leave`.
    var users = 0
    /// While it waits for a thread, or runs.
    var call: DetachedCall?
    /// In the order in which they came; nil where one has gone.
    private var places: [WaitCell?] = []

    init(_ query: NameQuery, at now: Int64) {
        self.query = query
        begunAt = now
    }

    var isForNobody: Bool { users == 0 && answer == nil }

    /// Begins the park of the calling fiber, which must then park; nil where the answer is there.
    func enter(_ worker: Worker) -> (index: Int, cell: WaitCell)? {
        if answer != nil { return nil }
        let cell = worker.beginSharedPark()
        places.append(cell)
        return (places.count - 1, cell)
    }

    func leave(_ index: Int?) {
        users -= 1
        if let index, index < places.count { places[index] = nil }
    }

    func finish(_ answer: NameAnswer) {
        self.answer = answer
        call = nil
        for place in places { place?.unparkFromAnyThread(.ready) }
        places = []
    }
}
