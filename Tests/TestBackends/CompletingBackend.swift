// SPDX-License-Identifier: Apache-2.0

// A backend that performs requests on a thread of its own and completes them later, as io_uring does. It is slow and simple, and shows that nothing above the seam depends on readiness.
//
// Invariants:
//   * from `submit` to `complete` the request's memory is the thread's: it is filled or read there, at any time;
//   * each request completes exactly once, also a cancelled one: that ends on the thread, with `-ECANCELED` or with the result that it had by then;
//   * what the thread and the worker share lies behind the lock.

import CFiber
package import Fibers
import Glibc
import Synchronization

package final class CompletingBackend: CompletionBackend {
    private let performer: Performer
    private var hasEnded = false

    package init() throws(ResourceError) { performer = try Performer() }

    package var waker: any Waker { performer }
    package var clock: (any WorkerClock)? { nil }

    package func call(_ call: SystemCall) -> Int { call.make() }

    package func callBlocking(_ name: String, for worker: Worker, _ body: @escaping () -> Void) throws {
        try worker.callOnBlockingThread(name, body)
    }

    package func submit(_ request: Submission, _ completion: CompletionPointer) -> Int? {
        performer.add(request, completion)
        return nil
    }

    package func cancel(_ completion: CompletionPointer) { performer.cancel(completion) }

    package func poll(timeout: Int64, for driver: Driver) {
        let deadline = timeout < 0 ? Int64.max : cfiber_now() + timeout
        for (completion, result) in performer.waitForResults(until: deadline) { driver.complete(completion, result) }
    }

    package func drain(for driver: Driver) {
        while true {
            let results = performer.cancelAll()
            if results.isEmpty { return }
            for (completion, result) in results { driver.complete(completion, result) }
        }
    }

    package func stop() { performer.end() }
}

/// The thread and what it shares with the worker. It outlives the backend for as long as senders may still wake it.
private final class Performer: Waker, @unchecked Sendable {
    private struct Request {
        let submission: Submission
        let completion: CompletionPointer
        var hasBegun = false
        var isCancelled = false
    }

    typealias Outcome = (CompletionPointer, Int)

    private let lock = ThreadLock()
    /// Tells the worker of results, and that somebody wants it.
    private let change: ThreadCondition
    private var requests: [Request] = []
    private var results: [Outcome] = []
    private var isWoken = false
    private var isEnding = false
    /// Tells the thread of requests.
    private let bell: Int32
    private var thread = pthread_t()

    init() throws(ResourceError) {
        change = ThreadCondition(lock)
        bell = cfiber_wake_create()
        if bell < 0 { throw .descriptors(-bell, "eventfd") }
        let status = cfiber_start_thread(
            &thread, { Unmanaged<Performer>.fromOpaque($0.unsafelyUnwrapped).takeRetainedValue().run() },
            Unmanaged.passRetained(self).toOpaque())
        precondition(status == 0, "no thread for the backend: \(status)")
    }

    deinit { _ = cfiber_close(bell) }

    // The worker.

    func wake() {
        lock.withLock {
            isWoken = true
            change.broadcast()
        }
    }

    func add(_ submission: Submission, _ completion: CompletionPointer) {
        lock.withLock { requests.append(Request(submission: submission, completion: completion)) }
        _ = cfiber_wake_send(bell)
    }

    func cancel(_ completion: CompletionPointer) {
        lock.withLock {
            for i in requests.indices where requests[i].completion == completion { requests[i].isCancelled = true }
        }
        _ = cfiber_wake_send(bell)
    }

    func waitForResults(until deadline: Int64) -> [Outcome] {
        lock.withLock {
            while results.isEmpty && !isWoken && cfiber_now() < deadline { change.wait(until: deadline) }
            isWoken = false
            defer { results = [] }
            return results
        }
    }

    /// Cancels what is left and waits for some of it; nothing when nothing is left.
    func cancelAll() -> [Outcome] {
        lock.withLock {
            for i in requests.indices { requests[i].isCancelled = true }
            _ = cfiber_wake_send(bell)
            while results.isEmpty && !requests.isEmpty { change.wait(until: .max) }
            defer { results = [] }
            return results
        }
    }

