// SPDX-License-Identifier: Apache-2.0

// The file of a Unix socket: its owner removes it at the end, and nothing else that has come to stand at its path.

import CFiber
import FiberNet
import Fibers
import Glibc
import Testing

extension NetTests {
    struct SocketFileTests {
        /// Whatever has a file while it is bound, and the ways in which it ends.
        enum Owner: CaseIterable, CustomTestStringConvertible {
            case listener, forgottenListener, server, servingServer, cancelledServer, datagrams

            var testDescription: String { "\(self)" }

            /// Binds a socket, and returns what ends it.
            func bind(to address: SocketAddress, removesFile: Bool = true) throws -> () throws -> Void {
                switch self {
                case .listener:
                    let listener = try Listener.bind(to: address, removesFile: removesFile)
                    return { listener.close() }
                case .forgottenListener:
                    let listener = Box<Listener?>(try Listener.bind(to: address, removesFile: removesFile))
                    return { listener.value = nil }
                case .server:
                    let server = try TCPServer.bind(to: address, removesFile: removesFile)
                    return { server.close() }
                case .servingServer, .cancelledServer:
                    let server = try TCPServer.bind(to: address, removesFile: removesFile)
                    let serving = try Fiber.spawnLocal { try server.serve { _ in } }
                    letOthersRun()
                    return {
                        if self == .cancelledServer { serving.cancel() } else { server.close() }
                        _ = try? serving.join()
                    }
                case .datagrams:
                    let socket = try DatagramSocket.bind(to: address, removesFile: removesFile)
                    return { socket.close() }
                }
            }

            func bind(_ path: String, removesFile: Bool = true) throws -> () throws -> Void {
                try bind(to: .unix(path: path), removesFile: removesFile)
            }
        }

        /// Whether something has this name, also a link that leads nowhere.
        private static func exists(_ path: [UInt8]) -> Bool {
            var info = stat()
            return (path + [0]).withUnsafeBytes { lstat($0.baseAddress!.assumingMemoryBound(to: CChar.self), &info) } == 0
        }
        /// In nanoseconds.
        private static func time(of clock: clockid_t) -> Int {
            var time = timespec()
            clock_gettime(clock, &time)
            return time.tv_sec * 1_000_000_000 + time.tv_nsec
        }

        private static func exists(_ path: String) -> Bool { exists(Array(path.utf8)) }

        @Test(arguments: Owner.allCases) func closing_removesTheFile(owner: Owner) throws {
            let path = freshPath()
            try inRuntime {
                let end = try owner.bind(path)
                expect(Self.exists(path))
                try end()
                expect(!Self.exists(path))
            }
        }

        @Test(arguments: Owner.allCases) func closing_leavesTheFile_whenToldTo(owner: Owner) throws {
            let path = freshPath()
            defer { unlink(path) }
            try inRuntime {
                try owner.bind(path, removesFile: false)()
                expect(Self.exists(path))
                // Nobody listens there.
                expect(.refused) { _ = try Connection.connect(to: .unix(path: path)) }
            }
        }

        @Test(arguments: Owner.allCases) func closing_leavesTheSocket_thatWasBoundAnew(owner: Owner) throws {
            let path = freshPath()
            defer { unlink(path) }
            try inRuntime {
                let end = try owner.bind(path)
                unlink(path)
                let successor = try Listener.bind(to: .unix(path: path))
                try end()
                expect(Self.exists(path))
                expect(nil) { _ = try Connection.connect(to: successor.address) }
                successor.close()
                expect(!Self.exists(path))
            }
        }

        @Test(arguments: Owner.allCases) func closing_leavesTheSocket_thatWasRenamedOverItsOwn(owner: Owner) throws {
            let path = freshPath(), other = freshPath()
            defer { unlink(path) }
            try inRuntime {
                let end = try owner.bind(path)
                let successor = try Listener.bind(to: .unix(path: other))
                expect(rename(other, path) == 0)
                try end()
                expect(Self.exists(path))
                expect(nil) { _ = try Connection.connect(to: .unix(path: path)) }
                // It is not where it was bound, so its owner leaves it, too.
                successor.close()
                expect(Self.exists(path))
            }
        }

        @Test(arguments: Owner.allCases) func closing_leavesARegularFile_thatTookThePath(owner: Owner) throws {
            let path = freshPath()
            defer { unlink(path) }
            try inRuntime {
                let end = try owner.bind(path)
                expect(rename(try makeFile([1, 2, 3]), path) == 0)
                try end()
                expect(try File.readAll(path) == [1, 2, 3])
            }
        }

