// SPDX-License-Identifier: Apache-2.0

// What "Fibers that talk" shows.

import FiberNet
import Fibers
import Glibc
import Testing

/// Runs `main` twice: what ends because a reference goes must do so on one worker as on several.
private func onOneWorkerAndTwo(sourceLocation: SourceLocation = #_sourceLocation, _ main: () throws -> Void) throws {
    for workers in 1...2 { try inRuntime(.init(workers: workers), sourceLocation: sourceLocation, main) }
}

// snippet.show
enum Order: Sendable {
    case deposit(Int)
    case withdraw(Int)
    case balance(reply: OneShotSender<Int>)
}

func keepAccount(_ orders: Receiver<Order>) throws {
    var balance = 0
    for order in orders {
        switch order {
        case .deposit(let amount): balance += amount
        case .withdraw(let amount): balance -= amount
        case .balance(let reply): reply.send(balance)
        }
    }
}
// snippet.hide

// snippet.show
func openAccount() throws -> Sender<Order> {
    let (sender, receiver) = makeChannel(of: Order.self, .bounded(64))
    try Fiber.spawn(name: "account") { try keepAccount(receiver) }
    return sender
}
// snippet.hide

/// One that is closed before it answers.
private func openAndCloseAccount() throws -> Sender<Order> {
    let (sender, receiver) = makeChannel(of: Order.self, .bounded(64))
    try Fiber.spawn {
        while receiver.count == 0 { Fiber.yield() }
    }
    return sender
}

// snippet.show
func balance(of account: Sender<Order>) throws -> Int {
    let (reply, answer) = makeOneShot(of: Int.self)
    try account.send(.balance(reply: consume reply))
    return try answer.receive()
}
// snippet.hide

// snippet.show
func numbers(upTo last: Int) throws -> sending Receiver<Int> {
    let (sender, receiver) = makeChannel(of: Int.self, .bounded(8))
    try Fiber.spawn { for number in 1...last { try sender.send(number) } }
    return receiver
}

func squares(of numbers: sending Receiver<Int>) throws -> sending Receiver<Int> {
    let (sender, receiver) = makeChannel(of: Int.self, .bounded(8))
    try Fiber.spawn { for number in numbers { try sender.send(number * number) } }
    return receiver
}
// snippet.hide

// snippet.show
func inParallel<Job: Sendable, Result: Sendable>(
    _ workers: Int, _ jobs: Receiver<Job>, _ work: @escaping @Sendable (Job) throws -> Result
) throws -> sending Receiver<Result> {
    let (sender, receiver) = makeChannel(of: Result.self, .bounded(8))
    for _ in 0..<workers {
        let mine = jobs.share()
        try Fiber.spawn { for job in mine { try sender.send(work(job)) } }
    }
    return receiver
}
// snippet.hide

// snippet.show
func collectInBatches(_ input: LocalReceiver<Int>, into output: LocalSender<[Int]>) throws {
    var waiting: [Int] = []
    var isOpen = true
    while isOpen || !waiting.isEmpty {
        try select {
            if isOpen && waiting.count < 100 {
                input.onReceive {
                    waiting.append($0)
                } end: {
                    isOpen = false
                }
            }
            if !waiting.isEmpty {
                output.onSend(waiting) { waiting = [] }
            }
        }
    }
}
// snippet.hide

// snippet.show
enum Report: Sendable {
    case busy(String)
    case waiting(String)
}

func watch(_ reports: Receiver<Report>, every interval: Duration, _ alert: @escaping (String) throws -> Void) throws {
    var beats: [String: Int] = [:]  // since a component has become busy
    var isRunning = true
    let ticker = Ticker(every: interval)
    while isRunning {
        try select {
            reports.onReceive { report in
                switch report {
                case .busy(let name): beats[name] = 0
                case .waiting(let name): beats[name] = nil
                }
            } end: {
                isRunning = false
            }
            ticker.onTick { _ in
                for (name, count) in beats {
                    beats[name] = count + 1
                    if count == 3 { try alert(name) }
                }
            }
        }
    }
}
// snippet.hide

