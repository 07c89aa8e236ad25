// SPDX-License-Identifier: Apache-2.0

// What belongs to a worker and is used elsewhere stops the program, and the message names both sides.

#if compiler(>=6.2)
    import FiberNet
    import Fibers
    import Glibc
    import Testing

    extension NetTests {
        @Suite struct ForeignSocketTests {
            @Test(arguments: ForeignUse.allCases)
            func socket_stopsTheProgramAndIsNamed_whenAnotherWorkerUsesIt(use: ForeignUse) async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) { [use] in
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 2)) {
                            let call = Box(try use.prepare())
                            try Fiber.spawn(name: "stranger", on: 1) { try call.value() }.join()
                        }
                    }
                }
                for words in use.words { expectMessage(result, words) }
            }

            @Test func socket_stopsTheProgramAndIsNamed_whenAThreadClosesIt() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try FiberRuntime.run(.init(workers: 1)) {
                            let listener = Box(try Listener.bind(to: SocketAddress(parsing: "127.0.0.1:0")))
                            Thread { listener.value.close() }.join()
                        }
                    }
                }
                expectMessage(result, "outside the runtime used or released socket ")
                expectMessage(result, " (127.0.0.1:")
                expectMessage(result, "), which belongs to worker 0 of the runtime that made it")
            }
        }
    }

    enum ForeignUse: String, CaseIterable, Codable, Sendable {
        case read, close, closeUnnamed, readPipe, waitForChild

        fileprivate func prepare() throws -> () throws -> Void {
            switch self {
            case .read, .close:
                let listener = try Listener.bind(to: SocketAddress(parsing: "127.0.0.1:0"))
                let client = try Connection.connect(to: try listener.localAddress())
                return {
                    if self == .close { client.close() } else { _ = try client.read(upTo: 1) }
                    withExtendedLifetime(listener) {}
                }
            case .closeUnnamed:
                let (first, second) = try Connection.pair()
                return { withExtendedLifetime(second) { first.close() } }
            case .readPipe:
                let pipe = try Pipe.make()
                return { _ = try pipe.reader.read(upTo: 1) }
            case .waitForChild:
                let child = try Subprocess.spawn(.init("sleep", ["0"]))
                return { try child.wait() }
            }
        }

        var words: [String] {
            switch self {
            case .read, .close:
                [
                    "\"stranger\" on worker 1 used or released socket ", " (127.0.0.1:", ", peer 127.0.0.1:",
                    "), which belongs to worker 0 of the runtime that made it: use a socket, and let go of it, in fibers of its own worker",
                ]
            case .closeUnnamed:
                ["\"stranger\" on worker 1 used or released socket ", ", which belongs to worker 0 of the runtime that made it"]
            case .readPipe: ["\"stranger\" on worker 1 used the stream \"pipe\" (descriptor ", "), which belongs to another worker"]
            case .waitForChild: ["\"stranger\" on worker 1 waits for the process ", " (sleep), which belongs to another worker"]
            }
        }
    }
#endif