        @Test func closing_leavesTheSocket_thatTakesThePathInThatMoment() throws {
            let path = freshPath(), other = freshPath()
            let rounds = scaled(500, sanitized: 100)
            let (begun, taken) = (SharedCounter(), SharedCounter())
            let successor = Thread {
                for round in 1...rounds {
                    while begun.value < round {}
                    rename(other, path)
                    taken.add()
                }
            }
            defer {
                begun.add(rounds)
                successor.join()
                unlink(path)
            }
            try inRuntime(seconds: 120) {
                for round in 1...rounds {
                    let listener = try Listener.bind(to: .unix(path: path))
                    let next = try Listener.bind(to: .unix(path: other), removesFile: false)
                    begun.add()
                    listener.close()
                    while taken.value < round { sched_yield() }
                    expect(Self.exists(path), "the file of the successor is gone in round \(round)")
                    next.close()
                    unlink(path)
                }
            }
        }

        @Test(arguments: Owner.allCases) func closing_removesAPath_thatIsNoText(owner: Owner) throws {
            let path = Array(freshPath().utf8) + [0xff, 0xfe]
            try inRuntime {
                let address = try SocketAddress(parsing: "unix:\(String(decoding: path.dropLast(2), as: UTF8.self))\\xff\\xfe")
                let end = try owner.bind(to: address)
                expect(Self.exists(path))
                try end()
                expect(!Self.exists(path))
            }
        }

        @Test(arguments: Owner.allCases) func closing_removesTheLongestPath(owner: Owner) throws {
            let start = freshPath()
            let path = start + String(repeating: "x", count: 108 - start.utf8.count)
            try inRuntime {
                let end = try owner.bind(path)
                expect(Self.exists(path))
                try end()
                expect(!Self.exists(path))
            }
        }

        @Test func listenerThatOutlivesItsRuntime_leavesTheSocketOfItsSuccessor() throws {
            let path = freshPath()
            defer { unlink(path) }
            var listener: Listener? = try inRuntime { try Listener.bind(to: .unix(path: path)) }
            // The runtime has closed the socket, so the file system may give its inode's number to the next file. Only their birth times tell the two
            // files apart. Those come from the coarse clock, or from the fine one if it has stamped a file since, so wait until the coarse clock has passed the present time of the fine one.
            let made = Self.time(of: CLOCK_REALTIME)
            while Self.time(of: CLOCK_REALTIME_COARSE) <= made { usleep(100) }
            unlink(path)
            let address = try SocketAddress.unix(path: path)
            let successor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
            defer { close(successor) }
            expect(address.withSockaddr { Glibc.bind(successor, $0, $1) } == 0)
            withExtendedLifetime(listener) {}
            listener = nil
            expect(Self.exists(path))
        }

        @Test func listenerThatOutlivesItsRuntime_removesItsFile() throws {
            let path = freshPath()
            var listener: Listener? = try inRuntime { try Listener.bind(to: .unix(path: path)) }
            expect(listener != nil && Self.exists(path))
            listener = nil
            expect(!Self.exists(path))
        }

        #if compiler(>=6.2)
            @Test func closing_removesItsOwnFile_afterAChangeOfDirectory() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        for owner in Owner.allCases {
                            let home = freshPath(), elsewhere = freshPath()
                            expect(mkdir(home, 0o700) == 0 && mkdir(elsewhere, 0o700) == 0)
                            expect(rename(try makeFile([1]), elsewhere + "/socket") == 0)
                            expect(chdir(home) == 0)
                            try inRuntime {
                                let end = try owner.bind("socket")
                                expect(Self.exists(home + "/socket"), "\(owner)")
                                expect(chdir(elsewhere) == 0)
                                try end()
                            }
                            expect(Self.exists(elsewhere + "/socket"), "\(owner) has removed somebody's file")
                            expect(!Self.exists(home + "/socket"), "\(owner) has left its own file")
                            unlink(elsewhere + "/socket")
                            unlink(home + "/socket")
                            rmdir(home)
                            rmdir(elsewhere)
                        }
                    }
                }
            }

            @Test func closing_leavesAFile_thatHasTheNameOfAnAbstractAddress() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let directory = freshPath()
                        let name = "abstract-\(getpid())"
                        expect(mkdir(directory, 0o700) == 0 && chdir(directory) == 0)
                        expect(rename(try makeFile([1]), name) == 0)
                        for owner in Owner.allCases {
                            try inRuntime { try owner.bind(to: .unixAbstract(name: name))() }
                            expect(Self.exists(name), "\(owner)")
                        }
                        unlink(name)
                        rmdir(directory)
                    }
                }
            }
        #endif
    }
}