// snippet.show
struct Page: ~Copyable, Sendable {
    let number: Int
    var bytes: [UInt8]
}
// snippet.hide

extension NetTests {
    struct FibersThatTalkGuide {
        @Test func loop_ends_whenAllWhoSendHaveEnded() throws {
            try onOneWorkerAndTwo {
                var greetings: [String] = []
                // snippet.show
                let (sender, receiver) = makeChannel(of: String.self, .bounded(16))
                for name in ["Ada", "Grace"] {
                    try Fiber.spawn { [sender] in try sender.send("hello from \(name)") }
                }
                _ = consume sender  // our own

                for greeting in receiver { greetings.append(greeting) }
                // hello from Ada, hello from Grace, in the order in which they were sent
                // snippet.hide
                expect(greetings.sorted() == ["hello from Ada", "hello from Grace"])
            }
        }

        @Test func component_hasItsStateForItself() throws {
            try onOneWorkerAndTwo {
                // snippet.show
                let account = try openAccount()
                try account.send(.deposit(100))
                try account.send(.withdraw(30))
                let rest = try balance(of: account)
                // rest is 70; the account ends when nobody can reach it any more
                // snippet.hide
                expect(rest == 70)
            }
        }

        @Test func request_isAnsweredByAnError_whenWhoShouldAnswerHasGone() throws {
            try onOneWorkerAndTwo {
                do {
                    _ = try balance(of: openAndCloseAccount())
                    expect(false)
                } catch is OneShotUnsentError {}
            }
        }

        @Test func pipeline_isMadeOfFunctions() throws {
            try onOneWorkerAndTwo {
                // snippet.show
                let sum = try squares(of: numbers(upTo: 100)).reduce(0, +)
                // sum is 338350
                // snippet.hide
                expect(sum == 338_350)
            }
        }

        @Test func workers_shareAQueue() throws {
            try onOneWorkerAndTwo {
                // snippet.show
                let roots = try inParallel(4, numbers(upTo: 100)) { Double($0).squareRoot() }
                let whole = roots.filter { $0 == $0.rounded() }.sorted()
                // whole is [1.0, 2.0, 3.0, … 10.0]
                // snippet.hide
                expect(whole == (1...10).map { Double($0) })
            }
        }

        @Test func oneLoop_hearsSeveralChannels_untilAllHaveEnded() throws {
            try onOneWorkerAndTwo {
                let small = try numbers(upTo: 3), large = try squares(of: numbers(upTo: 3))
                var sums = (0, 0)
                // snippet.show
                var (smallIsOpen, largeIsOpen) = (true, true)
                while smallIsOpen || largeIsOpen {
                    try select {
                        if smallIsOpen {
                            small.onReceive {
                                sums.0 += $0
                            } end: {
                                smallIsOpen = false
                            }
                        }
                        if largeIsOpen {
                            large.onReceive {
                                sums.1 += $0
                            } end: {
                                largeIsOpen = false
                            }
                        }
                    }
                }
                // snippet.hide
                expect(sums == (6, 14))
            }
        }

        @Test func lines_areDropped_whereNobodyShallWait() throws {
            try inRuntime {
                var dropped = 0
                // snippet.show
                let (log, lines) = makeLocalChannel(of: String.self, .bounded(2))
                for i in 1...5 {
                    if log.trySend("line \(i)") == .full { dropped += 1 }
                }
                // dropped is 3
                // snippet.hide
                expect(dropped == 3)
                expect(lines.count == 2)
            }
        }

        @Test func localChannel_carriesAnything() throws {
            try inRuntime {
                // snippet.show
                final class Draft { var text = "" }

                let (desk, drafts) = makeLocalChannel(of: Draft.self, .rendezvous)
                let editor = try Fiber.spawnLocal {
                    for draft in drafts { draft.text += ", corrected" }
                }
                let draft = Draft()
                draft.text = "a draft"
                try desk.send(draft)
                desk.close()
                try editor.join()
                // draft.text is "a draft, corrected"
                // snippet.hide
                expect(draft.text == "a draft, corrected")
            }
        }

