// SPDX-License-Identifier: Apache-2.0

// A growable array of trivial values for the kernel. It reports that memory is short instead of ending the process, and it is safe to use
// across fiber switches, since it is not a class property. Owner worker only; freed by `destroy`.

import CFiber

struct RawArray<Element: BitwiseCopyable> {
    private(set) var base: UnsafeMutablePointer<Element>?
    private(set) var count = 0
    private var capacity = 0

    var isEmpty: Bool { count == 0 }

    /// Makes room for one more element; false when memory is short.
    @inline(__always)
    mutating func reserveOne() -> Bool {
        count < capacity || grow(to: 1)
    }

    /// Makes room for `more` further elements; false when memory is short.
    mutating func reserve(_ more: Int) -> Bool {
        count + more <= capacity || grow(to: more)
    }

    @inline(never)
    private mutating func grow(to more: Int) -> Bool {
        let wanted = max(16, capacity * 2, count + more)
        guard let memory = cfiber_resize(base, wanted, MemoryLayout<Element>.stride) else { return false }
        base = memory.bindMemory(to: Element.self, capacity: wanted)
        capacity = wanted
        return true
    }

    /// Needs room made by `reserveOne`.
    @inline(__always)
    mutating func append(_ element: Element) {
        (base.unsafelyUnwrapped + count).initialize(to: element)
        count &+= 1
    }

    @inline(__always)
    mutating func popLast() -> Element? {
        guard count > 0 else { return nil }
        count &-= 1
        return base.unsafelyUnwrapped[count]
    }

    var last: Element {
        get { base.unsafelyUnwrapped[count - 1] }
        nonmutating set { base.unsafelyUnwrapped[count - 1] = newValue }
    }

    mutating func destroy() {
        cfiber_free(base)
        self = RawArray()
    }
}
