// SPDX-License-Identifier: Apache-2.0

// Prints and parses addresses. For every value, the printed text parses back into the same value:
//
//     127.0.0.1:80    [::1]:80    [fe80::1%2]:80    unix:/run/echo.sock    unix:@abstract    unix: (unnamed)
//
// - A scope prints as the index of the interface, since a name can pass to another interface; parsing accepts an index or a name.
// - After `unix:`, `\xNN` stands for one byte. It is printed for the backslash, control characters, a leading `@` of a path (which would
//   read as abstract), and, in a name that is not valid UTF-8, every byte outside ASCII. So a name of any bytes prints, and parses back.
// - A text that begins with `/` is a path without escapes.
//
// All comparisons are of bytes: as `Character`s, a colon followed by a combining accent is not a colon.

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// The reason why a text is not a socket address.
public struct SocketAddressError: Error, Sendable, Hashable, CustomStringConvertible {
    /// The text (or host, port, path, name) that was refused, as given.
    public let text: String

    /// The problem and an example of a correct text, for people.
    public let problem: String

    /// The text and its problem in one line.
    public var description: String {
        "\(text.debugDescription) is not a socket address: \(problem)"
    }
}

extension SocketAddress: CustomStringConvertible {
    /// Parses the text of an address.
    ///
    /// Accepted are `127.0.0.1:80`, `[::1]:80`, `[fe80::1%eth0]:80` and `[fe80::1%2]:80` (with the scope as name or index of a network
    /// interface), `/absolute/path`, `unix:/path`, `unix:@abstract`, and `unix:` for an unnamed socket. After `unix:`, `\xNN` stands for
    /// the byte with that hexadecimal value. Host names are refused: `Connection.connect(host:port:)` connects to them, and ``Resolver``
    /// looks them up.
    ///
    /// - Throws: `SocketAddressError`, which names the problem and shows a correct text.
    public init(parsing text: String) throws(SocketAddressError) {
        self.init(try Self.storage(of: text, by: Self.parse))
    }

    /// Creates the address of an IP literal and a port, without resolving names.
    ///
    /// - Parameters:
    ///   - host: `127.0.0.1`, `::1`, `fe80::1%eth0` or `fe80::1%2`; no brackets.
    ///   - port: 0 to 65535.
    /// - Throws: `SocketAddressError` when the host is not an IP literal or the port is out of range.
    public init(host: String, port: Int) throws(SocketAddressError) {
        guard let port = UInt16(exactly: port) else {
            throw SocketAddressError(text: String(port), problem: "a port is a number from 0 to 65535")
        }
        let storage = try Self.storage(of: host) { bytes throws(Malformed) in
            try Self.refuseSpaces(bytes[...])
            if bytes.first == UInt8(ascii: "[") {
                throw Malformed("brackets belong to the text with a port; give the host alone, as in \"::1\"")
            }
            if bytes.contains(UInt8(ascii: ":")) { return try Self.ipv6(bytes[...], port: port) }
            return .ipv4(address: try Self.ipv4(bytes[...]), port: port)
        }
        self.init(storage)
    }

    /// The IP literal, such as `127.0.0.1` or `fe80::1%2`, or `nil` for a Unix socket.
    ///
    /// IPv6 is written in the form of RFC 5952, with the scope (if any) as the index of the interface.
    public var host: String? {
        switch storage {
        case .ipv4(let address, _): Self.literal(address)
        case .ipv6(let high, let low, let scope, _): Self.literal(in6_addr(high: high, low: low), scope: scope)
        case .unixPath, .unixAbstract, .unixUnnamed: nil
        }
    }

    /// The text of the address, which `init(parsing:)` turns back into the same address.
    ///
    /// A Unix name prints as UTF-8 with `\xNN` for backslashes and control characters; in a name that is not valid UTF-8, every byte
    /// outside ASCII prints as `\xNN` too.
    public var description: String {
        switch storage {
        case .ipv4(let address, let port):
            "\(Self.literal(address)):\(port)"
        case .ipv6(let high, let low, let scope, let port):
            "[\(Self.literal(in6_addr(high: high, low: low), scope: scope))]:\(port)"
        case .unixPath(let path): "unix:\(Self.escaped(path, evenFirst: UInt8(ascii: "@")))"
        case .unixAbstract(let name): "unix:@\(Self.escaped(name))"
        case .unixUnnamed: "unix:"
        }
    }

    // MARK: Parsing

    /// A parsing error whose text is not known yet.
    struct Malformed: Error {
        let problem: String
        init(_ problem: String) { self.problem = problem }
    }

    static func storage(of text: String, by parse: ([UInt8]) throws(Malformed) -> Storage) throws(SocketAddressError) -> Storage {
        do throws(Malformed) {
            return try parse(Array(text.utf8))
        } catch {
            throw SocketAddressError(text: text, problem: error.problem)
        }
    }