        @Test func batches_growWhileTheReceiverIsBusy() throws {
            try inRuntime {
                let (sender, input) = makeLocalChannel(of: Int.self, .rendezvous)
                let (output, batches) = makeLocalChannel(of: [Int].self, .rendezvous)
                try Fiber.spawnLocal {
                    try collectInBatches(input, into: output)
                    output.close()
                }
                for i in 0..<250 {
                    try select {
                        sender.onSend(i) {}
                        onTimeout(.seconds(20)) { throw TestError(text: "no room") }
                    }
                    if i == 99 {
                        // It has a hundred, and takes no more.
                        letOthersRun()
                        expect(sender.trySend(-1) == .full)
                        expect(try batches.receive() == Array(0..<100))
                    }
                    if i == 199 { expect(try batches.receive() == Array(100..<200)) }
                }
                sender.close()
                expect(try batches.receive() == Array(200..<250))
                expect(try batches.receive() == nil)
            }
        }

        @Test func select_isAnExpression() throws {
            try inRuntime {
                let (sender, answers) = makeLocalChannel(of: String.self, .bounded(1))
                // snippet.show
                func answer(within limit: Duration) throws -> String {
                    try select {
                        answers.onReceive { $0 }
                        onTimeout(limit) { "nobody there" }
                    }
                }
                // snippet.hide
                expect(try answer(within: .milliseconds(1)) == "nobody there")
                try sender.send("here")
                expect(try answer(within: .seconds(20)) == "here")
            }
        }

        @Test func deadline_endsAnyWait() throws {
            try inRuntime {
                let (sender, receiver) = makeLocalChannel(of: Int.self, .rendezvous)
                var outcome = ""
                // snippet.show
                do {
                    try withTimeout(.milliseconds(20)) {
                        while let number = try receiver.receive() { print(number) }
                    }
                } catch let error as TimeoutError {
                    outcome = "\(error)"
                }
                // timed out after 0.02 seconds (a message)
                // snippet.hide
                expect(outcome == "timed out after 0.02 seconds (a message)")
                _ = sender.count
            }
        }

        @Test func cancelledComponent_finishesWhatItHas() throws {
            try inRuntime {
                let (sender, inbox) = makeLocalChannel(of: Int.self, .unbounded)
                var handled: [Int] = []
                // snippet.show
                let component = try Fiber.spawnLocal {
                    var isRunning = true
                    while isRunning {
                        try select {
                            inbox.onReceive { handled.append($0) }
                            onCancellation { isRunning = false }
                        }
                    }
                    inbox.close()  // nothing new
                    while case .message(let last) = inbox.tryReceive() { handled.append(last) }
                }
                // snippet.hide
                try sender.send(1)
                letOthersRun()
                expect(handled == [1])
                try sender.send(2)
                try sender.send(3)
                component.cancel()
                try component.join()
                expect(handled == [1, 2, 3])
            }
        }

        @Test func monitor_namesWhoHangs() throws {
            try inRuntime(.init(workers: 2)) {
                let (ends, end) = makeChannel(of: Void.self, .rendezvous)
                var hanging: [String] = []
                // snippet.show
                let (reports, inbox) = makeChannel(of: Report.self, .unbounded)
                let (alerts, alarm) = makeChannel(of: String.self, .unbounded)
                try Fiber.spawn(name: "monitor") {
                    try watch(inbox, every: .milliseconds(5)) { try alerts.send($0) }
                }
                try Fiber.spawn(name: "layout") { [reports] in
                    try reports.send(.busy("layout"))
                    _ = try end.receive()  // which takes longer than it should
                    try reports.send(.waiting("layout"))
                }
                if let name = try alarm.receive() { hanging.append(name) }
                // hanging is ["layout"]
                // snippet.hide
                expect(hanging == ["layout"])
                ends.close()
            }
        }

