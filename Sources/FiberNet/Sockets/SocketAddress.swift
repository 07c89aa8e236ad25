// SPDX-License-Identifier: Apache-2.0

// A socket address: an IPv4 or IPv6 address with a port, or the name of a Unix socket.
//
// Invariants:
// - A value holds the meaning of an address, never a `sockaddr`: padding, trailing NULs and the IPv6 flow label are not kept. So two
//   addresses are equal exactly when family, address, port, scope and name are.
// - A Unix path has 1 to 108 bytes and no NUL; an abstract name has 0 to 107 arbitrary bytes. Both are bytes, not text, because the kernel
//   promises no more. IP addresses are stored inline, Unix names in one array.
// - Every value has a text form, and that text parses back into the same value (see SocketAddress+Parsing.swift).
//
// Thread rule: a plain value, any thread. Nothing here resolves names or parks.

package import CFiber
import Fibers
import Glibc

/// The address of a socket: IPv4, IPv6 or Unix, the latter including Linux's abstract names.
///
/// ```swift
/// let here: SocketAddress = .loopback(port: 7777)
/// let there = try SocketAddress(parsing: "[fe80::1%eth0]:80")
/// let file = try SocketAddress.unix(path: "/run/echo.sock")
/// ```
///
/// Two addresses are equal when they have the same family, address, port and scope, or the same bytes in the Unix name. An IPv4 address and
/// the IPv6 address that maps it (`::ffff:127.0.0.1`) belong to different families and are not equal.
public struct SocketAddress: Sendable, Hashable {
    /// The kind of network that an address belongs to.
    public enum Family: Sendable, Hashable {
        /// A 32-bit Internet address and a port.
        case ipv4
        /// A 128-bit Internet address, its scope, and a port.
        case ipv6
        /// A socket of this machine: a file, an abstract name, or unnamed.
        case unix
    }

    /// Numbers are in host byte order; `high` holds the first eight bytes of an IPv6 address, `low` the last eight.
    enum Storage: Sendable, Hashable {
        case ipv4(address: UInt32, port: UInt16)
        case ipv6(high: UInt64, low: UInt64, scope: UInt32, port: UInt16)
        case unixPath([UInt8])
        case unixAbstract([UInt8])
        case unixUnnamed
    }

    let storage: Storage

    init(_ storage: Storage) {
        self.storage = storage
    }

    // MARK: Creating an address

    /// The IPv4 loopback address, `127.0.0.1`.
    ///
    /// - Parameter port: 0 to 65535; anything else is a programming error. Listening on 0 lets the system choose.
    public static func loopback(port: Int) -> SocketAddress {
        SocketAddress(.ipv4(address: 0x7F00_0001, port: trusted(port)))
    }

    /// The IPv6 loopback address, `::1`.
    ///
    /// - Parameter port: 0 to 65535; anything else is a programming error. Listening on 0 lets the system choose.
    public static func loopbackV6(port: Int) -> SocketAddress {
        SocketAddress(.ipv6(high: 0, low: 1, scope: 0, port: trusted(port)))
    }

    /// The IPv4 wildcard address, `0.0.0.0`, for listening on every IPv4 address of this machine.
    ///
    /// - Parameter port: 0 to 65535; anything else is a programming error. Listening on 0 lets the system choose.
    public static func any(port: Int) -> SocketAddress {
        SocketAddress(.ipv4(address: 0, port: trusted(port)))
    }

    /// The IPv6 wildcard address, `::`, for listening on every IPv6 address of this machine.
    ///
    /// - Parameter port: 0 to 65535; anything else is a programming error. Listening on 0 lets the system choose.
    public static func anyV6(port: Int) -> SocketAddress {
        SocketAddress(.ipv6(high: 0, low: 0, scope: 0, port: trusted(port)))
    }

    private static func trusted(_ port: Int) -> UInt16 {
        guard let port = UInt16(exactly: port) else {
            misuse(
                "port \(port) is outside 0...65535; for a port that comes from outside use SocketAddress(host:port:), which throws")
        }
        return port
    }

