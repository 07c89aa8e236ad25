// SPDX-License-Identifier: Apache-2.0

// Names become addresses: what is asked of the system and what is remembered, who waits for what, and what ends a wait.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import Synchronization
import SystemPackage
import Testing

extension NetTests {
    struct ResolverTests {
        // MARK: Answers

        @Test(arguments: [
            ("127.0.0.1", "127.0.0.1:80"), ("0.0.0.0", "0.0.0.0:80"), ("::1", "[::1]:80"), ("[::1]", "[::1]:80"),
            ("2001:DB8::0:1", "[2001:db8::1]:80"), ("[fe80::1%7]", "[fe80::1%7]:80"), ("fe80::1%7", "[fe80::1%7]:80"),
            ("fe80::1%lo", "[fe80::1%\(if_nametoindex("lo"))]:80"), ("::ffff:127.0.0.1", "[::ffff:127.0.0.1]:80"),
        ])
        func numericAddress_isAnsweredAtOnce_withoutThreadOrCache(host: String, expected: String) throws {
            let service = NameService()
            let resolver = service.resolver()
            try inRuntime {
                expect(try resolver.resolve(host, port: 80).map(\.description) == [expected])
                expect(try resolver.resolve(host, service: "80").map(\.description) == [expected])
                expect(FiberRuntime.blockingStatistics.threads == 0)
            }
            #expect(service.hosts == [])
            #expect(resolver.statistics == resolverStatistics(hits: 0, misses: 0, entries: 0))
        }

        @Test(arguments: [
            "", " ", "a b", "a\0b", "a\n", "[127.0.0.1]", "[::1", "::1]", "[]", "1:2", "fe80::1%nosuch0", "fe80::1%", "example.org:80",
            String(repeating: "a", count: 256),
        ])
        func host_isRefused_whenItCanBeNone(host: String) throws {
            let service = NameService()
            let resolver = service.resolver()
            try inRuntime {
                let error = expectNoAddresses(.invalid) { _ = try resolver.resolve(host, port: 80) }
                expect(error?.host == host && error?.status == nil)
                expectNoAddresses(.invalid) { _ = try resolver.resolve(host, service: "http") }
            }
            #expect(service.hosts == [])
        }

        @Test func portAndService_areRefused_whenTheyCanBeNone() throws {
            let service = NameService()
            let resolver = service.resolver()
            try inRuntime {
                for port in [-1, 65_536, .max, .min] {
                    expectNoAddresses(.invalid) { _ = try resolver.resolve("example.org", port: port) }
                    expectNoAddresses(.invalid) { _ = try resolver.resolve("127.0.0.1", port: port) }
                }
                for name in [
                    "", "a b", "http\0", "+80", "-1", "080", "0080", "00", "65536", "99999999999999999999", "+",
                    String(repeating: "a", count: 256),
                ] {
                    expectNoAddresses(.invalid) { _ = try resolver.resolve("example.org", service: name) }
                    expectNoAddresses(.invalid) { _ = try resolver.resolve("127.0.0.1", service: name) }
                }
            }
            #expect(service.hosts == [])
        }

        @Test func otherCalls_haveThreads_whileLookUpsWaitForServersThatDoNotAnswer() throws {
            let service = NameService()
            let resolver = service.resolver()
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = 4
            let gates = (0..<20).map { service.hold("dead\($0).example.org") }
            for i in gates.indices { service.know("dead\(i).example.org", "192.0.2.1") }
            try FiberRuntime.run(configuration) {
                let handles = try gates.indices.map { i in
                    try Fiber.spawnLocal { try resolver.resolve("dead\(i).example.org", port: 1).count }
                }
                while service.hosts.count < 2 { try Fiber.sleep(for: .milliseconds(1)) }
                for i in 0..<100 { expect(try withTimeout(.seconds(20)) { try withBlockingThread { i } } == i) }
                expect(service.hosts.count == 2, "\(service.hosts)")
                expect(FiberRuntime.blockingStatistics.queued == 18)
                expect(FiberRuntime.blockingStatistics.threads <= 4)
                for gate in gates { gate.open() }
                for handle in handles { expect(try handle.join() == 1) }
            }
            #expect(Set(service.hosts).count == 20)
        }

