// SPDX-License-Identifier: Apache-2.0

// Messages that the inbox has brought to a worker, and their delivery by the root. Messages are delivered one after the other, and the
// objects that they leave behind are released in a fiber. Owner worker only.

struct Mailbox {
    /// Messages that have arrived and wait for the root. The first `delivered` of them have been delivered and released.
    var messages: [Message?] = []
    var delivered = 0
    /// Objects that must be released in a fiber and wait for a stack.
    var leftovers: [AnyObject] = []
    /// True while the root is in the ready queue.
    var isRootQueued = false

    fileprivate static var messagesAtATime: Int32 { 64 }

    @inline(__always) var hasMessages: Bool { delivered < messages.count }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    func collectInbox() {
        if pointee.inbox.isEmpty { return }
        pointee.inbox.drain(fiber: { receive($0) }, message: { pointee.mailbox.messages.append($0) })
    }

    /// Delivers some of the messages, in order. The others wait until fibers, timers and the event source have been served.
    func deliverMessages() {
        var left = Mailbox.messagesAtATime
        while pointee.mailbox.hasMessages && left > 0 {
            let message = pointee.mailbox.messages[pointee.mailbox.delivered].take()
            pointee.mailbox.delivered &+= 1
            left -= 1
            message.unsafelyUnwrapped.arrive(at: self)
        }
        if !pointee.mailbox.hasMessages && pointee.mailbox.delivered > 0 {
            pointee.mailbox.delivered = 0
            pointee.mailbox.messages.removeAll(keepingCapacity: pointee.mailbox.messages.count <= 1024)
        } else if pointee.mailbox.delivered >= 1024 && pointee.mailbox.delivered * 2 >= pointee.mailbox.messages.count {
            // Otherwise messages that arrive as fast as they are delivered would starve the fibers.
            pointee.mailbox.messages.removeFirst(pointee.mailbox.delivered)
            pointee.mailbox.delivered = 0
        }
    }

    /// Releases an object in a fiber of its own: now, or when a stack is available, or at the end of the worker if that never happens.
    func release(_ object: AnyObject) {
        pointee.mailbox.leftovers.append(object)
        releaseLeftovers()
    }

    func releaseLeftovers() {
        guard !pointee.ending.isAbandoned, pointee.ending.isActive || pointee.workers.activate(self),
            let (_, place) = try? start(name: nil, { FiberCore.run($0, $1, Void.self, staysHome: false) })
        else { return }
        let objects = pointee.mailbox.leftovers
        pointee.mailbox.leftovers = []
        place.initializeMemory(as: (() throws -> Void).self, to: { withExtendedLifetime(objects) {} })
    }
}
