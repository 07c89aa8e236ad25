import Fibers
import Testing
@Test func run_returnsWhatMainReturns() throws {
    var trace: [String] = []
    let v = try FiberRuntime.run { () -> Int in
        let a = try Fiber.spawnLocal {
            for i in 0..<3 { trace.append("a\(i)"); Fiber.yield() }; return 1
        }
        let b = try Fiber.spawnLocal {
            for i in 0..<3 { trace.append("b\(i)"); Fiber.yield() }; return 2
        }
        try Fiber.sleep(for: .milliseconds(5))
        return try a.join() + b.join()
    }
    #expect(v == 3)
    #expect(trace == ["a0", "b0", "a1", "b1", "a2", "b2"])
}
