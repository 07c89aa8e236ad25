// Waiters in line. The nodes lie on the stacks of those who wait, so waiting allocates nothing; a node is in one list at most, and its fiber takes
// it out before it leaves the frame. Owner worker only.

package struct WaitNode: BitwiseCopyable {
    package let waiter: Waiter
    fileprivate var next: UnsafeMutablePointer<WaitNode>?
    fileprivate var previous: UnsafeMutablePointer<WaitNode>?
    fileprivate(set) var isLinked = false

    @inline(__always)
    package init(_ waiter: Waiter) { self.waiter = waiter }
}

package struct WaitList: BitwiseCopyable {
    fileprivate var head: UnsafeMutablePointer<WaitNode>?
    fileprivate var tail: UnsafeMutablePointer<WaitNode>?

    @inline(__always)
    package init() {}

    @inline(__always) package var isEmpty: Bool { head == nil }
    @inline(__always) package var first: UnsafeMutablePointer<WaitNode>? { head }

    @inline(__always)
    package mutating func append(_ node: UnsafeMutablePointer<WaitNode>) {
        node.pointee.next = nil
        node.pointee.previous = tail
        node.pointee.isLinked = true
        if let tail { tail.pointee.next = node } else { head = node }
        tail = node
    }

    @inline(__always)
    package mutating func popFirst() -> UnsafeMutablePointer<WaitNode>? {
        guard let node = head else { return nil }
        remove(node)
        return node
    }

    @inline(__always)
    package mutating func remove(_ node: UnsafeMutablePointer<WaitNode>) {
        let next = node.pointee.next
        let previous = node.pointee.previous
        if let previous { previous.pointee.next = next } else { head = next }
        if let next { next.pointee.previous = previous } else { tail = previous }
        node.pointee.isLinked = false
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Parks the running fiber in a list and takes it out again, whatever woke it.
    ///
    /// The list must stay where it is until each waiter in it has been woken.
    @inline(__always)
    package func park(in list: UnsafeMutablePointer<WaitList>, _ reason: WaitReason, until deadline: Int64 = .max) -> Outcome {
        var node = WaitNode(beginPark())
        return _withUnprotectedUnsafeMutablePointer(to: &node) { node in
            list.pointee.append(node)
            let outcome = park(reason, until: deadline)
            // Whoever wakes a waiter through the list has taken it out; a deadline leaves it in.
            if node.pointee.isLinked { list.pointee.remove(node) }
            return outcome
        }
    }
}
