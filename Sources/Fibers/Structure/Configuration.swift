// SPDX-License-Identifier: Apache-2.0

extension FiberRuntime {
    /// How a runtime is set up. Every value has a default that suits a server.
    public struct Configuration: Sendable {
        /// How stacks are guarded against overflow.
        public enum Guards: Sendable {
            /// Page-table markers where the kernel has them (Linux 6.13), else `mprotect`.
            case automatic
            /// Page-table markers, which cost no mapping; spawning throws where the kernel lacks them.
            case pageTables
            /// `mprotect`, which costs two mappings a stack: `vm.max_map_count` limits the number of fibers to about 32,000 by default.
            case mprotect
        }

        /// How many workers, each a thread that runs fibers: nil, the default, for as many as the process may use CPUs (by its affinity and the quotas of its control groups, of version 1 or
        /// 2), or as the environment variable `FIBERS_WORKERS` says, unless that is empty. At most 1,024.
        public var workers: Int?
        /// Binds each worker to a CPU of its own as long as there are enough, in turn of those that the process may use; the calling thread is set free again at the end. Off by default:
        /// it pays where nothing else runs on these CPUs. Threads for blocking calls and child processes are not bound; threads that fibers start themselves inherit what their
        /// worker is bound to.
        public var pinsWorkers: Bool
        /// Bytes of address space for each stack, 64 KiB of which are its guard: a power of two, at least 128 KiB. 256 KiB by default. Only pages that
        /// are touched cost memory, so a large value is cheap; the address space of a process holds 128 TiB.
        public var stackSize: Int
        /// Bytes in each buffer of the worker's pool, out of which reads that bring no buffer are served. 16 KiB by default.
        public var readBufferSize: Int
        /// How many threads ``withBlockingThread(name:_:)`` may use at a time. 64 by default.
        public var blockingThreads: Int
        /// How long fibers may take to end once the runtime shuts down, because `main` threw an error or by ``FiberRuntime/shutDown(within:)``. 10 seconds by default.
        public var shutdownLimit: Duration
        /// How stacks are guarded; `.automatic` unless a test wants to know.
        public var guards: Guards
        /// Hears once of each error that a fiber threw and nobody joined. By default one line on standard error. Called where the last handle is released: as a rule in
        /// a fiber, where it may park, shielded from that fiber's cancellation; outside if a thread of the program's own had the handle, or the runtime has ended, and there a call that parks stops the
        /// program.
        public var onUnhandledError: @Sendable (UnhandledFiberError) -> Void

        /// Hears of conditions that the runtime rides out but the operator should know, such as a lack of descriptors: one line each. By default standard error.
        ///
        /// Called in a fiber of its own on the worker that warns, where it may park, shielded from cancellation. What is said at the end of a runtime, of fibers or blocking calls that are left behind, is
        /// said outside any fiber, since none can run then: there a call that parks stops the program. If no stack can be had for the fiber, the handler is called where the warning arose.
        public var onWarning: @Sendable (String) -> Void

        /// How long stacks must not have been needed before their memory is given back: less makes a load that comes in waves pay for the same pages again and again.
        package var trimInterval = Duration.seconds(1)
        /// How long threads for blocking calls must not have been needed before they end.
        package var blockingIdleLimit = Duration.seconds(10)

        /// What the random numbers of the workers are made of; nil for the time at which each starts. For tests that repeat a run.
        package var randomSeed: UInt64?

        /// Makes the backend of a worker, by its index; nil for epoll. For tests.
        package var makeBackend: (@Sendable (_ worker: Int) throws(ResourceError) -> any Backend)?

        public init(
            workers: Int? = nil, pinsWorkers: Bool = false,
            stackSize: Int = 256 * 1024, readBufferSize: Int = 16 * 1024, blockingThreads: Int = 64, shutdownLimit: Duration = .seconds(10),
            guards: Guards = .automatic,
            onUnhandledError: @escaping @Sendable (UnhandledFiberError) -> Void = { $0.printToStandardError() },
            onWarning: @escaping @Sendable (String) -> Void = { printLineToStandardError($0) }
        ) {
            self.workers = workers
            self.pinsWorkers = pinsWorkers
            self.stackSize = stackSize
            self.readBufferSize = readBufferSize
            self.blockingThreads = blockingThreads
            self.shutdownLimit = shutdownLimit
            self.guards = guards
            self.onUnhandledError = onUnhandledError
            self.onWarning = onWarning
        }

        /// What the kernel is told of it.
        var settings: WorkerSettings {
            let (makeBackend, bufferSize) = (makeBackend, readBufferSize)
            return WorkerSettings(
                workers: workers, pinsWorkers: pinsWorkers, stackSize: stackSize, guards: stackGuards,
                trimInterval: Deadline.nanoseconds(trimInterval), shutdownLimit: shutdownLimit, randomSeed: randomSeed,
                makeEvents: { (worker, index) throws(ResourceError) in
                    let backend: any Backend
                    if let makeBackend { backend = try makeBackend(index) } else { backend = try EpollBackend() }
                    return Driver(backend, owner: worker, index: index, bufferSize: bufferSize)
                }, onUnhandledError: onUnhandledError, onWarning: onWarning)
        }

        private var stackGuards: StackGuards {
            switch guards {
            case .automatic: .automatic
            case .pageTables: .pageTables
            case .mprotect: .mprotect
            }
        }

        func check() {
            require(
                workers.map { (1...1024).contains($0) } ?? true,
                "Configuration.workers must be 1 to 1,024, or nil for one per CPU; it is \(workers ?? 0)")
            require(
                stackSize >= 128 * 1024 && stackSize & (stackSize - 1) == 0 && stackSize <= 1 << 30,
                "Configuration.stackSize must be a power of two from 128 KiB to 1 GiB, 64 KiB of which are the guard; it is \(stackSize)")
            require(blockingThreads >= 1, "Configuration.blockingThreads must be at least 1; it is \(blockingThreads)")
            require(readBufferSize >= 512, "Configuration.readBufferSize must be at least 512 bytes; it is \(readBufferSize)")
        }
    }
}