    func end() {
        lock.withLock { isEnding = true }
        _ = cfiber_wake_send(bell)
        pthread_join(thread, nil)
    }

    // The thread.

    private func run() {
        while let watched = beginRound() {
            var descriptors = [pollfd(fd: bell, events: Int16(POLLIN), revents: 0)]
            for request in watched { descriptors.append(request.pollDescriptor) }
            _ = poll(&descriptors, nfds_t(descriptors.count), -1)
            _ = cfiber_wake_drain(bell)
        }
    }

    /// Performs what can be performed now, and says what to wait for; nil at the end.
    private func beginRound() -> [Submission]? {
        lock.withLock {
            if isEnding { return nil }
            var left: [Request] = []
            for var request in requests {
                // First what is there, as the kernel does: a cancelled request may have its result all the same.
                if let result = perform(&request) ?? (request.isCancelled ? -Int(ECANCELED) : nil) {
                    results.append((request.completion, result))
                } else {
                    left.append(request)
                }
            }
            requests = left
            if !results.isEmpty { change.broadcast() }
            return left.map(\.submission)
        }
    }

    /// The result of a request; nil when it has to wait.
    private func perform(_ request: inout Request) -> Int? {
        let isFirst = !request.hasBegun
        request.hasBegun = true
        let result: Int
        switch request.submission {
        case .ready(let fd, let direction):
            let ready = cfiber_is_ready(fd, direction == .write ? 1 : 0)
            result = ready == 0 ? -Int(EAGAIN) : Int(min(ready, 0))
        case .receive(let fd, let memory, let count): result = cfiber_recv(fd, memory, count)
        case .send(let fd, let memory, let count): result = cfiber_send(fd, memory, count)
        case .sendPieces(let fd, let pieces, let count): result = cfiber_send_vector(fd, pieces, count)
        case .receiveDatagrams(let fd, let datagrams, let count):
            result = Int(cfiber_receive_datagrams(fd, datagrams, UInt32(count)))
        case .sendDatagrams(let fd, let datagrams, let count):
            let sent = Int(cfiber_send_datagrams(fd, datagrams, UInt32(count)))
            // No event tells when a Unix receiver has room: the driver tries again later.
            if sent == -Int(EAGAIN) && isAddressedToUnix(datagrams) { return sent }
            result = sent
        case .accept(let fd, let peer, let waits):
            let accepted = Int(cfiber_accept(fd, peer))
            if accepted == -Int(EAGAIN) && !waits { return accepted }
            result = accepted
        case .connect(let fd, let address, let length):
            if isFirst {
                let status = cfiber_connect(fd, address, length)
                // A Unix listener whose queue is full answers EAGAIN, and the driver tries again later.
                return status == -EINPROGRESS ? nil : Int(status)
            }
            result = outcome(ofConnecting: fd)
        case .read(let fd, let memory, let count, let kind): result = cfiber_read(fd, memory, count, kind)
        case .write(let fd, let memory, let count, let kind): result = cfiber_write(fd, memory, count, kind)
        }
        return result == -Int(EAGAIN) ? nil : result
    }

    private func outcome(ofConnecting fd: Int32) -> Int {
        if cfiber_is_ready(fd, 1) == 0 { return -Int(EAGAIN) }
        var error: Int32 = 0
        let got = cfiber_get_option(fd, SOL_SOCKET, SO_ERROR, &error)
        return got < 0 || error != 0 ? Int(got < 0 ? got : -error) : 0
    }

    private func isAddressedToUnix(_ datagrams: UnsafeMutablePointer<cfiber_datagram>) -> Bool {
        let header = datagrams.pointee.header
        guard let name = header.msg_name, header.msg_namelen >= MemoryLayout<sa_family_t>.size else { return false }
        return Int32(name.loadUnaligned(as: sa_family_t.self)) == AF_UNIX
    }
}

extension Submission {
    fileprivate var pollDescriptor: pollfd {
        let events: Int32 =
            switch self {
            case .ready(_, let direction): direction == .read ? POLLIN : POLLOUT
            case .receive, .receiveDatagrams, .accept, .read: POLLIN
            case .send, .sendPieces, .sendDatagrams, .connect, .write: POLLOUT
            }
        return pollfd(fd: fd, events: Int16(events), revents: 0)
    }
}
