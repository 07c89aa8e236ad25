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
/// From ``of(_:)`` on the signals no longer do what they did; what that was returns when the last subscriber is closed or goes away. Several
/// subscribers each get every signal that they asked for.
public final class Signals {
    private let stream: TCPStream
    private let subscriber: Int32
    private var isClosed = false

    private init(_ stream: TCPStream, _ subscriber: Int32) {
        self.stream = stream
        self.subscriber = subscriber
    }

    /// Subscribes.
    /// - Throws: ``IOError`` with `resources` (descriptors, or more than 64 subscribers), or `system` for a signal that cannot be caught.
    public static func of(_ signals: Signal...) throws(IOError) -> Signals {
        var mask: UInt64 = 0
        for signal in signals {
            require((1...64).contains(signal.number), "there is no \(signal): signals are numbered 1 to 64")
            mask |= 1 << UInt64(signal.number - 1)
        }
        let driver = Worker.here("Signals.of").pointee.driver
        var fd: Int32 = -1
        let subscriber = cfiber_signals_subscribe(mask, &fd)
        if subscriber < 0 { throw IOError(Int(subscriber), "subscribe to signals") }
        do {
            return Signals(try TCPStream(fd, exact: true, driver: driver, "subscribe to signals"), subscriber)
        } catch {
            cfiber_signals_unsubscribe(subscriber)
            throw error
        }
    }

    deinit { close() }

    /// Waits for the next signal, in the order in which they came.
    /// - Throws: ``IOError`` with `closed` after ``close()``, `cancelled` or `timedOut` when the fiber is cancelled, and then no signal is lost.
    /// - Note: parks
    public func next() throws(IOError) -> Signal {
        var number: UInt8 = 0
        let result = withUnsafeMutableBytes(of: &number) {
            stream.driver.receive(stream.descriptor, $0.baseAddress!, 1, until: Deadline.never)
        }
        if result <= 0 { throw IOError(result < 0 ? result : IOCode.closed, "wait for a signal") }
        return Signal(Int32(number))
    }

    /// Ends the subscription and wakes who waits in ``next()``.
    public func close() {
        guard !isClosed else { return }
        isClosed = true
        cfiber_signals_unsubscribe(subscriber)
        stream.close()
    }
}
