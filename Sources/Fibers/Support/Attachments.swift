// SPDX-License-Identifier: Apache-2.0

// Objects of higher floors and other modules that exist once per runtime, such as its resolver, so that none of them is global. An object
// is created on first use, once for each type, and released when the runtime ends. Any thread, except `end`.

package final class Attachments: Sendable {
    private struct State {
        var objects: [ObjectIdentifier: any AnyObject & Sendable] = [:]
        var isOver = false
    }

    private let state = Guarded(State())

    /// The object that exists from the start and is read without the lock; it stays when the others are released.
    private let first: any AnyObject & Sendable

    init(first: any AnyObject & Sendable) { self.first = first }

    /// Returns the object that exists from the start, which must be of that type.
    @inline(__always)
    func first<Object: AnyObject & Sendable>(as type: Object.Type) -> Object { unsafeDowncast(first, to: type) }

    /// Returns the runtime's object of a type, and creates it on first use.
    package func object<Object: AnyObject & Sendable>(_ type: Object.Type, _ make: () -> Object) -> Object {
        if let object = state.withLock({ $0.objects[ObjectIdentifier(type)] }) { return unsafeDowncast(object, to: type) }
        // Created without the lock, since `make` may use this object, too. If two are created at the same time, the first one is kept.
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
        // Their deinits may use this object, so they are released without the lock.
        withExtendedLifetime(objects) {}
    }
}