        @Test func localhost_isWhatTheSystemSays() throws {
            let (addresses, again, statistics) = try inRuntime {
                let resolver = Resolver.default
                let addresses = try resolver.resolve("localhost", port: 7777)
                return (addresses, try resolver.resolve("LocalHost", port: 1), resolver.statistics)
            }
            #expect(!addresses.isEmpty && addresses.allSatisfy { $0.port == 7777 })
            #expect(addresses.allSatisfy { ["127.0.0.1", "::1"].contains($0.host) }, "\(addresses)")
            #expect(Set(addresses).count == addresses.count)
            #expect(again.map(\.host) == addresses.map(\.host) && again.allSatisfy { $0.port == 1 })
            #expect(statistics == resolverStatistics(hits: 1, misses: 1, entries: 1))
        }

        @Test func addresses_keepTheOrderOfTheSystem() throws {
            let service = NameService()
            service.know("example.org", "192.0.2.9", "2001:db8::2", "192.0.2.1", "2001:db8::1", "192.0.2.5")
            let resolver = service.resolver()
            let addresses = try inRuntime { try resolver.resolve("example.org", port: 443) }
            let expected = ["192.0.2.9:443", "[2001:db8::2]:443", "192.0.2.1:443", "[2001:db8::1]:443", "192.0.2.5:443"]
            #expect(addresses.map(\.description) == expected)
        }

        @Test func service_isAskedForWithItsKind_andKeptApartFromPorts() throws {
            let service = NameService()
            service.know("example.org", .addresses([address("192.0.2.1", 443)]))
            let resolver = service.resolver()
            try inRuntime {
                for _ in 0..<2 {
                    expect(try resolver.resolve("example.org", service: "https") == [address("192.0.2.1", 443)])
                    expect(try resolver.resolve("example.org", service: "https", for: .datagram) == [address("192.0.2.1", 443)])
                    expect(try resolver.resolve("example.org", service: "8080") == [address("192.0.2.1", 8080)])
                    expect(try resolver.resolve("example.org", port: 9) == [address("192.0.2.1", 9)])
                }
            }
            #expect(
                service.asked == [
                    NameQuery(host: "example.org", service: "https", kind: .stream),
                    NameQuery(host: "example.org", service: "https", kind: .datagram),
                    NameQuery(host: "example.org", service: nil, kind: .stream),
                ])
        }

        @Test func serviceOfANumericHost_isLookedUpByTheSystem() throws {
            try inRuntime {
                let error = expectNoAddresses(.notFound) { _ = try Resolver.default.resolve("127.0.0.1", service: "no-such-service") }
                expect(error?.status == EAI_SERVICE && error?.description.contains("/etc/services") == true, "\(String(describing: error))")
                // Where there is no /etc/services, no name is known.
                guard getservbyname("https", "tcp") != nil else { return }
                expect(try Resolver.default.resolve("127.0.0.1", service: "https") == [address("127.0.0.1", 443)])
                expect(try Resolver.default.resolve("[::1]", service: "https") == [address("::1", 443)])
            }
        }

        // MARK: Errors

        private static let failures: [(Int32, Int32, ResolveError.Code)] = [
            (EAI_NONAME, 0, .notFound), (EAI_SERVICE, 0, .notFound), (Int32(CFIBER_NAME_NODATA), 0, .noAddress),
            (Int32(CFIBER_NAME_ADDRFAMILY), 0, .noAddress), (EAI_AGAIN, 0, .temporary), (EAI_FAIL, 0, .system), (EAI_MEMORY, 0, .resources),
            (EAI_BADFLAGS, 0, .system), (EAI_SYSTEM, EMFILE, .resources), (EAI_SYSTEM, ENFILE, .resources),
            (EAI_SYSTEM, ENOMEM, .resources),
            (EAI_SYSTEM, EIO, .system),
        ]

        @Test(arguments: failures)
        func failure_hasTheCodeAndTheWordsOfTheSystem(status: Int32, number: Int32, code: ResolveError.Code) throws {
            let service = NameService()
            service.know("example.org", .failure(status: status, errno: number))
            let resolver = service.resolver()
            try inRuntime {
                let error = expectNoAddresses(code) { _ = try resolver.resolve("Example.org", port: 80) }
                expect(error?.status == status && error?.errno == (status == EAI_SYSTEM ? Errno(rawValue: number) : nil))
                expect(error?.text == String(cString: gai_strerror(status)) && error?.host == "Example.org")
                let text = "\(error!)"
                expect(text.contains("\"Example.org\" (port 80)") && text.contains(error!.text), text)
                if number != 0 { expect(text.contains(String(cString: strerror(number))), text) }
                if number == EMFILE { expect(text.contains("ulimit -n"), text) }
            }
        }

