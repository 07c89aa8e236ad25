// SPDX-License-Identifier: Apache-2.0

// Stream sockets in memory, of IPv4, IPv6 and Unix addresses, as Linux's behave where a program can see it: queues of listeners, buffers that run full, ends, resets.
// Owner worker only.

import CFiber
import Fibers
import Glibc

final class SimulatedNetwork {
    /// Hears the results of requests that had to wait.
    var onResult: (CompletionPointer, Int) -> Void = { _, _ in }

    private var sockets: [Int32: Socket] = [:]
    private var nextNumber: Int32 = 1_000_000_000
    private var nextPort: UInt16 = 40_000
    private var listeners: [[UInt8]: Socket] = [:]

    /// Bytes that a socket keeps for its reader.
    private static var capacity: Int { 65_536 }

    private final class Socket {
        let domain: Int32
        var name: [UInt8] = []
        var peerName: [UInt8] = []
        var options: [Int64: Int32] = [:]
        var isClosed = false

        // Of a connection.
        weak var peer: Socket?
        var wasConnected = false
        var input: [UInt8] = []
        var inputHasEnded = false
        var wasReset = false
        var outputHasEnded = false

        // Of a listener.
        var backlog = -1
        var queue: [Socket] = []
        /// Connects that wait for room in the queue.
        var arriving: [(socket: Socket, completion: CompletionPointer)] = []

        var requests: [(request: Submission, completion: CompletionPointer)] = []

        init(domain: Int32) { self.domain = domain }

        var isListening: Bool { backlog >= 0 }
        var room: Int { peer.map { SimulatedNetwork.capacity - $0.input.count } ?? 0 }
    }

    // Calls that do not wait.

    /// Nil for what is no business of this network.
    func call(_ call: SystemCall) -> Int? {
        switch call {
        case .socket(let domain, let type):
            guard type == Int32(SOCK_STREAM.rawValue) else { return -Int(EPROTONOSUPPORT) }
            return Int(add(Socket(domain: domain)))
        case .socketPair(let first, let second, let type):
            guard type == Int32(SOCK_STREAM.rawValue) else { return -Int(EPROTONOSUPPORT) }
            let (a, b) = (Socket(domain: AF_UNIX), Socket(domain: AF_UNIX))
            connect(a, b)
            (first.pointee, second.pointee) = (add(a), add(b))
            return 0
        case .bind(let fd, let address, let length): return with(fd) { bind($0, Self.bytes(address, length)) }
        case .listen(let fd, let backlog):
            return with(fd) { socket in
                if socket.name.isEmpty { return -Int(EDESTADDRREQ) }
                socket.backlog = max(1, Int(backlog))
                listeners[socket.name] = socket
                return 0
            }
        case .localAddress(let fd, let address, let length): return with(fd) { Self.copy($0.name, $0.domain, to: address, length) }
        case .peerAddress(let fd, let address, let length):
            return with(fd) { socket in
                socket.wasConnected && !socket.wasReset ? Self.copy(socket.peerName, socket.domain, to: address, length) : -Int(ENOTCONN)
            }
        case .setOption(let fd, let level, let name, let value):
            return with(fd) { socket in
                socket.options[Int64(level) << 32 | Int64(name)] = value
                return 0
            }
        case .option(let fd, let level, let name, let value):
            return with(fd) { socket in
                value.pointee = socket.options[Int64(level) << 32 | Int64(name)] ?? 0
                return 0
            }
        case .linger(let fd, let on, let seconds):
            return with(fd) { socket in
                socket.options[-1] = on != 0 && seconds == 0 ? 1 : 0
                return 0
            }
        case .shutdown(let fd, let how): return with(fd) { shutdown($0, how) }
        case .multicast(let fd, _, _, _, _): return with(fd) { _ in -Int(EOPNOTSUPP) }
        case .duplicate(let fd): return sockets[fd] == nil ? nil : -Int(EOPNOTSUPP)
        case .pipe: return nil
        case .close(let fd):
            guard let socket = sockets.removeValue(forKey: fd) else { return nil }
            close(socket)
            return 0
        }
    }

    private func with(_ fd: Int32, _ body: (Socket) -> Int) -> Int? { sockets[fd].map(body) }

    private func add(_ socket: Socket) -> Int32 {
        defer { nextNumber += 1 }
        sockets[nextNumber] = socket
        return nextNumber
    }

    private func connect(_ a: Socket, _ b: Socket) {
        (a.peer, b.peer) = (b, a)
        (a.wasConnected, b.wasConnected) = (true, true)
    }

    // Addresses.

    private static func bytes(_ address: UnsafePointer<sockaddr>, _ length: socklen_t) -> [UInt8] {
        Array(UnsafeRawBufferPointer(start: address, count: Int(length)))
    }

