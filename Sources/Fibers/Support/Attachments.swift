// SPDX-License-Identifier: Apache-2.0

// What higher floors and other modules keep once per runtime, such as its resolver, so that none of it is global. An object is made on first use, once for each type, and released when
// the runtime ends. Any thread, except `end`.

package final class Attachments: Sendable {
    private struct State {
        var objects: [ObjectIdentifier: any AnyObject & Sendable] = [:]
        var isOver = false
    }

    private let state = Guarded(State())

    /// The object that is there from the start, and found without the lock; it stays when the others end.
    private let first: any AnyObject & Sendable

    init(first: any AnyObject & Sendable) { self.first = first }

    /// The object that is there from the start, which must be of that type.
    @inline(__always)
    func first<Object: AnyObject & Sendable>(as type: Object.Type) -> Object { unsafeDowncast(first, to: type) }

    /// The runtime's object of a type.
    package func object<Object: AnyObject & Sendable>(_ type: Object.Type, _ make: () -> Object) -> Object {
        if let object = state.withLock({ $0.objects[ObjectIdentifier(type)] }) { return unsafeDowncast(object, to: type) }
        // Not with the lock held, since it may look here, too. Of two that are made at the same time the first one counts.
        let made = make()
        let object = state.withLock { state in
            if let object = state.objects[ObjectIdentifier(type)] { return object }
            if !state.isOver { state.objects[ObjectIdentifier(type)] = made }
            return made
        }
        return unsafeDowncast(object, to: type)
    }

    func end() {
        let objects = state.withLock { state in
            state.isOver = true
            defer { state.objects = [:] }
            return state.objects
        }
        // Their deinits may look here.
        withExtendedLifetime(objects) {}
    }
}
