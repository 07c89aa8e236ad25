// SPDX-License-Identifier: Apache-2.0

// At the limits of the system: very many fibers, and the errors that say which limit it was.

import CFiber
import Fibers
import Glibc
import Testing

/// True where the kernel guards stacks by markers in the page tables (Linux 6.13).
private let hasPageTableGuards: Bool = {
    let size = 65_536
    var memory: UnsafeMutableRawPointer?
    guard cfiber_map(size, &memory) == 0, let memory else { return false }
    defer { _ = cfiber_unmap(memory, size) }
    return cfiber_guard(memory, size, Int32(CFIBER_GUARD_INSTALL)) == 0
}()

/// Parks fibers until no more can be started; returns how many there were and why no more.
private func parkUntilRefused(atMost: Int) throws -> (count: Int, error: ResourceError?) {
    let worker = Worker.current!
    var waiters: [Waiter] = []
    var refusal: ResourceError?
    do throws(ResourceError) {
        while waiters.count < atMost && refusal == nil {
            try Fiber.spawnLocal {
                waiters.append(worker.beginPark())
                _ = worker.park(.other)
            }
            // Each gets as far as its park before the next is started.
            Fiber.yield()
        }
    } catch { refusal = error }
    let count = waiters.count
    for waiter in waiters { _ = worker.unpark(waiter, .ready) }
    _ = yield { worker.live == 1 }
    return (count, refusal)
}

#if compiler(>=6.2)
    extension KernelTests {
        @Suite(.enabled(if: !isSanitized, "sanitizers keep address space and mappings of their own"))
        struct LimitTests {
            @Test func spawning_throwsAndNamesTheLimit_whenGuardsUseUpTheMappings() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        let most = Int(cfiber_read_number("/proc/sys/vm/max_map_count"))
                        guard most < 200_000 else { return }  // raised on this machine: too many fibers for a test
                        let before = Process.mappings
                        try FiberRuntime.run(.init(guards: .mprotect)) {
                            let (count, error) = try parkUntilRefused(atMost: most)
                            #expect(count > most / 2 - 2_000 && count <= most / 2)
                            #expect(error?.resource == .mappings)
                            #expect(error?.limit == UInt64(most))
                            #expect(error?.remedy.contains("vm.max_map_count") == true)
                            // Usable: with the stacks that are there, as many again.
                            #expect(try parkUntilRefused(atMost: count - 1).error == nil)
                            #expect(try Fiber.spawnLocal { 5 }.join() == 5)
                            // And the rest of the process still gets mappings of its own.
                            #expect(onThread { 6 } == 6)
                        }
                        #expect(Process.mappings < before + 20)
                        #expect(try FiberRuntime.run(.init(guards: .mprotect)) { try Fiber.spawnLocal { 7 }.join() } == 7)
                    }
                }
            }

            @Test(.enabled(if: hasPageTableGuards, "the kernel lacks MADV_GUARD_INSTALL (Linux 6.13)"))
            func millionFibers_park_withDefaultSettings() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        // Fewer where they take too long (debug builds) or do not fit into memory.
                        let available = Process.availableBytes
                        let count = isDebugBuild ? 100_000 : available > 8 << 30 ? 1_000_000 : available / 8_192
                        try FiberRuntime.run {
                            let worker = Worker.current!
                            let waiters = UnsafeMutablePointer<Waiter>.allocate(capacity: count)
                            var parked = 0
                            // Pages of the array itself shall not count.
                            memset(waiters, 0, count * MemoryLayout<Waiter>.stride)
                            let before = (Process.residentBytes + Process.pageTableBytes, Process.mappings)
                            for _ in 0..<count {
                                try Fiber.spawnLocal {
                                    waiters[parked] = worker.beginPark()
                                    parked += 1
                                    _ = worker.park(.other)
                                }
                            }
                            #expect(yield { parked == count })
                            let each = Double(Process.residentBytes + Process.pageTableBytes - before.0) / Double(count)
                            // One page of stack, an eighth of a page of page tables, and the heap part.
                            #expect(each <= 4_096 + 512 + 256, "\(each) bytes each")
                            #expect(Process.mappings - before.1 < 1_000)
                            for i in 0..<count { _ = worker.unpark(waiters[i], .ready) }
                            _ = yield { worker.live == 1 }
                            waiters.deallocate()
                        }
                        #expect(Process.residentBytes < 1 << 30, "\(Process.residentBytes) resident")
                    }
                }
            }

            @Test func spawning_throwsAndNamesTheLimit_whenAddressSpaceRunsOut() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try FiberRuntime.run {
                            try parkMany(10)
                            // What is mapped now and 256 MiB more: room for a thousand stacks.
                            let limit = rlim_t(Process.status("VmSize") + 256 << 20)
                            try limitAddressSpace(to: limit)
                            let (count, error) = try parkUntilRefused(atMost: 10_000)
                            #expect(count >= 500 && count <= 1_100)
                            #expect(error?.resource == .addressSpace)
                            #expect(error?.limit == UInt64(limit))
                            #expect(error?.errno == ENOMEM)
                            #expect(error?.remedy.contains("ulimit -v") == true)
                            #expect(try Fiber.spawnLocal { 5 }.join() == 5)
                            // Raised again, the same call succeeds.
                            try limitAddressSpace(to: .max)
                            #expect(try parkUntilRefused(atMost: 3_000).error == nil)
                        }
                    }
                }
            }

            @Test func run_throwsAndNamesTheLimit_whenDescriptorsRunOut() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        try FiberRuntime.run {}
                        var limit = rlimit()
                        getrlimit(Int32(RLIMIT_NOFILE.rawValue), &limit)
                        let before = limit.rlim_cur
                        // Room for none, then for one: neither is enough for an eventfd and an epoll.
                        let next = dup(0)
                        close(next)
                        // Looked at afterwards: an expectation may open descriptors of its own.
                        var errors: [ResourceError?] = []
                        for room in 0...1 {
                            limit.rlim_cur = rlim_t(Int(next) + room)
                            setrlimit(Int32(RLIMIT_NOFILE.rawValue), &limit)
                            do {
                                try FiberRuntime.run {}
                                errors.append(nil)
                            } catch {
                                errors.append(error as? ResourceError)
                            }
                        }
                        limit.rlim_cur = before
                        setrlimit(Int32(RLIMIT_NOFILE.rawValue), &limit)
                        let after = dup(0)
                        #expect(after == next)
                        for (room, error) in errors.enumerated() {
                            #expect(error?.resource == .descriptors)
                            #expect(error?.limit == UInt64(next) + UInt64(room))
                            #expect(error?.operation == (room == 0 ? "eventfd" : "epoll_create1"))
                            #expect(error?.remedy.contains("ulimit -n") == true)
                        }
                        #expect(try FiberRuntime.run { 8 } == 8)
                    }
                }
            }
        }
    }

    func limitAddressSpace(to bytes: rlim_t) throws {
        var limit = rlimit()
        getrlimit(Int32(RLIMIT_AS.rawValue), &limit)
        limit.rlim_cur = min(bytes, limit.rlim_max)
        guard setrlimit(Int32(RLIMIT_AS.rawValue), &limit) == 0 else { throw TestError(number: Int(errno)) }
    }
#endif