        @Test func noAddress_isThrown_whenTheAnswerIsEmpty() throws {
            let service = NameService()
            service.know("example.org")
            let resolver = service.resolver()
            try inRuntime {
                _ = expectNoAddresses(.noAddress) { _ = try resolver.resolve("example.org", port: 80) }
            }
        }

        // MARK: Memory

        @Test func answer_isRemembered_untilItsTimeIsOver() throws {
            let service = NameService()
            service.know("example.org", "192.0.2.1")
            let resolver = service.resolver(.init(timeToLive: .seconds(30)))
            try inRuntime {
                for (pause, asked) in [(0, 1), (29, 1), (0, 1), (1, 2), (29, 2), (2, 3)] {
                    service.pass(.seconds(pause))
                    if asked == 3 { service.know("example.org", "192.0.2.2") }
                    let host = try resolver.resolve("example.org", port: 80).first?.host
                    expect(service.hosts.count == asked, "after \(pause) seconds: \(service.hosts.count), expected \(asked)")
                    expect(host == (asked == 3 ? "192.0.2.2" : "192.0.2.1"))
                }
            }
            #expect(resolver.statistics == resolverStatistics(hits: 3, misses: 3, entries: 1))
        }

        @Test(arguments: [EAI_NONAME, Int32(CFIBER_NAME_NODATA), Int32(CFIBER_NAME_ADDRFAMILY), 0])
        func absence_isRememberedForATimeOfItsOwn(status: Int32) throws {
            let service = NameService()
            // Without an address it is none, whatever the status.
            service.know("example.org", status == 0 ? .addresses([]) : .failure(status: status))
            let resolver = service.resolver(.init(negativeTimeToLive: .seconds(5)))
            try inRuntime {
                for (pause, asked) in [(0, 1), (4, 1), (1, 2), (4, 2), (2, 3)] {
                    service.pass(.seconds(pause))
                    let error = resolveFailure { _ = try resolver.resolve("example.org", port: 80) }
                    expect(error?.status == (status == 0 ? Int32(CFIBER_NAME_NODATA) : status))
                    expect(service.hosts.count == asked, "after \(pause) seconds: \(service.hosts.count), expected \(asked)")
                }
            }
        }

        @Test(arguments: [EAI_AGAIN, EAI_FAIL, EAI_MEMORY, EAI_SYSTEM, EAI_SERVICE])
        func otherFailures_areNeverRemembered(status: Int32) throws {
            let service = NameService()
            service.know("example.org", .failure(status: status, errno: EIO))
            let resolver = service.resolver()
            try inRuntime {
                for count in 1...3 {
                    expect(resolveFailure { _ = try resolver.resolve("example.org", port: 80) }?.status == status)
                    expect(service.hosts.count == count)
                }
                // It may be well again by now.
                service.know("example.org", "192.0.2.1")
                expect(try resolver.resolve("example.org", port: 80).count == 1)
            }
            #expect(resolver.statistics == resolverStatistics(hits: 0, misses: 4, entries: 1))
        }

        @Test func leastRecentlyUsed_isForgotten_whenTheCacheIsFull() throws {
            let service = NameService()
            let resolver = service.resolver(.init(capacity: 3))
            try inRuntime {
                for name in ["a", "b", "c", "a", "d", "a", "c", "b"] {
                    service.know(name, "192.0.2.1")
                    _ = try resolver.resolve(name, port: 80)
                }
            }
            // "b" left for "d", and "d" for "b".
            #expect(service.hosts == ["a", "b", "c", "d", "b"])
            #expect(resolver.statistics == resolverStatistics(hits: 3, misses: 5, entries: 3))
        }

