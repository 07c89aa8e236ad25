// SPDX-License-Identifier: Apache-2.0

// Listening: where, who may, what is left behind, and what happens when descriptors run out.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct ListenerTests {
        @Test(arguments: Transport.tcp)
        func address_hasThePortThatTheSystemChose(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let port = listener.address.port!
                expect(port > 0)
                expect(try listener.localAddress() == listener.address)
                expect(listener.address == (transport == .ipv4 ? .loopback(port: port) : .loopbackV6(port: port)))
            }
        }

        @Test func address_isTheOneGiven_forUnixSockets() throws {
            try inRuntime {
                let path = freshPath()
                let listener = try Listener.bind(to: .unix(path: path))
                expect(listener.address.path == path)
                listener.close()
                let name = "fibernet-\(getpid())"
                let abstract = try Listener.bind(to: .unixAbstract(name: name))
                expect(try abstract.address == .unixAbstract(name: name))
                let client = try Connection.connect(to: abstract.address)
                try client.writeAll("x")
                expect(try abstract.accept().read(upTo: 1) == Array("x".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func bind_throwsAddressInUse_whenSomebodyListensThere(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let error = expect(.addressInUse) { _ = try Listener.bind(to: listener.address) }
                expect(error?.operation == "bind")
                expect(error?.subject == listener.address.description)
                // The failure took nothing away from the first.
                let client = net.keep(try Connection.connect(to: listener.address))
                try client.writeAll("x")
                expect(try net.keep(listener.accept()).read(upTo: 1) == Array("x".utf8))
            }
        }

        @Test(arguments: Transport.tcp)
        func bind_worksAgain_whenConnectionsOfTheFirstWindDown(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                expect(try listener.option(.reuseAddress))
                let client = net.keep(try Connection.connect(to: listener.address))
                // The side that closes first keeps the address in TIME_WAIT.
                net.keep(try listener.accept()).close()
                expect(try client.readToEnd().isEmpty)
                client.close()
                listener.close()
                let second = net.keep(try Listener.bind(to: listener.address))
                expect(second.address == listener.address)
            }
        }

        @Test(arguments: Transport.tcp)
        func severalListeners_shareAPort_whenTheySaySo(transport: Transport) throws {
            try withNet(transport) { net in
                let first = net.keep(try Listener.bind(to: transport.freshAddress, reusePort: true))
                let second = net.keep(try Listener.bind(to: first.address, reusePort: true))
                expect(try second.option(.reusePort))
                expect(.addressInUse) { _ = try Listener.bind(to: first.address) }
            }
        }

        @Test func bind_throwsAddressNotAvailable_whenItIsNoneOfThisMachine() throws {
            // TEST-NET-1 (RFC 5737).
            try inRuntime {
                let address = try SocketAddress(host: "192.0.2.1", port: 0)
                let error = expect(.addressNotAvailable) { _ = try Listener.bind(to: address) }
                expect(error?.subject == "192.0.2.1:0")
            }
        }

        @Test func bind_throws_whenTheDirectoryDoesNotExist() throws {
            try inRuntime {
                let error = expect(.system) { _ = try Listener.bind(to: .unix(path: freshPath() + "/socket")) }
                expect(error?.errno == .noSuchFileOrDirectory)
            }
        }

        #if compiler(>=6.2)
            @Test func bind_throwsNotPermitted_withoutThePrivilege() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let directory = freshPath()
                        expect(mkdir(directory, 0o755) == 0)
                        expect(chmod(directory, 0o555) == 0)
                        defer { rmdir(directory) }
                        // Root may do everything, so become somebody else.
                        if geteuid() == 0 { expect(seteuid(65_534) == 0) }
                        defer { _ = seteuid(getuid()) }
                        try inRuntime {
                            let error = expect(.notPermitted) { _ = try Listener.bind(to: .unix(path: directory + "/socket")) }
                            expect(error?.description.contains("1024") == false, "\(String(describing: error)): a file has no port")
                            guard unprivilegedPorts > 1 else { return }
                            let other = expect(.notPermitted) { _ = try Listener.bind(to: .loopback(port: 1)) }
                            expect(other?.description.contains("CAP_NET_BIND_SERVICE") == true)
                        }
                    }
                }
            }
        #endif

        @Test func unixFile_isThereWhileListening_andGoneAfterClose() throws {
            try inRuntime {
                let path = freshPath()
                let listener = try Listener.bind(to: .unix(path: path))
                expect(access(path, F_OK) == 0)
                listener.close()
                expect(access(path, F_OK) != 0)
                // And the path can be used again.
                let second = try Listener.bind(to: .unix(path: path))
                // Not twice: what stands there now is somebody else's.
                listener.close()
                expect(access(path, F_OK) == 0)
                second.close()
            }
        }

        @Test func unixFile_stays_whenBindFindsIt() throws {
            try inRuntime {
                let path = freshPath()
                let fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0o600)
                close(fd)
                defer { unlink(path) }
                expect(.addressInUse) { _ = try Listener.bind(to: .unix(path: path)) }
                expect(access(path, F_OK) == 0)
            }
        }

        @Test(arguments: Transport.tcp)
        func backlog_isWhatWasAskedFor(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener(backlog: 7)
                var info = tcp_info()
                var size = socklen_t(MemoryLayout<tcp_info>.size)
                let status = try listener.withFileDescriptor { getsockopt($0.rawValue, Int32(IPPROTO_TCP), TCP_INFO, &info, &size) }
                expect(status == 0)
                // For listeners the kernel reports the length of the queue here.
                expect(info.tcpi_sacked == 7)
                _ = net.keep(try Listener.bind(to: transport.freshAddress, backlog: .max))
            }
        }

        @Test(arguments: Transport.all)
        func accept_timesOut_whenNobodyConnects(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                expect(.timedOut) { _ = try withTimeout(.milliseconds(2)) { try listener.accept() } }
                expect(.timedOut) { _ = try withTimeout(.zero) { try listener.accept() } }
                _ = net.keep(try Connection.connect(to: listener.address))
                _ = net.keep(try withTimeout(.zero) { try listener.accept() })
            }
        }

        @Test(arguments: Transport.all)
        func accept_waits_untilAClientComes(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let accepting = try Fiber.spawnLocal { net.keep(try listener.accept()) }
                letOthersRun()
                expect(!accepting.fiber.isFinished)
                let client = net.keep(try Connection.connect(to: listener.address))
                try client.writeAll("x")
                expect(try accepting.join().read(upTo: 1) == Array("x".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func waitReadable_onAListener_waitsForAClient(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                expect(.timedOut) { try withTimeout(.milliseconds(1)) { try listener.waitReadable() } }
                _ = net.keep(try Connection.connect(to: listener.address))
                try listener.waitReadable()
                _ = net.keep(try withTimeout(.zero) { try listener.accept() })
            }
        }

        @Test(arguments: Transport.all)
        func severalAcceptors_eachGetAClient(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let acceptors = try (0..<5).map { _ in try Fiber.spawnLocal { net.keep(try listener.accept()) } }
                letOthersRun()
                for i in 0..<5 { try net.keep(try Connection.connect(to: listener.address)).writeAll([UInt8(i)]) }
                let bytes = try acceptors.map { try $0.join().read(upTo: 1) }
                expect(Set(bytes) == Set((0..<5).map { [UInt8($0)] }))
            }
        }

        @Test(arguments: Transport.tcp)
        func clientThatGaveUp_isHandedOver_asReset(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                try Connection.connect(to: listener.address).reset()
                let second = net.keep(try Connection.connect(to: listener.address))
                try second.writeAll("second")
                // Linux hands the dead connection out; what matters is that the listener goes on.
                var found: [[UInt8]] = []
                while found.last != Array("second".utf8) {
                    let stream: Connection = net.keep(try withTimeout(.seconds(5)) { try listener.accept() })
                    found.append((try? stream.read(upTo: 10)) ?? [])
                }
                expect(found.count <= 2)
            }
        }

        // Descriptors run out.

        #if compiler(>=6.2)
            @Test func accept_waits_andServesEveryClient_whenDescriptorsComeFree() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let warnings = Box<[String]>([])
                        var configuration = FiberRuntime.Configuration()
                        configuration.onWarning = { warnings.value.append($0) }
                        for transport in Transport.all {
                            warnings.value = []
                            try withNet(transport, configuration) { net in
                                let listener = try net.listener()
                                let clients = try (0..<3).map { _ in net.keep(try Connection.connect(to: listener.address)) }
                                let taken = takeAllDescriptors()
                                var accepted: [Int32] = []
                                let acceptor = try Fiber.spawnLocal {
                                    while accepted.count < clients.count {
                                        let stream = net.keep(try listener.accept())
                                        accepted.append(try stream.withFileDescriptor(\.rawValue))
                                        try stream.writeAll("served")
                                    }
                                }
                                // For a third of a second others run, and the processor idles.
                                let before = processorTime
                                for _ in 0..<30 { try Fiber.sleep(for: .milliseconds(10)) }
                                expect(isSanitized || processorTime - before < 150_000_000, "\(processorTime - before) ns")
                                // The test library's threads may close one of theirs meanwhile.
                                expect(
                                    accepted.count < clients.count && !accepted.contains(where: taken.contains),
                                    "\(accepted) accepted while no descriptor was free")
                                expect(warnings.value.count == 1, "\(warnings.value)")
                                expect(warnings.value.first?.contains("ulimit -n") == true)
                                expect(warnings.value.first?.contains(listener.address.description) == true)
                                taken.forEach { close($0) }
                                try acceptor.join()
                                for client in clients { expect(try client.readExactly(6) == Array("served".utf8)) }
                                expect(warnings.value.count == 1, "\(warnings.value)")
                            }
                        }
                    }
                }
            }

            @Test func acceptThatWaitsForDescriptors_endsAtItsTimeout_orAtClose() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        var configuration = FiberRuntime.Configuration()
                        configuration.onWarning = { _ in }
                        try withNet(.ipv4, configuration) { net in
                            let listener = try net.listener()
                            _ = net.keep(try Connection.connect(to: listener.address))
                            let taken = takeAllDescriptors()
                            expect(.timedOut) { _ = try withTimeout(.milliseconds(20)) { try listener.accept() } }
                            let waiting = try Fiber.spawnLocal { failure { _ = try listener.accept() } }
                            letOthersRun()
                            listener.close()
                            expect(try waiting.join()?.code == .closed)
                            taken.forEach { close($0) }
                        }
                    }
                }
            }
        #endif
    }
}

/// The first port that needs no privilege.
private var unprivilegedPorts: Int {
    let fd = open("/proc/sys/net/ipv4/ip_unprivileged_port_start", O_RDONLY | O_CLOEXEC)
    guard fd >= 0 else { return 1024 }
    defer { close(fd) }
    var bytes = [UInt8](repeating: 0, count: 16)
    let n = read(fd, &bytes, bytes.count)
    return Int(String(decoding: bytes.prefix(max(0, n)), as: UTF8.self).filter(\.isNumber)) ?? 1024
}
