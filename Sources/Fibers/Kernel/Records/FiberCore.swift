// SPDX-License-Identifier: Apache-2.0

// The heap part of a fiber: its result, and the way from a handle to its record. It outlives the stack for as long as somebody holds a handle.
//
// Invariants:
//   * `record` is set from spawn to the end of the life, and the result is there exactly from then on. Whoever sees on another thread that the life is over
//     sees the result, too;
//   * one small allocation per fiber at most: the body lies in the record until it runs, and a trivial result of up to a word lies in the core. The class is not
//     generic, since destroying a generic object looks its metadata up, which costs more than everything else about a short life.
// Home worker only, except `isFinished`, `id`, `home`, and the result once it is there. The properties are read and written in one go, never held open, so their
// exclusivity is not checked at run time.

import Synchronization

@usableFromInline
package final class FiberCore: @unchecked Sendable {
    /// The address of the record; 1 on the way to the worker where the life will begin.
    private let place = Atomic<UInt>(0)
    /// The worker on which it lives. It is there as long as a fiber of the runtime is.
    let home: Worker
    @exclusivity(unchecked) var id: UInt64 = 0
    /// A result that is trivial and fits.
    @exclusivity(unchecked) @usableFromInline var word: UInt = 0
    /// Any other result, in a `ResultBox`, or the error as an `UndeliveredError`. Until then, and beside a result in `word`, the failures of others that the fiber has had (`FailuresHad`), if any.
    @exclusivity(unchecked) @usableFromInline var object: AnyObject?
    /// What fibers of other workers have to do with it.
    @exclusivity(unchecked) var remote: RemoteLife?

    init(home: Worker) { self.home = home }

    /// Handles of a fiber whose result may not go to other workers do not either, but a `Fiber` may, and be the last to go.
    deinit {
        guard _slowPath(object != nil), let here = Worker.current, here != home, object is any StayingHome else { return }
        let workers = here.pointee.workers
        guard workers.contains(home) else { return }
        // Nothing of it stays here: whoever lets go of it last must not be this thread.
        let result = Unmanaged.passRetained(object.unsafelyUnwrapped)
        object = nil
        workers.send(Message { home, _ in home.release(result.takeRetainedValue()) }, to: home)
    }

    /// Valid from spawn to the end of the life.
    var record: FiberPointer? {
        @inline(__always) get {
            let address = place.load(ordering: .relaxed)
            return address <= 1 ? nil : FiberPointer(bitPattern: address)
        }
        @inline(__always) set { place.store(UInt(bitPattern: newValue), ordering: .releasing) }
    }

    /// From here on it is not finished, though it has no record yet.
    func noteSent() { place.store(1, ordering: .relaxed) }

    /// True until the worker where it will begin has heard of it. Others there may have its handle before that, since fibers go on before messages are looked at.
    var isOnItsWay: Bool { place.load(ordering: .relaxed) == 1 }

    /// True once the life is over and the result is there.
    @usableFromInline
    var isFinished: Bool { place.load(ordering: .acquiring) == 0 && id != 0 }

    /// Takes a body out of its place in the record, runs it, and keeps what it returns or throws.
    /// - Parameter staysHome: unless the type of the result is `Sendable`.
    @inlinable
    static func run<Value>(_ core: FiberCore, _ body: UnsafeMutableRawPointer, _: Value.Type, staysHome: Bool) {
        let body = body.assumingMemoryBound(to: (() throws -> Value).self).move()
        do {
            let value = try body()
            if fitsAWord(Value.self) {
                withUnsafeBytes(of: value) { bytes in
                    withUnsafeMutableBytes(of: &core.word) { $0.copyMemory(from: bytes) }
                }
            } else {
                core.object = box(value, staysHome)
            }
        } catch {
            core.object = UndeliveredError(error, of: core)
        }
    }

    /// Not in `run`, whose frame stays on the stack for all of a life.
    @inlinable
    static func box<Value>(_ value: Value, _ staysHome: Bool) -> AnyObject {
        staysHome ? LocalResultBox(value) : ResultBox(value)
    }

    @inlinable
    func result<Value>(_: Value.Type) throws -> Value {
        if let failure = object as? UndeliveredError { throw failure.deliver() }
        if Self.fitsAWord(Value.self) {
            // A copy: `&word` would be an exclusive access, and fibers of several workers may read the result at the same time.
            let word = word
            return withUnsafeBytes(of: word) { $0.loadUnaligned(as: Value.self) }
        }
        return unsafeDowncast(object.unsafelyUnwrapped, to: ResultBox<Value>.self).value
    }

    @inlinable
    static func fitsAWord<Value>(_: Value.Type) -> Bool {
        isTrivial(Value.self) && MemoryLayout<Value>.size <= MemoryLayout<UInt>.size
    }
}

/// A result that is not trivial or larger than a word.
@usableFromInline
class ResultBox<Value> {
    @usableFromInline final let value: Value

    @inlinable
    init(_ value: Value) { self.value = value }
}

/// One that may be of use on the home worker only, and so is let go of there.
@usableFromInline
final class LocalResultBox<Value>: ResultBox<Value>, StayingHome {
    @inlinable
    override init(_ value: Value) { super.init(value) }
}

@usableFromInline
protocol StayingHome: AnyObject {}

/// The body of a life on its way to another worker. It is taken out there, so the sender has nothing of it left to let go of, however slow it is to return.
@usableFromInline
protocol Departing: AnyObject, Sendable {
    /// Puts the body into its place in a record.
    func move(to place: UnsafeMutableRawPointer)
    /// The body in something that is nobody else's.
    func takenOut() -> AnyObject
}

@usableFromInline
final class SentBody<Value>: Departing, @unchecked Sendable {
    @usableFromInline var body: (() throws -> Value)?

    @inlinable
    init(_ body: sending @escaping () throws -> Value) { self.body = consume body }

    @usableFromInline
    init(takenFrom other: SentBody) { body = other.body.take() }

    @inlinable
    func move(to place: UnsafeMutableRawPointer) {
        place.initializeMemory(as: (() throws -> Value).self, to: body.take().unsafelyUnwrapped)
    }

    @inlinable
    func takenOut() -> AnyObject { SentBody(takenFrom: self) }
}

/// Starts the body of a life; specialised where the type of its result is known.
@usableFromInline
typealias FiberBodyRunner = (_ core: FiberCore, _ body: UnsafeMutableRawPointer) -> Void
