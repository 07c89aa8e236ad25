// SPDX-License-Identifier: Apache-2.0

// Classical programs of fibers that talk, whose answers are known: chains, rings and trees.

import CFaults
import Fibers
import Testing

/// Where a program runs: on channels of one worker, or on those between workers, with its fibers on one worker after the other.
struct Stage: Sendable, CustomTestStringConvertible {
    let kind: ChannelKind
    let workers: Int

    static let all = [Stage(kind: .local, workers: 1)] + [1, 2, 4].map { Stage(kind: .shared, workers: $0) }

    var testDescription: String { kind == .local ? "local channels" : "shared channels, workers: \(workers)" }

    func run<Value>(_ main: () throws -> Value) throws -> Value { try onWorkers(workers, main) }

    func make<Message: Sendable>(
        of _: Message.Type = Message.self, _ capacity: ChannelCapacity
    ) -> (ChannelSender<Message>, ChannelReceiver<Message>) {
        kind.make(of: Message.self, capacity)
    }

    /// Another receiver of the same channel; on one worker fibers may have it together.
    func share<Message: Sendable>(_ receiver: ChannelReceiver<Message>) -> ChannelReceiver<Message> {
        (receiver as? Receiver<Message>)?.share() ?? receiver
    }

    /// Starts fiber `number` of the program. By their common class the compiler cannot see that the ends of shared channels may go to other workers.
    func spawn(_ number: Int, _ body: @escaping () throws -> Void) throws {
        guard workers > 1 else {
            try Fiber.spawnLocal(body)
            return
        }
        let body = Box<(() throws -> Void)?>(body)
        try Fiber.spawn(on: number % workers) { [workers] in
            precondition(FiberRuntime.workerCount == workers)
            // What it captures goes here, at its end, wherever whoever spawned it is then.
            try body.value.take()?()
        }
    }
}

extension KernelTests {
    @Suite struct ClassicTests {
        // M. D. McIlroy's sieve, known from C. A. R. Hoare, "Communicating sequential processes", 1978: a fiber for each prime lets pass what that does not divide.

        @Test(arguments: Stage.all, [ChannelCapacity.rendezvous, .bounded(10)])
        func sieve_findsThePrimes(on stage: Stage, capacity: ChannelCapacity) throws {
            func numbers() throws -> ChannelReceiver<Int> {
                let (sender, receiver) = stage.make(of: Int.self, capacity)
                try stage.spawn(0) {
                    var number = 2
                    // Ends when nobody wants any more.
                    while (try? sender.send(number)) != nil { number += 1 }
                }
                return receiver
            }
            func filter(_ numbers: ChannelReceiver<Int>, _ prime: Int) throws -> ChannelReceiver<Int> {
                let (sender, receiver) = stage.make(of: Int.self, capacity)
                try stage.spawn(prime) {
                    for number in numbers where number % prime != 0 { if (try? sender.send(number)) == nil { break } }
                }
                return receiver
            }
            let count = scaled(100, sanitized: 40)
            // The end of the first chain must end it all, else the runtime would not.
            let primes = try stage.run {
                var primes: [Int] = []
                var rest = try numbers()
                while primes.count < count, let prime = try rest.receive() {
                    primes.append(prime)
                    rest = try filter(rest, prime)
                }
                return primes
            }
            let known = (2...541).filter { number in !(2..<number).contains { number % $0 == 0 } }
            #expect(known.count == 100)
            #expect(primes == Array(known.prefix(count)))
        }

        // The thread ring of the benchmarks game: whoever gets the token when it is spent says its number. The winner's end goes round and ends all others.

        @Test(arguments: Stage.all, [503, 5_003])
        func ring_passesTheToken_toWhoGetsItLast(on stage: Stage, size: Int) throws {
            let size = scaled(size, sanitized: 1_009)
            for token in size != 503 ? [scaled(6_000, sanitized: 2_000)] : isSanitized ? [0, 503, 1_000] : [0, 1, 502, 503, 1_000, 5_000] {
                let winner = try stage.run {
                    let (winners, winner) = stage.make(of: Int.self, .bounded(1))
                    let (first, beginning) = stage.make(of: Int.self, .bounded(1))
                    var previous = beginning
                    for number in 1...size {
                        let (following, next): (ChannelSender<Int>, ChannelReceiver<Int>?)
                        if number < size {
                            (following, next) = stage.make(of: Int.self, .bounded(1))
                        } else {
                            (following, next) = (first, nil)
                        }
                        try stage.spawn(number) { [previous] in
                            for token in previous {
                                if token > 0 {
                                    try following.send(token - 1)
                                } else {
                                    try winners.send(number)
                                    following.close()
                                }
                            }
                            following.close()
                        }
                        if let next { previous = next }
                    }
                    try first.send(token)
                    return try winner.receive()
                }
                #expect(winner == token % size + 1)
                if size == 503 && token == 1_000 { #expect(winner == 498) }
            }
        }

        @Test(arguments: Stage.all, [ChannelCapacity.rendezvous, .bounded(1), .unbounded])
        func pingAndPong_takeTurns(on stage: Stage, capacity: ChannelCapacity) throws {
            let rounds = scaled(stage.workers == 1 ? 10_000 : 3_000, sanitized: 1_000)
            let answers = try stage.run {
                let (pings, atPong) = stage.make(of: Int.self, capacity)
                let (pongs, atPing) = stage.make(of: Int.self, capacity)
                try stage.spawn(1) {
                    for ping in atPong { try pongs.send(-ping) }
                    pongs.close()
                }
                var answers = 0
                for round in 1...rounds {
                    try pings.send(round)
                    if try atPing.receive() == -round { answers += 1 }
                }
                pings.close()
                if try atPing.receive() == nil { answers += 1 }
                return answers
            }
            #expect(answers == rounds + 1)
        }

        // Skynet (A. Temerev): each fiber makes ten, down to the leaves, which say their numbers, and all others say the sum of what they hear.

        @Test(arguments: Stage.all)
        func skynet_addsUpItsLeaves_onAsManyStacksAsItIsDeep(on stage: Stage) throws {
            // Seconds for a million without optimisation: once will do.
            let leaves = isSanitized ? 10_000 : isDebugBuild && stage.kind == .shared ? 100_000 : 1_000_000
            func grow(_ first: Int, _ size: Int, _ parent: ChannelSender<Int>) throws {
                if size == 1 { return try parent.send(first) }
                let (sender, receiver) = stage.make(of: Int.self, .bounded(10))
                let part = size / 10
                for i in 0..<10 {
                    if size == leaves {
                        try stage.spawn(i) { try grow(first + i * part, part, sender) }
                    } else {
                        try Fiber.spawnLocal(startingNow: true) { try grow(first + i * part, part, sender) }
                    }
                }
                var sum = 0
                for _ in 0..<10 { sum += try receiver.receive() ?? 0 }
                try parent.send(sum)
            }
            let before = Process.residentBytes
            let sum = try stage.run {
                let (sender, receiver) = stage.make(of: Int.self, .bounded(1))
                try grow(0, leaves, sender)
                return try receiver.receive()
            }
            #expect(sum == leaves * (leaves - 1) / 2)
            if leaves == 1_000_000 { #expect(sum == 499_999_500_000) }
            // A hundred thousand stacks would be 400 MB and more.
            if !isSanitized { #expect(Process.residentBytes - before < 100_000_000) }
        }
    }
}