        @Test(arguments: seeds)
        func cache_isAsAListInTheOrderOfUse(seed: UInt64) throws {
            print("seed \(seed)")
            var random = SeededGenerator(seed: seed)
            let capacity = Int.random(in: 1...6, using: &random)
            let service = NameService()
            let resolver = service.resolver(.init(capacity: capacity, timeToLive: .seconds(30), negativeTimeToLive: .seconds(5)))
            var model: [(name: String, expires: Int)] = []
            var now = 0
            var hits = 0
            var misses = 0
            try inRuntime {
                for _ in 0..<2_000 {
                    if Int.random(in: 0..<4, using: &random) == 0 {
                        let pause = Int.random(in: 1...8, using: &random)
                        now += pause
                        service.pass(.seconds(pause))
                    }
                    if Int.random(in: 0..<200, using: &random) == 0 {
                        resolver.flush()
                        model = []
                    }
                    let number = Int.random(in: 0..<10, using: &random)
                    let name = "name\(number)"
                    // Odd ones do not exist.
                    if number % 2 == 0 { service.know(name, "192.0.2.\(number)") }
                    _ = resolveFailure { _ = try resolver.resolve(name, port: 80) }
                    if let place = model.firstIndex(where: { $0.name == name }), model[place].expires > now {
                        model.append(model.remove(at: place))
                        hits += 1
                    } else {
                        model.removeAll { $0.name == name }
                        if model.count == capacity { model.removeFirst() }
                        model.append((name, now + (number % 2 == 0 ? 30 : 5)))
                        misses += 1
                    }
                    let expected = resolverStatistics(hits: hits, misses: misses, entries: model.count)
                    if resolver.statistics != expected { throw TestError(text: "\(resolver.statistics), expected \(expected)") }
                }
            }
            #expect(hits > 100 && misses > 100)
        }

        @Test(arguments: [Resolver.Configuration(capacity: 0), .init(timeToLive: .zero, negativeTimeToLive: .zero)])
        func nothing_isRemembered_whenTheCacheIsOff(configuration: Resolver.Configuration) throws {
            let service = NameService()
            service.know("example.org", "192.0.2.1")
            let resolver = service.resolver(configuration)
            try inRuntime {
                for _ in 0..<3 { _ = try resolver.resolve("example.org", port: 80) }
                for _ in 0..<3 { _ = resolveFailure { _ = try resolver.resolve("nobody", port: 80) } }
            }
            #expect(service.hosts.count == 6)
            #expect(resolver.statistics == resolverStatistics(hits: 0, misses: 6, entries: 0))
        }

        @Test func flush_forgetsWhatIsKnown_andWhatIsBeingAsked() throws {
            let service = NameService()
            service.know("known", "192.0.2.1")
            service.know("asked", "192.0.2.2")
            let resolver = service.resolver()
            let gate = service.hold("asked")
            try inRuntime {
                defer { gate.open() }
                _ = try resolver.resolve("known", port: 80)
                let early = try Fiber.spawnLocal { try resolver.resolve("asked", port: 80) }
                try waitUntil { gate.arrivals == 1 }
                resolver.flush()
                expect(resolver.statistics.entries == 0)
                _ = try resolver.resolve("known", port: 80)
                expect(service.hosts == ["known", "asked", "known"])
                // Who asks now does not get what was asked before.
                service.know("asked", "192.0.2.3")
                service.answerAtOnce("asked")
                expect(try resolver.resolve("asked", port: 80).first?.host == "192.0.2.3")
                expect(!early.fiber.isFinished)
                gate.open()
                expect(try early.join().first?.host == "192.0.2.2")
                expect(try resolver.resolve("asked", port: 80).first?.host == "192.0.2.3")
            }
            #expect(resolver.statistics == resolverStatistics(hits: 1, misses: 4, entries: 2))
        }

        // MARK: One look-up for many

        @Test func fibersThatAskForOneName_shareOneLookUp() throws {
            let service = NameService()
            service.know("example.org", "192.0.2.1", "2001:db8::1")
            let gate = service.hold("example.org")
            let resolver = service.resolver()
            let answers = try inRuntime {
                defer { gate.open() }
                let fibers = try (1...100).map { port in
                    try Fiber.spawnLocal { try resolver.resolve(port % 2 == 0 ? "example.org" : "Example.ORG", port: port) }
                }
                try waitUntil { gate.arrivals == 1 }
                letOthersRun()
                expect(resolver.statistics == resolverStatistics(hits: 0, misses: 100, entries: 0, inFlight: 1))
                expect(FiberRuntime.blockingStatistics.threads == 1)
                gate.open()
                return try fibers.map { try $0.join() }
            }
            for (index, answer) in answers.enumerated() {
                #expect(answer == [address("192.0.2.1", index + 1), address("2001:db8::1", index + 1)])
            }
            #expect(service.hosts == ["example.org"])
            #expect(resolver.statistics == resolverStatistics(hits: 0, misses: 100, entries: 1))
        }

        @Test func fibersThatShareALookUp_shareItsFailure() throws {
            let service = NameService()
            service.know("example.org", .failure(status: EAI_AGAIN))
            let gate = service.hold("example.org")
            let resolver = service.resolver()
            try inRuntime {
                defer { gate.open() }
                let fibers = try (0..<10).map { _ in
                    try Fiber.spawnLocal { resolveFailure { _ = try resolver.resolve("example.org", port: 80) } }
                }
                try waitUntil { gate.arrivals == 1 }
                letOthersRun()
                gate.open()
                for fiber in fibers { expect(try fiber.join()?.code == .temporary) }
            }
            #expect(service.hosts.count == 1)
        }

