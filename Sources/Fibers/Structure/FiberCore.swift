// The heap part of a fiber: its result, and the way from a handle to its record. It outlives the stack for as long as somebody holds a handle.
//
// Invariants:
//   * `record` is set from spawn to the end of the life, and the result is there exactly from then on;
//   * one small allocation per fiber at most: the body lies in the record until it runs, and a trivial result of up to a word lies in the core. The class is not
//     generic, since destroying a generic object looks its metadata up, which costs more than everything else about a short life.
// Owner worker only. The properties are read and written in one go, never held open, so their exclusivity is not checked at run time.

@usableFromInline
package final class FiberCore {
    /// Valid from spawn to the end of the life.
    @exclusivity(unchecked) var record: FiberPointer?
    @exclusivity(unchecked) var id: UInt64 = 0
    /// A result that is trivial and fits.
    @exclusivity(unchecked) @usableFromInline var word: UInt = 0
    /// Any other result, in a `ResultBox`, or the error as an `UndeliveredError`.
    @exclusivity(unchecked) @usableFromInline var object: AnyObject?

    @usableFromInline
    init() {}

    /// True once the life is over and the result is there.
    @usableFromInline
    var isFinished: Bool { record == nil && id != 0 }

    /// Takes a body out of its place in the record, runs it, and keeps what it returns or throws.
    @inlinable
    static func run<Value>(_ core: FiberCore, _ body: UnsafeMutableRawPointer, _: Value.Type) {
        let body = body.assumingMemoryBound(to: (() throws -> Value).self).move()
        do {
            let value = try body()
            if fitsAWord(Value.self) {
                withUnsafeBytes(of: value) { bytes in
                    withUnsafeMutableBytes(of: &core.word) { $0.copyMemory(from: bytes) }
                }
            } else {
                core.object = ResultBox(value)
            }
        } catch {
            core.object = UndeliveredError(error, of: core)
        }
    }

    @inlinable
    func result<Value>(_: Value.Type) throws -> Value {
        if let failure = object as? UndeliveredError { throw failure.deliver() }
        if Self.fitsAWord(Value.self) {
            return withUnsafeBytes(of: &word) { $0.loadUnaligned(as: Value.self) }
        }
        return unsafeDowncast(object.unsafelyUnwrapped, to: ResultBox<Value>.self).value
    }

    @inlinable
    static func fitsAWord<Value>(_: Value.Type) -> Bool {
        _isPOD(Value.self) && MemoryLayout<Value>.size <= MemoryLayout<UInt>.size
    }
}

/// A result that is not trivial or larger than a word.
@usableFromInline
final class ResultBox<Value> {
    @usableFromInline let value: Value

    @inlinable
    init(_ value: Value) { self.value = value }
}

/// Starts the body of a life; specialised where the type of its result is known.
@usableFromInline
typealias FiberBodyRunner = (_ core: FiberCore, _ body: UnsafeMutableRawPointer) -> Void

/// An error that a fiber threw, until somebody takes it. If nobody ever does, the runtime's handler hears of it, once.
@usableFromInline
package final class UndeliveredError {
    let error: any Error
    private let id: UInt64
    private let name: String?
    private let runtime: FiberRuntime
    private var isDelivered: Bool

    @usableFromInline
    init(_ error: any Error, of core: FiberCore) {
        let record = core.record.unsafelyUnwrapped
        // A cancelled fiber that ends because of that is no news for anybody.
        let wasCancelled = record.base.pointee.cause != nil && isCancellation(error)
        self.error = wasCancelled ? CancellationError() : error
        isDelivered = wasCancelled
        id = core.id
        name = record.name
        runtime = record.pointee.worker.pointee.runtime
    }

    @usableFromInline
    func deliver() -> any Error {
        isDelivered = true
        return error
    }

    deinit {
        guard !isDelivered else { return }
        runtime.configuration.onUnhandledError(UnhandledFiberError(fiberID: id, fiberName: name, error: error))
    }
}
