// The heap part of a fiber: its closure until it runs, its result afterwards. It outlives the stack for as long as somebody holds a handle.
//
// Owner worker only. One allocation per fiber; the closure's context is the caller's.

/// What the kernel needs to know of a fiber's body, whatever it returns.
@usableFromInline
package class FiberCore {
    /// Valid from spawn to the end of the life.
    final var record: FiberPointer?
    final var id: UInt64 = 0

    @inlinable
    init() {}

    /// True once the life is over and the result is there.
    @usableFromInline
    final var isFinished: Bool { id != 0 && record == nil }

    /// Runs the body to its end and keeps what it returned or threw.
    @usableFromInline
    func run() { fatalError("a core implements run") }
}

/// The heap part of a fiber whose body returns `Value`.
@usableFromInline
package final class FiberCell<Value>: FiberCore {
    @usableFromInline
    enum State {
        case pending(() throws -> Value)
        case running
        case success(Value)
        case failure(UndeliveredError)
    }

    @usableFromInline var state: State

    @inlinable
    init(_ body: @escaping () throws -> Value) {
        state = .pending(body)
        super.init()
    }

    @inlinable
    override func run() {
        guard case .pending(let body) = state else { return }
        state = .running
        do {
            let value = try body()
            state = .success(value)
        } catch {
            state = .failure(UndeliveredError(error, of: self))
        }
    }
}

/// An error that a fiber threw, until somebody takes it. If nobody ever does, the runtime's handler hears of it, once.
@usableFromInline
package final class UndeliveredError {
    private let error: any Error
    private let id: UInt64
    private let name: String?
    private let runtime: FiberRuntime
    private var isDelivered = false

    @usableFromInline
    init(_ error: any Error, of core: FiberCore) {
        let record = core.record.unsafelyUnwrapped
        self.error = error
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
