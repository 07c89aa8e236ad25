// Operations on epoll: try the system call, and park on `EAGAIN`.
//
// What epoll does and this file relies on:
//   * A descriptor is registered once, edge-triggered, when somebody first has to wait for it (for writing: when a write first has to wait, else each new
//     connection would cost an event that says it is writable). Adding and modifying report what is ready already, so nothing is missed in between.
//   * On a stream a short read or write means that the kernel's buffer was drained or full at that moment, and what comes later is a new edge. So the
//     next call may park without a try. Not so when the end or an error has been announced (`hungUp`: the next try answers), when
//     urgent data splits reads (EPOLLPRI), or on Unix sockets, where descriptors in a message do.
//   * `EAGAIN` means that nothing is there and that an event will follow, with one exception: at the mark of urgent data TCP's `recv` returns it whenever a signal is
//     pending, and no event follows. So after EPOLLPRI it counts only if `poll` agrees.
//   * Ending the sending half makes writes fail at once, but is no event on a Unix socket whose buffer is full: `shutdown` here wakes the writers itself. When the peer
//     ends its receiving half, our writes fail, too, but the kernel tells nobody.
//   * EPOLLHUP and EPOLLERR come unasked and wake both directions; the error is then read by the next system call.
//   * Closing a descriptor wakes no waiter: `close` here does.
//   * Closing a descriptor ends its registration only if no duplicate is left, here or in another process: epoll knows the open file and the number under which it was
//     added. So a registration is removed before its descriptor is closed. Else each event of the duplicate wakes this worker, and the file cannot be added once more
//     under the old number. Should that fail (the program has put another file under the number), the generation in the event's data tells late events apart.
// Owner worker only.

import CFiber
import Glibc

private let alwaysWatched = EPOLLIN.rawValue | EPOLLRDHUP.rawValue | EPOLLPRI.rawValue | EPOLLET
private let EPOLLET: UInt32 = 1 << 31

final class EpollDriver: Driver {
    private let owner: Worker
    /// The owner's place among the workers of its runtime.
    private let index: Int
    private var isStopped = false
    private let epoll: Int32
    private let inbox: Inbox
    private let table: UnsafeMutablePointer<RegistrationTable>
    private let events: UnsafeMutablePointer<epoll_event>
    /// Few enough that what the kernel has touched to report an event is still in the cache when the fiber's system call needs it.
    private static let eventCount = 64
    private static let groupSize = 16
    private static let wakeToken = UInt64.max

    init(owner: Worker, index: Int, inbox: Inbox, bufferSize: Int) throws(ResourceError) {
        let epoll = cfiber_epoll_create()
        if epoll < 0 { throw .descriptors(-epoll, "epoll_create1") }
        let status = cfiber_epoll_add(epoll, inbox.wakeDescriptor, EPOLLIN.rawValue | EPOLLET, Self.wakeToken)
        if status < 0 {
            _ = cfiber_close(epoll)
            throw .descriptors(-status, "epoll_ctl")
        }
        self.owner = owner
        self.index = index
        self.epoll = epoll
        self.inbox = inbox
        table = .allocate(capacity: 1)
        table.initialize(to: RegistrationTable())
        events = .allocate(capacity: Self.eventCount)
        super.init(bufferSize: bufferSize)
    }

    deinit {
        if !isStopped { _ = cfiber_close(epoll) }
        table.pointee.destroy()
        table.deallocate()
        events.deallocate()
    }

    @inline(__always)
    private var worker: Worker {
        if _slowPath(Worker.current != owner) { stopForeignUse(nil) }
        return owner
    }

    /// The worker, for a call on a descriptor.
    @inline(__always)
    private func worker(for slot: RegistrationPointer) -> Worker {
        if _slowPath(Worker.current != owner) { stopForeignUse(slot) }
        return owner
    }

    @inline(never)
    private func stopForeignUse(_ slot: RegistrationPointer?) -> Never {
        let socket = slot.map { Self.describe($0.pointee.fd) } ?? "a socket"
        misuse(
            "\(Holders.describeCaller())\(Worker.current.map { " on worker \($0.pointee.index)" } ?? "") used or released \(socket), which belongs to worker \(index) of the runtime that made it: use a socket, and let go of it, in fibers of its own worker, and let others send those messages"
        )
    }

