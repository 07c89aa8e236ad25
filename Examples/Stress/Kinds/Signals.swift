// SPDX-License-Identifier: Apache-2.0

// Signals: a flood of one beside a rare one, and subscribers that come and go among the handlers of another library.

import FiberNet
import Fibers
import Glibc
import Synchronization

extension Account {
    static let rareSignals = Account("rare signals beside floods", "sent", "heard")
    static let handledSignals = Account("signals among handlers of another library", "sent", "handled")
}

extension Kind {
    /// Subscribes, floods itself and all other jobs with one signal, and must hear of both.
    static let signals = Kind("signals", weight: 1, descriptors: 2, accounts: [.rareSignals]) { job in
        guard let signals = try job.subscribe(to: .user1, .user2) else { return }
        job.step("wait for a rare signal")
        // To the process: of the workers only the first takes signals.
        for _ in 0..<job.random(1...400) { kill(getpid(), SIGUSR1) }
        kill(getpid(), SIGUSR2)
        Account.rareSignals.left += 1
        var wanted: Set<Signal> = [.user1, .user2]
        while !wanted.isEmpty {
            let signal = try signals.next()
            try Violation.unless(signal == .user1 || signal == .user2, "\(signal) came, and nobody asked for it")
            wanted.remove(signal)
            if job.chance(8) { try job.pause() }
        }
        Account.rareSignals.right += 1
        signals.close()
    }

    /// Subscribes to a signal that no other job uses now, while another library installs a handler over ours. Each signal must reach its present handler and subscribers, and the
    /// library's handlers must be in place again at the end.
    static let handlers = Kind("handlers", weight: 1, descriptors: 4, accounts: [.handledSignals]) { job in
        guard let library = Library.borrow() else { return }
        defer { library.giveBack() }
        library.install(.first)
        guard let signals = try job.subscribe(to: library.signal) else { return library.install(.none) }
        try job.pause()
        try job.send(library, to: [], hears: [signals])
        switch job.random(0...3) {
        case 0:
            // Nobody comes in between.
            signals.close()
            try job.send(library, to: [.first])
        case 1:
            library.install(.second)
            try job.send(library, to: [.second])
            signals.close()
            try Violation.unless(library.installed == .second, "the end of a subscriber has overwritten another library's handler")
            try job.send(library, to: [.second])
        case 2:
            library.install(.passingOn)
            try job.pause()
            try job.send(library, to: [.passingOn], hears: [signals])
            signals.close()
            try job.send(library, to: [.passingOn, .first])
        default:
            library.install(.second)
            if let again = try job.subscribe(to: library.signal) {
                try job.send(library, to: [], hears: [signals, again])
                again.close()
                try job.send(library, to: [], hears: [signals])
                signals.close()
                try Violation.unless(library.installed == .second, "the handler from before is not back")
            }
            signals.close()
            try job.send(library, to: [.second])
        }
        library.install(.none)
    }
}

extension Job {
    /// Nil where there are more than 64 subscribers, or descriptors are short.
    fileprivate func subscribe(to signals: Signal...) throws -> Signals? {
        do throws(IOError) {
            return signals.count == 1 ? try Signals.of(signals[0]) : try Signals.of(signals[0], signals[1])
        } catch  where error.code == .resources {
            Count.shortages += 1
            return nil
        }
    }

    /// Sends the library's signal and waits until each handler has been called once and each subscriber has heard of it.
    fileprivate func send(_ library: Library, to handlers: [Library.Handler], hears subscribers: [Signals] = []) throws {
        step("wait for a signal among handlers")
        let before = handlers.map { library.calls($0) }
        let all = library.allCalls
        kill(getpid(), library.signal.number)
        Account.handledSignals.left += handlers.count + subscribers.count
        for subscriber in subscribers {
            try Violation.unless(try subscriber.next() == library.signal, "another signal came than was sent")
            Account.handledSignals.right += 1
        }
        for (handler, calls) in zip(handlers, before) {
            while library.calls(handler) == calls { try Fiber.sleep(for: .microseconds(100)) }
            Account.handledSignals.right += 1
        }
        try Violation.unless(library.allCalls == all + handlers.count, "a handler was called that was not to be")
    }
}

/// Another library's handlers of one signal: a real-time one, since those do not merge in the kernel.
private final class Library: Sendable {
    enum Handler: Int, CaseIterable { case none, first, second, passingOn }

    let signal: Signal
    private static let firstSignal: Int32 = 40
    private static let free = Guarded((0..<8).map { Library(Signal(firstSignal + $0)) })

    private init(_ signal: Signal) { self.signal = signal }

    static func borrow() -> Library? { free.withLock { $0.popLast() } }
    func giveBack() { Self.free.withLock { $0.append(self) } }

    /// How often a handler has been called.
    func calls(_ handler: Handler) -> Int { Self.word(signal.number, handler).pointee.load(ordering: .acquiring) }
    var allCalls: Int { [.first, .second, .passingOn].reduce(0) { $0 + calls($1) } }

    /// The handler that is the disposition; nil if that is none of this library's.
    var installed: Handler? { Handler.allCases.first { Self.address(Self.action($0)) == Self.address(disposition) } }

    func install(_ handler: Handler) {
        if handler == .passingOn {
            Self.word(signal.number, .none).pointee.store(Int(bitPattern: Self.address(disposition)), ordering: .releasing)
        }
        var action = Self.action(handler)
        sigaction(signal.number, &action, nil)
    }

    private var disposition: sigaction {
        var action = sigaction()
        sigaction(signal.number, nil, &action)
        return action
    }

    private static func address(_ action: sigaction) -> UInt { unsafeBitCast(action.__sigaction_handler, to: UInt.self) }

    private typealias Function = @convention(c) (Int32, UnsafeMutablePointer<siginfo_t>?, UnsafeMutableRawPointer?) -> Void

    private static func action(_ handler: Handler) -> sigaction {
        var action = sigaction()
        action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK
        switch handler {
        case .none:
            action = sigaction()
        case .first:
            action.__sigaction_handler.sa_sigaction = { number, _, _ in
                _ = Library.word(number, .first).pointee.add(1, ordering: .releasing)
            }
        case .second:
            action.__sigaction_handler.sa_sigaction = { number, _, _ in
                _ = Library.word(number, .second).pointee.add(1, ordering: .releasing)
            }
        case .passingOn:
            action.__sigaction_handler.sa_sigaction = { number, info, context in
                _ = Library.word(number, .passingOn).pointee.add(1, ordering: .releasing)
                unsafeBitCast(Library.word(number, .none).pointee.load(ordering: .acquiring), to: Function.self)(number, info, context)
            }
        }
        return action
    }

    /// What handlers read and write: the calls of each, and in the place of `none` what the one that passes on has found.
    private static func word(_ number: Int32, _ handler: Handler) -> UnsafeMutablePointer<Atomic<Int>> {
        words + Int(number - firstSignal) * 4 + handler.rawValue
    }

    nonisolated(unsafe) private static let words = {
        let words = UnsafeMutablePointer<Atomic<Int>>.allocate(capacity: 32)
        for i in 0..<32 { (words + i).initialize(to: Atomic(0)) }
        return words
    }()
}
