// SPDX-License-Identifier: Apache-2.0

// One busy socket starves nobody.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct FairnessTests {
        @Test(arguments: Transport.all)
        func neighboursAndTimers_goOn_whileAnotherThreadFloodsASocket(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                // A descriptor of its own: the stream stays with its worker.
                let fd = try client.withFileDescriptor { fcntl($0.rawValue, F_DUPFD_CLOEXEC, 100) }
                _ = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK)
                let flood = Thread {
                    let block = [UInt8](repeating: 1, count: 65_536)
                    while send(fd, block, block.count, Int32(MSG_NOSIGNAL)) > 0 {}
                    close(fd)
                }
                try expectProgress(net) { server }
                flood.join()
            }
        }

        @Test(arguments: Transport.all)
        func neighboursAndTimers_goOn_whileAFiberFloodsASocket(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let flood = try Fiber.spawnLocal {
                    let block = [UInt8](repeating: 1, count: 65_536)
                    return failure { while true { try client.writeAll(block) } }
                }
                try expectProgress(net) { server }
                client.close()
                expect(try [.closed, .reset].contains(flood.join()?.code))
            }
        }

        /// Bytes that are all there already, so that no turn depends on the kernel.
        @Test(arguments: Transport.all)
        func neighboursAndTimers_haveTheirTurns_whileAReaderNeverHasToWait(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try net.pair()
                let count = 20_000
                try client.writeAll([UInt8](repeating: 1, count: count))
                var (reads, readsAtLastTurn, most, ticks) = (0, 0, 0, 0)
                let neighbour = try Fiber.spawnLocal {
                    while reads < count {
                        most = max(most, reads - readsAtLastTurn)
                        readsAtLastTurn = reads
                        Fiber.yield()
                    }
                }
                let sleeper = try Fiber.spawnLocal {
                    while reads < count {
                        try Fiber.sleep(for: .nanoseconds(1))
                        ticks += 1
                    }
                }
                while reads < count { reads += try server.read(upTo: 1).count }
                try neighbour.join()
                try sleeper.join()
                expect((1...64).contains(most), "\(most) reads between two turns of the neighbour")
                expect(ticks > 1, "\(ticks) ticks")
            }
        }

        @Test func neighbours_goOn_whileConnectionsPourIn() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                let (a, b) = try net.pair()
                var accepted = 0
                try Fiber.spawnLocal {
                    while let stream = try listener.next() {
                        accepted += 1
                        stream.reset()
                    }
                }
                let neighbour = try Fiber.spawnLocal { while try b.readAvailable({ try b.writeAll($0) }) {} }
                let count = scaled(300, sanitized: 100)
                let clients = try Fiber.spawnLocal {
                    // A connection may be reset by the server before its connect returns.
                    for _ in 0..<count { try? Connection.connect(to: listener.address).reset() }
                    listener.close()
                }
                var echoes = 0
                while !clients.fiber.isFinished {
                    try a.writeAll("x")
                    expect(try a.read(upTo: 1).count == 1)
                    echoes += 1
                }
                a.close()
                try clients.join()
                try neighbour.join()
                expect(accepted > 0 && echoes > 10, "\(accepted) accepted, \(echoes) echoes")
            }
        }
    }
}

/// Reads a flooded stream for forty ticks of 5 ms, and expects of ten neighbours and of the ticks that they go on.
private func expectProgress(_ net: Net, _ flooded: () -> Connection) throws {
    let flooded = flooded()
    var running = true
    var (flood, reads) = (0, 0)
    var echoes = [Int](repeating: 0, count: 10)
    let reader = try Fiber.spawnLocal {
        // Reset at the end, from either side.
        _ = try? {
            while try flooded.readAvailable({
                flood += $0.byteCount
                reads += 1
            }) {}
        }()
    }
    let neighbours = try echoes.indices.map { i in
        let (a, b) = try net.pair()
        try Fiber.spawnLocal {
            while try b.readAvailable({ try b.writeAll($0) }) {}
        }
        return try Fiber.spawnLocal {
            while running {
                try a.writeAll("x")
                expect(try a.read(upTo: 1).count == 1)
                echoes[i] += 1
            }
            a.close()
        }
    }
    var readsInTime: [Int] = []
    for _ in 0..<40 {
        let before = reads
        try Fiber.sleep(for: .milliseconds(5))
        readsInTime.append(reads - before)
    }
    running = false
    for neighbour in neighbours { try neighbour.join() }
    expect(flood > 1_000_000, "the flood: \(flood) bytes")
    expect(echoes.allSatisfy { $0 >= 10 }, "\(echoes)")
    // About as many as take 40 ms: turns are counted and not time, since the machine itself may sleep now and then.
    expect(readsInTime.allSatisfy { $0 <= 20_000 }, "\(readsInTime)")
    flooded.close()
    try reader.join()
}
