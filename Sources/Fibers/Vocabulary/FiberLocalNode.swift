// SPDX-License-Identifier: Apache-2.0

// The list of a fiber's settings of fiber-locals. A node's content never changes after it is created, so fibers of several workers may
// share a tail. Any thread.

/// One setting. The key is kept alive, so that no other fiber-local gets its identity.
class FiberLocalNode {
    let owner: AnyObject
    @exclusivity(unchecked) private(set) var next: FiberLocalNode?

    init(_ owner: AnyObject, next: FiberLocalNode?) {
        self.owner = owner
        self.next = next
    }

    final var key: ObjectIdentifier { ObjectIdentifier(owner) }

    // Releases the list iteratively: where each generation of fibers sets a value and spawns the next, the list is so long that a recursive
    // release would overflow the stack.
    deinit {
        var rest = next
        next = nil
        while isKnownUniquelyReferenced(&rest) {
            let following = rest.unsafelyUnwrapped.next
            rest.unsafelyUnwrapped.next = nil
            rest = following
        }
    }
}