        @Test func differentNames_areLookedUpSideBySide() throws {
            let service = NameService()
            let gates = (0..<5).map { service.hold("name\($0)") }
            let resolver = service.resolver()
            try inRuntime {
                defer { gates.forEach { $0.open() } }
                for i in 0..<5 {
                    service.know("name\(i)", "192.0.2.\(i)")
                    try Fiber.spawnLocal { expect(try resolver.resolve("name\(i)", port: 80).first?.host == "192.0.2.\(i)") }
                }
                try waitUntil { gates.allSatisfy { $0.arrivals == 1 } }
                expect(resolver.statistics.inFlight == 5)
                // One that is slow holds up no other.
                service.know("quick", "192.0.2.99")
                expect(try resolver.resolve("quick", port: 80).count == 1)
            }
            #expect(resolver.statistics == resolverStatistics(hits: 0, misses: 6, entries: 6))
        }

        @Test(arguments: [0, 1, 4])
        func cancelledWaiter_leavesTheOthersAlone(which: Int) throws {
            let service = NameService()
            service.know("example.org", "192.0.2.1")
            let gate = service.hold("example.org")
            let resolver = service.resolver()
            try inRuntime {
                defer { gate.open() }
                let errors = Box<[Int: any Error]>([:])
                let fibers = try (0..<5).map { i in
                    try Fiber.spawnLocal {
                        do { return try resolver.resolve("example.org", port: 80).count } catch {
                            errors.value[i] = error
                            throw error
                        }
                    }
                }
                try waitUntil { gate.arrivals == 1 }
                letOthersRun()
                fibers[which].cancel()
                expect(thrown { _ = try fibers[which].join() } is CancellationError)
                expect(errors.value[which] is CancellationError && errors.value.count == 1, "\(errors.value)")
                gate.open()
                for i in 0..<5 where i != which { expect(try fibers[i].join() == 1) }
            }
            #expect(service.hosts.count == 1)
        }

        @Test func lookUp_goesOnAndIsRemembered_whenAllWaitersAreCancelled() throws {
            let service = NameService()
            service.know("example.org", "192.0.2.1")
            let gate = service.hold("example.org")
            let resolver = service.resolver()
            try inRuntime {
                defer { gate.open() }
                let fibers = try (0..<5).map { _ in try Fiber.spawnLocal { try resolver.resolve("example.org", port: 80) } }
                try waitUntil { gate.arrivals == 1 }
                letOthersRun()
                fibers.forEach { $0.cancel() }
                for fiber in fibers { expect(thrown { _ = try fiber.join() } is CancellationError) }
                expect(resolver.statistics.inFlight == 1)
                // Who asks meanwhile joins it.
                let late = try Fiber.spawnLocal { try resolver.resolve("example.org", port: 80) }
                letOthersRun()
                late.cancel()
                gate.open()
                try waitUntil { resolver.statistics.inFlight == 0 }
                expect(try resolver.resolve("example.org", port: 80).count == 1)
            }
            #expect(service.hosts.count == 1)
            #expect(resolver.statistics == resolverStatistics(hits: 1, misses: 6, entries: 1))
        }

        @Test func lookUpThatHasNoThreadYet_neverRuns_whenAllWaitersAreCancelled() throws {
            let service = NameService()
            let gate = service.hold("slow")
            let resolver = service.resolver()
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = 1
            try inRuntime(configuration) {
                defer { gate.open() }
                let slow = try Fiber.spawnLocal { resolveFailure { _ = try resolver.resolve("slow", port: 80) } }
                try waitUntil { gate.arrivals == 1 }
                let fibers = try (0..<3).map { _ in try Fiber.spawnLocal { try resolver.resolve("queued", port: 80) } }
                letOthersRun()
                expect(resolver.statistics.inFlight == 2)
                fibers[0].cancel()
                letOthersRun()
                expect(resolver.statistics.inFlight == 2)
                fibers.forEach { $0.cancel() }
                for fiber in fibers { expect(thrown { _ = try fiber.join() } is CancellationError) }
                expect(resolver.statistics.inFlight == 1)
                expect(FiberRuntime.blockingStatistics.queued == 0)
                gate.open()
                expect(try slow.join()?.code == .notFound)
                expect(service.hosts == ["slow"])
                // The name can be asked for again.
                service.know("queued", "192.0.2.1")
                expect(try resolver.resolve("queued", port: 80).count == 1)
            }
            #expect(service.hosts == ["slow", "queued"])
        }

