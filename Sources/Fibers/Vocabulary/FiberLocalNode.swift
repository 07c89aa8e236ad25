// SPDX-License-Identifier: Apache-2.0

// The list of the settings of fiber-locals that a fiber has. What a node holds never changes once it is made, so fibers of several workers may share a tail. Any thread.

/// One setting. The key is kept alive, so that no other fiber-local gets its identity.
class FiberLocalNode {
    let owner: AnyObject
    @exclusivity(unchecked) private(set) var next: FiberLocalNode?

    init(_ owner: AnyObject, next: FiberLocalNode?) {
        self.owner = owner
        self.next = next
    }

    final var key: ObjectIdentifier { ObjectIdentifier(owner) }

    // One by one: where each generation of fibers sets a value and spawns the next, the list is longer than a stack is deep.
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
