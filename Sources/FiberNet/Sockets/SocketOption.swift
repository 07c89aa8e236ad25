// SPDX-License-Identifier: Apache-2.0

import CFiber
import Glibc

/// A setting of a socket, and the type of its value.
public struct SocketOption<Value: Sendable>: Sendable {
    let level: Int32
    let name: Int32

    /// Any option of `setsockopt` whose value is an `int`.
    public init(level: Int32, name: Int32) {
        self.level = level
        self.name = name
    }
}

extension SocketOption<Bool> {
    /// Send small pieces at once instead of collecting them (`TCP_NODELAY`); on for all TCP streams unless set otherwise.
    public static var noDelay: Self { Self(level: Int32(IPPROTO_TCP), name: TCP_NODELAY) }
    /// Probe a silent peer now and then (`SO_KEEPALIVE`).
    public static var keepAlive: Self { Self(level: SOL_SOCKET, name: SO_KEEPALIVE) }
    /// Listen on an address whose last connections are still winding down (`SO_REUSEADDR`); on for TCP listeners.
    public static var reuseAddress: Self { Self(level: SOL_SOCKET, name: SO_REUSEADDR) }
    /// Let several listeners, or several datagram sockets, share a port (`SO_REUSEPORT`).
    public static var reusePort: Self { Self(level: SOL_SOCKET, name: SO_REUSEPORT) }
    /// Let datagrams be sent to broadcast addresses (`SO_BROADCAST`).
    public static var broadcast: Self { Self(level: SOL_SOCKET, name: SO_BROADCAST) }
    /// Multicast over IPv4 comes to receivers on this machine, too (`IP_MULTICAST_LOOP`); on unless set otherwise.
    public static var multicastLoopback: Self { Self(level: Int32(IPPROTO_IP), name: IP_MULTICAST_LOOP) }
    /// The same over IPv6 (`IPV6_MULTICAST_LOOP`).
    public static var multicastLoopbackV6: Self { Self(level: Int32(IPPROTO_IPV6), name: IPV6_MULTICAST_LOOP) }
}

extension SocketOption<Int> {
    /// Bytes the kernel keeps for data that was not read yet (`SO_RCVBUF`; Linux doubles what is set).
    public static var receiveBufferSize: Self { Self(level: SOL_SOCKET, name: SO_RCVBUF) }
    /// Bytes the kernel keeps for data that was not acknowledged yet (`SO_SNDBUF`; Linux doubles what is set).
    public static var sendBufferSize: Self { Self(level: SOL_SOCKET, name: SO_SNDBUF) }
    /// Routers that a multicast over IPv4 may pass, plus one (`IP_MULTICAST_TTL`); 1, which keeps it in the local network, unless set otherwise.
    public static var multicastTimeToLive: Self { Self(level: Int32(IPPROTO_IP), name: IP_MULTICAST_TTL) }
    /// The same over IPv6 (`IPV6_MULTICAST_HOPS`).
    public static var multicastHopsV6: Self { Self(level: Int32(IPPROTO_IPV6), name: IPV6_MULTICAST_HOPS) }
    /// Seconds of silence before the first keep-alive probe (`TCP_KEEPIDLE`).
    public static var keepAliveIdleSeconds: Self { Self(level: Int32(IPPROTO_TCP), name: TCP_KEEPIDLE) }
}