    /// The address of a Unix socket in the file system.
    ///
    /// - Parameter path: 1 to 108 bytes of UTF-8 without NUL, used unchanged. A relative path starts at the working directory at the time
    ///   of use.
    /// - Throws: `SocketAddressError` when the path is empty, too long, or contains NUL.
    public static func unix(path: String) throws(SocketAddressError) -> SocketAddress {
        SocketAddress(try storage(of: path, by: unixPath))
    }

    /// The address of a Unix socket in Linux's abstract namespace, which leaves no file behind and disappears with the last socket that
    /// uses it.
    ///
    /// - Parameter name: at most 107 bytes of UTF-8, without the leading NUL or `@`. Every byte is significant, including NUL. Linux allows
    ///   the empty name.
    /// - Throws: `SocketAddressError` when the name is too long.
    public static func unixAbstract(name: String) throws(SocketAddressError) -> SocketAddress {
        SocketAddress(try storage(of: name, by: unixAbstract))
    }

    // MARK: Components

    /// The kind of network that the address belongs to.
    public var family: Family {
        switch storage {
        case .ipv4: .ipv4
        case .ipv6: .ipv6
        case .unixPath, .unixAbstract, .unixUnnamed: .unix
        }
    }

    /// The port, 0 to 65535, or `nil` for a Unix socket.
    public var port: Int? {
        switch storage {
        case .ipv4(_, let port), .ipv6(_, _, _, let port): Int(port)
        case .unixPath, .unixAbstract, .unixUnnamed: nil
        }
    }

    /// The path of a Unix socket's file, or `nil` for every other address.
    ///
    /// Also `nil` for a path that is not valid UTF-8 (only the kernel can supply one), because a repaired text would name another file.
    public var path: String? { pathBytes.flatMap { String(validating: $0, as: UTF8.self) } }

    /// The path of a Unix socket's file, UTF-8 or not, without a terminating NUL.
    var pathBytes: [UInt8]? {
        guard case .unixPath(let bytes) = storage else { return nil }
        return bytes
    }

    // MARK: Converting to and from `sockaddr`

    /// The first argument of `socket(2)`: `AF_INET`, `AF_INET6` or `AF_UNIX`.
    package var domain: Int32 {
        switch family {
        case .ipv4: AF_INET
        case .ipv6: AF_INET6
        case .unix: AF_UNIX
        }
    }

