// SPDX-License-Identifier: Apache-2.0

// A value that changes, and those who want to know what it is now.

import Fibers
import Testing

private func makeEnds<Value: Sendable>(_ reach: Reach, _ initial: Value) -> (WatchSendingEnd<Value>, WatchReceivingEnd<Value>) {
    switch reach {
    case .local: makeLocalWatch(initial)
    case .shared: makeWatch(initial)
    }
}

extension KernelTests {
    @Suite struct WatchTests {
        @Test(arguments: Reach.allCases)
        func receiver_seesTheLatest_andEachVersionOnce(_ reach: Reach) throws {
            var (values, news): ([Int?], [Bool]) = ([], [])
            try runQuietly {
                let (sender, receiver) = makeEnds(reach, 1)
                news.append(receiver.hasChanged)
                values.append(receiver.value)
                sender.send(2)
                sender.send(3)
                news.append(receiver.hasChanged)
                values.append(try receiver.changed())
                news.append(receiver.hasChanged)
                sender.send(4)
                values.append(receiver.value)
                // Seen by that.
                news.append(receiver.hasChanged)
                let waiting = try Fiber.spawnLocal { try receiver.changed() }
                letTheOthersPark()
                sender.send(5)
                sender.send(6)
                values.append(try waiting.join())
                withExtendedLifetime(sender) {}
            }
            #expect(values == [1, 3, 4, 6])
            #expect(news == [false, true, false, false])
        }

        @Test(arguments: Reach.allCases)
        func receivers_seeTheLastValue_andThenTheEnd(_ reach: Reach) throws {
            var values: [Int?] = []
            try runQuietly {
                var (sender, receiver): (WatchSendingEnd<Int>?, _) = makeEnds(reach, 1)
                let waiting = try (0..<3).map { _ in
                    let receiver = share(receiver)
                    return try Fiber.spawnLocal { try receiver.changed() }
                }
                letTheOthersPark()
                sender = nil
                for handle in waiting { values.append(try handle.join()) }
                values.append(try receiver.changed())
                values.append(receiver.value)
                (sender, receiver) = makeEnds(reach, 1)
                sender?.send(2)
                sender = nil
                values += Array(receiver)
                values.append(try receiver.changed())
            }
            #expect(values == [nil, nil, nil, nil, 1, 2, nil])
        }

        @Test(arguments: Reach.allCases)
        func sharedReceiver_hasSeen_whatTheOtherHas(_ reach: Reach) throws {
            var news: [Bool] = []
            try runQuietly {
                let (sender, receiver) = makeEnds(reach, 1)
                sender.send(2)
                let early = share(receiver)
                _ = receiver.value
                let late = share(receiver)
                news = [early.hasChanged, late.hasChanged, receiver.hasChanged, subscribe(sender).hasChanged]
            }
            #expect(news == [true, false, false, false])
        }

        @Test(arguments: Reach.allCases)
        func update_changesTheValue_unlessItThrows(_ reach: Reach) throws {
            var results: [Int] = []
            var news: [Bool] = []
            try runQuietly {
                let (sender, receiver) = makeEnds(reach, 1)
                results.append(
                    sender.update {
                        $0 += 1
                        return $0 * 10
                    })
                results.append(receiver.value)
                news.append(
                    failure {
                        try sender.update {
                            $0 = 7; throw TestError()
                        }
                    } is TestError)
                news.append(receiver.hasChanged)
                results.append(sender.value)
            }
            #expect(results == [20, 2, 2])
            #expect(news == [true, false])
        }

        @Test(arguments: Reach.allCases)
        func nothingIsLost_whenAWaitIsCancelledOrTimesOut(_ reach: Reach) throws {
            var results: [String] = []
            try runQuietly {
                let (sender, receiver) = makeEnds(reach, 1)
                results.append("\(failure { try withTimeout(.microseconds(10)) { _ = try receiver.changed() } } is TimeoutError)")
                let cancelled = try Fiber.spawnLocal { try receiver.changed() }
                letTheOthersPark()
                cancelled.cancel()
                // It has been claimed, and is still in line.
                sender.send(2)
                results.append("\(failure { _ = try cancelled.join() } is CancellationError)")
                results.append("\(receiver.hasChanged)")
                let late = try Fiber.spawnLocal { try receiver.changed() }
                late.cancel()
                results.append("\(failure { _ = try late.join() } is CancellationError)")
                results.append("\(try receiver.changed() ?? 0)")
            }
            #expect(results == ["true", "true", "true", "true", "2"])
        }

