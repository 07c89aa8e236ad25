// SPDX-License-Identifier: Apache-2.0

import CFiber
import Fibers
import Glibc

/// A signal, by number.
public struct Signal: Hashable, Sendable, CustomStringConvertible {
    public let number: Int32

    public init(_ number: Int32) { self.number = number }

    /// SIGINT: Control-C.
    public static let interrupt = Signal(SIGINT)
    /// SIGTERM: please end.
    public static let terminate = Signal(SIGTERM)
    /// SIGHUP: the terminal is gone, or: read the configuration again.
    public static let hangup = Signal(SIGHUP)
    /// SIGCHLD: a child process has ended or stopped.
    public static let child = Signal(SIGCHLD)
    /// SIGUSR1.
    public static let user1 = Signal(SIGUSR1)
    /// SIGUSR2.
    public static let user2 = Signal(SIGUSR2)

    public var description: String {
        switch self {
        case .interrupt: "SIGINT"
        case .terminate: "SIGTERM"
        case .hangup: "SIGHUP"
        case .child: "SIGCHLD"
        case .user1: "SIGUSR1"
        case .user2: "SIGUSR2"
        default: "signal \(number)"
        }
    }
}

/// Signals as values in straight-line code.
///
/// ```swift
/// let signals = try Signals.of(.interrupt, .terminate)
/// let signal = try signals.next()     // parks until one comes
/// ```
///
/// From ``of(_:)`` on the signals no longer do what they did. What that was returns with the end of the last subscriber: when it is closed, goes away, or its runtime ends, also where
/// its fiber was left behind at the shutdown. A handler that another library has installed meanwhile stays; it gets the signals from then on, and the next ``of(_:)`` takes them again.
/// A child process that was forked without executing a program has none of these subscribers, and its signals do what they did before.
///
/// Several subscribers each get every signal that they asked for. Each has one pending signal of a kind, as the system has for the process: a signal that comes while the one before of
/// its kind has not been taken is one with it, real-time signals included. So a flood of one kind never loses another, and a SIGCHLD stands for any number of children.
public final class Signals {
    private let driver: Driver
    /// An eventfd.
    private let descriptor: Descriptor
    private let subscriber: Int64
    private var isClosed = false

    private init(_ driver: Driver, _ descriptor: Descriptor, _ subscriber: Int64) {
        self.driver = driver
        self.descriptor = descriptor
        self.subscriber = subscriber
    }

    /// Subscribes.
    /// - Throws: ``IOError`` with `resources` (descriptors, of which each subscriber has two, or more than 64 subscribers), or `system` for a signal that cannot be caught.
    public static func of(_ signals: Signal...) throws(IOError) -> Signals {
        var mask: UInt64 = 0
        for signal in signals {
            require((1...64).contains(signal.number), "there is no \(signal): signals are numbered 1 to 64")
            mask |= 1 << UInt64(signal.number - 1)
        }
        let worker = Worker.here("Signals.of")
        let owner = worker.attachments.object(SignalsOfRuntime.self) { SignalsOfRuntime() }
        var fd: Int32 = -1
        let subscriber = cfiber_signals_subscribe(mask, Unmanaged.passUnretained(owner).toOpaque(), &fd)
        if subscriber < 0 { throw IOError(Int(subscriber), "subscribe to signals") }
        guard let descriptor = worker.driver.register(fd, exact: true) else {
            cfiber_signals_unsubscribe(subscriber)
            _ = cfiber_close(fd)
            throw IOError(-Int(ENOMEM), "subscribe to signals")
        }
        return Signals(worker.driver, descriptor, subscriber)
    }

    deinit { close() }

    /// Waits for the next signal. Signals of different kinds come in the order in which they arrived, each when the first came that has not been taken.
    ///
    /// Of several fibers that wait, each signal goes to one, the first in line.
    /// - Throws: ``IOError`` with `closed` after ``close()``; `CancellationError` or `TimeoutError` when the fiber is cancelled, and then no signal is lost.
    /// - Note: parks
    public func next() throws -> Signal {
        let result = driver.receive(descriptor) { fd in
            var number = cfiber_signals_take(subscriber)
            if number == 0 {
                _ = cfiber_wake_drain(fd)
                // One that came before is here now, and one that comes later writes again.
                number = cfiber_signals_take(subscriber)
            }
            return number == 0 ? -Int(EAGAIN) : Int(number)
        }
        if result < 0 { throw failure(result, "wait for a signal") }
        return Signal(Int32(result))
    }

    /// Ends the subscription and wakes who waits in ``next()``. Signals that have not been taken are dropped.
    public func close() {
        guard !isClosed else { return }
        isClosed = true
        cfiber_signals_unsubscribe(subscriber)
        driver.close(descriptor)
    }
}

/// Ends the subscriptions of a runtime with it: those of fibers that were left behind at the shutdown, too, whose objects are never freed.
private final class SignalsOfRuntime: Sendable {
    deinit { cfiber_signals_end(Unmanaged.passUnretained(self).toOpaque()) }
}