        @Test func lookUpThatHasNoThreadYet_neverRuns_whenItsTimeIsOver() throws {
            let service = NameService()
            let gate = Gate()
            let resolver = service.resolver(.init(timeout: .milliseconds(5)))
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = 1
            try inRuntime(configuration) {
                defer { gate.open() }
                try Fiber.spawnLocal { try withBlockingThread { gate.wait() } }
                try waitUntil { gate.arrivals == 1 }
                expectNoAddresses(.timedOut) { _ = try resolver.resolve("queued", port: 80) }
                expect(resolver.statistics.inFlight == 0 && FiberRuntime.blockingStatistics.queued == 0)
            }
            #expect(service.hosts == [])
        }

        // MARK: Ends of waits

        @Test func wait_isEndedBySomebodyElse_withTheRightErrors() throws {
            let service = NameService()
            let gate = service.hold("slow")
            let resolver = service.resolver(.init(timeout: .seconds(1_000)))
            try inRuntime {
                defer { gate.open() }
                let errors = Box<[any Error]>([])
                func ask() throws {
                    do { _ = try resolver.resolve("slow", port: 80) } catch {
                        errors.value.append(error)
                        throw error
                    }
                }
                let limit = Duration.milliseconds(4)
                let clock = ContinuousClock()
                let start = clock.now
                // The scope directly around it.
                let own = thrown { try withTimeout(limit) { try ask() } } as? TimeoutError
                expect(clock.now - start >= limit)
                expect(own?.limit == limit && errors.value[0] as? TimeoutError == own, "\(errors.value)")
                expect(own?.operation == "the addresses of a name", "\(String(describing: own))")
                // One further out.
                let outer = thrown { try withTimeout(limit) { try withTimeout(.seconds(1_000)) { try ask() } } } as? TimeoutError
                expect(errors.value[1] is CancellationError && outer?.limit == limit, "\(errors.value)")
                // A group.
                try withFiberGroup { group in
                    try group.spawnLocal { try ask() }
                    letOthersRun()
                    group.cancel()
                }
                expect(errors.value[2] is CancellationError, "\(errors.value)")
                // All of them left the one look-up alone.
                expect(service.hosts == ["slow"] && resolver.statistics.inFlight == 1)
            }
        }

        @Test func cancelledFiber_isRefused_alsoWhereItNeedNotWait() throws {
            let service = NameService()
            service.know("known", "192.0.2.1")
            let resolver = service.resolver()
            try inRuntime {
                _ = try resolver.resolve("known", port: 80)
                for host in ["known", "127.0.0.1", "unknown"] {
                    var others = 0
                    let fiber = try Fiber.spawnLocal {
                        Fiber.current?.cancel()
                        let before = others
                        expect(.cancelled) { _ = try resolver.resolve(host, port: 80) }
                        expect(others > before, "\(host): others have not run")
                    }
                    try Fiber.spawnLocal { others += 1 }
                    try fiber.join()
                }
            }
            #expect(service.hosts == ["known"])
        }

        @Test func waiter_isToldInTime_andTheNextBeginsAnew_whenALookUpDoesNotEnd() throws {
            let service = NameService()
            service.know("dead", "192.0.2.1")
            let gate = service.hold("dead")
            let limit = Duration.milliseconds(10)
            let resolver = service.resolver(.init(timeout: limit))
            try inRuntime {
                defer { gate.open() }
                let clock = ContinuousClock()
                let start = clock.now
                let error = expectNoAddresses(.timedOut) { _ = try resolver.resolve("dead", port: 80) }
                expect(clock.now - start >= limit)
                expect(error?.description.contains("Resolver.Configuration.timeout") == true, "\(error!)")
                // On a slow machine the limit may pass before a thread begins; then the look-up is taken back.
                func askUntil(_ count: Int) {
                    while gate.arrivals < count { expectNoAddresses(.timedOut) { _ = try resolver.resolve("dead", port: 80) } }
                }
                askUntil(1)
                // Joins the same one: the clock of the resolver stands.
                expectNoAddresses(.timedOut) { _ = try resolver.resolve("dead", port: 80) }
                expect(service.hosts == ["dead"] && resolver.statistics.inFlight == 1)
                // It has taken too long: another is begun.
                service.pass(limit)
                askUntil(2)
                expect(service.hosts == ["dead", "dead"] && resolver.statistics.inFlight == 2)
                service.pass(limit)
                service.answerAtOnce("dead")
                // On a slow machine an answer takes longer than the limit, too.
                var found: [SocketAddress] = []
                try waitUntil {
                    found = (try? resolver.resolve("dead", port: 80)) ?? []
                    return !found.isEmpty
                }
                expect(found == [address("192.0.2.1", 80)])
                expect(service.hosts.count == 3)
                gate.open()
                try waitUntil { resolver.statistics.inFlight == 0 }
            }
            #expect(service.hosts.count == 3 && resolver.statistics.entries == 1)
        }

