// The seam between the kernel and the operating system. Its unit is the operation (receive, send, accept, connect, wait until readable), not readiness:
// a driver tries and then parks, or submits and then parks, or moves bytes in memory; nothing above knows which.
//
// Invariants:
//   * a `Descriptor` is good for one registration: after `close` every operation on it, running or new, ends with `IOCode.closed` and touches
//     neither the number nor its next owner;
//   * an operation parks the calling fiber at most until its deadline, and has no half-effect when it fails. In a cancelled fiber it fails at once, also where
//     it need not park, so that cancellation reaches those who always find something to do;
//   * an operation that has made a system call without parking is charged, however it ended, so that a loop over an error or the end of a stream lets others run and meets its
//     deadline, too;
//   * operations return a count (or a descriptor) >= 0, a negative errno, or one of the codes of `IOCode`.
// A class and not a protocol with many conformances behind an existential: an operation costs one indirect call and no reference counting.
// Owner worker only.

package import CFiber
import Glibc

/// A registered descriptor: which slot, and which use of it.
package struct Descriptor: BitwiseCopyable {
    package let registration: RegistrationPointer
    package let generation: UInt32

    /// Names the object whose fibers use the descriptor, so that it is fetched when one of them goes on.
    package func noteUser(_ user: AnyObject) {
        registration.pointee.user = UnsafeRawPointer(Unmanaged.passUnretained(user).toOpaque())
    }

    @inline(__always)
    package var isOpen: Bool { registration.pointee.generation == generation }
}

/// What an operation returns besides counts and negative error numbers, which end at -4095.
package enum IOCode {
    /// The descriptor was closed on this side, before the operation or during it.
    package static var closed: Int { -10_001 }
    /// The deadline passed.
    package static var timedOut: Int { -10_002 }
    /// The descriptor is of a kind that cannot be waited for.
    package static var unsupported: Int { -10_003 }
    /// The calling fiber is cancelled, or was while it waited.
    package static var cancelled: Int { -10_004 }
}

package enum Direction: Sendable {
    case read, write
}

