// SPDX-License-Identifier: Apache-2.0

// A name service that a test owns: it knows some names, counts who asks, and can be slow or dead.

import CFiber
import FiberNet
import Fibers
import Glibc
import Synchronization
import Testing

/// Holds up plain threads until it is opened.
final class Gate: Sendable {
    private let isOpen = Atomic<Bool>(false)
    private let arrived = Atomic<Int>(0)

    /// How many threads have come so far.
    var arrivals: Int { arrived.load(ordering: .acquiring) }

    func open() { isOpen.store(true, ordering: .releasing) }

    func wait() {
        arrived.add(1, ordering: .acquiringAndReleasing)
        while !isOpen.load(ordering: .acquiring) { usleep(200) }
    }
}

final class NameService: Sendable {
    private struct State {
        var answers: [String: NameAnswer] = [:]
        var gates: [String: Gate] = [:]
        var asked: [NameQuery] = []
    }

    private let state = Guarded(State())
    private let time = Atomic<Int64>(1_000_000_000_000)

    /// What was asked, in that order.
    var asked: [NameQuery] { state.withLock { $0.asked } }
    var hosts: [String] { asked.map(\.host) }

    func know(_ host: String, _ answer: NameAnswer) { state.withLock { $0.answers[host] = answer } }

    func know(_ host: String, _ addresses: String...) {
        know(host, .addresses(addresses.map { address($0, 0) }))
    }

    /// Look-ups of a host wait at a gate from now on, those that come after it was opened excepted.
    func hold(_ host: String) -> Gate {
        let gate = Gate()
        state.withLock { $0.gates[host] = gate }
        return gate
    }

    func answerAtOnce(_ host: String) { state.withLock { $0.gates[host] = nil } }

    /// Moves the clock by which answers grow old.
    func pass(_ duration: Duration) { time.add(Int64(duration / .nanoseconds(1)), ordering: .relaxed) }

    func resolver(_ configuration: Resolver.Configuration = .init()) -> Resolver {
        Resolver(configuration, clock: { self.time.load(ordering: .relaxed) }) { query in
            let (answer, gate) = self.state.withLock { state in
                state.asked.append(query)
                return (state.answers[query.host], state.gates[query.host])
            }
            gate?.wait()
            return answer ?? .failure(status: EAI_NONAME)
        }
    }
}

/// The `ResolveError` that a call throws, nil when it throws none or another kind of error.
func resolveFailure(_ body: () throws -> Void) -> ResolveError? {
    do { try body() } catch { return error as? ResolveError }
    return nil
}

/// Expects a call to throw a `ResolveError` of a code; returns the error.
@discardableResult
func expectNoAddresses(
    _ code: ResolveError.Code, sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) -> ResolveError? {
    let error = thrown(body)
    expect((error as? ResolveError)?.code == code, "\(String(describing: error)), expected: \(code)", sourceLocation: sourceLocation)
    return error as? ResolveError
}

/// An address that the test knows to be one.
func address(_ host: String, _ port: Int) -> SocketAddress {
    guard let address = try? SocketAddress(host: host, port: port) else { preconditionFailure("\(host) is no address, or \(port) no port") }
    return address
}
