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
    /// Sends small pieces at once instead of collecting them (`TCP_NODELAY`); on by default for all TCP streams.
    public static var noDelay: Self { Self(level: Int32(IPPROTO_TCP), name: TCP_NODELAY) }
    /// Probes a silent peer from time to time (`SO_KEEPALIVE`).
    public static var keepAlive: Self { Self(level: SOL_SOCKET, name: SO_KEEPALIVE) }
    /// Allows listening on an address whose last connections are still closing (`SO_REUSEADDR`); on for TCP listeners.
    public static var reuseAddress: Self { Self(level: SOL_SOCKET, name: SO_REUSEADDR) }
    /// Lets several listeners, or several datagram sockets, share a port (`SO_REUSEPORT`).
    public static var reusePort: Self { Self(level: SOL_SOCKET, name: SO_REUSEPORT) }
    /// Allows sending datagrams to broadcast addresses (`SO_BROADCAST`).
    public static var broadcast: Self { Self(level: SOL_SOCKET, name: SO_BROADCAST) }
    /// Delivers multicasts over IPv4 to receivers on this machine too (`IP_MULTICAST_LOOP`); on by default.
    public static var multicastLoopback: Self { Self(level: Int32(IPPROTO_IP), name: IP_MULTICAST_LOOP) }
    /// Delivers multicasts over IPv6 to receivers on this machine too (`IPV6_MULTICAST_LOOP`).
    public static var multicastLoopbackV6: Self { Self(level: Int32(IPPROTO_IPV6), name: IPV6_MULTICAST_LOOP) }
}

extension SocketOption<Int> {
    /// Bytes of kernel buffer for data that was not read yet (`SO_RCVBUF`; Linux doubles the value).
    public static var receiveBufferSize: Self { Self(level: SOL_SOCKET, name: SO_RCVBUF) }
    /// Bytes of kernel buffer for data that was not acknowledged yet (`SO_SNDBUF`; Linux doubles the value).
    public static var sendBufferSize: Self { Self(level: SOL_SOCKET, name: SO_SNDBUF) }
    /// Routers that an IPv4 multicast may pass, plus one (`IP_MULTICAST_TTL`). The default of 1 keeps it in the local network.
    public static var multicastTimeToLive: Self { Self(level: Int32(IPPROTO_IP), name: IP_MULTICAST_TTL) }
    /// Routers that an IPv6 multicast may pass, plus one (`IPV6_MULTICAST_HOPS`). The default of 1 keeps it in the local network.
    public static var multicastHopsV6: Self { Self(level: Int32(IPPROTO_IPV6), name: IPV6_MULTICAST_HOPS) }
    /// Seconds of silence before the first keep-alive probe (`TCP_KEEPIDLE`).
    public static var keepAliveIdleSeconds: Self { Self(level: Int32(IPPROTO_TCP), name: TCP_KEEPIDLE) }
}