package class Driver {
    /// Behind a pointer: each change of a class property would be a checked access, which costs more than the change.
    package final let buffers: UnsafeMutablePointer<BufferPool>

    init(bufferSize: Int) {
        buffers = .allocate(capacity: 1)
        buffers.initialize(to: BufferPool(size: bufferSize))
    }

    deinit {
        buffers.pointee.destroy()
        buffers.deallocate()
    }

    /// What every operation on a closed descriptor returns, whoever calls it. It is charged like those that make a system call.
    @inline(never)
    package final func refuseClosed() -> Int {
        Worker.current?.chargeOperation()
        return IOCode.closed
    }

    /// Closes what is still open. No fiber waits any more, and no operation but `close` follows.
    func stop() { fatalError("a driver implements stop") }

    /// Starts to look after a descriptor, which must be non-blocking. `exact`: a short count does not mean that no more is there (Unix sockets, where
    /// a message that carries descriptors ends a read). Nil when memory is short. The descriptor stays the caller's when this fails.
    package func register(_ fd: Int32, exact: Bool) -> Descriptor? { fatalError("a driver implements register") }
    /// Ends a registration, wakes its waiters with `closed` and closes the descriptor.
    package func close(_ descriptor: Descriptor) { fatalError("a driver implements close") }
    /// Ends a registration and leaves the descriptor open.
    package func release(_ descriptor: Descriptor) { fatalError("a driver implements release") }

    /// Receives some bytes, 0 at the end of the stream. Parks.
    package func receive(_ d: Descriptor, _ memory: UnsafeMutableRawPointer, _ count: Int, until deadline: Int64) -> Int {
        fatalError("a driver implements receive")
    }
    /// Waits for bytes without holding memory, then receives into a buffer of the worker's pool, which the caller returns to `buffers`. Parks.
    package func receiveLent(_ d: Descriptor, _ buffer: inout UnsafeMutableRawPointer?, until deadline: Int64) -> Int {
        fatalError("a driver implements receiveLent")
    }
    /// Calls `attempt` with the number of the descriptor when that may be readable, until it returns anything but `-EAGAIN`, and returns that. One fiber at a time, in the order in
    /// which they came. What makes the descriptor readable is an edge: before it returns `-EAGAIN`, the attempt must have seen that nothing is there. Parks.
    package func receive(_ d: Descriptor, until deadline: Int64, by attempt: (Int32) -> Int) -> Int {
        fatalError("a driver implements receive(by:)")
    }
    /// Sends everything, after those who began earlier on the same descriptor, so that what two fibers write is never mixed. 0 once it is done; `sent`
    /// tells how much went in any case. Parks.
    package func sendAll(_ d: Descriptor, _ memory: UnsafeRawPointer, _ count: Int, sent: inout Int, until deadline: Int64) -> Int {
        fatalError("a driver implements sendAll")
    }
    /// Takes the turn to send: 0 once the fiber has it, and then `endSending` must follow. Parks.
    package func beginSending(_ d: Descriptor, until deadline: Int64) -> Int { fatalError("a driver implements beginSending") }
    /// Sends all of several pieces, which it changes as it goes; the caller has the turn. Adds to `sent`. Parks.
    package func send(_ d: Descriptor, _ pieces: UnsafeMutableBufferPointer<iovec>, sent: inout Int, until deadline: Int64) -> Int {
        fatalError("a driver implements send")
    }
    package func endSending(_ d: Descriptor) { fatalError("a driver implements endSending") }
    /// Receives up to `count` datagrams, as many as are there and at least one: their number. Empty ones are datagrams, too. Parks.
    package func receiveDatagrams(
        _ d: Descriptor, _ datagrams: UnsafeMutablePointer<cfiber_datagram>, _ count: Int, until deadline: Int64
    ) -> Int {
        fatalError("a driver implements receiveDatagrams")
    }
    /// Waits for a datagram without holding memory, then receives it into a buffer of the worker's pool, which it puts into the one piece of `datagram` and which the
    /// caller returns to `buffers`. 1, or an error and no buffer. Parks.
    package func receiveDatagramLent(_ d: Descriptor, _ datagram: UnsafeMutablePointer<cfiber_datagram>, until deadline: Int64) -> Int {
        fatalError("a driver implements receiveDatagramLent")
    }
    /// Sends `count` datagrams, each whole or not at all, in order. 0 once it is done; `sent` tells how many went in any case. A Unix socket whose queue is full is
    /// waited for, too. Parks.
    package func sendDatagrams(
        _ d: Descriptor, _ datagrams: UnsafeMutablePointer<cfiber_datagram>, _ count: Int, sent: inout Int, until deadline: Int64
    ) -> Int {
        fatalError("a driver implements sendDatagrams")
    }
    /// Accepts a connection: its descriptor, non-blocking. Connections that were given up before they were accepted are passed over; while descriptors are
    /// short it waits, tries again now and then, and calls `onShortage` with the error number the first time. Where no connection is there it waits for one, or returns
    /// `-EAGAIN` if it is not to. Parks.
    ///
    /// `peer` gets the address of the other end, if it is not nil; over TCP the kernel forgets it once the connection is reset.
    package func accept(
        _ d: Descriptor, from peer: UnsafeMutablePointer<sockaddr_storage>?, waits: Bool, onShortage: (Int32) -> Void, until deadline: Int64
    ) -> Int {
        fatalError("a driver implements accept")
    }
    /// Connects. 0 once connected. Parks.
    package func connect(_ d: Descriptor, _ address: UnsafePointer<sockaddr>, _ length: socklen_t, until deadline: Int64) -> Int {
        fatalError("a driver implements connect")
    }
    /// Ends one half of a connection, or both (`SHUT_RD`, `SHUT_WR`, `SHUT_RDWR`), and wakes the fibers that wait for it: their operations see the end, or fail. Never
    /// parks.
    package func shutdown(_ d: Descriptor, _ how: Int32) -> Int { fatalError("a driver implements shutdown") }
    /// Waits until the kernel says that a descriptor is readable or writable, for code that makes its own system calls. 0 then. Parks.
    package func wait(_ d: Descriptor, _ direction: Direction, until deadline: Int64) -> Int { fatalError("a driver implements wait") }

    /// Waits as `wait` for a descriptor of somebody else's, by a number of its own for the same thing: epoll takes each number once, and what is registered is closed when the worker
    /// stops. Also -EMFILE, -EBADF or -ENOMEM. Parks.
    ///
    /// Not so what is on disk: closing any number for a file ends all locks (`F_SETLK`) that the process has on it. Epoll refuses most of that, and the few files that it takes
    /// are watched by an epoll of their own.
    package final func wait(forDescriptor foreign: Int32, _ direction: Direction, until deadline: Int64) -> Int {
        let worker = Worker.here("a wait for a descriptor")
        // Also where it comes no further than the next line.
        if worker.refusesOperation() { return IOCode.cancelled }
        let isOnDisk = cfiber_is_on_disk(foreign)
        let second =
            switch isOnDisk {
            case 0: cfiber_duplicate(foreign)
            case 1: cfiber_epoll_for(foreign, direction == .write ? 1 : 0)
            default: isOnDisk
            }
        guard second >= 0 else {
            worker.chargeOperation()
            return second == -EPERM ? IOCode.unsupported : Int(second)
        }
        guard let registered = register(second, exact: true) else {
            _ = cfiber_close(second)
            return -Int(ENOMEM)
        }
        let result = wait(registered, isOnDisk == 1 ? .read : direction, until: deadline)
        // Closing alone would not end the registration, since the thing stays open under its first number.
        if registered.isOpen {
            release(registered)
            _ = cfiber_close(second)
        }
        return result
    }

    /// Monotonic nanoseconds.
    package func now() -> Int64 { cfiber_now() }

    /// Collects what has happened and wakes the waiters; blocks at most `timeout` nanoseconds (negative: without end) if nothing has.
    func poll(timeout: Int64) { fatalError("a driver implements poll") }
}
