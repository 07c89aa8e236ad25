// A first-in first-out queue of fibers, linked through their records. A fiber stands in at most one. Owner worker only.

struct FiberQueue {
    private(set) var head: FiberPointer?
    private var tail: FiberPointer?

    @inline(__always) var isEmpty: Bool { head == nil }

    @inline(__always)
    mutating func append(_ fiber: FiberPointer) {
        fiber.next = nil
        if head == nil { head = fiber } else { tail.unsafelyUnwrapped.next = fiber }
        tail = fiber
    }

    @inline(__always)
    mutating func popFirst() -> FiberPointer? {
        guard let first = head else { return nil }
        head = first.next
        return first
    }
}