        /// Values come in order, none twice, and the last one always.
        @Test(arguments: Side.all)
        func receivers_seeTheLastValue_whereverTheyAre(_ side: Side) throws {
            let count = scaled(20_000, sanitized: 2_000)
            let (wrong, ended) = (Counter(), Counter())
            try onWorkers(side.workers) {
                var (sender, receiver): (WatchSender<Int>?, _) = makeWatch(0)
                let joins = try (0..<3).map { _ in
                    let box = Box<WatchReceiver<Int>?>(receiver.share())
                    return try side.run {
                        let receiver = box.value.take()!
                        var (last, random) = (0, SeededGenerator(seed: 6))
                        while true {
                            // Some waits end early.
                            do {
                                let next =
                                    Worker.current == nil
                                    ? try receiver.changed() : try withTimeout(limit(&random)) { try receiver.changed() }
                                guard let value = next else { break }
                                if value <= last { wrong.add() }
                                last = value
                            } catch is TimeoutError {}
                        }
                        if last == count { ended.add() }
                    }
                }
                var random = SeededGenerator(seed: 5)
                for i in 1...count {
                    sender?.send(i)
                    delay(&random)
                }
                sender = nil
                for join in joins { try join() }
            }
            #expect(wrong.value == 0)
            #expect(ended.value == 3)
        }

        @Test(arguments: [1, 2, 4])
        func noUpdateIsLost_whenFibersAndThreadsChangeTheValue(_ workers: Int) throws {
            let count = scaled(5_000, sanitized: 500)
            var total = 0
            try onWorkers(workers) {
                let (sender, receiver) = makeWatch(0)
                let body: @Sendable () -> Void = {
                    for _ in 0..<count { sender.update { $0 += 1 } }
                }
                var joins = try (0..<workers).map { try Side.worker($0, of: workers).run(body) }
                joins.append(try Side.thread.run(body))
                for join in joins { try join() }
                total = receiver.value
            }
            #expect(total == (workers + 1) * count)
        }

        @Test(arguments: Reach.allCases)
        func valuesAreLetGoOf_once(_ reach: Reach) throws {
            let ends = Counter()
            var counts: [Int] = []
            try runQuietly {
                var (sender, receiver): (WatchSendingEnd<Token>?, WatchReceivingEnd<Token>?) = makeEnds(reach, Token(0, ends))
                for i in 1...10 { sender?.send(Token(i, ends)) }
                counts.append(ends.value)
                var held = try receiver?.changed()
                sender?.send(Token(11, ends))
                counts.append(ends.value)
                counts.append(held?.number ?? -1)
                held = nil
                counts.append(ends.value)
                (sender, receiver) = (nil, nil)
                counts.append(ends.value)
            }
            #expect(counts == [10, 10, 10, 11, 12])
        }

        /// It looks at the watch, and sends; a lock that were held would never be free.
        @Test(arguments: Reach.allCases)
        func deinitOfAValue_mayUseTheWatch(_ reach: Reach) throws {
            let (ends, seen) = (Counter(), Counter())
            try runQuietly {
                let (sender, receiver) = makeEnds(reach, Token(0, ends))
                let end = Box<WatchSendingEnd<Token>?>(sender)
                for i in 1...10 {
                    sender.send(
                        Token(i, ends) {
                            seen.add(end.value!.value.number)
                            end.value!.send(Token(100, ends))
                        })
                    sender.update { $0 = Token(i * 10, ends) }
                }
                seen.add(receiver.value.number)
                end.value = nil
            }
            #expect(ends.value == 31)
            #expect(seen.value == 10 * 55 + 100)
        }

        #if compiler(>=6.2)
            @Test func changed_stopsAndSaysWhatToDo_whenALocalOneIsUsedOnAThread() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let (sender, receiver) = makeLocalWatch(1)
                        _ = try receiver.changed()
                        withExtendedLifetime(sender) {}
                    }
                }
                expectMessage(result, "a Local… thing was used on a thread without fibers: use the one without Local")
            }
        #endif
    }
}

private func share<Value: Sendable>(_ receiver: WatchReceivingEnd<Value>) -> WatchReceivingEnd<Value> {
    (receiver as? LocalWatchReceiver<Value>)?.share() ?? (receiver as! WatchReceiver<Value>).share()
}

private func subscribe<Value: Sendable>(_ sender: WatchSendingEnd<Value>) -> WatchReceivingEnd<Value> {
    (sender as? LocalWatchSender<Value>)?.subscribe() ?? (sender as! WatchSender<Value>).subscribe()
}
