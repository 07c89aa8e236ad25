// SPDX-License-Identifier: Apache-2.0

// Duplicates that outlive the socket here: in a C library, in a child, or adopted again.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct DuplicateTests {
        /// Events that came for sockets which are closed here.
        private var staleEvents: Int { Worker.current!.pointee.statistics.staleEvents }

        /// Has a stream wait once, so that epoll knows it.
        private func waitOnce(_ stream: Connection, _ peer: Connection) throws {
            let reader = try Fiber.spawnLocal { try stream.read(upTo: 1) }
            letOthersRun()
            expect(!reader.fiber.isFinished)
            try peer.writeAll("x")
            expect(try reader.join() == Array("x".utf8))
        }

        /// Has the worker look at what epoll reports.
        private func lookForEvents() throws {
            let (a, b) = try Connection.pair()
            let reader = try Fiber.spawnLocal { try b.read(upTo: 1) }
            letOthersRun()
            try a.writeAll("x")
            _ = try reader.join()
        }

        @Test(arguments: Transport.all)
        func duplicate_isWaitedFor_whenItsStreamHadWaitedAndIsClosed(transport: Transport) throws {
            try withNet(transport) { net in
                for isDropped in [false, true, false, true] {
                    let client: Connection
                    let duplicate: Int32
                    do {
                        let listener = try net.listener()
                        client = net.keep(try Connection.connect(to: listener.address))
                        let server = try listener.accept()
                        try waitOnce(server, client)
                        duplicate = try server.withFileDescriptor { fcntl($0.rawValue, F_DUPFD_CLOEXEC, 500) }
                        if !isDropped { server.close() }
                    }
                    defer { close(duplicate) }
                    // Its second descriptor is likely to have the number under which the stream was known.
                    let foreign = FileDescriptor(rawValue: duplicate)
                    expect(.timedOut) { try withTimeout(.zero) { try waitReadable(foreign) } }
                    let waiter = try Fiber.spawnLocal { try waitReadable(foreign) }
                    letOthersRun()
                    try client.writeAll("for the duplicate")
                    try waiter.join()
                    var buffer = [UInt8](repeating: 0, count: 64)
                    expect(recv(duplicate, &buffer, buffer.count, 0) == "for the duplicate".utf8.count)
                }
            }
        }

        @Test(arguments: Transport.all)
        func duplicate_isAdopted_whenItsStreamHadWaitedAndIsClosed(transport: Transport) throws {
            try withNet(transport) { net in
                for _ in 0..<4 {
                    let (client, server) = try net.pair()
                    try waitOnce(server, client)
                    let duplicate = try server.withFileDescriptor { fcntl($0.rawValue, F_DUPFD_CLOEXEC, 500) }
                    defer { close(duplicate) }
                    server.close()
                    let adopted = try DescriptorStream.adopt(FileDescriptor(rawValue: duplicate), closing: false)
                    let reader = try Fiber.spawnLocal { try adopted.read(upTo: 100) }
                    letOthersRun()
                    try client.writeAll("for the duplicate")
                    expect(try reader.join() == Array("for the duplicate".utf8))
                    try adopted.writeAll("answer")
                    expect(try client.readExactly(6) == Array("answer".utf8))
                    adopted.close()
                }
            }
        }

        @Test(arguments: Transport.all)
        func closedStream_wakesNobody_whileItsDuplicateReceives(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                try waitOnce(server, client)
                let duplicate = try server.withFileDescriptor { fcntl($0.rawValue, F_DUPFD_CLOEXEC, 0) }
                defer { close(duplicate) }
                server.close()
                try lookForEvents()
                let before = staleEvents
                var buffer = [UInt8](repeating: 0, count: 64)
                for _ in 0..<50 {
                    try client.writeAll("piece")
                    try lookForEvents()
                    expect(recv(duplicate, &buffer, buffer.count, 0) == 5)
                }
                expect(staleEvents == before, "\(staleEvents - before) events for a socket that is closed here")
            }
        }

        @Test func closedListener_wakesNobody_whileItsDuplicateListens() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try listener.accept() } }
                let duplicate = try listener.withFileDescriptor { fcntl($0.rawValue, F_DUPFD_CLOEXEC, 500) }
                defer { close(duplicate) }
                listener.close()
                let before = staleEvents
                for _ in 0..<10 {
                    let waiter = try Fiber.spawnLocal { try waitReadable(FileDescriptor(rawValue: duplicate)) }
                    letOthersRun()
                    let client = net.keep(try Connection.connect(to: listener.address))
                    try waiter.join()
                    let accepted = accept(duplicate, nil, nil)
                    expect(accepted >= 0)
                    close(accepted)
                    client.close()
                    try lookForEvents()
                }
                expect(staleEvents == before, "\(staleEvents - before) events for a listener that is closed here")
            }
        }

        @Test(arguments: Transport.all)
        func closedDatagramSocket_wakesNobody_whileItsDuplicateReceives(transport: Transport) throws {
            try withNet(transport) { net in
                let socket = net.keep(try DatagramSocket.bind(to: transport.freshAddress))
                let sender = net.keep(try DatagramSocket.connect(to: socket.address))
                expect(.timedOut) { _ = try withTimeout(.milliseconds(1)) { try socket.receive(upTo: 1) } }
                let duplicate = try socket.withFileDescriptor { fcntl($0.rawValue, F_DUPFD_CLOEXEC, 0) }
                defer { close(duplicate) }
                socket.close()
                let before = staleEvents
                var byte: UInt8 = 0
                for _ in 0..<20 {
                    try sender.send("x")
                    try lookForEvents()
                    expect(recv(duplicate, &byte, 1, 0) == 1)
                }
                expect(staleEvents == before, "\(staleEvents - before) events for a socket that is closed here")
            }
        }

        @Test(arguments: Transport.all)
        func connectionHandedToAChild_isItsAlone(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                try waitOnce(server, client)
                // Programs expect a standard input that blocks.
                let child = try server.withFileDescriptor {
                    _ = fcntl($0.rawValue, F_SETFL, 0)
                    return try Subprocess.spawn(.init("cat"), input: .descriptor($0), output: .pipe)
                }
                server.close()
                let output = try #require(child.output)
                let before = staleEvents
                for _ in 0..<50 {
                    try client.writeAll("piece")
                    var received = 0
                    while received < 5 { received += try output.read(upTo: 5 - received).count }
                    try lookForEvents()
                }
                expect(staleEvents == before, "\(staleEvents - before) events for a connection that the child has")
                client.close()
                expect(try child.wait().isSuccess)
            }
        }
    }
}
