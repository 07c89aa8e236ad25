// SPDX-License-Identifier: Apache-2.0

// Waits for readiness that are ended from outside, on our sockets and on others' descriptors.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct CancelWaitTests {
        // Our sockets.

        @Test(arguments: Transport.all, Ending.allCases)
        func waitReadable_isEnded_alone_orBesideAReaderAndAnotherWaiter(transport: Transport, ending: Ending) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                try end(ending) { try server.waitReadable() }

                var ready = false
                let waiter = try Fiber.spawnLocal {
                    try server.waitReadable()
                    ready = true
                }
                let reader = try Fiber.spawnLocal { try server.read(upTo: 1) }
                letOthersRun()
                try end(ending) { try server.waitReadable() }
                expect(!ready && !reader.fiber.isFinished)
                try client.writeAll("12")
                try waiter.join()
                expect(try reader.join() == Array("1".utf8))
                try withTimeout(.zero) { try server.waitReadable() }
                expect(try server.read(upTo: 9) == Array("2".utf8))
            }
        }

        @Test(arguments: Transport.all, Ending.allCases)
        func waitReadable_onAListener_isEnded(transport: Transport, ending: Ending) throws {
            try withNet(transport) { net in
                let listener = try net.listener()
                let acceptor = try Fiber.spawnLocal { net.keep(try listener.accept()) }
                letOthersRun()
                try end(ending) { try listener.waitReadable() }
                expect(!acceptor.fiber.isFinished)
                try net.keep(try Connection.connect(to: listener.address)).writeAll("x")
                expect(try acceptor.join().readExactly(1) == Array("x".utf8))
            }
        }

        @Test(arguments: Transport.all)
        func waitWritable_isEnded_alone_orBesideAWriterAndAnotherWaiter(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.narrowPair()
                let filling = try fillUp(client)
                let waiter = try Fiber.spawnLocal { try client.waitWritable() }
                let writer = try Fiber.spawnLocal { try client.writeAll("behind") }
                letOthersRun()
                for ending in Ending.allCases {
                    try end(ending) { try client.waitWritable() }
                }
                expect(!waiter.fiber.isFinished && !writer.fiber.isFinished)
                expect(try server.readExactly(filling).count == filling)
                try waiter.join()
                try writer.join()
                expect(try server.readExactly(6) == Array("behind".utf8))
                try client.waitWritable()
            }
        }

        // Other people's descriptors.

        @Test(arguments: Ending.allCases)
        func pipe_canBeWaitedForAgain_whenAWaitWasEnded(ending: Ending) throws {
            try inRuntime {
                let fds = try makePipe(nonBlocking: true)
                defer { fds.forEach { close($0) } }
                let (input, output) = (FileDescriptor(rawValue: fds[0]), FileDescriptor(rawValue: fds[1]))
                let block = [UInt8](repeating: 0, count: 65_536)
                var sink = block
                for _ in 0..<3 {
                    try end(ending) { try waitReadable(input) }
                    expect(write(fds[1], "x", 1) == 1)
                    try waitReadable(input)
                    while write(fds[1], block, block.count) > 0 {}
                    try end(ending) { try waitWritable(output) }
                    while read(fds[0], &sink, sink.count) > 0 {}
                    try waitWritable(output)
                }
            }
        }

        #if compiler(>=6.2)
            @Test func endedWaits_forOneForeignDescriptor_leaveNoDuplicate_andTheOthersGoOn() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for ending in Ending.allCases {
                            try expectWaits(ending, { try waitReadable($0) }, full: false)
                            try expectWaits(ending, { try waitWritable($0) }, full: true)
                        }
                    }
                }
            }

            @Test func thousandsOfEndedWaits_forOneForeignDescriptor_leaveNothing() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try inRuntime {
                            let (a, b) = try socketPair()
                            let before = openSockets
                            let first = try Fiber.spawnLocal { try waitReadable(FileDescriptor(rawValue: a)) }
                            let count = scaled(20_000, sanitized: 1_000)
                            for i in 0..<count {
                                let waiter = try Fiber.spawnLocal { try waitReadable(FileDescriptor(rawValue: a)) }
                                if i % 4 != 0 { Fiber.yield() }
                                waiter.cancel()
                                expect(thrown { try waiter.join() } is CancellationError)
                            }
                            // The first has a duplicate as long as it waits.
                            expect(openSockets == before + 1, "\(openSockets) and not \(before + 1)")
                            expect(!first.fiber.isFinished)
                            expect(send(b, "x", 1, 0) == 1)
                            try first.join()
                            expect(openSockets == before, "\(openSockets) and not \(before)")
                            expect(Worker.current?.pointee.statistics.staleEvents == 0)
                            [a, b].forEach { close($0) }
                        }
                    }
                }
            }
        #endif
    }
}

/// Two sockets that belong to no stream, non-blocking.
private func socketPair() throws -> (Int32, Int32) {
    var fds: [Int32] = [-1, -1]
    guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | O_CLOEXEC | O_NONBLOCK, 0, &fds) == 0 else {
        throw TestError(text: "no sockets: error \(errno)")
    }
    return (fds[0], fds[1])
}

/// Ends waits for one of two sockets, each for a duplicate: alone, behind another waiter, and before another waiter. In a process of its own.
private func expectWaits(_ ending: Ending, _ wait: @escaping (FileDescriptor) throws -> Void, full: Bool) throws {
    try inRuntime {
        let (a, b) = try socketPair()
        let block = [UInt8](repeating: 0, count: 65_536)
        /// Makes `a` not ready, or ready.
        func set(ready: Bool) {
            var sink = block
            if full && !ready { while send(a, block, block.count, 0) > 0 {} }
            if full && ready { while recv(b, &sink, sink.count, 0) > 0 {} }
            if !full && !ready { while recv(a, &sink, sink.count, 0) > 0 {} }
            if !full && ready { expect(send(b, "x", 1, 0) == 1) }
        }
        let descriptor = FileDescriptor(rawValue: a)
        let before = openSockets
        let stale = Worker.current?.pointee.statistics.staleEvents

        set(ready: false)
        try end(ending) { try wait(descriptor) }
        expect(openSockets == before, "\(ending), alone: \(openSockets) and not \(before)")
        set(ready: true)
        try withTimeout(.seconds(10)) { try wait(descriptor) }

        set(ready: false)
        let first = try Fiber.spawnLocal { try withTimeout(.seconds(10)) { try wait(descriptor) } }
        letOthersRun()
        for _ in 0..<3 { try end(ending) { try wait(descriptor) } }
        // The other has a duplicate as long as it waits.
        expect(openSockets == before + 1, "\(ending), behind another: \(openSockets) and not \(before + 1)")
        expect(!first.fiber.isFinished)
        set(ready: true)
        try first.join()

        set(ready: false)
        var others: [FiberHandle<Void>] = []
        try end(
            ending,
            meanwhile: {
                for _ in 0..<2 { others.append(try Fiber.spawnLocal { try withTimeout(.seconds(10)) { try wait(descriptor) } }) }
                letOthersRun()
            }
        ) { try wait(descriptor) }
        // The duplicates of the others are still watched.
        others.append(try Fiber.spawnLocal { try withTimeout(.seconds(10)) { try wait(descriptor) } })
        letOthersRun()
        expect(!others.contains { $0.fiber.isFinished })
        set(ready: true)
        for other in others { try other.join() }
        expect(openSockets == before, "\(ending), before others: \(openSockets) and not \(before)")
        letOthersRun()
        expect(Worker.current?.pointee.statistics.staleEvents == stale)
        [a, b].forEach { close($0) }
    }
}
