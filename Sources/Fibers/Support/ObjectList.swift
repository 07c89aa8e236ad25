// SPDX-License-Identifier: Apache-2.0

// An intrusive list of objects, so that one can be removed in constant time wherever it stands: waiters give up in any order, and an array
// would have to be searched for each.
//
// Invariants:
//   * an object is in one list at most, and that list owns it: `next` retains, `previous` does not;
//   * the order is that in which the objects were appended, and a removal does not change it for the others;
//   * the owner empties a list before it drops it: releasing a long chain would overflow the stack.
// The owner of the list or the holder of its lock only.

/// The links that an element stores for its ``ObjectList``.
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

    /// Removes an element of this list; does nothing to an element that is in no list.
    package mutating func remove(_ element: Element) {
        let links = element.links
        guard links.isLinked else { return }
        if let next = links.next { next.links.previous = links.previous } else { last = links.previous }
        if let previous = links.previous { previous.links.next = links.next } else { first = links.next }
        element.links = ListLinks()
        count -= 1
    }
}
