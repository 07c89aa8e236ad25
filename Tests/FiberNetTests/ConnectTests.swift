// SPDX-License-Identifier: Apache-2.0

// Connections that cannot be made, and what is left of them.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct ConnectTests {
        @Test(arguments: Transport.tcp)
        func connect_throwsRefused_whenNobodyListens(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let address = listener.address
                listener.close()
                let error = expect(.refused) { _ = try Connection.connect(to: address) }
                expect(error?.errno == .connectionRefused)
                expect(error?.subject == address.description)
                expect(error?.operation == "connect to")
            }
        }

        @Test(arguments: Transport.tcp)
        func stream_isFoundToBeItsOwnPeer_whereItIs(transport: Transport) throws {
            try withNet(transport) { net in
                // What the system does by chance when it chooses the port of a socket that connects.
                let fd = socket(transport == .ipv4 ? AF_INET : AF_INET6, Int32(SOCK_STREAM.rawValue), 0)
                expect(try transport.freshAddress.withSockaddr { bind(fd, $0, $1) } == 0)
                let driver = Worker.here("the test").driver
                let alone = net.keep(try Connection(fd, exact: false, driver: driver, "connect"))
                expect(try alone.localAddress().withSockaddr { connect(fd, $0, $1) } == 0)
                _ = fcntl(fd, F_SETFL, O_NONBLOCK)
                try alone.writeAll("x")
                expect(try alone.read(upTo: 1) == Array("x".utf8))
                expect(alone.isItsOwnPeer)
                let (client, server) = try net.pair()
                expect(!client.isItsOwnPeer && !server.isItsOwnPeer)
            }
        }

        #if compiler(>=6.2)
            @Test func connect_namesTheAddress_whenNoDescriptorIsLeft() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try FiberRuntime.run {
                            var limit = rlimit()
                            getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                            let usual = limit.rlim_cur
                            let next = dup(0)
                            close(next)
                            limit.rlim_cur = rlim_t(next)
                            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                            let error = failure { _ = try Connection.connect(to: .loopback(port: 9)) }
                            let ofHost = thrown { _ = try Connection.connect(host: "127.0.0.1", port: 9) } as? ConnectError
                            let ofListener = failure { _ = try Listener.bind(to: .loopback(port: 9)) }
                            limit.rlim_cur = usual
                            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
                            for error in [error?.io, ofHost?.attempts.first?.error, ofListener?.io] {
                                #expect(error?.code == .resources && error?.subject == "127.0.0.1:9")
                            }
                            #expect(ofHost?.description.contains("socket for 127.0.0.1:9") == true)
                            #expect(ofHost?.description.contains("ulimit -n") == true)
                        }
                    }
                }
            }
        #endif

        @Test func connect_throwsRefused_whenTheFileIsLeftOfAnEarlierListener() throws {
            try inRuntime {
                let path = freshPath()
                defer { unlink(path) }
                let address = try SocketAddress.unix(path: path)
                let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
                expect(address.withSockaddr { bind(fd, $0, $1) } == 0)
                close(fd)
                expect(.refused) { _ = try Connection.connect(to: address) }
            }
        }

        @Test func connect_throws_whenTheFileDoesNotExist() throws {
            try inRuntime {
                let path = freshPath()
                let error = expect(.system) { _ = try Connection.connect(to: .unix(path: path)) }
                expect(error?.errno == .noSuchFileOrDirectory)
                expect(error?.description.contains(path) == true, "\(String(describing: error))")
            }
        }

        @Test func connect_throwsUnreachable_whenThereIsNoWay() throws {
            // TCP to a multicast address: the kernel refuses it before a packet leaves.
            try inRuntime {
                let address = try SocketAddress(host: "224.0.0.1", port: 9)
                let error = expect(.unreachable) { _ = try withTimeout(.seconds(5)) { try Connection.connect(to: address) } }
                expect(error?.subject == "224.0.0.1:9")
            }
        }

        @Test(arguments: Transport.all)
        func connect_timesOut_whenThePeerIsSilent(transport: Transport) throws {
            try withNet(transport) { net in
                let (listener, _) = try fullListener(net)
                let clock = ContinuousClock()
                let start = clock.now
                expect(.timedOut) { _ = try withTimeout(.milliseconds(30)) { try Connection.connect(to: listener.address) } }
                expect(clock.now - start >= .milliseconds(30))
                expect(.timedOut) { _ = try withTimeout(.zero) { try Connection.connect(to: listener.address) } }
            }
        }

        @Test(arguments: Transport.all)
        func others_goOn_whileAConnectWaits(transport: Transport) throws {
            try withNet(transport) { net in
                let (listener, _) = try fullListener(net)
                var turns = 0
                let waiting = try Fiber.spawnLocal {
                    failure { _ = try withTimeout(.milliseconds(30)) { try Connection.connect(to: listener.address) } }
                }
                while !waiting.fiber.isFinished {
                    turns += 1
                    Fiber.yield()
                }
                expect(turns > 10)
                expect(try waiting.join()?.code == .timedOut)
            }
        }

        @Test func connect_succeeds_whenAUnixListenersQueueHasRoomAgain() throws {
            try withNet(.unix) { net in
                let (listener, queued) = try fullListener(net)
                let late = try Fiber.spawnLocal { net.keep(try Connection.connect(to: listener.address)) }
                letOthersRun()
                expect(!late.fiber.isFinished)
                for _ in queued { _ = net.keep(try listener.accept()) }
                try late.join().writeAll("late")
                expect(try net.keep(listener.accept()).readExactly(4) == Array("late".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func manyConnects_atOnce_allSucceed(transport: Transport) throws {
            try withNet(transport) { net in
                let listener = try net.listener(backlog: 128)
                let count = 100
                let clients = try (0..<count).map { i in
                    try Fiber.spawnLocal {
                        let stream = try Connection.connect(to: listener.address)
                        try stream.writeAll([UInt8(i)])
                        return try stream.read(upTo: 1)
                    }
                }
                for _ in 0..<count {
                    let stream = try listener.accept()
                    try Fiber.spawnLocal { try stream.writeAll(try stream.read(upTo: 1)) }
                }
                for (i, client) in clients.enumerated() { expect(try client.join() == [UInt8(i)]) }
            }
        }

        #if compiler(>=6.2)
            @Test func failedConnects_leaveNoDescriptor() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for transport in Transport.all {
                            try withNet(transport) { net in
                                let (listener, _) = try fullListener(net)
                                let gone = try net.listener()
                                let address = gone.address
                                gone.close()
                                let before = openSockets
                                for _ in 0..<20 {
                                    _ = failure { _ = try withTimeout(.milliseconds(1)) { try Connection.connect(to: listener.address) } }
                                    _ = failure { _ = try Connection.connect(to: address) }
                                }
                                expect(openSockets == before)
                            }
                        }
                    }
                }
            }

            @Test func connect_throwsResources_whenDescriptorsAreShort() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try withNet(.ipv4) { net in
                            let listener = try net.listener()
                            let taken = takeAllDescriptors()
                            let error = expect(.resources) { _ = try Connection.connect(to: listener.address) }
                            expect(error?.description.contains("ulimit -n") == true, "\(String(describing: error))")
                            expect(.resources) { _ = try Connection.pair() }
                            expect(.resources) { _ = try Listener.bind(to: .loopback(port: 0)) }
                            expect(.resources) { _ = try Signals.of(.user1) }
                            taken.forEach { close($0) }
                            _ = net.keep(try Connection.connect(to: listener.address))
                        }
                    }
                }
            }
        #endif
    }
}

/// A listener whose queue has no room, and the connections in it.
func fullListener(_ net: Net) throws -> (Listener, [Connection]) {
    let listener = try net.listener(backlog: 0)
    var queued: [Connection] = []
    while queued.count < 20 {
        var stream: Connection?
        let error = failure { stream = net.keep(try withTimeout(.milliseconds(20)) { try Connection.connect(to: listener.address) }) }
        if error?.code == .timedOut { return (listener, queued) }
        if let error { throw error.error }
        queued.append(stream!)
    }
    throw TestError(text: "a listener with a backlog of 0 took 20 connections")
}

/// Opens descriptors until there are no more.
func takeAllDescriptors() -> [Int32] {
    var limit = rlimit()
    getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    limit.rlim_cur = 100
    setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    var taken: [Int32] = []
    while true {
        let fd = open("/dev/null", O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return taken }
        taken.append(fd)
    }
}
