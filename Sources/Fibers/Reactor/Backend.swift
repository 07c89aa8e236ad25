// SPDX-License-Identifier: Apache-2.0

// The backend of a driver. The driver itself does everything that all backends have in common: direction locks, closing, generations,
// budgets and pooled buffers.
//
// There are two kinds of backend. A readiness backend reports when a descriptor is ready, and the driver then makes the system call. A
// completion backend performs requests and reports when they are complete.
// Owner worker only, except for the waker.

/// The part that both kinds have in common.
package protocol Backend: AnyObject {
    /// Makes a blocked `poll` return. The waker may outlive the backend.
    var waker: any Waker { get }
    /// The backend's own clock, for simulated time; nil for the system's clocks.
    var clock: (any WorkerClock)? { get }
    /// Makes a call that does not block: its result, or a negative errno.
    func call(_ call: SystemCall) -> Int
    /// Makes a call that may block, as on files, while the calling fiber waits. Parks.
    func callBlocking(_ name: String, for worker: Worker, _ body: @escaping () -> Void) throws
    /// Handles the events that have occurred: calls `becameReady` or `complete` on the driver. Otherwise like `EventSource.poll`.
    func poll(timeout: Int64, for driver: Driver)
    /// Releases the backend's resources. The driver has already closed its descriptors.
    func stop()
}

/// The conditions that an event reports for a descriptor; the bit values are those of epoll.
package struct Readiness: OptionSet {
    package let rawValue: UInt32

    @inline(__always)
    package init(rawValue: UInt32) { self.rawValue = rawValue }

    package static let readable = Readiness(rawValue: 0x1)
    /// Urgent data has arrived over TCP.
    package static let urgent = Readiness(rawValue: 0x2)
    package static let writable = Readiness(rawValue: 0x4)
    package static let failed = Readiness(rawValue: 0x8)
    package static let hungUp = Readiness(rawValue: 0x10)
    /// The peer will send no more.
    package static let peerEnded = Readiness(rawValue: 0x2000)

    /// From now on reads return immediately.
    static let ended: Readiness = [.failed, .hungUp, .peerEnded]
    static let endsReading: Readiness = [.readable, .urgent, .failed, .hungUp, .peerEnded]
    static let endsWriting: Readiness = [.writable, .failed, .hungUp]
}

/// A backend that reports when a descriptor is ready.
package protocol ReadinessBackend: Backend {
    /// Watches a descriptor in a direction, in addition to the directions already watched. Readiness that already exists is reported, too.
    /// Returns 0, a negative errno, or `IOCode.unsupported`.
    func watch(_ slot: RegistrationPointer, _ direction: Direction) -> Int
    /// Stops watching a descriptor, before it is closed or released.
    func forget(_ slot: RegistrationPointer)
    /// Returns a descriptor, owned by the driver, that becomes ready when the program's descriptor `foreign` is ready, and the direction to
    /// watch it in; or a negative errno. The caller closes it.
    func duplicate(_ foreign: Int32, toWatch direction: Direction) -> (fd: Int, direction: Direction)
}

/// A backend that performs requests.
package protocol CompletionBackend: Backend {
    /// Begins a request. Returns its result if that is available at once. Otherwise a later `poll` calls `driver.complete` exactly once;
    /// until then the backend owns `completion` and the memory that the request names.
    func submit(_ request: Submission, _ completion: CompletionPointer) -> Int?
    /// Cancels a request that has not completed, as soon as possible. It still completes, with `-ECANCELED` or with its result.
    func cancel(_ completion: CompletionPointer)
    /// Cancels all requests and completes them before it returns.
    func drain(for driver: Driver)
}

/// A request that a fiber waits for. It lives in the stack frame of that fiber's call.
package typealias CompletionPointer = UnsafeMutablePointer<Completion>

package struct Completion: BitwiseCopyable {
    /// The fiber that waits for the result.
    let fiber: FiberPointer
    /// The result is a descriptor, to be closed if the fiber does not take it.
    let makesDescriptor: Bool
    package private(set) var isDone = false
    private(set) var result = 0
    /// For the backend's use.
    package var token: UInt64 = 0

    init(fiber: FiberPointer, makesDescriptor: Bool) {
        self.fiber = fiber
        self.makesDescriptor = makesDescriptor
    }

    mutating func finish(_ result: Int) {
        self.result = result
        isDone = true
    }
}
