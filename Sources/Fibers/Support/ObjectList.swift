// SPDX-License-Identifier: Apache-2.0

// Objects in a queue, linked through themselves, so that one leaves in constant time wherever it stands: waiters give up in any order, and an array would have to be searched for each.
//
// Invariants:
//   * an object is in one list at most, and the list owns it meanwhile: `next` retains, `previous` does not;
//   * the order is that in which the objects were appended. An object that leaves changes it for no other;
//   * whoever drops a list has emptied it: releasing a long chain would overflow the stack.
// Whoever owns the list, or holds its lock.

/// What an element of an ``ObjectList`` has for the list.
package struct ListLinks<Element: AnyObject> {
    fileprivate var next: Element?
    fileprivate unowned(unsafe) var previous: Element?
    fileprivate(set) var isLinked = false

    package init() {}
}

package protocol ListElement: AnyObject {
    var links: ListLinks<Self> { get set }
}

package struct ObjectList<Element: ListElement> {
    package private(set) var first: Element?
    private unowned(unsafe) var last: Element?
    package private(set) var count = 0

    package init() {}

    package mutating func append(_ element: Element) {
        element.links.isLinked = true
        element.links.previous = last
        if let last { last.links.next = element } else { first = element }
        last = element
        count += 1
    }

    package mutating func popFirst() -> Element? {
        guard let element = first else { return nil }
        remove(element)
        return element
    }

    /// Removes an element of this list; does nothing to one that is in no list.
    package mutating func remove(_ element: Element) {
        let links = element.links
        guard links.isLinked else { return }
        if let next = links.next { next.links.previous = links.previous } else { last = links.previous }
        if let previous = links.previous { previous.links.next = links.next } else { first = links.next }
        element.links = ListLinks()
        count -= 1
    }
}
