// SPDX-License-Identifier: Apache-2.0

// What the inbox has brought to a worker, and what its root does with it: messages are delivered one after the other, and what they leave behind is released in a fiber. Owner worker only.

struct Mailbox {
    /// Messages that have arrived and wait for the root, of which the first `delivered` have been delivered and are gone.
    var messages: [Message?] = []
    var delivered = 0
    /// What shall be released in a fiber, and waits for a stack.
    var leftovers: [AnyObject] = []
    /// The root stands in the ready queue.
    var isRootQueued = false

    fileprivate static var messagesAtATime: Int32 { 64 }

    @inline(__always) var hasMessages: Bool { delivered < messages.count }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    func collectInbox() {
        if pointee.inbox.isEmpty { return }
        pointee.inbox.drain(fiber: { receive($0) }, message: { pointee.mailbox.messages.append($0) })
    }

    /// Delivers some of the messages, in order; the others have to wait for fibers, timers and event source.
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
            // They may come as fast as they go, for ever.
            pointee.mailbox.messages.removeFirst(pointee.mailbox.delivered)
            pointee.mailbox.delivered = 0
        }
    }

    /// Lets go of an object in a fiber of its own: now, or when there is a stack for one; at the end of the worker if there never is.
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
