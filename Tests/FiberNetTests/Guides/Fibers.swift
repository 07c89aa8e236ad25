// SPDX-License-Identifier: Apache-2.0

// What the landing page of the documentation shows.

import Fibers
import Testing

extension NetTests {
    struct FibersGuide {
        @Test func run_returnsWhatMainReturns() throws {
            let watchdog = Watchdog(seconds: 30, #function)
            defer { watchdog.stop() }
            // snippet.show
            let answer = try FiberRuntime.run {
                let six = try Fiber.spawnLocal { 6 }
                return try six.join() * 7
            }
            // answer is 42
            // snippet.hide
            #expect(answer == 42)
        }
    }
}
