// SPDX-License-Identifier: Apache-2.0

// What is asked of the system's resolver, and what it answers. Plain values, any thread.

import CFiber
package import Fibers
import Glibc

/// A name to look up, in the form in which it is compared: names of hosts know no upper case.
package struct NameQuery: Hashable, Sendable {
    package let host: String
    /// Nil where the port is known.
    package let service: String?
    package let kind: Resolver.Kind

    package init(host: String, service: String?, kind: Resolver.Kind) {
        self.host = host
        self.service = service
        self.kind = kind
    }

    /// For messages about a look-up that does not end.
    var title: String { "look up \(host)\(service.map { ":\($0)" } ?? "")" }
}

/// What a look-up brings.
package enum NameAnswer: Sendable {
    /// In the order in which they are to be tried; port 0 where no service was asked for.
    case addresses([SocketAddress])
    /// A status of getaddrinfo, `EAI_…`, and the error number that goes with `EAI_SYSTEM`.
    case failure(status: Int32, errno: Int32 = 0)
    /// There was no thread to ask on.
    case noThread(ResourceError)

    /// What it says about the name.
    enum Certainty {
        case found, absent, unknown
    }

    var certainty: Certainty {
        switch self {
        case .addresses(let addresses): addresses.isEmpty ? .absent : .found
        case .failure(EAI_NONAME, _), .failure(Int32(CFIBER_NAME_NODATA), _), .failure(Int32(CFIBER_NAME_ADDRFAMILY), _): .absent
        case .failure, .noThread: .unknown
        }
    }
}

extension NameQuery {
    /// Asks the system. Blocks.
    package func askSystem() -> NameAnswer {
        var found: UnsafeMutablePointer<sockaddr_storage>?
        var count = 0
        var error: Int32 = 0
        let type = kind == .stream ? SOCK_STREAM : SOCK_DGRAM
        let status = cfiber_look_up(host, service, Int32(type.rawValue), &found, &count, &error)
        if status != 0 { return .failure(status: status, errno: error) }
        defer { cfiber_free(found) }
        let addresses = UnsafeBufferPointer(start: found, count: count).compactMap { storage in
            withUnsafePointer(to: storage) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    SocketAddress($0, length: socklen_t(MemoryLayout<sockaddr_storage>.size))
                }
            }
        }
        // A name that stands twice in /etc/hosts comes twice.
        var seen: Set<SocketAddress> = []
        return .addresses(addresses.filter { seen.insert($0).inserted })
    }
}

extension SocketAddress {
    /// The address with another port; a Unix address as it is.
    func with(port: UInt16) -> SocketAddress {
        switch storage {
        case .ipv4(let address, _): SocketAddress(.ipv4(address: address, port: port))
        case .ipv6(let high, let low, let scope, _): SocketAddress(.ipv6(high: high, low: low, scope: scope, port: port))
        case .unixPath, .unixAbstract, .unixUnnamed: self
        }
    }
}