    private static func parse(_ bytes: [UInt8]) throws(Malformed) -> Storage {
        let text = bytes[...]
        if text.isEmpty {
            throw Malformed("it is empty; write \"127.0.0.1:80\", \"[::1]:80\" or \"unix:/path\"")
        }
        if text.first == UInt8(ascii: "/") { return try unixPath(Array(text)) }
        if text.starts(with: "unix:".utf8) { return try unix(text.dropFirst("unix:".utf8.count)) }
        if text.first == UInt8(ascii: "@") { throw Malformed("an abstract Unix name is written \"unix:@name\"") }
        try refuseSpaces(text)

        if text.first == UInt8(ascii: "[") {
            guard let end = text.firstIndex(of: UInt8(ascii: "]")) else {
                throw Malformed("the bracket is not closed; write \"[::1]:80\"")
            }
            let host = text[text.startIndex + 1..<end]
            let rest = text[(end + 1)...]
            guard rest.first == UInt8(ascii: ":") else {
                throw Malformed("after the bracket a colon and the port are missing, as in \"[::1]:80\"")
            }
            return try ipv6(host, port: port(rest.dropFirst()))
        }
        guard let colon = text.firstIndex(of: UInt8(ascii: ":")) else {
            throw Malformed("the port is missing; an address is written \"127.0.0.1:80\", \"[::1]:80\" or \"unix:/path\"")
        }
        let rest = text[(colon + 1)...]
        if rest.contains(UInt8(ascii: ":")) {
            throw Malformed("it has several colons but no brackets; an IPv6 address is written in brackets, as in \"[::1]:80\"")
        }
        // The host first: in "localhost:http" the name is the more useful error.
        let address = try ipv4(text[..<colon])
        return .ipv4(address: address, port: try port(rest))
    }

    /// An IP address never contains spaces, and a NUL would end it early for the C functions below.
    private static func refuseSpaces(_ text: ArraySlice<UInt8>) throws(Malformed) {
        if text.contains(where: { $0 <= 0x20 || $0 == 0x7F }) {
            throw Malformed("it contains a space or control character; write \"127.0.0.1:80\" without any")
        }
    }

    /// The port that the digits name, written as in an address: without sign and leading zeros. Nil for any other text.
    static func number(_ digits: ArraySlice<UInt8>) -> UInt16? {
        isDecimal(digits) ? UInt16(String(decoding: digits, as: UTF8.self)) : nil
    }

    private static func port(_ digits: ArraySlice<UInt8>) throws(Malformed) -> UInt16 {
        guard let port = number(digits) else {
            throw Malformed(
                "the port \(quoted(digits)) is not a number from 0 to 65535 (no sign, no leading zero); write \"127.0.0.1:80\"")
        }
        return port
    }

    private static func ipv4(_ host: ArraySlice<UInt8>) throws(Malformed) -> UInt32 {
        var address = in_addr()
        if inet_pton(AF_INET, String(decoding: host, as: UTF8.self), &address) == 1 {
            return UInt32(bigEndian: address.s_addr)
        }
        if host.isEmpty {
            throw Malformed("the host is missing; to listen everywhere write \"0.0.0.0\" or \"[::]\" before the port")
        }
        if host.allSatisfy({ $0 == UInt8(ascii: ".") || isDigit($0) }) {
            throw Malformed("\(quoted(host)) is not four numbers from 0 to 255 without leading zeros, as in \"127.0.0.1\"")
        }
        throw Malformed(
            "\(quoted(host)) is not an IP address; write one such as \"127.0.0.1\", or use a name by Connection.connect(host:port:) or Resolver.default"
        )
    }

    private static func ipv6(_ host: ArraySlice<UInt8>, port: UInt16) throws(Malformed) -> Storage {
        let percent = host.firstIndex(of: UInt8(ascii: "%"))
        let digits = host[..<(percent ?? host.endIndex)]
        var address = in6_addr()
        guard inet_pton(AF_INET6, String(decoding: digits, as: UTF8.self), &address) == 1 else {
            throw Malformed("\(quoted(digits)) is not an IPv6 address; brackets hold one such as \"::1\" or \"fe80::1%eth0\"")
        }
        let scope = if let percent { try scope(host[(percent + 1)...]) } else { 0 as UInt32 }
        let (high, low) = address.halves
        return .ipv6(high: high, low: low, scope: scope, port: port)
    }

    /// The index of a network interface. Digits are always an index, so a printed scope keeps its meaning even if an interface has digits
    /// for a name.
    private static func scope(_ zone: ArraySlice<UInt8>) throws(Malformed) -> UInt32 {
        let remedy = "write \"fe80::1%eth0\" or \"fe80::1%2\""
        if zone.allSatisfy(isDigit) {
            guard isDecimal(zone), let index = UInt32(String(decoding: zone, as: UTF8.self)), index > 0 else {
                throw Malformed("the scope \(quoted(zone)) is not the index of a network interface, 1 or more; \(remedy)")
            }
            return index
        }
        // The kernel ignores everything after a colon, and musl everything after 15 bytes, so such a name would find another interface.
        guard zone.count < Int(IF_NAMESIZE), !zone.contains(UInt8(ascii: ":")) else {
            throw Malformed("the scope \(quoted(zone)) is not the name of a network interface; \(remedy)")
        }
        let index = if_nametoindex(String(decoding: zone, as: UTF8.self))
        guard index > 0 else {
            let reason = String(cString: strerror(errno))
            throw Malformed("the network interface \(quoted(zone)) of the scope cannot be found (\(reason)); \(remedy)")
        }
        return index
    }

