// SPDX-License-Identifier: Apache-2.0

import CFiber
import Glibc
public import SystemPackage

/// Why a name has no addresses: what happened, to which name, and what to do.
public struct ResolveError: Error, Hashable, Sendable, CustomStringConvertible {
    /// What happened, for deciding what to do next. More may be added; compare with `==` and keep a default.
    public struct Code: Hashable, Sendable, CustomStringConvertible {
        public let description: String

        /// There is no such host, or no such service. Asking again soon is of no use.
        public static let notFound = Code(description: "not found")
        /// The host is known, and has no address, or none of a family that this machine speaks.
        public static let noAddress = Code(description: "no address")
        /// A name server did not answer, or said that it cannot now. Asking again later may help.
        public static let temporary = Code(description: "temporary failure")
        /// The resolver's own time for a look-up was over (``Resolver/Configuration/timeout``). A `withTimeout` that ends the call throws a `TimeoutError` instead.
        public static let timedOut = Code(description: "timed out")
        /// Descriptors, memory or threads have run out.
        public static let resources = Code(description: "out of resources")
        /// What was given can be no host, service or port, so nobody was asked.
        public static let invalid = Code(description: "invalid")
        /// Anything else; see ``ResolveError/text`` and ``ResolveError/errno``.
        public static let system = Code(description: "system error")
    }

    public let code: Code
    /// The host that was asked for, as given.
    public let host: String
    /// The service or port that was asked for.
    public let service: String
    /// The status of `getaddrinfo` (`EAI_NONAME`…), where it came from there.
    public let status: Int32?
    /// The system's error, where there is one.
    public let errno: Errno?
    /// What happened in words: those of the system (`gai_strerror`), where it came from there.
    public let text: String

    package init(
        _ code: Code, host: String, service: String, status: Int32? = nil, errno: Errno? = nil, text: String
    ) {
        self.code = code
        self.host = host
        self.service = service
        self.status = status
        self.errno = errno
        self.text = text
    }

    public var description: String {
        let cause = errno.map { "\(text): \($0)" } ?? text
        return "look up \(host.debugDescription) (\(service)): \(cause)\(remedy)"
    }

    private var remedy: String {
        switch code {
        case .notFound where status == EAI_SERVICE: "; services are those of /etc/services, or numbers"
        case .notFound, .noAddress: "; check the name (getent ahosts NAME asks the same way)"
        case .temporary: "; check the name servers in /etc/resolv.conf, or try again later"
        case .timedOut:
            "; check the name servers in /etc/resolv.conf, or allow more time (Resolver.Configuration.timeout)"
        case .resources where errno == .tooManyOpenFiles: "; raise the limit on open files (ulimit -n)"
        default: ""
        }
    }
}

extension ResolveError {
    /// The error for a look-up that has failed.
    init(host: String, service: String, status: Int32, errno number: Int32) {
        let errno = status == EAI_SYSTEM ? Errno(rawValue: number) : nil
        let code: Code =
            switch status {
            case EAI_NONAME, EAI_SERVICE: .notFound
            case Int32(CFIBER_NAME_NODATA), Int32(CFIBER_NAME_ADDRFAMILY): .noAddress
            case EAI_AGAIN: .temporary
            case EAI_MEMORY: .resources
            case EAI_SYSTEM:
                switch errno {
                case .tooManyOpenFiles, .tooManyOpenFilesInSystem, .noMemory, .noBufferSpace: .resources
                default: .system
                }
            default: .system
            }
        self.init(
            code, host: host, service: service, status: status, errno: errno, text: String(cString: cfiber_look_up_text(status)))
    }
}
