// A driver that has a clock and nothing else, both given by whoever makes it: for tests in which time passes only when all fibers wait. It refuses descriptors.
// Owner worker only.

package final class TimeDriver: Driver {
    private let clock: () -> Int64
    private let wait: (Int64) -> Void

    /// - Parameters:
    ///   - clock: monotonic nanoseconds.
    ///   - wait: what `poll(timeout:)` does. No fiber runs meanwhile, and it may cancel some.
    package init(clock: @escaping () -> Int64, wait: @escaping (Int64) -> Void) {
        self.clock = clock
        self.wait = wait
        super.init(bufferSize: 512)
    }

    override func stop() {}
    override package func now() -> Int64 { clock() }
    override func poll(timeout: Int64) { wait(timeout) }
}