    // MARK: Unix names

    /// Parses the text after `unix:`. The `@` is checked before escapes are decoded, so `\x40` begins a path.
    private static func unix(_ text: ArraySlice<UInt8>) throws(Malformed) -> Storage {
        if text.isEmpty { return .unixUnnamed }
        if text.first == UInt8(ascii: "@") { return try unixAbstract(unescaped(text.dropFirst())) }
        return try unixPath(unescaped(text))
    }

    static func unixPath(_ bytes: [UInt8]) throws(Malformed) -> Storage {
        if bytes.isEmpty {
            throw Malformed("the path of a Unix socket is empty; write one such as \"/run/echo.sock\"")
        }
        if bytes.contains(0) {
            throw Malformed("the path of a Unix socket contains NUL; write \"unix:@name\" for an abstract name")
        }
        if bytes.count > unixCapacity {
            throw Malformed(
                "the path of a Unix socket has \(bytes.count) bytes and may have \(unixCapacity); use one such as \"/run/echo.sock\"")
        }
        return .unixPath(bytes)
    }

    static func unixAbstract(_ bytes: [UInt8]) throws(Malformed) -> Storage {
        // One byte of `sun_path` is the NUL that makes the name abstract.
        if bytes.count > unixCapacity - 1 {
            throw Malformed(
                "the abstract name has \(bytes.count) bytes and may have \(unixCapacity - 1); use one such as \"unix:@echo\"")
        }
        return .unixAbstract(bytes)
    }

    private static func escaped(_ bytes: [UInt8], evenFirst special: UInt8? = nil) -> String {
        let isText = String(validating: bytes, as: UTF8.self) != nil
        var text: [UInt8] = []
        for (position, byte) in bytes.enumerated() {
            switch byte {
            case 0..<0x20, 0x7F, UInt8(ascii: "\\"),
                0x80... where !isText,
                special where position == 0:
                let digits = String(byte, radix: 16)
                text += (byte < 16 ? "\\x0" : "\\x").utf8
                text += digits.utf8
            default:
                text.append(byte)
            }
        }
        return String(decoding: text, as: UTF8.self)
    }

    private static func unescaped(_ text: ArraySlice<UInt8>) throws(Malformed) -> [UInt8] {
        var bytes: [UInt8] = []
        var rest = text
        while let byte = rest.popFirst() {
            guard byte == UInt8(ascii: "\\") else {
                bytes.append(byte)
                continue
            }
            let digits = rest.dropFirst().prefix(2)
            // `allSatisfy` first, because `UInt8("+f", radix: 16)` succeeds too.
            guard rest.first == UInt8(ascii: "x"), digits.count == 2, digits.allSatisfy(isHexDigit),
                let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 16)
            else {
                throw Malformed("after \"unix:\" a backslash begins a byte's number, as in \\x0a; write \\x5c for a backslash")
            }
            bytes.append(value)
            rest = rest.dropFirst(3)
        }
        return bytes
    }

    // MARK: Helpers

    private static func literal(_ address: UInt32) -> String {
        "\(address >> 24).\(address >> 16 & 255).\(address >> 8 & 255).\(address & 255)"
    }

    private static func literal(_ address: in6_addr, scope: UInt32) -> String {
        let digits = withUnsafePointer(to: address) { address in
            String(unsafeUninitializedCapacity: Int(INET6_ADDRSTRLEN)) { buffer in
                // The buffer holds the longest literal and its NUL, so this cannot fail.
                buffer.withMemoryRebound(to: CChar.self) { text in
                    inet_ntop(AF_INET6, address, text.baseAddress!, socklen_t(text.count)).map { strlen($0) } ?? 0
                }
            }
        }
        return scope == 0 ? digits : "\(digits)%\(scope)"
    }

    private static func quoted(_ text: ArraySlice<UInt8>) -> String {
        String(decoding: text, as: UTF8.self).debugDescription
    }

    private static func isDecimal(_ text: ArraySlice<UInt8>) -> Bool {
        !text.isEmpty && text.allSatisfy(isDigit) && (text.count == 1 || text.first != UInt8(ascii: "0"))
    }

    private static func isDigit(_ byte: UInt8) -> Bool {
        UInt8(ascii: "0")...UInt8(ascii: "9") ~= byte
    }

    private static func isHexDigit(_ byte: UInt8) -> Bool {
        isDigit(byte) || UInt8(ascii: "a")...UInt8(ascii: "f") ~= byte | 0x20
    }
}