        @Test func othersGoOn_whileALookUpHangs() throws {
            let service = NameService()
            let gate = service.hold("dead")
            let resolver = service.resolver(.init(timeout: .seconds(1_000)))
            try inRuntime {
                defer { gate.open() }
                let asking = try Fiber.spawnLocal { resolveFailure { _ = try resolver.resolve("dead", port: 80) } }
                var steps = 0
                let other = try Fiber.spawnLocal {
                    while steps < 10_000 || gate.arrivals == 0 {
                        steps += 1
                        Fiber.yield()
                    }
                }
                try other.join()
                expect(steps >= 10_000 && !asking.fiber.isFinished)
                gate.open()
                expect(try asking.join()?.code == .notFound)
            }
        }

        // MARK: Runtimes

        @Test func defaultResolver_isOnePerRuntime() throws {
            weak var first: Resolver?
            let second = Box<Resolver?>(nil)
            try inRuntime {
                expect(Resolver.default === Resolver.default)
                first = Resolver.default
                expect(try Fiber.spawnLocal { Resolver.default === first }.join())
            }
            #expect(first == nil)
            try inRuntime { second.value = Resolver.default }
            #expect(second.value?.statistics == resolverStatistics(hits: 0, misses: 0, entries: 0))
        }

        @Test func runtimeEnds_andNamesTheLookUp_whenItDoesNotEnd() throws {
            let service = NameService()
            let gate = service.hold("dead.example")
            let resolver = service.resolver(.init(timeout: .seconds(1_000)))
            let warnings = Box<[String]>([])
            let code = Box<Failure.Code?>(nil)
            var configuration = FiberRuntime.Configuration()
            configuration.shutdownLimit = .milliseconds(20)
            configuration.onWarning = { warnings.value.append($0) }
            try inRuntime(configuration) {
                try Fiber.spawnLocal {
                    code.value = failure { _ = try resolver.resolve("dead.example", port: 80) }?.code
                }
                try waitUntil { gate.arrivals == 1 }
                FiberRuntime.shutDown()
            }
            gate.open()
            #expect(code.value == .cancelled)
            #expect(warnings.value.count == 1 && warnings.value[0].contains("look up dead.example"), "\(warnings.value)")
        }

        @Test func answer_findsNobody_whenTheRuntimeHasEndedWithoutItsWaiter() throws {
            // What an abandoned fiber owns leaks.
            cfaults_leaks_begin()
            defer { cfaults_leaks_end() }
            let service = NameService()
            service.know("dead", "192.0.2.1")
            let gate = service.hold("dead")
            let resolver = service.resolver(.init(timeout: .seconds(1_000)))
            let warnings = Box<[String]>([])
            var configuration = FiberRuntime.Configuration()
            configuration.shutdownLimit = .milliseconds(5)
            configuration.onWarning = { warnings.value.append($0) }
            try inRuntime(configuration) {
                try Fiber.spawnLocal(name: "stubborn") { try withCancellationShield { _ = try resolver.resolve("dead", port: 80) } }
                try waitUntil { gate.arrivals == 1 }
                FiberRuntime.shutDown()
            }
            #expect(warnings.value.count == 2 && warnings.value[0].contains("stubborn"), "\(warnings.value)")
            gate.open()
            // The fiber's stack is no more; its look-up is, and ends well.
            while resolver.statistics.inFlight > 0 { usleep(200) }
            #expect(resolver.statistics.entries == 1)
        }

