// SPDX-License-Identifier: Apache-2.0

// Classical programs of fibers that talk, of components that live side by side: nobody starves, nobody is forgotten, and who hangs is found.

import Fibers
import Testing

/// What a component tells the monitor.
private enum Report: Sendable {
    case busy(String)
    case waiting(String)
}

extension KernelTests {
    @Suite struct ComponentTests {
        // E. W. Dijkstra's philosophers. A fork is a channel with room for one, which holds it while it lies on the table.

        enum Etiquette: CaseIterable {
            /// Everybody takes the fork with the smaller number first.
            case order
            /// One seat is left empty.
            case seats
        }

        @Test(arguments: Stage.all, Etiquette.allCases)
        func philosophers_allEat(on stage: Stage, by etiquette: Etiquette) throws {
            let (count, meals) = (5, scaled(1_000, sanitized: 200))
            let eaten = Counter(), conflicts = Counter()
            let finished = try stage.run {
                let forks = (0..<count).map { _ in stage.make(of: Int.self, .bounded(1)) }
                for (number, fork) in forks.enumerated() { try fork.0.send(number) }
                let (seats, leaving) = stage.make(of: Int.self, .bounded(count - 1))
                let (results, ends) = stage.make(of: Int.self, .unbounded)
                let inUse = (0..<count).map { _ in Counter() }
                for number in 0..<count {
                    var (one, other) = (forks[number], forks[(number + 1) % count])
                    var (left, right) = (number, (number + 1) % count)
                    if etiquette == .order && number == count - 1 { (one, other, left, right) = (other, one, right, left) }
                    let (takeOne, takeOther) = (stage.share(one.1), stage.share(other.1))
                    let leave = stage.share(leaving)
                    try stage.spawn(number) { [one = one.0, other = other.0, left, right] in
                        for _ in 0..<meals {
                            if etiquette == .seats { try seats.send(number) }
                            let forks = (try takeOne.receive() ?? -1, try takeOther.receive() ?? -1)
                            for fork in [left, right] {
                                inUse[fork].add()
                                if inUse[fork].value != 1 { conflicts.add() }
                            }
                            if forks != (left, right) { conflicts.add() }
                            eaten.add()
                            // Long enough that others come and find the forks taken.
                            Fiber.yield()
                            for fork in [left, right] { inUse[fork].add(-1) }
                            try other.send(right)
                            try one.send(left)
                            if etiquette == .seats { _ = try leave.receive() }
                        }
                        try results.send(number)
                    }
                }
                return try (0..<count).map { _ in try ends.receive() ?? -1 }.sorted()
            }
            #expect(finished == Array(0..<count))
            #expect(eaten.value == count * meals)
            #expect(conflicts.value == 0)
        }

        // Dijkstra's barber: the waiting room is a channel, and who finds it full goes away.

        @Test(arguments: Stage.all)
        func barber_servesWhoFoundAChair(on stage: Stage) throws {
            let customers = 500
            let turnedAway = Counter()
            let (served, answered) = try stage.run {
                let (door, room) = stage.make(of: (number: Int, reply: Box<ChannelSender<Int>>).self, .bounded(3))
                let (shorn, gone) = stage.make(of: Int.self, .unbounded)
                let (total, atClosing) = stage.make(of: Int.self, .bounded(1))
                try stage.spawn(1) {
                    var served = 0
                    for customer in room {
                        served += 1
                        Fiber.yield()
                        try customer.reply.value.send(customer.number)
                    }
                    try total.send(served)
                }
                for number in 0..<customers {
                    try stage.spawn(number) {
                        let (reply, done) = stage.make(of: Int.self, .bounded(1))
                        switch door.trySend((number, Box(reply))) {
                        case .sent: try shorn.send(try done.receive() == number ? 1 : 0)
                        case .full:
                            turnedAway.add()
                            try shorn.send(0)
                        case .closed: break
                        }
                    }
                    // Some come together, and some alone.
                    if number % 7 == 0 { Fiber.yield() }
                }
                var answered = 0
                for _ in 0..<customers { answered += try gone.receive() ?? 0 }
                door.close()
                return (try atClosing.receive() ?? -1, answered)
            }
            #expect(served > 0)
            #expect(served == answered)
            #expect(served + turnedAway.value == customers)
        }

