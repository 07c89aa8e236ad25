// SPDX-License-Identifier: Apache-2.0

// Readiness by epoll.
//
// The properties of epoll that this file and the operations rely on:
//   * A descriptor is registered once, edge-triggered, when a fiber first has to wait for it. It is registered for writing only when a
//     write first has to wait, because otherwise each new connection would cost an event that says it is writable. Adding and modifying
//     report readiness that already exists, so nothing is missed in between.
//   * On a stream a short read or write means that the kernel's buffer was drained or full at that moment, and a later change is a new
//     edge. So the next call may park without an attempt. This does not hold when the end or an error has been announced (`hungUp`: the
//     next attempt returns it), when urgent data splits reads (EPOLLPRI), or on Unix sockets, where descriptors in a message split them.
//   * `EAGAIN` means that the descriptor is not ready and that an event will follow, with one exception: at the mark of urgent data TCP's
//     `recv` returns it whenever a signal is pending, and no event follows. So after EPOLLPRI, `EAGAIN` counts only if `poll` agrees.
//   * Ending the sending half makes writes fail at once, but raises no event on a Unix socket whose buffer is full, so the driver wakes the
//     writers itself. When the peer ends its receiving half, our writes fail, too, but the kernel raises no event.
//   * EPOLLHUP and EPOLLERR arrive unrequested and wake both directions; the next system call then reads the error.
//   * Closing a descriptor wakes no waiter: the driver does.
//   * Closing a descriptor ends its registration only if no duplicate is left, in this process or another: epoll knows the open file and
//     the number under which it was added. So a registration is removed before its descriptor is closed. Otherwise each event of the
//     duplicate would wake this worker, and the file could not be added again under the old number. If the removal fails (the program has
//     put another file under the number), the generation in the event's data identifies late events.
// Owner worker only.

import CFiber
import Glibc

private let alwaysWatched = EPOLLIN.rawValue | EPOLLRDHUP.rawValue | EPOLLPRI.rawValue | EPOLLET
private let EPOLLET: UInt32 = 1 << 31

final class EpollBackend: ReadinessBackend {
    private let epoll: Int32
    private let wakeUp: WakeDescriptor
    private let events: UnsafeMutablePointer<epoll_event>
    /// Small enough that the data that the kernel touches to report an event is still cached when the fiber's system call needs it.
    private static var eventCount: Int { 64 }
    private static var groupSize: Int { 16 }
    private static var wakeToken: UInt64 { .max }

    init() throws(ResourceError) {
        wakeUp = try WakeDescriptor()
        epoll = cfiber_epoll_create()
        if epoll < 0 { throw .descriptors(-epoll, "epoll_create1") }
        let status = cfiber_epoll_add(epoll, wakeUp.number, EPOLLIN.rawValue | EPOLLET, Self.wakeToken)
        if status < 0 {
            _ = cfiber_close(epoll)
            throw .descriptors(-status, "epoll_ctl")
        }
        events = .allocate(capacity: Self.eventCount)
    }

    deinit { events.deallocate() }

    var waker: any Waker { wakeUp }
    var clock: (any WorkerClock)? { nil }

    func call(_ call: SystemCall) -> Int { call.make() }

    func callBlocking(_ name: String, for worker: Worker, _ body: @escaping () -> Void) throws {
        try worker.callOnBlockingThread(name, body)
    }

    /// Closing the epoll descriptor ends all registrations, whatever duplicates of their descriptors exist; no fiber waits on them any
    /// more.
    func stop() { _ = cfiber_close(epoll) }

    func watch(_ slot: RegistrationPointer, _ direction: Direction) -> Int {
        let events = direction == .write ? alwaysWatched | EPOLLOUT.rawValue : alwaysWatched
        let status =
            slot.pointee.flags.contains(.watchesRead)
            ? cfiber_epoll_modify(epoll, slot.pointee.fd, events, slot.pointee.token)
            : cfiber_epoll_add(epoll, slot.pointee.fd, events, slot.pointee.token)
        if status == 0 { slot.pointee.flags.formUnion(direction == .write ? [.watchesRead, .watchesWrite] : .watchesRead) }
        return status == -EPERM ? IOCode.unsupported : Int(status)
    }

    func forget(_ slot: RegistrationPointer) { _ = cfiber_epoll_remove(epoll, slot.pointee.fd) }

    /// Duplicates the descriptor, because epoll accepts each number once and the driver closes the descriptors that it registers. Files on
    /// disk cannot be duplicated: closing any descriptor of a file drops all locks (`F_SETLK`) that the process holds on it. Epoll refuses
    /// most of those. The few that it accepts are watched by a separate epoll descriptor, which becomes readable.
    func duplicate(_ foreign: Int32, toWatch direction: Direction) -> (fd: Int, direction: Direction) {
        switch cfiber_is_on_disk(foreign) {
        case 0: (Int(cfiber_duplicate(foreign)), direction)
        case 1: (Int(cfiber_epoll_for(foreign, direction == .write ? 1 : 0)), .read)
        case let error: (Int(error), direction)
        }
    }

    func poll(timeout: Int64, for driver: Driver) {
        let count = cfiber_epoll_wait(epoll, events, Int32(Self.eventCount), timeout)
        require(count >= 0, "epoll_wait failed: \(errorText(-count)); something closed a descriptor that it does not own")
        // With many connections, all data of a connection has left the cache by the time its event arrives. Each event needs three cache
        // lines in sequence (registration, waiter, record); for a group of events the misses overlap.
        var first = 0
        while first < Int(count) {
            let last = min(first + Self.groupSize, Int(count))
            if last - first > 1 {
                for i in first..<last { cfiber_prefetch(driver.slot(cfiber_event_data(events + i))) }
                for i in first..<last { cfiber_prefetch(driver.slot(cfiber_event_data(events + i))?.pointee.readers.first) }
                for i in first..<last {
                    if let waiter = driver.slot(cfiber_event_data(events + i))?.pointee.readers.first {
                        cfiber_prefetch(waiter.pointee.waiter.fiber)
                    }
                }
            }
            for i in first..<last { dispatch(events + i, for: driver) }
            first = last
        }
    }

    @inline(__always)
    private func dispatch(_ event: UnsafePointer<epoll_event>, for driver: Driver) {
        let token = cfiber_event_data(event)
        if _slowPath(token == Self.wakeToken) {
            wakeUp.drain()
        } else {
            driver.becameReady(token, Readiness(rawValue: cfiber_event_flags(event)))
        }
    }
}

/// An eventfd. Any thread, except `drain`.
final class WakeDescriptor: Waker {
    let number: Int32

    init() throws(ResourceError) {
        number = cfiber_wake_create()
        if number < 0 { throw .descriptors(-number, "eventfd") }
    }

    deinit { if number >= 0 { _ = cfiber_close(number) } }

    func wake() { _ = cfiber_wake_send(number) }

    func drain() { _ = cfiber_wake_drain(number) }
}
