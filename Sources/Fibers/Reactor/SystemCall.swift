// SPDX-License-Identifier: Apache-2.0

// Calls on sockets that never block. They pass through the backend, so that a simulated one answers them, too.

package import CFiber
import Glibc

package enum SystemCall: BitwiseCopyable {
    /// Creates a socket, non-blocking and close-on-exec. The result is its descriptor.
    case socket(domain: Int32, type: Int32)
    /// Creates two Unix sockets that are connected to each other, of `SOCK_STREAM` or `SOCK_DGRAM`.
    case socketPair(UnsafeMutablePointer<Int32>, UnsafeMutablePointer<Int32>, type: Int32)
    case bind(Int32, UnsafePointer<sockaddr>, socklen_t)
    case listen(Int32, backlog: Int32)
    case localAddress(Int32, UnsafeMutablePointer<sockaddr_storage>, UnsafeMutablePointer<socklen_t>)
    case peerAddress(Int32, UnsafeMutablePointer<sockaddr_storage>, UnsafeMutablePointer<socklen_t>)
    case setOption(Int32, level: Int32, name: Int32, value: Int32)
    case option(Int32, level: Int32, name: Int32, UnsafeMutablePointer<Int32>)
    /// `SO_LINGER`.
    case linger(Int32, on: Int32, seconds: Int32)
    case shutdown(Int32, how: Int32)
    /// Joins or leaves a multicast group.
    case multicast(Int32, UnsafePointer<sockaddr>, socklen_t, interface: UInt32, join: Int32)
    /// Creates a second descriptor for the same open file.
    case duplicate(Int32)
    /// Creates a pipe: its ends for reading and writing, each non-blocking or not.
    case pipe(UnsafeMutablePointer<Int32>, UnsafeMutablePointer<Int32>, readerNonBlocking: Int32, writerNonBlocking: Int32)
    case close(Int32)

    /// Makes the call to the system. Returns its result, or a negative errno.
    package func make() -> Int {
        switch self {
        case .socket(let domain, let type): Int(cfiber_socket(domain, type))
        case .socketPair(let first, let second, let type):
            Int(type == Int32(SOCK_STREAM.rawValue) ? cfiber_socket_pair(first, second) : cfiber_datagram_pair(first, second))
        case .bind(let fd, let address, let length): Int(cfiber_bind(fd, address, length))
        case .listen(let fd, let backlog): Int(cfiber_listen(fd, backlog))
        case .localAddress(let fd, let address, let length): Int(cfiber_local_address(fd, address, length))
        case .peerAddress(let fd, let address, let length): Int(cfiber_peer_address(fd, address, length))
        case .setOption(let fd, let level, let name, let value): Int(cfiber_set_option(fd, level, name, value))
        case .option(let fd, let level, let name, let value): Int(cfiber_get_option(fd, level, name, value))
        case .linger(let fd, let on, let seconds): Int(cfiber_linger(fd, on, seconds))
        case .shutdown(let fd, let how): Int(cfiber_shutdown(fd, how))
        case .multicast(let fd, let group, let length, let interface, let join):
            Int(cfiber_multicast(fd, group, length, interface, join))
        case .duplicate(let fd): Int(cfiber_duplicate(fd))
        case .pipe(let reader, let writer, let first, let second): Int(cfiber_pipe(reader, writer, first, second))
        case .close(let fd): Int(cfiber_close(fd))
        }
    }
}
