// SPDX-License-Identifier: Apache-2.0

// The memory of broadcasts: as much as the values need that are there, in blocks, whatever the capacity.

import CFaults
import CFiber
import Fibers
import Testing

/// A broadcast as its documentation has it, in the plainest way.
private struct Model {
    let capacity: Int
    let policy: BroadcastPolicy
    var sent = 0
    /// The next number of each subscriber.
    var positions: [Int] = []

    var isFull: Bool { policy == .wait && positions.contains { sent - $0 == capacity } }

    mutating func send() { if !positions.isEmpty { sent += 1 } }

    mutating func receive(_ index: Int) -> String {
        let position = positions[index]
        if position == sent { return "empty" }
        if sent - position > capacity {
            positions[index] = sent - capacity
            return "missed \(sent - capacity - position)"
        }
        positions[index] += 1
        return "\(position)"
    }

    /// How many values somebody has yet to read.
    var held: Int { positions.map { min(sent - $0, capacity) }.max() ?? 0 }
}

extension KernelTests {
    @Suite struct BroadcastMemoryTests {
        /// Capacities beside the size of a block, and subscribers that come, share and go anywhere in it.
        @Test(arguments: [1, 2, 3, 31, 32, 33, 63, 64, 65, 200, 1_000], [BroadcastPolicy.wait, .dropOldest])
        func broadcast_doesWhatAModelDoes(_ capacity: Int, _ policy: BroadcastPolicy) throws {
            let ends = Counter()
            var made = 0
            try FiberRuntime.run(.init(workers: 1)) {
                let sender = makeBroadcast(of: Token.self, capacity: capacity, policy)
                var subscribers: [BroadcastSubscriber<Token>] = []
                var model = Model(capacity: capacity, policy: policy)
                var random = SeededGenerator(seed: UInt64(capacity))
                /// The number of the first value that was sent to somebody is 0.
                var last = -1
                for _ in 0..<scaled(2_000, sanitized: 500) {
                    // Mostly many of one kind in a row, so that the queue fills and empties.
                    let (kind, times) = (random.next() % 12, Int(random.next() % UInt64(capacity + 4)))
                    for _ in 0..<max(1, min(times, 300)) {
                        switch kind {
                        case 0 where subscribers.count < 4:
                            subscribers.append(sender.subscribe())
                            model.positions.append(model.sent)
                        case 1 where !subscribers.isEmpty && subscribers.count < 4:
                            let index = Int(random.next() % UInt64(subscribers.count))
                            subscribers.append(subscribers[index].share())
                            model.positions.append(model.positions[index])
                        case 2 where random.next() % 8 == 0 && !subscribers.isEmpty:
                            let index = Int(random.next() % UInt64(subscribers.count))
                            subscribers.remove(at: index)
                            model.positions.remove(at: index)
                        case 3...6:
                            made += 1
                            let isFull = model.isFull
                            let number = model.positions.isEmpty ? -1 : model.sent
                            #expect(sender.trySend(Token(number, ends)) == (isFull ? .full : .sent))
                            if !isFull { model.send() }
                            last = max(last, number)
                        case 7... where !subscribers.isEmpty:
                            let index = Int(random.next() % UInt64(subscribers.count))
                            let expected = model.receive(index)
                            let found: String
                            do {
                                switch try subscribers[index].tryReceive() {
                                case .message(let token): found = "\(token.number)"
                                case .empty: found = "empty"
                                case .ended: found = "ended"
                                }
                            } catch let lag as LaggedError { found = "missed \(lag.missed)" }
                            if found != expected { Issue.record("\(found) instead of \(expected)") }
                        default: break
                        }
                    }
                    // None is kept that nobody will read.
                    if made - ends.value != model.held { Issue.record("\(made - ends.value) are held instead of \(model.held)") }
                }
                subscribers = []
                #expect(last > capacity)
            }
            #expect(ends.value == made)
        }

        @Test(arguments: [10_000_000, Int.max])
        func capacity_costsNothing_beforeValuesAreThere(_ capacity: Int) throws {
            var sum = 0
            var grown = 0
            try FiberRuntime.run(.init(workers: 1)) {
                let before = Process.residentBytes
                let ends = [
                    makeBroadcast(of: Int.self, capacity: capacity, .wait), makeBroadcast(of: Int.self, capacity: capacity, .dropOldest),
                ]
                let local = makeLocalBroadcast(of: Int.self, capacity: capacity, .dropOldest)
                let subscribers = ends.map { $0.subscribe() }
                let nearby = local.subscribe()
                for i in 0..<1_000 {
                    for end in ends { try end.send(i) }
                    try local.send(i)
                }
                for _ in 0..<1_000 {
                    for subscriber in subscribers { sum += try subscriber.receive() ?? 0 }
                    sum += try nearby.receive() ?? 0
                }
                #expect(ends.allSatisfy { $0.capacity == capacity })
                grown = Process.residentBytes - before
            }
            #expect(sum == 3 * 1_000 * 999 / 2)
            #expect(grown < 16 << 20, "\(grown) bytes")
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"), arguments: [1, 16, 100])
        func send_allocatesNothing_whenSubscribersKeepUp(_ capacity: Int) throws {
            var count = -1
            try FiberRuntime.run(.init(workers: 1)) {
                let sender = makeBroadcast(of: Int.self, capacity: capacity, .dropOldest)
                let subscriber = sender.subscribe()
                func turns(_ n: Int) throws {
                    for i in 0..<n {
                        try sender.send(i)
                        if i % capacity == capacity - 1 { for _ in 0..<capacity { _ = try subscriber.receive() } }
                    }
                }
                try turns(1_600)
                count = try allocations { try turns(16_000) }
            }
            #expect(count == 0)
        }

        #if compiler(>=6.2)
            /// More than it takes from the machine would end it.
            @Test(.enabled(if: !isSanitized, "a child under a sanitizer may hang at its end"))
            func makeBroadcast_works_withTheLargestCapacity() async {
                await #expect(processExitsWith: .success) {
                    let sender = makeBroadcast(of: Int.self, capacity: .max, .dropOldest)
                    let subscriber = sender.subscribe()
                    guard sender.trySend(7) == .sent, case .message(7)? = try? subscriber.tryReceive() else { fatalError("no 7 came") }
                }
            }
        #endif
    }
}