    private static func describe(_ fd: Int32) -> String {
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: 512) { text in
            cfiber_describe(fd, text.baseAddress, text.count)
            return String(cString: text.baseAddress.unsafelyUnwrapped)
        }
    }

    // Registrations.

    override func register(_ fd: Int32, exact: Bool) -> Descriptor? {
        guard let slot = table.pointee.take(fd: fd, exact: exact) else { return nil }
        return Descriptor(registration: slot, generation: slot.pointee.generation)
    }

    override func close(_ d: Descriptor) {
        guard d.isOpen else { return }
        let fd = d.registration.pointee.fd
        release(d)
        _ = cfiber_close(fd)
    }

    override func release(_ d: Descriptor) {
        guard d.isOpen else { return }
        let slot = d.registration
        // Only a fiber that waited has had it added. Whether a duplicate exists the kernel does not tell, and closing is hardly dearer for it: what is removed here
        // it need not remove then.
        if slot.pointee.flags.contains(.watchesRead) { _ = cfiber_epoll_remove(epoll, slot.pointee.fd) }
        end(slot)
    }

    private func end(_ slot: RegistrationPointer) {
        let worker = worker(for: slot)
        worker.wakeAll(&slot.pointee.readers, .closed)
        worker.wakeAll(&slot.pointee.writers, .closed)
        worker.wakeAll(&slot.pointee.readTurns, .closed)
        worker.wakeAll(&slot.pointee.writeTurns, .closed)
        table.pointee.put(slot)
    }

    override func stop() {
        isStopped = true
        // No registration is removed here: all end with the epoll descriptor, which nobody waits on any more, whatever duplicates there are.
        table.pointee.forEachOpen { slot in
            let fd = slot.pointee.fd
            end(slot)
            _ = cfiber_close(fd)
        }
        _ = cfiber_close(epoll)
    }

    // Turns: each direction is a first-in first-out lock that a fiber holds for one operation, parks included.

    /// 0 once the running fiber has the turn.
    @inline(__always)
    private func takeTurn(_ d: Descriptor, _ turn: Registration.Flags, _ deadline: Int64) -> Int {
        guard d.isOpen else { return refuseClosed() }
        if worker(for: d.registration).refusesOperation() { return IOCode.cancelled }
        if _slowPath(d.registration.pointee.flags.contains(turn)) { return waitForTurn(d, turn, deadline) }
        d.registration.pointee.flags.insert(turn)
        return 0
    }

    @inline(never)
    private func waitForTurn(_ d: Descriptor, _ turn: Registration.Flags, _ deadline: Int64) -> Int {
        let slot = d.registration
        let reads = turn == .reading
        let outcome = worker.park(
            in: reads ? slot.readTurns : slot.writeTurns, WaitReason(reads ? .read : .write, slot.pointee.fd), until: deadline)
        if outcome != .ready { return code(outcome) }
        // The turn was handed over, unless the descriptor was closed since.
        return d.isOpen ? 0 : IOCode.closed
    }

    /// Hands the turn to the next in line, if there is one.
    @inline(__always)
    private func endTurn(_ d: Descriptor, _ turn: Registration.Flags) {
        guard d.isOpen else { return }
        let list = turn == .reading ? d.registration.readTurns : d.registration.writeTurns
        if _fastPath(list.pointee.isEmpty) {
            d.registration.pointee.flags.remove(turn)
        } else {
            handOver(d, turn, list)
        }
    }

    @inline(never)
    private func handOver(_ d: Descriptor, _ turn: Registration.Flags, _ list: UnsafeMutablePointer<WaitList>) {
        // Who has timed out in this moment is still in line, and cannot be woken.
        while let node = list.pointee.popFirst() {
            if worker.unpark(node.pointee.waiter, .ready) { return }
        }
        d.registration.pointee.flags.remove(turn)
    }

    // Operations.

    override func receive(_ d: Descriptor, _ memory: UnsafeMutableRawPointer, _ count: Int, until deadline: Int64) -> Int {
        let turn = takeTurn(d, .reading, deadline)
        if turn != 0 { return turn }
        let n = receiveInTurn(d, memory, count, deadline)
        endTurn(d, .reading)
        worker.chargeOperation()
        return n
    }

    private func receiveInTurn(_ d: Descriptor, _ memory: UnsafeMutableRawPointer, _ count: Int, _ deadline: Int64) -> Int {
        while true {
            if d.registration.pointee.readable {
                let n = tryReceive(d.registration, memory, count)
                if n != -Int(EAGAIN) { return n }
                if wasDenied(d) {
                    guard d.isOpen else { return IOCode.closed }
                    continue
                }
            }
            let code = park(d, .read, .read, deadline)
            if code != 0 { return code }
            guard d.isOpen else { return IOCode.closed }
        }
    }

    override func receiveLent(_ d: Descriptor, _ buffer: inout UnsafeMutableRawPointer?, until deadline: Int64) -> Int {
        let turn = takeTurn(d, .reading, deadline)
        if turn != 0 { return turn }
        let n = receiveLentInTurn(d, &buffer, deadline)
        endTurn(d, .reading)
        worker.chargeOperation()
        return n
    }

    @inline(__always)
    private func receiveLentInTurn(_ d: Descriptor, _ buffer: inout UnsafeMutableRawPointer?, _ deadline: Int64) -> Int {
        while true {
            if d.registration.pointee.readable {
                guard let memory = buffers.pointee.take() else { return -Int(ENOMEM) }
                let n = tryReceive(d.registration, memory, buffers.pointee.size)
                if n > 0 {
                    buffer = memory
                    return n
                }
                buffers.pointee.put(memory)
                if n != -Int(EAGAIN) { return n }
                if wasDenied(d) {
                    guard d.isOpen else { return IOCode.closed }
                    continue
                }
            }
            let code = park(d, .read, .read, deadline)
            if code != 0 { return code }
            guard d.isOpen else { return IOCode.closed }
        }
    }

    override func receive(_ d: Descriptor, until deadline: Int64, by attempt: (Int32) -> Int) -> Int {
        receiveInTurn(d, deadline) { attempt($0.pointee.fd) }
    }

    @inline(__always)
    private func tryReceive(_ slot: RegistrationPointer, _ memory: UnsafeMutableRawPointer, _ count: Int) -> Int {
        let n = cfiber_recv(slot.pointee.fd, memory, count)
        if n == -Int(EAGAIN) || (n > 0 && n < count && slot.pointee.flags.isDisjoint(with: [.hungUp, .exact])) {
            slot.pointee.readable = false
        }
        return n
    }

    /// Whether `recv` has returned `EAGAIN` although there is something to receive. It does so at the mark of urgent data when a signal is pending; the signal is gone as soon
    /// as a system call returns, so the next `recv` tells the truth, unless a second signal comes within a fraction of a microsecond.
    @inline(__always)
    private func wasDenied(_ d: Descriptor) -> Bool {
        _slowPath(d.registration.pointee.marks.contains(.urgent)) && isReadable(d)
    }

    @inline(never)
    private func isReadable(_ d: Descriptor) -> Bool {
        guard cfiber_is_ready(d.registration.pointee.fd, 0) == 1 else { return false }
        d.registration.pointee.readable = true
        // Should `poll` and `recv` ever disagree for another reason, other fibers run all the same.
        worker.chargeOperation()
        return true
    }

    override func sendAll(_ d: Descriptor, _ memory: UnsafeRawPointer, _ count: Int, sent: inout Int, until deadline: Int64) -> Int {
        guard d.isOpen else { return refuseClosed() }
        if worker(for: d.registration).refusesOperation() { return IOCode.cancelled }
        // The common case: nobody else writes and the kernel takes it all.
        if d.registration.pointee.writable && !d.registration.pointee.flags.contains(.writing) {
            let n = cfiber_send(d.registration.pointee.fd, memory, count)
            if n == count || (n < 0 && n != -Int(EAGAIN)) {
                sent = max(n, 0)
                worker.chargeOperation()
                return min(n, 0)
            }
            if n > 0 { sent = n }
            d.registration.pointee.writable = false
        }
        return sendRest(d, memory, count, sent: &sent, until: deadline)
    }

    @inline(never)
    private func sendRest(_ d: Descriptor, _ memory: UnsafeRawPointer, _ count: Int, sent: inout Int, until deadline: Int64) -> Int {
        let turn = beginSending(d, until: deadline)
        if turn != 0 { return turn }
        var rest = iovec(iov_base: UnsafeMutableRawPointer(mutating: memory) + sent, iov_len: count - sent)
        let result = withUnsafeMutablePointer(to: &rest) {
            send(d, UnsafeMutableBufferPointer(start: $0, count: 1), sent: &sent, until: deadline)
        }
        endSending(d)
        return result
    }

    override func beginSending(_ d: Descriptor, until deadline: Int64) -> Int { takeTurn(d, .writing, deadline) }

    override func endSending(_ d: Descriptor) { endTurn(d, .writing) }

    override func send(_ d: Descriptor, _ pieces: UnsafeMutableBufferPointer<iovec>, sent: inout Int, until deadline: Int64) -> Int {
        var first = 0
        while true {
            while first < pieces.count && pieces[first].iov_len == 0 { first += 1 }
            if first == pieces.count { return 0 }
            if d.registration.pointee.writable {
                // The kernel takes at most this many pieces (UIO_MAXIOV).
                let offered = min(pieces.count - first, 1024)
                let n = cfiber_send_vector(d.registration.pointee.fd, pieces.baseAddress! + first, offered)
                if n >= 0 {
                    sent += n
                    var left = n
                    while first < pieces.count && left >= pieces[first].iov_len {
                        left -= pieces[first].iov_len
                        first += 1
                    }
                    if left > 0 {
                        pieces[first].iov_base += left
                        pieces[first].iov_len -= left
                    }
                    worker.chargeOperation()
                    guard d.isOpen else { return first == pieces.count ? 0 : IOCode.closed }
                    continue
                }
                if n != -Int(EAGAIN) {
                    worker.chargeOperation()
                    return n
                }
                d.registration.pointee.writable = false
            }
            let code = park(d, .write, .write, deadline)
            if code != 0 { return code }
            guard d.isOpen else { return IOCode.closed }
        }
    }

    // Datagrams. What a short count says of streams it does not say of them: the kernel keeps an error behind the first few for the next call, and no event comes
    // for what is left. So only EAGAIN means that nothing is there.

    override func receiveDatagrams(
        _ d: Descriptor, _ datagrams: UnsafeMutablePointer<cfiber_datagram>, _ count: Int, until deadline: Int64
    ) -> Int {
        receiveInTurn(d, deadline) { Int(cfiber_receive_datagrams($0.pointee.fd, datagrams, UInt32(count))) }
    }

    override func receiveDatagramLent(_ d: Descriptor, _ datagram: UnsafeMutablePointer<cfiber_datagram>, until deadline: Int64) -> Int {
        receiveInTurn(d, deadline) { slot in
            guard let buffer = buffers.pointee.take() else { return -Int(ENOMEM) }
            datagram.pointee.header.msg_iov.pointee = iovec(iov_base: buffer, iov_len: buffers.pointee.size)
            let n = Int(cfiber_receive_datagrams(slot.pointee.fd, datagram, 1))
            if n < 0 { buffers.pointee.put(buffer) }
            return n
        }
    }

    @inline(__always)
    private func receiveInTurn(_ d: Descriptor, _ deadline: Int64, _ attempt: (RegistrationPointer) -> Int) -> Int {
        let turn = takeTurn(d, .reading, deadline)
        if turn != 0 { return turn }
        let result = receiveWithTurn(d, deadline, attempt)
        endTurn(d, .reading)
        worker.chargeOperation()
        return result
    }

    @inline(__always)
    private func receiveWithTurn(_ d: Descriptor, _ deadline: Int64, _ attempt: (RegistrationPointer) -> Int) -> Int {
        while true {
            if d.registration.pointee.readable {
                let n = attempt(d.registration)
                if n != -Int(EAGAIN) { return n }
                d.registration.pointee.readable = false
            }
            let code = park(d, .read, .read, deadline)
            if code != 0 { return code }
            guard d.isOpen else { return IOCode.closed }
        }
    }

    override func sendDatagrams(
        _ d: Descriptor, _ datagrams: UnsafeMutablePointer<cfiber_datagram>, _ count: Int, sent: inout Int, until deadline: Int64
    ) -> Int {
        guard d.isOpen else { return refuseClosed() }
        if worker(for: d.registration).refusesOperation() { return IOCode.cancelled }
        // The common case, as in `sendAll`.
        if d.registration.pointee.writable && !d.registration.pointee.flags.contains(.writing) {
            let n = Int(cfiber_send_datagrams(d.registration.pointee.fd, datagrams, UInt32(count)))
            if n == count || (n < 0 && n != -Int(EAGAIN)) {
                sent = max(n, 0)
                worker.chargeOperation()
                return min(n, 0)
            }
            if n > 0 { sent = n } else if !isToUnixAddress(datagrams) { d.registration.pointee.writable = false }
        }
        return sendRest(d, datagrams, count, sent: &sent, until: deadline)
    }

    /// The way that may wait, in turn: for room in the socket's own buffer, or in the queue of the Unix socket that it is connected to, there is an event.
    ///
    /// There is none for the queue of a Unix socket to which the datagram is addressed. That is tried again, at growing intervals of up to 50 ms; and without the turn,
    /// so that one receiver who does not read holds up nobody who sends to others.
    @inline(never)
    private func sendRest(
        _ d: Descriptor, _ datagrams: UnsafeMutablePointer<cfiber_datagram>, _ count: Int, sent: inout Int, until deadline: Int64
    ) -> Int {
        var hasTurn = false
        var pause: Int64 = 0
        defer { if hasTurn { endTurn(d, .writing) } }
        while true {
            let polls = isToUnixAddress(datagrams + sent)
            if polls == hasTurn {
                if hasTurn {
                    endTurn(d, .writing)
                } else {
                    let turn = takeTurn(d, .writing, deadline)
                    if turn != 0 { return turn }
                }
                hasTurn.toggle()
            }
            if polls || d.registration.pointee.writable {
                let n = Int(cfiber_send_datagrams(d.registration.pointee.fd, datagrams + sent, UInt32(count - sent)))
                if n >= 0 {
                    // Fewer than all: the next try says why.
                    sent += n
                    pause = 0
                    worker.chargeOperation()
                    if sent == count { return 0 }
                    guard d.isOpen else { return IOCode.closed }
                    continue
                }
                if n != -Int(EAGAIN) {
                    worker.chargeOperation()
                    return n
                }
                if !polls { d.registration.pointee.writable = false }
            }
            pause = min(max(pause * 2, 1_000_000), 50_000_000)
            let code = polls ? rest(d, pause, deadline) : park(d, .write, .write, deadline)
            if code != 0 { return code }
            guard d.isOpen else { return IOCode.closed }
        }
    }

    /// Lets time pass. An event does not end it: a try that fails makes one, since the kernel counts the datagram as sent for a moment, and would follow on itself for ever.
    private func rest(_ d: Descriptor, _ pause: Int64, _ deadline: Int64) -> Int {
        let end = min(deadline, worker.now &+ pause)
        while true {
            let code = code(worker.park(in: d.registration.writers, WaitReason(.write, d.registration.pointee.fd), until: end))
            if code != 0 && code != IOCode.timedOut { return code }
            guard d.isOpen else { return IOCode.closed }
            if code == IOCode.timedOut || worker.now >= end { return end == deadline ? IOCode.timedOut : 0 }
        }
    }

    private func isToUnixAddress(_ datagram: UnsafeMutablePointer<cfiber_datagram>) -> Bool {
        let header = datagram.pointee.header
        guard let name = header.msg_name, header.msg_namelen >= MemoryLayout<sa_family_t>.size else { return false }
        return Int32(name.loadUnaligned(as: sa_family_t.self)) == AF_UNIX
    }

    override func accept(
        _ d: Descriptor, from peer: UnsafeMutablePointer<sockaddr_storage>?, waits: Bool, onShortage: (Int32) -> Void, until deadline: Int64
    ) -> Int {
        let turn = takeTurn(d, .reading, deadline)
        if turn != 0 { return turn }
        let result = acceptInTurn(d, peer, waits, onShortage, deadline)
        endTurn(d, .reading)
        worker.chargeOperation()
        return result
    }

    private func acceptInTurn(
        _ d: Descriptor, _ peer: UnsafeMutablePointer<sockaddr_storage>?, _ waits: Bool, _ onShortage: (Int32) -> Void, _ deadline: Int64
    ) -> Int {
        var pause: Int64 = 0
        var givenUp = 0
        while true {
            guard d.isOpen else { return IOCode.closed }
            if d.registration.pointee.readable || !waits {
                let fd = cfiber_accept(d.registration.pointee.fd, peer)
                switch -fd {
                case EAGAIN:
                    d.registration.pointee.readable = false
                    d.registration.pointee.flags.remove(.short)
                    if !waits { return Int(fd) }
                case ECONNABORTED, EPROTO, EPERM, ENETDOWN, ENOPROTOOPT, EHOSTDOWN, ENONET, EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH:
                    // Linux passes pending network errors of the new connection on; the listener is well. Unless it goes on and on: then it is the call itself
                    // that is refused.
                    givenUp += 1
                    if givenUp == 1000 { return Int(fd) }
                    worker.chargeOperation()
                    continue
                case EMFILE, ENFILE, ENOBUFS, ENOMEM:
                    if !d.registration.pointee.flags.contains(.short) {
                        d.registration.pointee.flags.insert(.short)
                        onShortage(-fd)
                        guard d.isOpen else { return IOCode.closed }
                    }
                    pause = min(max(pause * 2, 5_000_000), 100_000_000)
                    let retry = min(deadline, worker.now &+ pause)
                    let code = park(d, .read, .accept, retry)
                    if code != 0 && (code != IOCode.timedOut || retry == deadline) { return code }
                    continue
                case EINVAL:
                    // It has been shut down: it does not listen any more.
                    return IOCode.closed
                default:
                    return Int(fd)
                }
            }
            let code = park(d, .read, .accept, deadline)
            if code != 0 { return code }
        }
    }

    override func connect(_ d: Descriptor, _ address: UnsafePointer<sockaddr>, _ length: socklen_t, until deadline: Int64) -> Int {
        guard d.isOpen else { return refuseClosed() }
        if worker(for: d.registration).refusesOperation() { return IOCode.cancelled }
        let status = cfiber_connect(d.registration.pointee.fd, address, length)
        if status != -EINPROGRESS {
            // On a Unix socket all is decided at once.
            worker.chargeOperation()
            return Int(status)
        }
        d.registration.pointee.writable = false
        while true {
            let code = park(d, .write, .connect, deadline)
            if code != 0 { return code }
            guard d.isOpen else { return IOCode.closed }
            var error: Int32 = 0
            let got = cfiber_get_option(d.registration.pointee.fd, SOL_SOCKET, SO_ERROR, &error)
            if got < 0 || error != 0 { return Int(got < 0 ? got : -error) }
            // Writable with no error is connected, unless the event was an early one: then there is no peer yet.
            var peer = sockaddr_storage()
            var size = socklen_t(MemoryLayout<sockaddr_storage>.size)
            if cfiber_peer_address(d.registration.pointee.fd, &peer, &size) == 0 { return 0 }
            d.registration.pointee.writable = false
        }
    }

    override func shutdown(_ d: Descriptor, _ how: Int32) -> Int {
        guard d.isOpen else { return IOCode.closed }
        let slot = d.registration
        let status = cfiber_shutdown(slot.pointee.fd, how)
        if status == 0 && how != Int32(SHUT_RD) {
            slot.pointee.marks.insert(.sendEnded)
            slot.pointee.writable = true
            // Each tries again and fails, then hands its turn to the next, which fails, too.
            worker.wakeAll(&slot.pointee.writers, .ready)
        }
        // The end of the receiving half is an event.
        return Int(status)
    }

    override func wait(_ d: Descriptor, _ direction: Direction, until deadline: Int64) -> Int {
        while true {
            guard d.isOpen else { return refuseClosed() }
            if worker(for: d.registration).refusesOperation() { return IOCode.cancelled }
            let slot = d.registration
            // First of all, so that what epoll does not take is told apart from what is ready.
            let watched = watchIfNew(slot, direction)
            if watched < 0 {
                worker.chargeOperation()
                return watched
            }
            // Whoever makes the system calls does not tell us what they showed, so the kernel is asked.
            let fails = direction == .write && slot.pointee.marks.contains(.sendEnded)
            let ready = fails ? 1 : cfiber_is_ready(slot.pointee.fd, direction == .write ? 1 : 0)
            if ready != 0 {
                worker.chargeOperation()
                return Int(min(ready, 0))
            }
            if direction == .read { slot.pointee.readable = false } else { slot.pointee.writable = false }
            let code = park(d, direction, direction == .read ? .readable : .writable, deadline)
            if code != 0 { return code }
        }
    }

    /// Parks until an event for the direction comes. 0 then; else why there will be none.
    @inline(__always)
    private func park(_ d: Descriptor, _ direction: Direction, _ kind: WaitReason.Kind, _ deadline: Int64) -> Int {
        let slot = d.registration
        let watched = watchIfNew(slot, direction)
        if _slowPath(watched < 0) { return watched }
        let list = direction == .read ? slot.readers : slot.writers
        // Even addresses: an odd one would be a `wait`.
        worker.running.pointee.touches = (UnsafeRawPointer(slot), slot.pointee.user)
        return code(worker.park(in: list, WaitReason(kind, slot.pointee.fd), until: deadline))
    }

    @inline(__always)
    private func code(_ outcome: Outcome) -> Int {
        switch outcome {
        case .ready: 0
        case .closed: IOCode.closed
        case .timedOut: IOCode.timedOut
        case .cancelled: IOCode.cancelled
        case .noTimer: -Int(ENOMEM)
        }
    }

    @inline(__always)
    private func watchIfNew(_ slot: RegistrationPointer, _ direction: Direction) -> Int {
        let wanted: Registration.Flags = direction == .read ? .watchesRead : .watchesWrite
        return _fastPath(slot.pointee.flags.contains(wanted)) ? 0 : watch(slot, wanted)
    }

    @inline(never)
    private func watch(_ slot: RegistrationPointer, _ wanted: Registration.Flags) -> Int {
        let events = wanted == .watchesWrite ? alwaysWatched | EPOLLOUT.rawValue : alwaysWatched
        let status =
            slot.pointee.flags.contains(.watchesRead)
            ? cfiber_epoll_modify(epoll, slot.pointee.fd, events, slot.pointee.token)
            : cfiber_epoll_add(epoll, slot.pointee.fd, events, slot.pointee.token)
        if status == 0 { slot.pointee.flags.formUnion(wanted.union(.watchesRead)) }
        return status == -EPERM ? IOCode.unsupported : Int(status)
    }

    // Events.

    override func poll(timeout: Int64) {
        let count = cfiber_epoll_wait(epoll, events, Int32(Self.eventCount), timeout)
        require(count >= 0, "epoll_wait failed: \(errorText(-count)); something closed a descriptor that it does not own")
        // With many connections everything about one has gone cold by the time its event comes. Each event needs three lines one after the other
        // (registration, waiter, record); for a group of them the misses overlap.
        var first = 0
        while first < Int(count) {
            let last = min(first + Self.groupSize, Int(count))
            if last - first > 1 {
                for i in first..<last { cfiber_prefetch(table.pointee.slot(cfiber_event_data(events + i))) }
                for i in first..<last { cfiber_prefetch(table.pointee.slot(cfiber_event_data(events + i))?.pointee.readers.first) }
                for i in first..<last {
                    if let waiter = table.pointee.slot(cfiber_event_data(events + i))?.pointee.readers.first {
                        cfiber_prefetch(waiter.pointee.waiter.fiber)
                    }
                }
            }
            for i in first..<last { dispatch(cfiber_event_data(events + i), cfiber_event_flags(events + i)) }
            first = last
        }
    }

    /// Hands one event to those who wait for it. An event of an earlier use of the slot is dropped and counted.
    @inline(__always)
    func dispatch(_ token: UInt64, _ flags: UInt32) {
        guard let slot = table.pointee.find(token) else {
            if token == Self.wakeToken { _ = cfiber_wake_drain(inbox.wakeDescriptor) } else { worker.pointee.statistics.staleEvents &+= 1 }
            return
        }
        let gone = EPOLLHUP.rawValue | EPOLLERR.rawValue
        let ended = gone | EPOLLRDHUP.rawValue
        if flags & (ended | EPOLLIN.rawValue | EPOLLPRI.rawValue) != 0 {
            slot.pointee.readable = true
            if flags & ended != 0 { slot.pointee.flags.insert(.hungUp) }
            // What is exact from the start needs no such care: a Unix socket's `recv` looks at no signal, and a `DescriptorStream` waits by `wait`, which asks `poll`.
            if flags & EPOLLPRI.rawValue != 0 && !slot.pointee.flags.contains(.exact) {
                slot.pointee.flags.insert(.exact)
                slot.pointee.marks.insert(.urgent)
            }
            worker.wakeAll(&slot.pointee.readers, .ready)
        }
        if flags & (gone | EPOLLOUT.rawValue) != 0 {
            slot.pointee.writable = true
            worker.wakeAll(&slot.pointee.writers, .ready)
        }
    }
}
