// SPDX-License-Identifier: Apache-2.0

// The heap part of a fiber: its result, and the link from a handle to its record. It outlives the stack for as long as a handle exists.
//
// Invariants:
//   * `record` is set from the spawn to the end of the fiber, and the result is available exactly from then on. A thread that sees that the
//     fiber has finished also sees the result;
//   * a fiber allocates at most one small object: the body lies in the record until it runs, and a trivial result of up to a word lies in
//     the core. The class is not generic, because destroying a generic object looks up its metadata, which costs more than all the rest of
//     a short-lived fiber.
// Home worker only, except `isFinished`, `id`, `home`, and the result once it is available. Each access to a property is a single read or
// write and never stays open, so exclusivity is not checked at run time.

import Synchronization

@usableFromInline
package final class FiberCore: @unchecked Sendable {
    /// The address of the record; 1 while the fiber is in transit to the worker where it will start.
    private let place = Atomic<UInt>(0)
    /// The worker on which the fiber runs. It exists as long as any fiber of the runtime does.
    let home: Worker
    @exclusivity(unchecked) var id: UInt64 = 0
    /// The result, if it is trivial and fits.
    @exclusivity(unchecked) @usableFromInline var word: UInt = 0
    /// Any other result, in a `ResultBox`, or the error as an `UndeliveredError`. Before the fiber ends, and beside a result in `word`, it
    /// holds the failures that the fiber has received from others (`FailuresHad`), if any.
    @exclusivity(unchecked) @usableFromInline var object: AnyObject?
    /// State for fibers of other workers that join the fiber or own its group.
    @exclusivity(unchecked) var remote: RemoteLife?

    init(home: Worker) { self.home = home }

    /// If the result must not leave the home worker, neither may the fiber's typed handles. A `Fiber` may, though, and may hold the last
    /// reference, so the result is sent home to be released.
    deinit {
        guard _slowPath(object != nil), let here = Worker.current, here != home, object is any StayingHome else { return }
        let workers = here.pointee.workers
        guard workers.contains(home) else { return }
        // This thread keeps no reference: it must not be the one that releases the result last.
        let result = Unmanaged.passRetained(object.unsafelyUnwrapped)
        object = nil
        workers.send(Message { home, _ in home.release(result.takeRetainedValue()) }, to: home)
    }

    /// The fiber's record, from the spawn to the end of the fiber.
    var record: FiberPointer? {
        @inline(__always) get {
            let address = place.load(ordering: .relaxed)
            return address <= 1 ? nil : FiberPointer(bitPattern: address)
        }
        @inline(__always) set { place.store(UInt(bitPattern: newValue), ordering: .releasing) }
    }

    /// From here on `isFinished` is false, although there is no record yet.
    func noteSent() { place.store(1, ordering: .relaxed) }

    /// True until the fiber has arrived at the worker where it will start. Fibers there may hold its handle before that, because fibers
    /// resume before messages are delivered.
    var isOnItsWay: Bool { place.load(ordering: .relaxed) == 1 }

    /// True once the fiber has ended and its result is available.
    @usableFromInline
    var isFinished: Bool { place.load(ordering: .acquiring) == 0 && id != 0 }

    /// Moves the body out of the record, runs it, and stores the value that it returns or the error that it throws.
    /// - Parameter staysHome: true unless the type of the result is `Sendable`.
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

    /// Not inlined into `run`, whose frame stays on the stack for the whole lifetime of the fiber.
    @inlinable
    static func box<Value>(_ value: Value, _ staysHome: Bool) -> AnyObject {
        staysHome ? LocalResultBox(value) : ResultBox(value)
    }

    @inlinable
    func result<Value>(_: Value.Type) throws -> Value {
        if let failure = object as? UndeliveredError { throw failure.deliver() }
        if Self.fitsAWord(Value.self) {
            // A copy: `&word` would be an exclusive access, but fibers of several workers may read the result at the same time.
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

/// A result that is not trivial, or larger than a word.
@usableFromInline
class ResultBox<Value> {
    @usableFromInline final let value: Value

    @inlinable
    init(_ value: Value) { self.value = value }
}

/// A result that may be used only on the home worker, and is therefore released there.
@usableFromInline
final class LocalResultBox<Value>: ResultBox<Value>, StayingHome {
    @inlinable
    override init(_ value: Value) { super.init(value) }
}

@usableFromInline
protocol StayingHome: AnyObject {}

/// The body of a fiber in transit to another worker. The receiver moves it out, so the sender has nothing left to release, however late it
/// returns.
@usableFromInline
protocol Departing: AnyObject, Sendable {
    /// Moves the body into its slot in a record.
    func move(to place: UnsafeMutableRawPointer)
    /// The body in a new object, to which nothing else has a reference.
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

/// Runs the body of a fiber; specialised where the type of its result is known.
@usableFromInline
typealias FiberBodyRunner = (_ core: FiberCore, _ body: UnsafeMutableRawPointer) -> Void
