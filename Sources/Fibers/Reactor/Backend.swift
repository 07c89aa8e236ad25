// SPDX-License-Identifier: Apache-2.0

// What a driver's backend does. Everything that all backends have in common (turns, closing, generations, budgets, lent buffers) is the driver's.
//
// There are two kinds: one tells when a descriptor is ready, and the driver then makes the system call; the other performs requests and tells when they are complete.
// Owner worker only, except for the waker.

/// What both kinds do.
package protocol Backend: AnyObject {
    /// Ends the blocking of `poll`. It may outlive the backend.
    var waker: any Waker { get }
    /// The backend's own clock, for simulated time; nil for the clocks of the system.
    var clock: (any WorkerClock)? { get }
    /// Makes a call that does not block: its result, or a negative errno.
    func call(_ call: SystemCall) -> Int
    /// Makes a call that may block, as on files, while the calling fiber waits. Parks.
    func callBlocking(_ name: String, for worker: Worker, _ body: @escaping () -> Void) throws
    /// Handles what has happened: calls `becameReady` or `complete` of the driver. Otherwise as `EventSource.poll`.
    func poll(timeout: Int64, for driver: Driver)
    /// Gives back what the backend has. The driver has closed its descriptors.
    func stop()
}

/// What an event says of a descriptor; the numbers are those of epoll.
package struct Readiness: OptionSet {
    package let rawValue: UInt32

    @inline(__always)
    package init(rawValue: UInt32) { self.rawValue = rawValue }

    package static let readable = Readiness(rawValue: 0x1)
    /// Urgent data has come over TCP.
    package static let urgent = Readiness(rawValue: 0x2)
    package static let writable = Readiness(rawValue: 0x4)
    package static let failed = Readiness(rawValue: 0x8)
    package static let hungUp = Readiness(rawValue: 0x10)
    /// The peer will send no more.
    package static let peerEnded = Readiness(rawValue: 0x2000)

    /// Reads answer at once, for ever.
    static let ended: Readiness = [.failed, .hungUp, .peerEnded]
    static let endsReading: Readiness = [.readable, .urgent, .failed, .hungUp, .peerEnded]
    static let endsWriting: Readiness = [.writable, .failed, .hungUp]
}

/// A backend that tells when a descriptor is ready.
package protocol ReadinessBackend: Backend {
    /// Watches a descriptor in a direction, in addition to what is watched already. What is ready now is reported, too. 0, a negative errno, or `IOCode.unsupported`.
    func watch(_ slot: RegistrationPointer, _ direction: Direction) -> Int
    /// Ends the watching of a descriptor, before it is closed or given away.
    func forget(_ slot: RegistrationPointer)
    /// A descriptor of the driver's own that tells when one of the program's is ready, and the direction to watch it in; or a negative errno. The caller closes it.
    func duplicate(_ foreign: Int32, toWatch direction: Direction) -> (fd: Int, direction: Direction)
}

/// A backend that performs requests.
package protocol CompletionBackend: Backend {
    /// Begins a request. Returns its result if it has one at once; otherwise `driver.complete` follows, in a later `poll`, exactly once. Until then the memory that the request names is the
    /// backend's, and so is `completion`.
    func submit(_ request: Submission, _ completion: CompletionPointer) -> Int?
    /// Ends a request that has not completed, as soon as possible. It completes all the same, with `-ECANCELED` or with its result.
    func cancel(_ completion: CompletionPointer)
    /// Cancels all requests and completes them before it returns.
    func drain(for driver: Driver)
}

/// A request that a fiber waits for, in the frame of its call.
package typealias CompletionPointer = UnsafeMutablePointer<Completion>

package struct Completion: BitwiseCopyable {
    /// The fiber that waits for the result.
    let fiber: FiberPointer
    /// The result is a descriptor, to be closed if nobody takes it.
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
