// SPDX-License-Identifier: Apache-2.0

/// Why a fiber waits: the kind of event, and its subject. Stored at each park, so that a dump can show it.
package struct WaitReason: BitwiseCopyable, Hashable, Sendable {
    package enum Kind: UInt8, BitwiseCopyable, Sendable {
        case none, read, write, accept, connect, sleep, join, readable, writable, group, blocking, event, send, receive, select, lock,
            semaphore, condition, once, waitGroup, barrier, lookUp,
            other
    }

    package var kind: Kind
    /// A descriptor, negative where there are several; or the low half of a fiber's id.
    package var subject: Int32

    @inline(__always)
    package init(_ kind: Kind, _ subject: Int32 = 0) {
        self.kind = kind
        self.subject = subject
    }

    package static var none: WaitReason { WaitReason(.none) }
    package static var sleep: WaitReason { WaitReason(.sleep) }
    package static var group: WaitReason { WaitReason(.group) }
    package static var blocking: WaitReason { WaitReason(.blocking) }
    package static var event: WaitReason { WaitReason(.event) }
    package static var send: WaitReason { WaitReason(.send) }
    package static var receive: WaitReason { WaitReason(.receive) }
    package static var select: WaitReason { WaitReason(.select) }
    package static var lock: WaitReason { WaitReason(.lock) }
    package static var semaphore: WaitReason { WaitReason(.semaphore) }
    package static var condition: WaitReason { WaitReason(.condition) }
    package static var once: WaitReason { WaitReason(.once) }
    package static var waitGroup: WaitReason { WaitReason(.waitGroup) }
    package static var barrier: WaitReason { WaitReason(.barrier) }
    package static var lookUp: WaitReason { WaitReason(.lookUp) }
    package static var other: WaitReason { WaitReason(.other) }
    package static func join(_ id: UInt64) -> WaitReason { WaitReason(.join, Int32(truncatingIfNeeded: id)) }
}

extension WaitReason: CustomStringConvertible {
    package var description: String {
        switch kind {
        case .none: "running or ready"
        case .sleep, .other: "\(kind)"
        case .group: "the fibers of a group"
        case .blocking: "a blocking call"
        case .event: "an event"
        case .send: "room in a channel"
        case .receive: "a message"
        case .select: "one of several things"
        case .lock: "a lock"
        case .semaphore: "permits of a semaphore"
        case .condition: "a condition"
        case .once: "a value that somebody else is making"
        case .waitGroup: "a wait group"
        case .barrier: "the others at a barrier"
        case .lookUp: "the addresses of a name"
        case .join: "join fiber #\(subject)"
        case .connect where subject < 0: "connect"
        case .read, .write, .accept, .connect, .readable, .writable: "\(kind) descriptor \(subject)"
        }
    }
}

/// What ended a park.
package enum Outcome: UInt8, BitwiseCopyable, Sendable {
    /// The awaited event has happened, or may have.
    case ready
    /// The object that the fiber waited on has been closed.
    case closed
    /// The deadline of the call passed first.
    case timedOut
    /// A scope around the call was cancelled, or its deadline passed.
    case cancelled
    /// There was no memory for the timer of a deadline, so the park ended at once.
    case noTimer
}