    private static func copy(
        _ name: [UInt8], _ domain: Int32, to address: UnsafeMutablePointer<sockaddr_storage>, _ length: UnsafeMutablePointer<socklen_t>
    ) -> Int {
        let name = name.isEmpty ? withUnsafeBytes(of: sa_family_t(domain)) { Array($0) } : name
        let count = min(name.count, Int(length.pointee))
        UnsafeMutableRawBufferPointer(start: address, count: count).copyBytes(from: name[..<count])
        length.pointee = socklen_t(name.count)
        return 0
    }

    /// Of an address over IP, which has it in its second pair of bytes.
    private static func port(_ name: [UInt8]) -> Int { Int(name[2]) << 8 | Int(name[3]) }

    private func withFreePort(_ name: [UInt8]) -> [UInt8] {
        var name = name
        nextPort += 1
        (name[2], name[3]) = (UInt8(nextPort >> 8), UInt8(nextPort & 255))
        return name
    }

    private func bind(_ socket: Socket, _ name: [UInt8]) -> Int {
        if socket.domain == AF_UNIX {
            if sockets.values.contains(where: { $0 !== socket && $0.name == name && !$0.isClosed }) { return -Int(EADDRINUSE) }
            socket.name = name
            return 0
        }
        let name = Self.port(name) == 0 ? withFreePort(name) : name
        if listeners[name] != nil { return -Int(EADDRINUSE) }
        socket.name = name
        return 0
    }

    /// The listener at an address, or at any address of the machine.
    private func listener(at name: [UInt8], _ domain: Int32) -> Socket? {
        if let exact = listeners[name] { return exact }
        if domain == AF_UNIX { return nil }
        var any = name
        for i in (domain == AF_INET ? 4..<8 : 8..<24) { any[i] = 0 }
        return listeners[any]
    }

    /// An address of the same family that leads back to this machine.
    private func loopback(like name: [UInt8], _ domain: Int32) -> [UInt8] {
        if domain == AF_UNIX { return [] }
        var address = withFreePort(name)
        if domain == AF_INET { (address[4], address[5], address[6], address[7]) = (127, 0, 0, 1) }
        return address
    }

    // Requests.

    /// The result, or nil when it has to wait.
    func submit(_ request: Submission, _ completion: CompletionPointer) -> Int? {
        guard let socket = sockets[request.fd] else { return IOCode.unsupported }
        if case .connect(_, let address, let length) = request {
            return connect(socket, to: Self.bytes(address, length), completion)
        }
        if let result = perform(request, socket) { return result }
        socket.requests.append((request, completion))
        return nil
    }

    /// Cancels a request that waits. One that has its result already keeps that.
    func cancel(_ completion: CompletionPointer) {
        for socket in sockets.values {
            let before = socket.requests.count + socket.arriving.count
            socket.requests.removeAll { $0.completion == completion }
            socket.arriving.removeAll { $0.completion == completion }
            if socket.requests.count + socket.arriving.count < before { return onResult(completion, -Int(ECANCELED)) }
        }
    }

    func cancelAll() {
        for socket in sockets.values {
            let waiting = socket.requests.map(\.completion) + socket.arriving.map(\.completion)
            (socket.requests, socket.arriving) = ([], [])
            for completion in waiting { onResult(completion, -Int(ECANCELED)) }
        }
    }

    /// Performs what can be performed now that something has changed, in the order of the requests.
    private func serve(_ socket: Socket) {
        let waiting = socket.requests
        socket.requests = []
        for (request, completion) in waiting {
            if let result = perform(request, socket) {
                onResult(completion, result)
            } else {
                socket.requests.append((request, completion))
            }
        }
    }

    private func perform(_ request: Submission, _ socket: Socket) -> Int? {
        switch request {
        case .ready(_, .read):
            return isReadable(socket) ? 0 : nil
        case .ready(_, .write):
            return socket.wasReset || socket.outputHasEnded || socket.peer == nil || socket.room > 0 ? 0 : nil
        case .receive(_, let memory, let count):
            return receive(socket, memory, count)
        case .send(_, let memory, let count):
            return send(socket, UnsafeRawBufferPointer(start: memory, count: count))
        case .sendPieces(_, let pieces, let count):
            for i in 0..<count where pieces[i].iov_len > 0 {
                return send(socket, UnsafeRawBufferPointer(start: pieces[i].iov_base, count: pieces[i].iov_len))
            }
            return 0
        case .accept(_, let peer, let waits):
            return accept(socket, peer) ?? (waits ? nil : -Int(EAGAIN))
        case .connect, .read, .write, .receiveDatagrams, .sendDatagrams:
            return -Int(EOPNOTSUPP)
        }
    }