    /// Calls `body` with the address in the form that `bind(2)` and `connect(2)` take; the pointer is valid only during the call.
    ///
    /// An unnamed Unix address has no bytes after the family. Binding to it lets Linux choose an abstract name.
    package func withSockaddr<R>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> R) -> R {
        switch storage {
        case .ipv4(let address, let port):
            var raw = sockaddr_in()
            raw.sin_family = sa_family_t(AF_INET)
            raw.sin_port = port.bigEndian
            raw.sin_addr.s_addr = address.bigEndian
            return Self.lend(raw, length: MemoryLayout<sockaddr_in>.size, to: body)
        case .ipv6(let high, let low, let scope, let port):
            var raw = sockaddr_in6()
            raw.sin6_family = sa_family_t(AF_INET6)
            raw.sin6_port = port.bigEndian
            raw.sin6_addr = in6_addr(high: high, low: low)
            raw.sin6_scope_id = scope
            return Self.lend(raw, length: MemoryLayout<sockaddr_in6>.size, to: body)
        case .unixPath(let path):
            // The terminating NUL is included where it fits; Linux supplies it for a path that fills `sun_path`.
            return Self.lendUnix(path, at: 0, length: min(path.count + 1, Self.unixCapacity), to: body)
        case .unixAbstract(let name):
            return Self.lendUnix(name, at: 1, length: name.count + 1, to: body)
        case .unixUnnamed:
            return Self.lendUnix([], at: 0, length: 0, to: body)
        }
    }

    /// Reads the address that the kernel wrote to `storage`; `nil` for an unknown family or a length that is too short for its family.
    ///
    /// `length` is the value that the kernel reported. It may exceed `sockaddr_un` by one, for the NUL after a path that fills `sun_path`.
    /// - Precondition: `length` bytes are readable at `storage`, or `sizeof(sockaddr_un)` bytes where `length` exceeds that.
    package init?(_ storage: UnsafePointer<sockaddr>, length: socklen_t) {
        let length = Int(length)
        // Loads are unaligned: a `sockaddr` guarantees two-byte alignment, but `sockaddr_in` needs four.
        let raw = UnsafeRawPointer(storage)
        guard length >= Self.unixOffset else { return nil }
        switch Int32(raw.loadUnaligned(as: sa_family_t.self)) {
        case AF_INET where length >= MemoryLayout<sockaddr_in>.size:
            let address = raw.loadUnaligned(as: sockaddr_in.self)
            self.init(.ipv4(address: UInt32(bigEndian: address.sin_addr.s_addr), port: UInt16(bigEndian: address.sin_port)))
        case AF_INET6 where length >= MemoryLayout<sockaddr_in6>.size:
            let address = raw.loadUnaligned(as: sockaddr_in6.self)
            let (high, low) = address.sin6_addr.halves
            self.init(.ipv6(high: high, low: low, scope: address.sin6_scope_id, port: UInt16(bigEndian: address.sin6_port)))
        case AF_UNIX:
            let count = min(length - Self.unixOffset, Self.unixCapacity)
            let name = UnsafeRawBufferPointer(start: raw + Self.unixOffset, count: count)
            switch name.first {
            case nil: self.init(.unixUnnamed)
            case 0: self.init(.unixAbstract(Array(name.dropFirst())))  // ended by the length; NULs are part of it
            default: self.init(.unixPath(Array(name.prefix { $0 != 0 })))  // ended by a NUL, if there is one
            }
        default:
            return nil
        }
    }

    /// Reads an IP address that the kernel wrote to `storage`. Its length follows from its family, unlike that of a Unix address.
    init?(ip storage: UnsafePointer<sockaddr_storage>) {
        let address = storage.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            SocketAddress($0, length: socklen_t(MemoryLayout<sockaddr_in6>.size))
        }
        guard let address, address.family != .unix else { return nil }
        self = address
    }

    /// The bytes before `sun_path` (the family) and the bytes in it (108 on Linux).
    private static let unixOffset = MemoryLayout<sa_family_t>.size
    static let unixCapacity = MemoryLayout<sockaddr_un>.size - unixOffset

    private static func lendUnix<R>(
        _ name: [UInt8], at position: Int, length: Int, to body: (UnsafePointer<sockaddr>, socklen_t) -> R
    ) -> R {
        var raw = sockaddr_un()
        raw.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &raw.sun_path) { $0[position...].copyBytes(from: name) }
        return lend(raw, length: unixOffset + length, to: body)
    }

    /// Every `sockaddr_*` begins with the family and is at least as large as `sockaddr`, so it may be passed as one.
    private static func lend<Raw, R>(_ raw: Raw, length: Int, to body: (UnsafePointer<sockaddr>, socklen_t) -> R) -> R {
        withUnsafePointer(to: raw) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(length)) }
        }
    }
}

extension in6_addr {
    init(high: UInt64, low: UInt64) {
        self.init()
        withUnsafeMutableBytes(of: &self) {
            $0.storeBytes(of: high.bigEndian, toByteOffset: 0, as: UInt64.self)
            $0.storeBytes(of: low.bigEndian, toByteOffset: 8, as: UInt64.self)
        }
    }

    var halves: (high: UInt64, low: UInt64) {
        withUnsafeBytes(of: self) {
            (UInt64(bigEndian: $0.loadUnaligned(as: UInt64.self)), UInt64(bigEndian: $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self)))
        }
    }
}
