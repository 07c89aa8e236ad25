// SPDX-License-Identifier: Apache-2.0

// The tests that run in processes of their own: what such a process says when its body fails.

import Testing

#if compiler(>=6.2)
    extension KernelTests {
        @Suite(.serialized) struct ExitTests {
            @Test func body_saysWhichErrorEndedIt_whenItThrows() async {
                let result = await #expect(processExitsWith: .exitCode(77), observing: [\.standardErrorContent]) {
                    reportingErrors { throw TestError(number: 3) }
                }
                expectMessage(result, "the body of the exit test threw: TestError(number: 3)")
            }
        }
    }
#endif
