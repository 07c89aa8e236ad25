// SPDX-License-Identifier: Apache-2.0

// What it costs to choose among many: where a fiber is spawned, which arm of a select is taken.

import CFaults
import Fibers
import Glibc
import Testing

extension KernelTests {
    @Suite(.enabled(if: cfaults_available() != 0, "sanitizers interpose the same functions"))
    struct PlacementTests {
        @Test func spawn_makesNoSystemCallForRandomNumbers_whenThereAreManyWorkers() throws {
            var calls = -1
            var workers = Set<Int?>()
            try onWorkers(12) {
                let before = cfaults_calls(CFAULTS_GETRANDOM)
                let handles = try (0..<200).map { _ in try Fiber.spawn { FiberRuntime.currentWorker } }
                calls = Int(cfaults_calls(CFAULTS_GETRANDOM) - before)
                for handle in handles { workers.insert(try handle.join()) }
            }
            #expect(calls == 0)
            // Taken at random all the same.
            #expect(workers.count == 12)
        }

        @Test func select_makesNoSystemCallForRandomNumbers_onAPlainThread() throws {
            let (sender, receiver) = makeChannel(of: Int.self, .unbounded)
            let (otherSender, otherReceiver) = makeChannel(of: Int.self, .unbounded)
            var received = [0, 0]
            let before = cfaults_calls(CFAULTS_GETRANDOM)
            for i in 0..<1_000 {
                try sender.send(i)
                try otherSender.send(i)
                try select {
                    receiver.onReceive { _ in received[0] += 1 }
                    otherReceiver.onReceive { _ in received[1] += 1 }
                }
            }
            #expect(cfaults_calls(CFAULTS_GETRANDOM) == before)
            // Each arm is as likely as the other: 380 is twelve standard deviations.
            #expect(abs(received[0] - received[1]) < 380, "\(received)")
        }

        @Test func generator_isCounted() {
            // What the others count is what the system's generator does.
            let before = cfaults_calls(CFAULTS_GETRANDOM)
            _ = Int.random(in: 0..<1_000_000)
            #expect(cfaults_calls(CFAULTS_GETRANDOM) > before)
        }
    }
}