    private func isReadable(_ socket: Socket) -> Bool {
        socket.isListening
            ? !socket.queue.isEmpty : !socket.input.isEmpty || socket.inputHasEnded || socket.wasReset || !socket.wasConnected
    }

    private func receive(_ socket: Socket, _ memory: UnsafeMutableRawPointer, _ count: Int) -> Int? {
        if !socket.wasConnected { return -Int(ENOTCONN) }
        if !socket.input.isEmpty {
            let taken = min(count, socket.input.count)
            memory.copyMemory(from: socket.input, byteCount: taken)
            socket.input.removeFirst(taken)
            if let peer = socket.peer { serve(peer) }
            return taken
        }
        if socket.wasReset {
            socket.wasReset = false
            socket.inputHasEnded = true
            return -Int(ECONNRESET)
        }
        return socket.inputHasEnded ? 0 : nil
    }

    private func send(_ socket: Socket, _ bytes: UnsafeRawBufferPointer) -> Int? {
        if !socket.wasConnected { return -Int(ENOTCONN) }
        if socket.wasReset {
            socket.wasReset = false
            (socket.inputHasEnded, socket.outputHasEnded) = (true, true)
            return -Int(ECONNRESET)
        }
        guard !socket.outputHasEnded, let peer = socket.peer else { return -Int(EPIPE) }
        let count = min(bytes.count, socket.room)
        if count == 0 { return nil }
        peer.input.append(contentsOf: bytes[..<count])
        serve(peer)
        return count
    }

    private func accept(_ listener: Socket, _ peer: UnsafeMutablePointer<sockaddr_storage>?) -> Int? {
        if !listener.isListening { return -Int(EINVAL) }
        guard !listener.queue.isEmpty else { return nil }
        let socket = listener.queue.removeFirst()
        if let peer {
            var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
            _ = Self.copy(socket.peerName, socket.domain, to: peer, &length)
        }
        let number = Int(add(socket))
        admit(listener)
        return number
    }

    private func connect(_ socket: Socket, to name: [UInt8], _ completion: CompletionPointer) -> Int? {
        if socket.wasConnected { return -Int(EISCONN) }
        guard let listener = listener(at: name, socket.domain) else {
            return socket.domain == AF_UNIX ? -Int(ENOENT) : -Int(ECONNREFUSED)
        }
        if socket.name.isEmpty { socket.name = loopback(like: name, socket.domain) }
        socket.peerName = name
        if listener.queue.count > listener.backlog {
            if socket.domain == AF_UNIX { return -Int(EAGAIN) }
            listener.arriving.append((socket, completion))
            return nil
        }
        arrive(socket, at: listener)
        return 0
    }

    private func arrive(_ socket: Socket, at listener: Socket) {
        let other = Socket(domain: socket.domain)
        (other.name, other.peerName) = (socket.peerName, socket.name)
        connect(socket, other)
        listener.queue.append(other)
        serve(listener)
    }

    /// Lets those connect that have waited for room.
    private func admit(_ listener: Socket) {
        while listener.queue.count <= listener.backlog && !listener.arriving.isEmpty {
            let (socket, completion) = listener.arriving.removeFirst()
            arrive(socket, at: listener)
            onResult(completion, 0)
        }
    }

    // Ending.

    private func shutdown(_ socket: Socket, _ how: Int32) -> Int {
        if socket.isListening {
            endListening(socket)
            return 0
        }
        guard socket.wasConnected, !socket.wasReset else { return -Int(ENOTCONN) }
        if how != Int32(SHUT_WR) { socket.inputHasEnded = true }
        if how != Int32(SHUT_RD) {
            socket.outputHasEnded = true
            socket.peer?.inputHasEnded = true
            if let peer = socket.peer { serve(peer) }
        }
        serve(socket)
        return 0
    }

    private func endListening(_ listener: Socket) {
        listeners[listener.name] = nil
        let (queue, arriving) = (listener.queue, listener.arriving)
        (listener.queue, listener.arriving, listener.backlog) = ([], [], -1)
        for socket in queue { close(socket, resets: true) }
        for (_, completion) in arriving { onResult(completion, -Int(ECONNREFUSED)) }
        serve(listener)
    }

    private func close(_ socket: Socket, resets: Bool = false) {
        socket.isClosed = true
        if socket.isListening { endListening(socket) }
        for (_, completion) in socket.requests { onResult(completion, -Int(ECANCELED)) }
        socket.requests = []
        guard let peer = socket.peer else { return }
        // Input that nobody has read resets the connection.
        if resets || socket.options[-1] == 1 || !socket.input.isEmpty {
            peer.wasReset = true
            if socket.domain != AF_UNIX { peer.input = [] }
        }
        (peer.inputHasEnded, peer.outputHasEnded) = (true, true)
        peer.peer = nil
        serve(peer)
    }
}
