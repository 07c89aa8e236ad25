// SPDX-License-Identifier: Apache-2.0

// What "Every core" shows.

import FiberNet
import Fibers
import Testing

extension NetTests {
    struct EveryCoreGuide {
        @Test(arguments: [1, 2, 4]) func fibers_computeOnAllWorkers(workers: Int) throws {
            try inRuntime(.init(workers: workers)) {
                // snippet.show
                let sums = try (0..<4).map { part in
                    try Fiber.spawn { (1...1_000).filter { $0 % 4 == part }.reduce(0, +) }
                }
                let total = try sums.reduce(0) { try $0 + $1.join() }
                // total is 500500
                // snippet.hide
                expect(total == 500_500)
            }
        }

        @Test(arguments: [1, 2, 4]) func group_spansWorkers(workers: Int) throws {
            try inRuntime(.init(workers: workers)) {
                // snippet.show
                let squares = try withFiberGroup(of: Int.self, limit: 8) { group in
                    for i in 1...10 { try group.spawn { i * i } }
                    var squares: [Int] = []
                    while let square = try group.next() { squares.append(square) }
                    return squares.sorted()
                }
                // squares is [1, 4, 9, 16, 25, 36, 49, 64, 81, 100]
                // snippet.hide
                expect(squares == (1...10).map { $0 * $0 })
            }
        }

        @Test func event_isSignalledFromAThread() throws {
            var ended: Thread?
            try inRuntime {
                // snippet.show
                let done = FiberEvent()
                let thread = Thread {
                    // A callback of some library, on a thread of its own.
                    done.signal()
                }
                try withTimeout(.seconds(10)) { try done.wait() }
                // snippet.hide
                ended = thread
            }
            ended?.join()
        }

        @Test(arguments: [1, 2, 4]) func server_servesOnEveryCore(workers: Int) throws {
            try inRuntime(.init(workers: workers)) {
                var echo: [UInt8] = []
                // snippet.show
                let server = try TCPServer.bind(to: .loopback(port: 0))
                try withFiberGroup { group in
                    try group.spawnLocal {
                        try server.serve(maxConnections: 10_000, draining: .seconds(10)) { stream in
                            while try stream.readAvailable({ try stream.writeAll($0) }) {}
                        }
                    }
                    let client = try Connection.connect(to: server.address)
                    try client.writeAll("hello")
                    echo = try client.read(upTo: 5)
                    client.close()
                    server.close()
                }
                // echo is "hello"
                // snippet.hide
                expect(echo == Array("hello".utf8))
            }
        }
    }
}
