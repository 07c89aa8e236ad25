// SPDX-License-Identifier: Apache-2.0

// The guess which fibers go on next: it names them where the order repeats, and where it is wrong nothing comes of it.

import Fibers
import Testing

extension KernelTests {
    struct ForesightTests {
        /// More than the worker takes to be in its cache.
        private var count: Int { 1_100 }

        @Test func guess_namesTheNextFiber_whenTheOrderIsAsBefore() throws {
            var hits = 0
            try runQuietly {
                let worker = Worker.current!
                let links = (0..<count).map { _ in makeLocalChannel(of: Int.self, .bounded(1)) }
                var records = [FiberPointer?](repeating: nil, count: count)
                let handles = try (0..<count).map { i in
                    try Fiber.spawnLocal {
                        records[i] = worker.running
                        while let hopsLeft = try links[i].1.receive() {
                            // By the third lap every record names a successor.
                            if hopsLeft < count, worker.pointee.foresight.guess(0) == records[(i + 1) % count] { hits += 1 }
                            if hopsLeft > 0 { try links[(i + 1) % count].0.send(hopsLeft - 1) } else { links.forEach { $0.0.close() } }
                        }
                    }
                }
                Fiber.yield()
                try links[0].0.send(3 * count - 1)
                for handle in handles { try handle.join() }
            }
            #expect(hits >= count - 1)
        }

        @Test func allGoOn_whenTheOrderIsRandom_andStacksHaveNewFibersOrAreGivenBack() throws {
            var hops = 0
            var lives = 0
            let wanted = scaled(20_000, sanitized: 4_000)
            var configuration = FiberRuntime.Configuration(workers: 1)
            configuration.trimInterval = .zero
            try runQuietly(configuration) {
                var random = SeededGenerator(seed: 1)
                let (done, end) = makeLocalChannel(of: Int.self, .bounded(1))
                var links: [(LocalSender<Int>, LocalReceiver<Int>)] = []
                func live(_ i: Int, _ receiver: LocalReceiver<Int>) throws {
                    // Every so often a life ends, and another begins on some stack.
                    while let hopsLeft = try receiver.receive() {
                        hops += 1
                        guard hopsLeft > 0 else { return try done.send(hops) }
                        let isLast = random.next() % 16 == 0
                        if isLast {
                            links[i] = makeLocalChannel(of: Int.self, .bounded(1))
                            let next = links[i].1
                            try Fiber.spawnLocal { try live(i, next) }
                            lives += 1
                        }
                        // Time for the root, which trims.
                        if hopsLeft % 500 == 0 { try Fiber.sleep(for: .microseconds(1)) }
                        try links[Int(random.next() % UInt64(count))].0.send(hopsLeft - 1)
                        if isLast { return }
                    }
                }
                for i in 0..<count {
                    links.append(makeLocalChannel(of: Int.self, .bounded(1)))
                    let receiver = links[i].1
                    try Fiber.spawnLocal { try live(i, receiver) }
                }
                Fiber.yield()
                try links[0].0.send(wanted - 1)
                _ = try end.receive()
                links.forEach { $0.0.close() }
            }
            #expect(hops == wanted)
            #expect(lives > 0)
        }
    }
}
