// SPDX-License-Identifier: Apache-2.0

// The books: everything that can be lost is counted twice, on independent sides, and the sides must agree whenever a round has ended.
//
// Any thread; the counts are atomic so that the monitor's thread may read them, and so that several workers may keep the same books.

import Fibers
import Synchronization

/// One count.
final class Tally: Sendable {
    private let count = Atomic<Int>(0)

    static func += (tally: Tally, amount: Int) { tally.count.add(amount, ordering: .relaxed) }
    var value: Int { count.load(ordering: .relaxed) }
}

/// Two counts that must be equal in the end.
final class Account: Sendable {
    let subject: String
    let sides: (String, String)
    let left = Tally()
    let right = Tally()

    init(_ subject: String, _ left: String, _ right: String) {
        self.subject = subject
        sides = (left, right)
    }

    var isBalanced: Bool { left.value == right.value }
    var description: String { "\(subject): \(left.value) \(sides.0), \(right.value) \(sides.1)" }
}

extension Account {
    static let fibers = Account("fibers", "spawned", "ended")
    static let sockets = Account("sockets and descriptors", "opened", "closed")
    static let connections = Account("connections", "made by clients", "ended by clients")
    static let sessions = Account("sessions", "accepted", "ended by the server")

    static var all: [Account] {
        var seen: Set<ObjectIdentifier> = []
        let common = [fibers, sockets, connections, sessions]
        return (common + Kind.all.flatMap(\.accounts)).filter { seen.insert(ObjectIdentifier($0)).inserted }
    }
}

/// What only the progress line and the summary are about.
enum Count {
    static let jobs = Tally()
    static let operations = Tally()
    static let echoes = Tally()
    static let bytes = Tally()
    /// Errors that were meant to happen and did.
    static let expectedErrors = Tally()
    /// Descriptors were short, and somebody waited for them.
    static let shortages = Tally()
    static let rounds = Tally()
    /// Connections that one worker has accepted and another has served.
    static let handedOver = Tally()
}

/// What went wrong. The first failure ends the run.
enum Failures {
    private static let list = Guarded<[String]>([])

    static func record(_ failure: String) {
        let isNew = list.withLock { list in
            if list.count < 20 { list.append(failure) }
            return list.count < 20
        }
        if isNew { say("FAILURE: \(failure)") }
    }

    static var all: [String] { list.withLock { $0 } }
}

/// Something that must never be so.
struct Violation: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }

    static func unless(_ condition: Bool, _ description: @autoclosure () -> String) throws {
        if !condition { throw Violation(description()) }
    }
}