        @Test func runtimesOnSeveralThreads_shareLookUps() throws {
            let service = NameService()
            service.know("example.org", "192.0.2.1")
            let gate = service.hold("example.org")
            let resolver = service.resolver(.init(timeout: .seconds(1_000)))
            let found = Found()
            let threads = (1...4).map { port in
                Thread {
                    try? FiberRuntime.run {
                        for _ in 0..<10 {
                            try Fiber.spawnLocal {
                                found.add(try resolver.resolve("example.org", port: port))
                            }
                        }
                    }
                }
            }
            while resolver.statistics.misses < 40 { usleep(200) }
            gate.open()
            threads.forEach { $0.join() }
            let counts = Dictionary(grouping: found.all, by: \.port).mapValues(\.count)
            #expect(counts == [1: 10, 2: 10, 3: 10, 4: 10])
            #expect(service.hosts.count == 1)
        }

        @Test(arguments: seeds)
        func everyQuestionEnds_whateverHappensToThoseWhoAsk(seed: UInt64) throws {
            print("seed \(seed)")
            let random = Box(SeededGenerator(seed: seed))
            let names = SlowNames(SeededGenerator(seed: seed &+ 1))
            let resolver = Resolver(.init(timeout: .seconds(60), capacity: 6, timeToLive: .milliseconds(2))) { names.answer(to: $0) }
            var configuration = FiberRuntime.Configuration()
            configuration.blockingThreads = 3
            let count = scaled(5_000, sanitized: 500)
            var ended = 0
            var answered = 0
            try inRuntime(configuration, seconds: 120) {
                try withFiberGroup(limit: 40) { group in
                    for _ in 0..<count {
                        let name = "name\(Int.random(in: 0..<12, using: &random.value))"
                        let limit = Int.random(in: 0..<3, using: &random.value) == 0 ? Int.random(in: 0...300, using: &random.value) : nil
                        let fiber = try group.spawnLocal {
                            defer { ended += 1 }
                            do {
                                let found = try withTimeout(limit.map { .microseconds($0) }) { try resolver.resolve(name, port: 80) }
                                expect(found.map(\.description) == ["192.0.2.\(name.dropFirst(4)):80"])
                                answered += 1
                            } catch  where error is TimeoutError || (error as? ResolveError)?.code == .temporary {
                            } catch  where Fiber.isCancelled {}
                        }
                        switch Int.random(in: 0..<8, using: &random.value) {
                        case 0: fiber.cancel()
                        case 1:
                            Fiber.yield()
                            fiber.cancel()
                        case 2: resolver.flush()
                        default: break
                        }
                    }
                }
                try waitUntil { resolver.statistics.inFlight == 0 }
            }
            #expect(ended == count && answered > 0)
        }

        #if compiler(>=6.2)
            @Test func lookUp_throwsResources_whenDescriptorsAreShort() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try inRuntime {
                            let taken = takeAllDescriptors()
                            let error = expectNoAddresses(.resources) { _ = try Resolver.default.resolve("localhost", port: 80) }
                            expect(error?.errno == .tooManyOpenFiles && error?.description.contains("ulimit -n") == true, "\(error!)")
                            taken.forEach { close($0) }
                            // It was not remembered.
                            expect(try !Resolver.default.resolve("localhost", port: 80).isEmpty)
                        }
                    }
                }
            }

            @Test func lookUps_leaveNoSocket() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try inRuntime {
                            let before = openSockets
                            for _ in 0..<100 {
                                _ = try Resolver.default.resolve("localhost", port: 80)
                                Resolver.default.flush()
                            }
                            expect(openSockets == before)
                        }
                    }
                }
            }
        #endif
    }
}

/// Names that take up to a quarter of a millisecond, and are not to be had every now and then.
private final class SlowNames: Sendable {
    private let random: Guarded<SeededGenerator>

    init(_ random: SeededGenerator) { self.random = Guarded(random) }

    func answer(to query: NameQuery) -> NameAnswer {
        let (pause, fails) = random.withLock { (UInt32.random(in: 0..<250, using: &$0), Int.random(in: 0..<10, using: &$0) == 0) }
        usleep(pause)
        return fails ? .failure(status: EAI_AGAIN) : .addresses([address("192.0.2.\(query.host.dropFirst(4))", 0)])
    }
}

/// What several threads have found.
private final class Found: Sendable {
    private let addresses = Guarded<[SocketAddress]>([])
    var all: [SocketAddress] { addresses.withLock { $0 } }
    func add(_ found: [SocketAddress]) { addresses.withLock { $0 += found } }
}

private func resolverStatistics(hits: Int, misses: Int, entries: Int, inFlight: Int = 0) -> Resolver.Statistics {
    Resolver.Statistics(hits: hits, misses: misses, entries: entries, inFlight: inFlight)
}
