// SPDX-License-Identifier: Apache-2.0

// Many datagrams, neighbours beside them, and what is left at the end.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct DatagramLoadTests {
        @Test(arguments: Transport.all, [false, true])
        func aHundredThousandDatagrams_arriveOnceAndInOrder(transport: Transport, inBatches: Bool) throws {
            let count = scaled(100_000, sanitized: 20_000)
            try withNet(transport, seconds: 120) { net in
                let (first, second) = try net.datagramPair()
                let sender = try Fiber.spawnLocal {
                    let batch = DatagramBatch(capacity: 32, datagramSize: 64)
                    var next = 0
                    var window = 64
                    while next < count {
                        // Over UDP what nobody has room for is lost: the receiver says how much there may be.
                        while transport != .unix && window == 0 { window += Int(try first.receive(upTo: 1).bytes[0]) }
                        batch.removeAll()
                        for _ in 0..<min(inBatches ? 32 : 1, window, count - next) {
                            try batch.append(numbered(next))
                            next += 1
                        }
                        if transport != .unix { window -= batch.count }
                        if inBatches { try first.sendBatch(batch) } else { try first.send(batch[0].bytes) }
                    }
                }
                let batch = DatagramBatch(capacity: inBatches ? 32 : 1, datagramSize: 64)
                var next = 0
                var credit = 0
                while next < count {
                    try second.receiveBatch(into: batch)
                    for i in 0..<batch.count {
                        guard same(batch[i].bytes, numbered(next)) else { throw TestError(text: "another datagram in place of \(next)") }
                        next += 1
                    }
                    credit += batch.count
                    if transport != .unix && credit >= 32 {
                        try second.send([UInt8(credit)])
                        credit = 0
                    }
                }
                try sender.join()
                expect(.timedOut) { _ = try withTimeout(.zero) { try second.receiveBatch(into: batch) } }
            }
        }

        @Test(arguments: Transport.all)
        func neighbours_goOn_whileASocketIsFlooded(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                let (first, second) = try Connection.pair()
                let echo = try Fiber.spawnLocal { while try second.readAvailable({ try second.writeAll($0) }) {} }
                let block = letters(100)
                let flood = try Fiber.spawnLocal { failure { while true { try client.send(block) } } }
                var received = 0
                let reader = try Fiber.spawnLocal {
                    failure {
                        while true {
                            _ = try server.receive(upTo: 100)
                            received += 1
                        }
                    }
                }
                for _ in 0..<50 {
                    try first.writeAll("x")
                    expect(try first.read(upTo: 1).count == 1)
                }
                expect(received > 0)
                server.close()
                client.close()
                first.close()
                expect(try reader.join()?.code == .closed)
                expect(try flood.join().map { $0.code == .closed || $0.errno == .noSuchFileOrDirectory || $0.code == .refused } == true)
                try echo.join()
            }
        }

        #if compiler(>=6.2)
            @Test func sockets_leaveNoDescriptor() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        func round(_ transport: Transport) throws {
                            try withNet(transport) { net in
                                let (first, second) = try net.datagramPair(), third = try net.receiver()
                                try first.send("x")
                                expect(try second.receive(upTo: 1).length == 1)
                                expect(.addressInUse) { _ = try DatagramSocket.bind(to: first.address) }
                                let waiting = try Fiber.spawnLocal { failure { _ = try second.receive(upTo: 1) } }
                                letOthersRun()
                                // None of these is closed by hand.
                                _ = try DatagramSocket.pair()
                                _ = try DatagramSocket.open()
                                _ = try DatagramSocket.connect(to: third.address)
                                let cancelled = try Fiber.spawnLocal {
                                    Fiber.current?.cancel()
                                    _ = try DatagramSocket.connect(to: third.address)
                                }
                                expect(.cancelled) { try cancelled.join() }
                                second.close()
                                expect(try waiting.join()?.code == .closed)
                            }
                            // The runtime ends with them open.
                            try inRuntime { _ = Box(try DatagramSocket.bind(to: transport.freshAddress)) }
                        }
                        for transport in Transport.all { try round(transport) }
                        let before = openSockets
                        for i in 0..<scaled(200, sanitized: 30) { try round(Transport.all[i % Transport.all.count]) }
                        expect(openSockets == before, "\(openSockets) and not \(before)")
                    }
                }
            }

            @Test func socket_isClosedOnExec_andRaisesNoSignal() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        signal(SIGPIPE, SIG_DFL)
                        try inRuntime {
                            let (first, second) = try DatagramSocket.pair()
                            for socket in [first, second, try DatagramSocket.open(), try DatagramSocket.bind(to: .loopback(port: 0))] {
                                let fd = try socket.fd
                                expect(fcntl(fd, F_GETFD) & FD_CLOEXEC != 0 && fcntl(fd, F_GETFL) & O_NONBLOCK != 0)
                            }
                            second.close()
                            expect(.refused) { try first.send("x") }
                        }
                    }
                }
            }
        #endif
    }
}

/// 64 bytes that begin with a number.
private func numbered(_ number: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: UInt8(number & 255), count: 64)
    bytes.withUnsafeMutableBytes { $0.storeBytes(of: number, as: Int.self) }
    return bytes
}
