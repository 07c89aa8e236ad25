// SPDX-License-Identifier: Apache-2.0

// What a socket address accepts, refuses, prints and hands to the kernel. Random cases come from a fixed seed, so a failure repeats.

import CFiber
import FiberNet
import Testing

#if canImport(Glibc)
    import Glibc
    private let streamSocket = Int32(SOCK_STREAM.rawValue)
#elseif canImport(Musl)
    import Musl
    private let streamSocket = SOCK_STREAM
#endif

@Suite struct SocketAddressTests {
    // MARK: Making one

    @Test func constructors_giveTheAddressTheyName() throws {
        #expect(SocketAddress.loopback(port: 80).description == "127.0.0.1:80")
        #expect(SocketAddress.loopbackV6(port: 80).description == "[::1]:80")
        #expect(SocketAddress.any(port: 0).description == "0.0.0.0:0")
        #expect(SocketAddress.anyV6(port: 65535).description == "[::]:65535")
        #expect(try SocketAddress.unix(path: "/run/a.sock").description == "unix:/run/a.sock")
        #expect(try SocketAddress.unix(path: "a.sock").description == "unix:a.sock")
        #expect(try SocketAddress.unixAbstract(name: "a").description == "unix:@a")
    }

    #if compiler(>=6.2)
        @Test func loopback_stopsTheProgram_whenPortIsOutOfRange() async {
            let large = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                _ = SocketAddress.loopback(port: 65536)
            }
            expectMessage(large, "port 65536 is outside 0...65535; for a port that comes from outside use SocketAddress(host:port:)")
            let negative = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                _ = SocketAddress.anyV6(port: -1)
            }
            expectMessage(negative, "port -1 is outside")
        }
    #endif

    @Test func unix_throws_whenPathIsEmptyTooLongOrContainsNUL() throws {
        expectProblem("empty") { () throws(SocketAddressError) in try .unix(path: "") }
        expectProblem("NUL") { () throws(SocketAddressError) in try .unix(path: "/a\0b") }
        expectProblem("109 bytes") { () throws(SocketAddressError) in try .unix(path: "/" + String(repeating: "é", count: 54)) }
        #expect(try SocketAddress.unix(path: String(repeating: "é", count: 54)).path?.utf8.count == 108)
    }

    @Test func unixAbstract_throws_whenNameIsTooLong() throws {
        expectProblem("108 bytes") { () throws(SocketAddressError) in try .unixAbstract(name: String(repeating: "a", count: 108)) }
        _ = try SocketAddress.unixAbstract(name: String(repeating: "a", count: 107))
    }

    @Test(arguments: [
        ("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80"), ("::ffff:1.2.3.4", "[::ffff:1.2.3.4]:80"), ("fe80::1%2", "[fe80::1%2]:80"),
    ])
    func initHostPort_acceptsLiterals(host: String, text: String) throws {
        let address = try SocketAddress(host: host, port: 80)
        #expect(address == (try SocketAddress(parsing: text)))
        #expect(address.host == host)
    }

    @Test(arguments: [
        ("localhost", "Connection.connect(host:port:)"), ("", "missing"), ("[::1]", "brackets"), ("::g", "IPv6"),
        ("127.0.0.1\0", "control"),
        ("127.0.0.1 ", "space"), ("::1\0", "control"), ("127.1", "four numbers"), ("::1%", "scope"),
    ])
    func initHostPort_rejectsEverythingElse(host: String, problem: String) {
        expectProblem(problem, with: host) { () throws(SocketAddressError) in try SocketAddress(host: host, port: 80) }
    }

    @Test(arguments: [-1, 65536, Int.min, Int.max])
    func initHostPort_rejectsPortOutOfRange(port: Int) {
        expectProblem("0 to 65535", with: String(port)) { () throws(SocketAddressError) in try SocketAddress(host: "::1", port: port) }
    }

    // MARK: Parts

    @Test func parts_areThoseOfTheFamily() throws {
        let v4 = try SocketAddress(parsing: "1.2.3.4:5")
        #expect((v4.family, v4.host, v4.port, v4.path) == (.ipv4, "1.2.3.4", 5, nil))
        #expect(v4.domain == AF_INET)
        let v6 = try SocketAddress(parsing: "[fe80::1%7]:5")
        #expect((v6.family, v6.host, v6.port, v6.path) == (.ipv6, "fe80::1%7", 5, nil))
        #expect(v6.domain == AF_INET6)
        let file = try SocketAddress(parsing: "/a")
        #expect((file.family, file.host, file.port, file.path) == (.unix, nil, nil, "/a"))
        #expect(file.domain == AF_UNIX)
        #expect(try SocketAddress(parsing: "unix:@a").path == nil)
        #expect(try SocketAddress(parsing: "unix:").path == nil)
    }

    @Test func path_isNil_whenNotUTF8() throws {
        let address = try SocketAddress(parsing: "unix:/\\xff")
        #expect(address.path == nil)
        #expect(address.description == "unix:/\\xff")
    }

    @Test(arguments: [
        ("1.2.3.4:5", "1.2.3.4:6"), ("1.2.3.4:5", "1.2.3.5:5"), ("1.2.3.4:5", "[::ffff:1.2.3.4]:5"), ("[::1]:5", "[::1%1]:5"),
        ("unix:a", "unix:@a"), ("unix:@", "unix:"), ("unix:@a", "unix:@a\\x00"), ("unix:@a", "unix:\\x40a"), ("/a", "/A"),
        ("/\u{e9}", "/e\u{301}"),
    ])
    func addresses_differ_whenAnyPartDoes(left: String, right: String) throws {
        #expect(try SocketAddress(parsing: left) != SocketAddress(parsing: right))
    }

    // MARK: Text

    @Test(arguments: [
        ("127.0.0.1:80", "127.0.0.1:80"), ("255.255.255.255:65535", "255.255.255.255:65535"), ("[::1]:80", "[::1]:80"),
        ("[2001:DB8:0:0:1:0:0:1]:80", "[2001:db8::1:0:0:1]:80"), ("[2001:db8:0:1:1:1:1:1]:80", "[2001:db8:0:1:1:1:1:1]:80"),
        ("[0001::]:0", "[1::]:0"), ("[::FFFF:102:304]:1", "[::ffff:1.2.3.4]:1"), ("[fe80::1%2]:80", "[fe80::1%2]:80"),
        ("[::1%4294967295]:80", "[::1%4294967295]:80"), ("/absolute/path", "unix:/absolute/path"), ("unix:/path", "unix:/path"),
        ("unix:@abstract", "unix:@abstract"), ("unix:@", "unix:@"), ("unix:", "unix:"), ("unix:relative", "unix:relative"),
        ("/with space:and\\backslash", "unix:/with space:and\\x5cbackslash"), ("unix:/a\\x0Ab", "unix:/a\\x0ab"),
        ("unix:\\x40path", "unix:\\x40path"), ("unix:@@\\x40", "unix:@@@"), ("/@", "unix:/@"), ("unix:@\\xc3\\xa9", "unix:@é"),
        ("unix:@é\\xff", "unix:@\\xc3\\xa9\\xff"), ("unix:\u{301}", "unix:\u{301}"), ("unix:@a\0b", "unix:@a\\x00b"),
    ])
    func parse_acceptsText_andPrintsItCanonically(text: String, canonical: String) throws {
        let address = try SocketAddress(parsing: text)
        #expect(address.description == canonical)
        #expect(try SocketAddress(parsing: canonical) == address)
    }

    @Test func parse_acceptsInterfaceName_andPrintsItsIndex() throws {
        let index = if_nametoindex("lo")
        try #require(index > 0)
        #expect(try SocketAddress(parsing: "[fe80::1%lo]:80").description == "[fe80::1%\(index)]:80")
    }

    @Test(arguments: ["::1:80", "::1", "2001:db8::1:80", "fe80::1%lo:80", "1:2:3"])
    func parse_rejectsUnbracketedIPv6_withHint(text: String) { expectRejected(text, "\"[::1]:80\"") }

    @Test(arguments: [
        "localhost:80", "example.org:80", "bücher.example:80", "0x7f.0.0.1:80", "1.2.3.4a:80", "\u{ff11}.2.3.4:80", "*:80",
        "localhost:http",
    ])
    func parse_rejectsName_withHintWhatTakesNames(text: String) { expectRejected(text, "Connection.connect(host:port:)") }

    @Test(arguments: ["1.2.3.4", "localhost", "80", "[::1]", "[::1]80", "[::1]]:80", "hello"])
    func parse_rejectsMissingPort_withHint(text: String) { expectRejected(text, "missing") }

    @Test(arguments: ["65536", "-1", "+80", "", "080", "00", "0x50", "8o", "99999999999999999999", "١", "80/"])
    func parse_rejectsPort_thatIsNoNumberFrom0To65535(port: String) {
        expectRejected("127.0.0.1:" + port, "0 to 65535")
        expectRejected("[::1]:" + port, "0 to 65535")
    }

    @Test(arguments: ["1.2.3:80", "01.2.3.4:80", "1.2.3.256:80", "1.2.3.4.5:80", "1..3.4:80", ".:80", "16909060:80"])
    func parse_rejectsIPv4_thatIsNotFourNumbers(text: String) { expectRejected(text, "four numbers") }

    @Test(arguments: [
        "[]:80", "[:::]:80", "[1::2::3]:80", "[::12345]:80", "[1.2.3.4]:80", "[localhost]:80", "[[::1]:80", "[::ffff:01.2.3.4]:80",
    ])
    func parse_rejectsBrackets_withoutIPv6Inside(text: String) { expectRejected(text, "not an IPv6 address") }

    @Test(arguments: ["%", "%0", "%02", "%4294967296", "%lo:1", "%-1", "%%", "%no-such-if", "%name-longer-than-15-bytes"])
    func parse_rejectsScope_thatIsNoInterface(scope: String) { expectRejected("[fe80::1\(scope)]:80", "fe80::1%eth0") }

    @Test(arguments: [
        " ", " 127.0.0.1:80", "127.0.0.1:80 ", "127.0.0.1 :80", "127.0.0.1:80\n", "1.2.3.4\0:80", "[::1\0]:80", "[::1%lo\0]:80",
    ])
    func parse_rejectsSpacesAndControlCharacters(text: String) { expectRejected(text, "space or control") }

    @Test(arguments: [
        ("", "is empty"), (":80", "host is missing"), ("[::1:80", "not closed"), ("@abstract", "\"unix:@name\""), ("/a\0b", "NUL"),
        ("unix:/a\\x00b", "NUL"), ("unix:/a\\b", "\\x5c"), ("unix:/a\\x1", "\\x5c"), ("unix:/a\\x+f", "\\x5c"), ("unix:/\\", "\\x5c"),
        ("UNIX:/a", "Connection.connect(host:port:)"),
        ("/" + String(repeating: "a", count: 108), "109 bytes"),
        ("unix:@" + String(repeating: "a", count: 108), "108 bytes"),
    ])
    func parse_rejectsOtherMalformedText_withHint(text: String, problem: String) { expectRejected(text, problem) }

    @Test func error_quotesTheTextInOneLine() {
        let error = #expect(throws: SocketAddressError.self) { try SocketAddress(parsing: "a\nb") }
        #expect(error?.description.hasPrefix("\"a\\nb\" is not a socket address: ") == true)
        #expect(error?.description.contains("\n") == false)
    }

    @Test func parse_throwsOrRoundTrips_forRandomText() throws {
        var random = SplitMix64(state: 0xF1BE_0002)
        let pieces = [
            "0", "1", "9", "25", "65535", "fe80", "::", ":", ":", ".", ".", "[", "]", "]:80", "%", "/", "@", "\\", "\\x", "unix:", "unix:@",
            "127.0.0.1", "::1", "-", "+", " ", "\0", "\u{301}", "é", "x", "lo", "\u{1F9F5}", "\n",
        ]
        var accepted = 0
        for _ in 0..<10_000 {
            let text = (0..<Int.random(in: 0...7, using: &random)).map { _ in pieces.randomElement(using: &random)! }.joined()
            do throws(SocketAddressError) {
                let address = try SocketAddress(parsing: text)
                accepted += 1
                let again = try SocketAddress(parsing: address.description)
                #expect(again == address, "from \(text.debugDescription)")
            } catch {
                #expect(error.text == text, "the printed form was refused: \(error)")
                #expect(!error.problem.isEmpty)
            }
        }
        #expect(accepted > 500, "the pieces should make good texts too")
    }

    // MARK: sockaddr

    @Test func randomAddress_roundTripsThroughTextAndSockaddr() throws {
        var random = SplitMix64(state: 0xF1BE_0001)
        for _ in 0..<scaled(10_000, sanitized: 1_000) {
            let address = try #require(randomAddress(using: &random))
            let parsed = try SocketAddress(parsing: address.description)
            #expect(parsed == address, "\(address)")
            #expect(parsed.hashValue == address.hashValue)
            let copied = address.withSockaddr { SocketAddress($0, length: $1) }
            #expect(copied == address, "\(address)")
            if let host = address.host, let port = address.port { #expect(try SocketAddress(host: host, port: port) == address) }
            if let path = address.path { #expect(try SocketAddress.unix(path: path) == address) }
        }
    }

    @Test func sockaddr_equalsOne_thatDiffersInPaddingOrFlowOnly() throws {
        let v4 = SocketAddress.loopback(port: 80)
        #expect(received(v4.bytes.dropLast(8) + Array(repeating: 0xAA, count: 8)) == v4)
        let v6 = SocketAddress.loopbackV6(port: 80)
        var flow = v6.bytes
        flow.replaceSubrange(4..<8, with: [1, 2, 3, 4])
        #expect(received(flow) == v6)
    }

    @Test func sockaddr_isNetworkOrder() {
        #expect(SocketAddress.loopback(port: 0x1234).bytes[2..<8] == [0x12, 0x34, 127, 0, 0, 1])
        #expect(SocketAddress.loopbackV6(port: 0x1234).bytes[2..<4] == [0x12, 0x34])
        #expect(SocketAddress.loopbackV6(port: 1).bytes[8..<24] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    }

    @Test(arguments: [
        ([], "unix:"), ([0], "unix:@"), (Array("/a".utf8), "unix:/a"), (Array("/a\0".utf8), "unix:/a"), (Array("/a\0junk".utf8), "unix:/a"),
        (Array("\0a".utf8), "unix:@a"), (Array("\0a\0b\0".utf8), "unix:@a\\x00b\\x00"), ([0, 0xFF, 0x61], "unix:@\\xffa"),
        ([0xFF], "unix:\\xff"), (Array("@a".utf8), "unix:\\x40a"),
    ])
    func sockaddr_givesTheName_byLengthAndNUL(name: [UInt8], text: String) throws {
        let address = try #require(received(family(AF_UNIX) + name))
        #expect(address.description == text)
        #expect(try SocketAddress(parsing: text) == address)
    }

    @Test func sockaddr_isNil_whenFamilyIsUnknownOrLengthTooShort() {
        #expect(received(family(AF_PACKET) + Array(repeating: 0, count: 30)) == nil)
        #expect(received(family(AF_UNSPEC)) == nil)
        for length in 0..<16 { #expect(received(SocketAddress.loopback(port: 1).bytes, length: length) == nil) }
        for length in 0..<28 { #expect(received(SocketAddress.loopbackV6(port: 1).bytes, length: length) == nil) }
        for length in 0..<2 { #expect(received(family(AF_UNIX), length: length) == nil) }
    }

    @Test func bound_returnsTheHostAndChosenPort() throws {
        let name = try #require(boundName(.loopback(port: 0)))
        #expect(name.host == "127.0.0.1")
        #expect(name.port != 0)
    }

    @Test func bound_returnsTheSameAbstractName_withEveryByte() throws {
        let address = try SocketAddress(parsing: "unix:@swift-fibers-\(getpid())\\x00\\xff\\x00")
        #expect(boundName(address) == address)
    }

    @Test(arguments: [107, 108])
    func bound_returnsTheSamePath_whenItFillsTheAddress(length: Int) throws {
        let prefix = "/tmp/swift-fibers-\(getpid())-\(length)-"
        let address = try SocketAddress.unix(path: prefix + String(repeating: "a", count: length - prefix.utf8.count))
        let path = try #require(address.path)
        defer { unlink(path) }
        #expect(boundName(address) == address)
    }

    @Test func bound_getsAbstractName_whenUnnamed() throws {
        let name = try #require(boundName(SocketAddress(parsing: "unix:")))
        #expect(name.description.hasPrefix("unix:@"))
        #expect(name.description.utf8.count == "unix:@".utf8.count + 5)
    }

    // MARK: Helpers

    private func expectRejected(_ text: String, _ hint: String, at location: SourceLocation = #_sourceLocation) {
        expectProblem(hint, with: text, at: location) { () throws(SocketAddressError) in try SocketAddress(parsing: text) }
    }

    private func expectProblem(
        _ hint: String, with text: String? = nil, at location: SourceLocation = #_sourceLocation,
        _ make: () throws(SocketAddressError) -> SocketAddress
    ) {
        do throws(SocketAddressError) {
            let address = try make()
            Issue.record("accepted as \(address)", sourceLocation: location)
        } catch {
            #expect(error.problem.contains(hint), "\(error)", sourceLocation: location)
            if let text { #expect(error.text == text, sourceLocation: location) }
        }
    }

    /// The address as `getsockname` gives it for a socket bound to `address`, or `nil` when the kernel refuses.
    private func boundName(_ address: SocketAddress) -> SocketAddress? {
        let descriptor = socket(address.domain, streamSocket, 0)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        guard address.withSockaddr({ bind(descriptor, $0, $1) }) == 0 else { return nil }
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        return withUnsafeMutablePointer(to: &storage) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                getsockname(descriptor, $0, &length) == 0 ? SocketAddress($0, length: length) : nil
            }
        }
    }

    private func randomAddress(using random: inout SplitMix64) -> SocketAddress? {
        // Few distinct bytes in half of the cases, so that zero runs, NULs and `@` come up.
        let anyByte = Bool.random(using: &random)
        let alphabet: [UInt8] = anyByte ? Array(0...255) : [0, 0, 0x40, 0x5C, 0x61, 0xC3, 0xA9]
        func bytes(_ count: Int, from smallest: UInt8 = 0) -> [UInt8] {
            (0..<count).map { _ in max(alphabet.randomElement(using: &random)!, smallest) }
        }
        switch Int.random(in: 0..<5, using: &random) {
        case 0: return received(family(AF_INET) + bytes(14))
        case 1: return received(family(AF_INET6) + bytes(26))
        case 2: return received(family(AF_UNIX) + bytes(Int.random(in: 1...108, using: &random), from: 1))
        case 3: return received(family(AF_UNIX) + [0] + bytes(Int.random(in: 0...107, using: &random)))
        default: return received(family(AF_UNIX) + bytes(Int.random(in: 0...4, using: &random)))
        }
    }
}

/// Gives the bytes to the address as the kernel would, at the address that suits them least.
private func received(_ bytes: [UInt8], length: Int? = nil) -> SocketAddress? {
    withUnsafeTemporaryAllocation(byteCount: 2 + 128, alignment: 4) { memory in
        let place = UnsafeMutableRawBufferPointer(rebasing: memory[2...])
        place.copyBytes(from: bytes)
        return place.withMemoryRebound(to: sockaddr.self) { SocketAddress($0.baseAddress!, length: socklen_t(length ?? bytes.count)) }
    }
}

private func family(_ domain: Int32) -> [UInt8] {
    withUnsafeBytes(of: sa_family_t(domain), Array.init)
}

extension SocketAddress {
    fileprivate var bytes: [UInt8] {
        withSockaddr { Array(UnsafeRawBufferPointer(start: $0, count: Int($1))) }
    }
}

/// Sebastiano Vigna's splitmix64: small, seeded, the same everywhere.
private struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ mixed >> 30) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ mixed >> 27) &* 0x94D0_49BB_1331_11EB
        return mixed ^ mixed >> 31
    }
}
