// SPDX-License-Identifier: Apache-2.0

// `select` over channels of one worker and between workers, and over time.

import CFaults
import CFiber
import Fibers
import Glibc
import Testing

extension KernelTests {
    @Suite struct SelectTests {
        @Test(arguments: ChannelKind.allCases)
        func arm_happens_thatIsReady(kind: ChannelKind) throws {
            var log: [String] = []
            try FiberRuntime.run {
                let (jobs, work) = kind.make(of: Int.self, .bounded(1))
                let (results, out) = kind.make(of: String.self, .bounded(1))
                func turn(_ text: String) throws {
                    try select {
                        work.onReceive { log.append("job \($0)") }
                        results.onSend(text) { log.append("sent \(text)") }
                        otherwise { log.append("nothing") }
                    }
                }
                try turn("a")
                try turn("b")
                try jobs.send(7)
                try turn("c")
                log.append(try out.receive() ?? "?")
                try turn("d")
            }
            #expect(log == ["sent a", "nothing", "job 7", "a", "sent d"])
        }

        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(1), .unbounded])
        func select_waits_untilOneArmCanHappen(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var log: [String] = []
            var left: [Int] = []
            try FiberRuntime.run {
                let ends = (0..<3).map { _ in kind.make(of: Int.self, capacity) }
                let chooser = try Fiber.spawnLocal {
                    for _ in 0..<3 {
                        try select {
                            ends[0].1.onReceive { log.append("0: \($0)") }
                            ends[1].1.onReceive { log.append("1: \($0)") }
                            ends[2].1.onReceive { log.append("2: \($0)") }
                        }
                    }
                }
                Fiber.yield()
                for i in [2, 0, 1] {
                    try ends[i].0.send(i * 10)
                    Fiber.yield()
                }
                try chooser.join()
                left = ends.map { $0.0.waiting.receivers + $0.0.count }
            }
            #expect(log == ["2: 20", "0: 0", "1: 10"])
            #expect(left == [0, 0, 0])
        }

        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(2)])
        func send_isTaken_whenAReceiverComes_andOnlyThen(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var received: [Int] = []
            var sent: [Int] = []
            try FiberRuntime.run {
                let (first, one) = kind.make(of: Int.self, capacity)
                let (second, other) = kind.make(of: Int.self, capacity)
                for i in 0..<2 where capacity != .rendezvous {
                    try first.send(-i)
                    try second.send(-i)
                }
                let chooser = try Fiber.spawnLocal {
                    for i in 1...4 {
                        try select {
                            first.onSend(i) { sent.append(i) }
                            second.onSend(i * 100) { sent.append(i * 100) }
                        }
                    }
                }
                Fiber.yield()
                for receiver in [other, one, one, other] {
                    received.append(try receiver.receive() ?? -1)
                    Fiber.yield()
                }
                try chooser.join()
                first.close()
                second.close()
                for message in one { received.append(message) }
                for message in other { received.append(message) }
            }
            #expect(sent == [100, 2, 3, 400])
            #expect(received.filter { $0 > 0 }.sorted() == [2, 3, 100, 400])
        }

        @Test func select_overBothKindsOfChannel_losesNothing() throws {
            let n = 2_000
            var sums = [0, 0]
            try FiberRuntime.run(.init(workers: 2)) {
                let (near, nearby) = makeLocalChannel(of: Int.self, .rendezvous)
                let (far, away) = makeChannel(of: Int.self, .rendezvous)
                try Fiber.spawnLocal { for i in 0..<n { try near.send(i) } }
                try Fiber.spawn(on: 1) { for i in 0..<n { try far.send(i) } }
                for _ in 0..<2 * n {
                    try select {
                        nearby.onReceive { sums[0] += $0 }
                        away.onReceive { sums[1] += $0 }
                    }
                }
            }
            #expect(sums == [n * (n - 1) / 2, n * (n - 1) / 2])
        }

        // Fairness.

        @Test(arguments: ChannelKind.allCases)
        func everyReadyArm_isAsLikelyAsAnyOther(kind: ChannelKind) throws {
            let picks = scaled(isDebugBuild ? 200_000 : 1_000_000, sanitized: 10_000)
            var counts = [Int](repeating: 0, count: 5)
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .bounded(1))
                let (filled, other) = kind.make(of: Int.self, .bounded(2))
                let (_, silent) = kind.make(of: Int.self, .rendezvous)
                let past = ContinuousClock.now
                for _ in 0..<picks {
                    _ = filled.trySend(0)
                    // The same channel twice, a silent one in between, and a time that has come.
                    try select {
                        other.onReceive { _ in counts[0] += 1 }
                        silent.onReceive { _ in counts[4] += 1 }
                        sender.onSend(1) { counts[1] += 1 }
                        other.onReceive { _ in counts[2] += 1 }
                        onDeadline(past) { counts[3] += 1 }
                    }
                    _ = receiver.tryReceive()
                }
            }
            let expected = picks / 4
            // A twentieth; where there are few picks, six times their standard deviation.
            let tolerance = max(0.05 * Double(expected), 6 * (Double(picks) * 3 / 16).squareRoot())
            #expect(counts[4] == 0)
            for count in counts[..<4] { #expect(abs(Double(count - expected)) < tolerance) }
        }

        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(1)])
        func sameChannel_mayStandInSeveralArms_andNeverMeetsItself(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var log: [String] = []
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, capacity)
                if capacity == .bounded(1) { try sender.send(0) }
                func turn() throws {
                    try select {
                        if capacity == .rendezvous { receiver.onReceive { log.append("first \($0)") } }
                        if capacity == .rendezvous { receiver.onReceive { log.append("second \($0)") } }
                        sender.onSend(1) { log.append("sent") }
                        sender.onSend(2) { log.append("sent") }
                        onTimeout(.milliseconds(1)) { log.append("nobody else") }
                    }
                }
                try turn()
                #expect(sender.waiting == (0, 0))
                let partner = try Fiber.spawnLocal { try turn() }
                try turn()
                try partner.join()
                #expect(sender.waiting == (0, 0))
            }
            #expect(log.first == "nobody else")
            if capacity == .rendezvous {
                // The two met each other, each once.
                #expect(log.count == 3 && log.filter { $0 == "sent" }.count == 1)
                #expect(log.filter { ["first 1", "first 2", "second 1", "second 2"].contains($0) }.count == 1)
            }
        }

        // Closing.

        @Test(arguments: ChannelKind.allCases)
        func closedArm_callsItsEnd_orIsNotThere(kind: ChannelKind) throws {
            var log: [String] = []
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .bounded(1))
                let (other, second) = kind.make(of: Int.self, .bounded(1))
                try sender.send(1)
                sender.close()
                try other.send(2)
                for _ in 0..<2 {
                    try select {
                        receiver.onReceive {
                            log.append("\($0)")
                        } end: {
                            log.append("end")
                        }
                    }
                }
                try select {
                    receiver.onReceive { _ in log.append("impossible") }
                    sender.onSend(3) { log.append("impossible") }
                    second.onReceive { log.append("\($0)") }
                }
                try select {
                    receiver.onReceive { _ in log.append("impossible") }
                    sender.onSend(3) {
                        log.append("impossible")
                    } closed: {
                        log.append("closed")
                    }
                }
                do {
                    try select {
                        receiver.onReceive { _ in }
                        sender.onSend(1) {}
                    }
                } catch is ChannelClosedError { log.append("all closed") }
                try select {
                    receiver.onReceive { _ in }
                    otherwise { log.append("otherwise") }
                }
            }
            #expect(log == ["1", "end", "2", "closed", "all closed", "otherwise"])
        }

        @Test(arguments: ChannelKind.allCases)
        func waitingSelect_isTold_whenAChannelIsClosed(kind: ChannelKind) throws {
            var log: [String] = []
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: Int.self, .rendezvous)
                let (other, second) = kind.make(of: Int.self, .rendezvous)
                let told = try Fiber.spawnLocal {
                    try select {
                        receiver.onReceive { _ in
                        } end: {
                            log.append("end")
                        }
                        second.onReceive { _ in }
                    }
                }
                let untold = try Fiber.spawnLocal {
                    try select {
                        receiver.onReceive { _ in }
                        second.onReceive { log.append("\($0)") }
                    }
                }
                Fiber.yield()
                sender.close()
                try told.join()
                try other.send(5)
                try untold.join()
                #expect(other.waiting == (0, 0))
            }
            #expect(log == ["end", "5"])
        }

        // Time.

        @Test func timeout_happens_whenNothingElseDoes() throws {
            var log: [String] = []
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: Int.self, .rendezvous)
                try Fiber.spawnLocal {
                    try Fiber.sleep(for: .milliseconds(5))
                    try sender.send(1)
                }
                var isOver = false
                while !isOver {
                    try select {
                        receiver.onReceive {
                            log.append("\($0)")
                            isOver = true
                        }
                        onTimeout(.seconds(100)) { log.append("late") }
                        onTimeout(.milliseconds(1)) { if log.isEmpty { log.append("early") } }
                        onTimeout(nil) { log.append("impossible") }
                        never()
                    }
                }
            }
            #expect(log == ["early", "1"])
        }

        @Test func deadline_runsOn_fromOneSelectToTheNext() throws {
            var messages = 0
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: Int.self, .rendezvous)
                let source = try Fiber.spawnLocal { while true { try sender.send(1); try Fiber.sleep(for: .microseconds(100)) } }
                let end = ContinuousClock.now + .milliseconds(20)
                var isOver = false
                while !isOver {
                    try select {
                        receiver.onReceive { _ in messages += 1 }
                        onDeadline(end) { isOver = true }
                    }
                }
                source.cancel()
            }
            #expect(messages > 1)
        }

        @Test func tick_happensAtItsTimes_andIsNotTaken_whereAnotherArmHappens() throws {
            var numbers: [Int] = []
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: Int.self, .unbounded)
                let ticker = Ticker(every: .milliseconds(2))
                for i in 0..<100 { try sender.send(i) }
                var others = 0
                while numbers.count < 3 {
                    try select {
                        ticker.onTick { numbers.append($0.number - $0.missed) }
                        receiver.onReceive { _ in others += 1 }
                    }
                }
                #expect(others == 100 || receiver.count > 0)
            }
            // With those missed, none is left out and none comes twice.
            #expect(numbers.first == 1)
            #expect(zip(numbers, numbers.dropFirst()).allSatisfy { $0 < $1 })
        }

        // Cancellation.

        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(1)])
        func cancel_takesNothing_andLeavesNothingBehind(kind: ChannelKind, capacity: ChannelCapacity) throws {
            var errors = 0
            var left: [Int] = []
            var received: [Int] = []
            try FiberRuntime.run {
                let ends = (0..<8).map { _ in kind.make(of: Int.self, capacity) }
                let full = kind.make(of: Int.self, .bounded(1))
                try full.0.send(0)
                let chooser = try Fiber.spawnLocal {
                    do {
                        try select {
                            ends[0].1.onReceive { received.append($0) }
                            ends[1].1.onReceive { received.append($0) }
                            ends[2].1.onReceive { received.append($0) }
                            ends[3].1.onReceive { received.append($0) }
                            ends[4].1.onReceive { received.append($0) }
                            ends[5].1.onReceive { received.append($0) }
                            ends[6].1.onReceive { received.append($0) }
                            ends[7].1.onReceive { received.append($0) }
                            full.0.onSend(1) { received.append(-1) }
                        }
                    } catch is CancellationError { errors += 1 }
                }
                Fiber.yield()
                let inLine = ends.map { $0.0.waiting.receivers }
                #expect(inLine == [1, 1, 1, 1, 1, 1, 1, 1])
                chooser.cancel()
                // It is claimed, and still in line: nobody may meet it.
                let results = ends.map { $0.0.trySend(5) }
                #expect(results.allSatisfy { $0 == (capacity == .rendezvous ? .full : .sent) })
                try chooser.join()
                left = ends.map { $0.0.waiting.receivers } + [full.0.waiting.senders]
                if capacity != .rendezvous { for end in ends { _ = try end.1.receive() } }
                _ = try full.1.receive()
            }
            #expect(errors == 1)
            #expect(received.isEmpty)
            #expect(left.allSatisfy { $0 == 0 })
        }

        @Test func cancellation_happens_inPlaceOfAnError() throws {
            var log: [String] = []
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: Int.self, .rendezvous)
                let fiber = try Fiber.spawnLocal {
                    for _ in 0..<2 {
                        try select {
                            receiver.onReceive { _ in }
                            onCancellation { log.append("cancelled") }
                        }
                    }
                }
                Fiber.yield()
                fiber.cancel()
                try fiber.join()
                do { try withTimeout(.milliseconds(1)) { try select { receiver.onReceive { _ in } } } } catch { log.append("\(error)") }
                _ = sender.count
            }
            #expect(log == ["cancelled", "cancelled", "timed out after 0.001 seconds (one of several things)"])
        }

        // What cannot be copied.

        @Test(arguments: [false, true])
        func parcel_isHandedBack_whenAnotherArmHappens(isShared: Bool) throws {
            let ends = Counter()
            var log: [String] = []
            try FiberRuntime.run {
                let sender: ChannelSender<Parcel>
                let receiver: ChannelReceiver<Parcel>
                if isShared {
                    (sender, receiver) = makeChannel(of: Parcel.self, .bounded(1))
                } else {
                    (sender, receiver) = makeLocalChannel(of: Parcel.self, .bounded(1))
                }
                for i in 0..<2 {
                    try select {
                        sender.onSend(moving: Parcel(i, ends), unsent: { log.append("back \($0.number)") }, { log.append("sent \(i)") })
                        otherwise { log.append("full") }
                    }
                }
                let waiting = try Fiber.spawnLocal {
                    try select {
                        sender.onSend(moving: Parcel(2, ends), unsent: { log.append("back \($0.number)") }, { log.append("sent 2") })
                        onCancellation { log.append("cancelled") }
                    }
                }
                Fiber.yield()
                waiting.cancel()
                try waiting.join()
                try select { receiver.onReceive { parcel in log.append("received \(parcel.number)") } }
                receiver.close()
                try select {
                    sender.onSend(
                        moving: Parcel(3, ends), unsent: { log.append("back \($0.number)") }, {}, closed: { log.append("closed") })
                }
            }
            #expect(
                log == ["sent 0", "back 1", "full", "back 2", "cancelled", "received 0", "back 3", "closed"])
            #expect(ends.value == 4)
        }

        // The ends.

        @Test(arguments: ChannelKind.allCases)
        func arm_keepsItsEnd_whileTheSelectWaits(kind: ChannelKind) throws {
            /// As Go's: the receiver is nobody's but the arm's.
            func after(_ duration: Duration) throws -> ChannelReceiver<Int> {
                let (sender, receiver) = kind.make(of: Int.self, .bounded(1))
                try Fiber.spawnLocal {
                    try Fiber.sleep(for: duration)
                    try sender.send(7)
                }
                return receiver
            }
            var received = 0
            try FiberRuntime.run {
                try select {
                    try after(.milliseconds(2)).onReceive {
                        received = $0
                    } end: {
                        received = -1
                    }
                }
            }
            #expect(received == 7)
        }

        /// Vectors are aligned to the most that there is; where they lie otherwise, the instructions that move them fault.
        @Test(arguments: ChannelKind.allCases)
        func message_ofTheWidestAlignment_isCarried(kind: ChannelKind) throws {
            #expect(MemoryLayout<SIMD8<Double>>.alignment == 16, "slots lie at multiples of 16")
            var sum: SIMD8<Double> = .zero
            try FiberRuntime.run {
                let (sender, receiver) = kind.make(of: SIMD8<Double>.self, .rendezvous)
                let (oddSender, oddReceiver) = kind.make(of: UInt8.self, .rendezvous)
                try Fiber.spawnLocal {
                    var i = 0
                    while i < 10 {
                        try select {
                            oddSender.onSend(1) {}
                            sender.onSend(SIMD8(repeating: Double(i))) { i += 1 }
                            onTimeout(.seconds(100)) {}
                        }
                    }
                    sender.close()
                }
                var isOpen = true
                while isOpen {
                    try select {
                        onTimeout(.seconds(100)) {}
                        oddReceiver.onReceive { _ in }
                        receiver.onReceive {
                            sum += $0
                        } end: {
                            isOpen = false
                        }
                    }
                }
            }
            #expect(sum == SIMD8(repeating: 45))
        }

        @Test func timeoutThatNeverComes_isNoArm() throws {
            var isThrown = false
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: Int.self, .bounded(1))
                sender.close()
                do {
                    try select {
                        receiver.onReceive { _ in }
                        onTimeout(nil) {}
                    }
                } catch is ChannelClosedError { isThrown = true }
            }
            #expect(isThrown)
        }

        #if compiler(>=6.2)
            @Test(.enabled(if: !isSanitized, "a child under a sanitizer may hang at its end"))
            func misuse_stopsTheProgram_withARemedy() async {
                let local = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let (_, receiver) = makeLocalChannel(of: Int.self, .bounded(1))
                        try select { receiver.onReceive { _ in } }
                    }
                }
                expectMessage(local, "use the one without Local")
                let empty = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run {
                            let (sender, _) = makeLocalChannel(of: Int.self, .bounded(1))
                            var message: Int?
                            try sender.send(moving: &message)
                        }
                    }
                }
                expectMessage(empty, "send(moving:) was given nil")
            }
        #endif

        // The rest.

        @Test func handler_mayReturnAndThrow() throws {
            var values: [Int] = []
            try FiberRuntime.run {
                let (sender, receiver) = makeLocalChannel(of: Int.self, .bounded(1))
                try sender.send(20)
                values.append(
                    try select {
                        receiver.onReceive { $0 + 1 }
                        onTimeout(.seconds(100)) { 0 }
                    })
                try sender.send(1)
                do {
                    try select { receiver.onReceive { _ in throw TestError(number: 3) } }
                } catch let error as TestError { values.append(error.number) }
            }
            #expect(values == [21, 3])
        }

        @Test func others_haveTheirTurn_whileOneOnlyLooks() throws {
            var turns = 0
            try FiberRuntime.run {
                let (_, receiver) = makeLocalChannel(of: Int.self, .bounded(1))
                let other = try Fiber.spawnLocal { while true { turns += 1; try Fiber.checkCancellation(); Fiber.yield() } }
                for _ in 0..<10_000 {
                    try select {
                        receiver.onReceive { _ in }; otherwise {}
                    }
                }
                other.cancel()
            }
            #expect(turns > 100)
        }

        @Test(
            .enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"),
            .enabled(if: !isDebugBuild, "without optimisation the contexts of the handlers are allocated"), arguments: ChannelKind.allCases)
        func select_allocatesNothing(kind: ChannelKind) throws {
            var counts: [Int] = []
            try FiberRuntime.run {
                let (jobs, work) = kind.make(of: Int.self, .rendezvous)
                let (results, out) = kind.make(of: String.self, .rendezvous)
                let (_, control) = kind.make(of: Int.self, .bounded(1))
                let source = try Fiber.spawnLocal { while true { try jobs.send(1) } }
                let drain = try Fiber.spawnLocal { while true { _ = try out.receive() } }
                func turns(_ n: Int) throws -> Int {
                    var total = 0
                    for _ in 0..<n {
                        try select {
                            work.onReceive { total += $0 }
                            results.onSend("a message that is too long to lie in its place") { total += 1 }
                            control.onReceive { total -= $0 }
                            onTimeout(.seconds(100)) { total = 0 }
                        }
                    }
                    return total
                }
                _ = try turns(100)
                for n in [1_000, 3_000] { counts.append(try allocations { _ = try turns(n) }) }
                source.cancel()
                drain.cancel()
            }
            // What the function itself allocates, for a variable that its handlers share, it does once.
            #expect(counts[0] <= 1)
            #expect(counts[1] == counts[0])
        }

        @Test func plainThread_selects_untilATimeout() {
            let (sender, receiver) = makeChannel(of: Int.self, .rendezvous)
            let log = Box<[String]>([])
            let thread = Thread {
                do {
                    try select {
                        sender.onSend(1) { log.value.append("sent") }
                        onTimeout(.seconds(100)) { log.value.append("late") }
                    }
                    try select {
                        sender.onSend(2) { log.value.append("sent") }
                        onTimeout(.milliseconds(1)) { log.value.append("timeout") }
                    }
                } catch { log.value.append("\(error)") }
            }
            let message = try? receiver.receive()
            thread.join()
            #expect(message == 1)
            #expect(log.value == ["sent", "timeout"])
            #expect(sender.waiting == (0, 0))
        }
    }
}