        @Test(arguments: ChannelKind.allCases)
        func barber_hasOneInTheChair_andThreeInTheRoom_whenTheyComeAtOnce(kind: ChannelKind) throws {
            let results = try FiberRuntime.run {
                let (door, room) = kind.make(of: Int.self, .bounded(3))
                let barber = try Fiber.spawnLocal { Array(room) }
                // He sleeps before they come.
                Fiber.yield()
                let results = (0..<10).map { door.trySend($0) }
                door.close()
                let served = try barber.join()
                return (results, served)
            }
            #expect(results.0 == [TrySendResult](repeating: .sent, count: 4) + [TrySendResult](repeating: .full, count: 6))
            #expect(results.1 == [0, 1, 2, 3])
        }

        // A hang monitor after that of the browser Servo: components say when they begin with something and when they wait for more, and who says nothing for some ticks hangs.

        @Test(arguments: Stage.all)
        func monitor_namesTheComponentThatHangs(on stage: Stage) throws {
            let hung = try stage.run {
                let (reports, inbox) = stage.make(of: Report.self, .unbounded)
                let (alerts, alarm) = stage.make(of: String.self, .unbounded)
                let (never, forEver) = stage.make(of: Int.self, .rendezvous)
                // The monitor: one loop over what it receives, and a tick.
                try stage.spawn(0) {
                    var ticksOfSilence: [String: Int] = [:]
                    var isRunning = true
                    func note(_ report: Report) {
                        switch report {
                        case .busy(let name): ticksOfSilence[name] = 0
                        case .waiting(let name): ticksOfSilence[name] = nil
                        }
                    }
                    let ticker = Ticker(every: .milliseconds(1))
                    while isRunning {
                        try select {
                            inbox.onReceive {
                                note($0)
                            } end: {
                                isRunning = false
                            }
                            ticker.onTick { _ in
                                // Those that have something to say and had no turn yet are not silent: they are heard first.
                                Fiber.yield()
                                while case .message(let report) = inbox.tryReceive() { note(report) }
                                for (name, ticks) in ticksOfSilence {
                                    ticksOfSilence[name] = ticks + 1
                                    if ticks == 3 { try alerts.send(name) }
                                }
                            }
                        }
                    }
                    alerts.close()
                }
                // Components: each waits for work, says that it is busy, works, and says that it waits.
                let names = ["script", "layout", "paint", "network"]
                var works: [ChannelSender<Int>] = []
                for (number, name) in names.enumerated() {
                    let (work, toDo) = stage.make(of: Int.self, .bounded(1))
                    works.append(work)
                    try stage.spawn(number) { [reports] in
                        for job in toDo {
                            try reports.send(.busy(name))
                            if name == "layout" && job >= 10 { _ = try forEver.receive() }
                            try reports.send(.waiting(name))
                        }
                    }
                }
                // Work for all until the alarm is raised, and for the one that hangs as long as it takes it.
                var hung: [String] = []
                var job = 0
                while hung.isEmpty || (stage.workers > 1 && !hung.contains("layout")) {
                    job += 1
                    for work in works { _ = work.trySend(job) }
                    try select {
                        alarm.onReceive { hung.append($0) }
                        onTimeout(.microseconds(50)) {}
                    }
                }
                never.close()
                for work in works { work.close() }
                // When all components have ended the monitor does, and then nobody can raise an alarm.
                _ = consume reports
                for name in alarm { hung.append(name) }
                return hung
            }
            #expect(hung.contains("layout"))
            // On one worker nobody else can seem to hang; among several the system may keep a thread from running for as long as it likes.
            if stage.workers == 1 { #expect(hung == ["layout"]) }
        }
    }
}