        @Test func keptSender_keepsTheLoopGoing_untilItIsClosed() throws {
            try inRuntime {
                var received: [Int] = []
                var outcome = ""
                // snippet.show
                let (sender, receiver) = makeLocalChannel(of: Int.self, .bounded(4))
                try Fiber.spawnLocal { for number in 1...3 { try sender.send(number) } }
                do {
                    try withTimeout(.milliseconds(20)) {
                        while let number = try receiver.receive() { received.append(number) }
                    }
                } catch let error as TimeoutError {
                    outcome = "\(error)"
                }
                // outcome is "timed out after 0.02 seconds (a message)": 1, 2 and 3 have come, the end has not
                sender.close()
                // snippet.hide
                expect(received == [1, 2, 3])
                expect(outcome == "timed out after 0.02 seconds (a message)")
                expect(try receiver.receive() == nil)
            }
        }

        @Test func closing_byWhoSends_endsTheLoop() throws {
            try inRuntime {
                var received: [Int] = []
                // snippet.show
                let (sender, receiver) = makeLocalChannel(of: Int.self, .bounded(4))
                try Fiber.spawnLocal {
                    defer { sender.close() }
                    for number in 1...3 { try sender.send(number) }
                }
                for number in receiver { received.append(number) }
                // 1, 2, 3
                // snippet.hide
                expect(received == [1, 2, 3])
                expect(sender.isClosed)
            }
        }

        @Test func sender_hears_whenNobodyWillReceive() throws {
            try inRuntime {
                var unsent: Int?
                // snippet.show
                func produce(_ sender: LocalSender<Int>) throws {
                    do {
                        for number in 1... {
                            unsent = number
                            try sender.send(moving: &unsent)
                        }
                    } catch is ChannelClosedError {}  // nobody wants any more, and `unsent` still has the number
                }
                // snippet.hide
                let (sender, receiver) = makeLocalChannel(of: Int.self, .rendezvous)
                let producer = try Fiber.spawnLocal { try produce(sender) }
                expect(try receiver.receive() == 1)
                receiver.close()
                try producer.join()
                expect(unsent == 2)
            }
        }

        @Test func plainThreads_sendAndReceive() throws {
            var ended: [Thread] = []
            try inRuntime {
                // snippet.show
                let (sender, receiver) = makeChannel(of: Int.self, .bounded(8))
                let producer = Thread {
                    for number in 1...1_000 { try? sender.send(number) }
                    sender.close()
                }
                var sum = 0
                for number in receiver { sum += number }
                // sum is 500500
                // snippet.hide
                expect(sum == 500_500)
                ended.append(producer)
            }
            for thread in ended { thread.join() }
        }

        @Test func pages_areMoved() throws {
            try inRuntime {
                var numbers: [Int] = []
                // snippet.show
                let (sender, receiver) = makeChannel(of: Page.self, .bounded(2))
                try Fiber.spawn {
                    for number in 1...3 {
                        var page: Page? = Page(number: number, bytes: [1, 2, 3])
                        try sender.send(moving: &page)  // nil from here on
                    }
                    sender.close()
                }
                while let page = try receiver.receive() { numbers.append(page.number) }
                // 1, 2, 3
                // snippet.hide
                expect(numbers == [1, 2, 3])
            }
        }

        @Test func page_comesBack_whenItWasNotSent() throws {
            try inRuntime {
                var notes: [String] = []
                let (sender, receiver) = makeLocalChannel(of: Page.self, .rendezvous)
                // snippet.show
                try select {
                    sender.onSend(
                        moving: Page(number: 4, bytes: []), unsent: { page in notes.append("kept \(page.number)") },
                        { notes.append("sent") })
                    onTimeout(.milliseconds(1)) { notes.append("nobody came") }
                }
                // kept 4, nobody came
                // snippet.hide
                expect(notes == ["kept 4", "nobody came"])
                _ = receiver.count
            }
        }
    }
}
