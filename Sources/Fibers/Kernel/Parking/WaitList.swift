// SPDX-License-Identifier: Apache-2.0

// Waiters in line. The nodes lie on the stacks of those who wait, so waiting allocates nothing; a node is in one list at most, and its fiber takes
// it out before it leaves the frame. Owner worker only.

import CFiber

package struct WaitNode: BitwiseCopyable {
    package let waiter: Waiter
    fileprivate var next: UnsafeMutablePointer<WaitNode>?
    fileprivate var previous: UnsafeMutablePointer<WaitNode>?
    fileprivate(set) var isLinked = false
    /// A node some places further on, to be fetched in time; never followed, and it may have gone.
    fileprivate var ahead: UnsafeRawPointer?

    @inline(__always)
    package init(_ waiter: Waiter) { self.waiter = waiter }
}

/// A ring of nodes, of which it knows the first: one word, so that four of them fit into a descriptor's cache line.
package struct WaitList: BitwiseCopyable {
    package private(set) var first: UnsafeMutablePointer<WaitNode>?

    @inline(__always)
    package init() {}

    @inline(__always) package var isEmpty: Bool { first == nil }

    @inline(__always)
    package mutating func append(_ node: UnsafeMutablePointer<WaitNode>) {
        node.pointee.isLinked = true
        guard let first else {
            node.pointee.next = node
            node.pointee.previous = node
            first = node
            return
        }
        let last = first.pointee.previous
        node.pointee.next = first
        node.pointee.previous = last
        last.unsafelyUnwrapped.pointee.next = node
        first.pointee.previous = node
        // The ring is closed, so there is always a node so far back.
        let before = last.unsafelyUnwrapped.pointee.previous.unsafelyUnwrapped.pointee.previous.unsafelyUnwrapped
        before.pointee.previous.unsafelyUnwrapped.pointee.ahead = UnsafeRawPointer(node)
    }

    /// Whether there is a node of which something is true.
    func contains(where condition: (UnsafeMutablePointer<WaitNode>) -> Bool) -> Bool {
        guard let first else { return false }
        var node = first
        repeat {
            if condition(node) { return true }
            node = node.pointee.next.unsafelyUnwrapped
        } while node != first
        return false
    }

    /// - Complexity: linear.
    var count: Int {
        var count = 0
        _ = contains { _ in
            count += 1
            return false
        }
        return count
    }

    @inline(__always)
    package mutating func popFirst() -> UnsafeMutablePointer<WaitNode>? {
        guard let node = first else { return nil }
        remove(node)
        return node
    }

    /// As `popFirst`, for a caller that takes one after the other. Each node lies on a stack of its own, and with many of them each has gone cold, in the cache and in the page tables: without the fetch a
    /// million of them take 350 ns each, one miss after the other.
    @inline(__always)
    mutating func popFirstOfAll() -> UnsafeMutablePointer<WaitNode>? {
        guard let node = popFirst() else { return nil }
        cfiber_prefetch(node.pointee.ahead)
        return node
    }

    @inline(__always)
    package mutating func remove(_ node: UnsafeMutablePointer<WaitNode>) {
        node.pointee.isLinked = false
        let next = node.pointee.next.unsafelyUnwrapped
        if next == node {
            first = nil
            return
        }
        let previous = node.pointee.previous.unsafelyUnwrapped
        previous.pointee.next = next
        next.pointee.previous = previous
        if first == node { first = next }
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Parks the running fiber in a list and takes it out again, whatever woke it.
    ///
    /// The list must stay where it is until each waiter in it has been woken.
    @inline(__always)
    package func park(in list: UnsafeMutablePointer<WaitList>, _ reason: WaitReason, until deadline: Int64 = .max) -> Outcome {
        var node = WaitNode(beginPark())
        return withLocalPointer(to: &node) { node in
            list.pointee.append(node)
            let outcome = park(reason, until: deadline)
            // Whoever wakes a waiter through the list has taken it out; a deadline leaves it in.
            if node.pointee.isLinked { list.pointee.remove(node) }
            return outcome
        }
    }
}
