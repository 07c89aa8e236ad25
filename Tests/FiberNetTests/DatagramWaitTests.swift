// SPDX-License-Identifier: Apache-2.0

// Waiting for datagrams and for room to send them: turns, full queues, closing, deadlines and cancellation.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct DatagramWaitTests {
        // Receiving.

        @Test(arguments: Transport.all)
        func receivers_areServedInTheOrderInWhichTheyCame(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                for _ in 0..<3 {
                    let receivers = try (0..<10).map { i in
                        try Fiber.spawnLocal { try ReceiveWay.allCases[i % ReceiveWay.allCases.count].receive(server).bytes }
                    }
                    letOthersRun()
                    for i in 0..<10 { try client.send([UInt8(i)]) }
                    for (i, receiver) in receivers.enumerated() { expect(try receiver.join() == [UInt8(i)], "receiver \(i)") }
                }
            }
        }

        @Test(arguments: Transport.all, Ending.allCases)
        func receive_takesNothing_whenItIsEnded(transport: Transport, ending: Ending) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                for way in ReceiveWay.allCases {
                    try end(ending) { _ = try way.receive(server) }
                    try client.send("all of it")
                    expect(try withTimeout(.seconds(10)) { try way.receive(server) }.bytes == Array("all of it".utf8), "\(way)")
                }
                expect(server.isOpen)
            }
        }

        @Test(arguments: Transport.all)
        func receive_takesNothing_inACancelledFiber_alsoWhereOneIsThere(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                for way in ReceiveWay.allCases {
                    try client.send("there")
                    let error = try end(.cancelledBefore) { _ = try way.receive(server) }
                    expect(error?.code == .cancelled)
                    expect(try withTimeout(.zero) { try way.receive(server) }.bytes == Array("there".utf8), "\(way)")
                }
            }
        }

        @Test(arguments: Transport.all)
        func receive_throwsTimedOut_notBeforeItsTime(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver()
                let clock = ContinuousClock()
                for way in ReceiveWay.allCases {
                    let start = clock.now
                    expect(.timedOut) { _ = try withTimeout(.milliseconds(3)) { try way.receive(server) } }
                    expect(clock.now - start >= .milliseconds(3))
                }
            }
        }

        @Test(arguments: Transport.all)
        func waitingCalls_throwClosed_whenTheSocketIsClosed(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver()
                var waits: [() throws -> Void] = ReceiveWay.allCases.map { way in { _ = try way.receive(server) } }
                waits.append { try server.waitReadable() }
                let waiting = try waits.map { wait in try Fiber.spawnLocal { failure(wait) } }
                letOthersRun()
                expect(!waiting.contains { $0.fiber.isFinished }, "one did not wait")
                server.close()
                for fiber in waiting { expect(try fiber.join()?.code == .closed) }
                // And so does everything later.
                let address = server.address
                for way in ReceiveWay.allCases { expect(.closed) { _ = try way.receive(server) } }
                for way in SendWay.allCases {
                    expect(.closed) { try way.send([1], server) }
                    expect(.closed) { try way.send([1], server, to: address) }
                }
                expect(.closed) { try server.connect(to: address) }
                expect(.closed) { _ = try server.peerAddress() }
                expect(!server.isOpen)
            }
        }

        @Test(arguments: Transport.all)
        func waitReadable_returns_whenADatagramIsThere(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                for _ in 0..<3 {
                    let waiting = try Fiber.spawnLocal { try server.waitReadable() }
                    letOthersRun()
                    expect(!waiting.fiber.isFinished)
                    try client.send([])
                    try waiting.join()
                    expect(try server.receive(upTo: 1).length == 0)
                }
                try client.waitWritable()
            }
        }

        // Sending.

        @Test(arguments: [true, false])
        func send_waits_whileTheUnixReceiversQueueIsFull(isConnected: Bool) throws {
            try withNet(.unix) { net in
                let full = try FullReceiver(net, isConnected: isConnected)
                let sender = try Fiber.spawnLocal { for i in 0..<50 { try full.send("late \(i)") } }
                letOthersRun()
                expect(!sender.fiber.isFinished, "it did not wait")
                try full.receiveAll()
                for i in 0..<50 { expect(try full.receiver.receive(upTo: 100).bytes == Array("late \(i)".utf8)) }
                try sender.join()
            }
        }

        @Test func send_waits_whileTheSocketsOwnBufferIsFull() throws {
            try inRuntime {
                // Between two that are connected to each other it is the buffer alone that counts.
                let (first, second) = try DatagramSocket.pair()
                try first.setOption(.sendBufferSize, to: 8192)
                var count = 0
                while failure({ try withTimeout(.zero) { try first.send(letters(1000)) } }) == nil { count += 1 }
                expect(count > 0)
                let sender = try Fiber.spawnLocal { try first.send("late") }
                letOthersRun()
                expect(!sender.fiber.isFinished, "it did not wait")
                for _ in 0..<count { expect(try second.receive(upTo: 1000).bytes == letters(1000)) }
                expect(try second.receive(upTo: 1000).bytes == Array("late".utf8))
                try sender.join()
            }
        }

        @Test(arguments: [true, false], Ending.allCases)
        func waitingSend_sendsNothing_whenItIsEnded(isConnected: Bool, ending: Ending) throws {
            try withNet(.unix) { net in
                let full = try FullReceiver(net, isConnected: isConnected)
                for way in SendWay.allCases {
                    try end(ending) { try way.send(Array("never".utf8), full.sender, to: isConnected ? nil : full.receiver.address) }
                }
                try full.receiveAll()
                expect(.timedOut) { _ = try withTimeout(.zero) { try full.receiver.receive(upTo: 1) } }
                try full.send("works")
                expect(try full.receiver.receive(upTo: 100).bytes == Array("works".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func send_sendsNothing_inACancelledFiber(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                for way in SendWay.allCases {
                    for address in [nil, server.address] {
                        try end(.cancelledBefore) { try way.send([1], client, to: address) }
                    }
                }
                try end(.cancelledBefore) { try client.connect(to: server.address) }
                expect(.timedOut) { _ = try withTimeout(.zero) { try server.receive(upTo: 1) } }
            }
        }

        @Test(arguments: [true, false])
        func waitingSends_throwClosed_whenTheSocketIsClosed(isConnected: Bool) throws {
            try withNet(.unix) { net in
                let full = try FullReceiver(net, isConnected: isConnected)
                let senders = try (0..<4).map { _ in try Fiber.spawnLocal { failure { try full.send("never") } } }
                letOthersRun()
                expect(!senders.contains { $0.fiber.isFinished })
                full.sender.close()
                for sender in senders { expect(try sender.join()?.code == .closed) }
                try full.receiveAll()
                expect(.timedOut) { _ = try withTimeout(.zero) { try full.receiver.receive(upTo: 1) } }
            }
        }

        @Test(arguments: [true, false])
        func waitingSend_throws_whenTheUnixReceiverGoes(isConnected: Bool) throws {
            try withNet(.unix) { net in
                let full = try FullReceiver(net, isConnected: isConnected)
                let sender = try Fiber.spawnLocal { failure { try full.send("never") } }
                letOthersRun()
                expect(!sender.fiber.isFinished)
                full.receiver.close()
                let error = try sender.join()
                // Its file has gone with it.
                expect(error?.errno == (isConnected ? .connectionRefused : .noSuchFileOrDirectory), "\(String(describing: error))")
            }
        }

        @Test func fullReceiver_isAskedNowAndThen_andNotAllTheTime() throws {
            try withNet(.unix) { net in
                let full = try FullReceiver(net, isConnected: false)
                let sender = try Fiber.spawnLocal { try full.send("late") }
                letOthersRun()
                let before = Worker.here("test").pointee.statistics.polls
                try Fiber.sleep(for: .milliseconds(200))
                // Each try that fails makes the kernel say that the socket is writable.
                let polls = Worker.here("test").pointee.statistics.polls - before
                expect(polls < 60, "\(polls) looks at the driver in 200 ms of waiting")
                try full.receiveAll()
                expect(try full.receiver.receive(upTo: 100).bytes == Array("late".utf8))
                try sender.join()
            }
        }

        @Test func fullReceiver_holdsUpNobody_whoSendsToAnother() throws {
            try withNet(.unix) { net in
                let full = try FullReceiver(net, isConnected: false), other = try net.receiver()
                let waiting = try (0..<3).map { _ in try Fiber.spawnLocal { try full.send("late") } }
                letOthersRun()
                for i in 0..<5 { try withTimeout(.zero) { try full.sender.send([UInt8(i)], to: other.address) } }
                for i in 0..<5 { expect(try other.receive(upTo: 1).bytes == [UInt8(i)]) }
                expect(!waiting.contains { $0.fiber.isFinished })
                try full.receiveAll()
                for fiber in waiting {
                    expect(try full.receiver.receive(upTo: 100).bytes == Array("late".utf8))
                    try fiber.join()
                }
            }
        }

        @Test func waitingSenders_goInTheOrderInWhichTheyCame_toAConnectedReceiver() throws {
            try withNet(.unix) { net in
                let full = try FullReceiver(net, isConnected: true)
                let senders = try (0..<20).map { i in try Fiber.spawnLocal { try full.send("late \(i)") } }
                letOthersRun()
                try full.receiveAll()
                for i in 0..<20 { expect(try full.receiver.receive(upTo: 100).bytes == Array("late \(i)".utf8)) }
                for sender in senders { try sender.join() }
            }
        }
    }
}
