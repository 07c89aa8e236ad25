// SPDX-License-Identifier: Apache-2.0

// The example Pipeline as a program of its own.

import CFiber
import FiberNet
import Glibc
import Testing

private var path: String { examplePath("Pipeline") }

extension NetTests {
    struct PipelineTests {
        @Test(arguments: [(1, 0), (2, 1), (100, 25), (1_000, 168), (1_001, 168), (200_000, 17_984)])
        func primes_areCounted(limit: Int, primes: Int) throws {
            let (status, output, errors) = try Child(path, ["\(limit)"]).wait()
            #expect(status == 0)
            #expect(output == "\(primes) primes among \(limit) numbers\n")
            // Progress, once a second where it takes so long.
            #expect(errors.split(separator: "\n").allSatisfy { $0.hasSuffix("primes") }, "\(errors)")
        }

        @Test(arguments: [SIGINT, SIGTERM])
        func program_saysWhatItHas_whenItIsEnded(signal: Int32) throws {
            // More than it can do.
            let child = try Child(path, ["1000000000000"])
            // It listens to signals before it first says how far it is.
            try child.waitForErrors()
            child.signal(signal)
            let (status, output, errors) = try child.wait()
            #expect(status == 3)
            let words = output.split(whereSeparator: \.isWhitespace)
            #expect(words.count == 5 && words[1...2] == ["primes", "among"], "\(output)")
            let numbers = words.count == 5 ? Int(words[3]) ?? 0 : 0
            // Whole pieces, none of which is lost.
            #expect(numbers > 0 && numbers.isMultiple(of: 1_000))
            #expect(errors.contains(signal == SIGINT ? "SIGINT: finishing" : "SIGTERM: finishing"), "\(errors)")
        }

        @Test(arguments: [["x"], ["0"], ["-5"], ["1", "2"], ["--frob"]])
        func wrongArgument_isOneLineOnStandardError_andStatus2(arguments: [String]) throws {
            let (status, output, errors) = try Child(path, arguments).wait()
            #expect(status == 2 && output.isEmpty)
            #expect(errors == "Pipeline: takes one number, at least 1; see --help\n")
        }

        @Test func help_isPrinted_withStatus0() throws {
            let (status, output, errors) = try Child(path, ["--help"]).wait()
            #expect(status == 0 && output.contains("usage: Pipeline") && errors.isEmpty)
        }
    }
}
