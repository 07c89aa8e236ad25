// SPDX-License-Identifier: Apache-2.0

// What the tests of signals share.

import Fibers
import CFiber
import Glibc
import Testing

/// Has the calling thread take all signals: those of the test library block them.
func unblockSignals() {
    var all = sigset_t()
    sigfillset(&all)
    pthread_sigmask(SIG_UNBLOCK, &all, nil)
}

/// A runtime on a thread that takes signals.
func withSignals(_ body: () throws -> Void) throws {
    unblockSignals()
    try inRuntime(seconds: 15, body)
}

/// A program that is looked for in the usual places, without arguments.
func startChild(_ program: String) throws -> pid_t {
    var pid = pid_t()
    let arguments: [UnsafeMutablePointer<CChar>?] = [strdup(program), nil]
    defer { free(arguments[0]) }
    let status = posix_spawnp(&pid, program, nil, nil, arguments, environ)
    guard status == 0 else { throw TestError(text: "\(program) could not be started: error \(status)") }
    return pid
}
