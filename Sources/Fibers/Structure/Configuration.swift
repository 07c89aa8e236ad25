// SPDX-License-Identifier: Apache-2.0

extension FiberRuntime {
    /// The settings of a runtime. Every value has a default that suits a server.
    public struct Configuration: Sendable {
        /// How stacks are guarded against overflow.
        public enum Guards: Sendable {
            /// Page-table markers where the kernel supports them (Linux 6.13), else `mprotect`.
            case automatic
            /// Page-table markers, which cost no mapping; spawning throws where the kernel does not support them.
            case pageTables
            /// `mprotect`, which costs two mappings per stack: by default `vm.max_map_count` limits the number of fibers to about 32,000.
            case mprotect
        }

        /// The number of workers, each a thread that runs fibers. Nil, the default: the value of the environment variable `FIBERS_WORKERS`,
        /// or, if that is unset or empty, the number of CPUs that the process may use (by its affinity and the quotas of its control
        /// groups, of version 1 or 2). At most 1,024.
        public var workers: Int?
        /// Binds each worker to a CPU of its own as long as there are enough, in the order of the CPUs that the process may use; the
        /// calling thread is unbound again at the end. Off by default: binding pays where nothing else runs on these CPUs. Threads for
        /// blocking calls and child processes are not bound. Threads that fibers start themselves inherit the binding of their worker.
        public var pinsWorkers: Bool
        /// Bytes of address space for each stack, 64 KiB of which are its guard: a power of two, at least 128 KiB. 256 KiB by default. Only
        /// touched pages cost memory, so a large value is cheap; the address space of a process holds 128 TiB.
        public var stackSize: Int
        /// Bytes in each pooled buffer of a worker, which serves reads whose caller supplies no buffer. 16 KiB by default.
        public var readBufferSize: Int
        /// The maximum number of threads that ``withBlockingThread(name:_:)`` uses at a time. 64 by default.
        public var blockingThreads: Int
        /// How long fibers may take to end once the runtime shuts down, because `main` threw an error or ``FiberRuntime/shutDown(within:)``
        /// was called. 10 seconds by default.
        public var shutdownLimit: Duration
        /// How stacks are guarded; `.automatic` except in tests.
        public var guards: Guards
        /// Called once for each error that a fiber threw and that was never joined. By default prints one line on standard error. It is
        /// called where the last handle is released. That is normally in a fiber, where the handler may park, shielded from that fiber's
        /// cancellation. It is outside a fiber if a thread of the program held the handle, or the runtime has ended; there a call that
        /// parks stops the program.
        public var onUnhandledError: @Sendable (UnhandledFiberError) -> Void

        /// Called for conditions that the runtime survives but the operator should know, such as a lack of descriptors: one line each. By
        /// default prints to standard error.
        ///
        /// Called in a fiber of its own on the worker that warns, where it may park, shielded from cancellation. Warnings at the end of a
        /// runtime, about abandoned fibers or blocking calls, are delivered outside any fiber, since none can run then: there a call that
        /// parks stops the program. If there is no stack for the fiber, the handler is called where the warning arose.
        public var onWarning: @Sendable (String) -> Void

        /// How long stacks must be unused before their memory is released. With a shorter time, a load that comes in waves faults the same
        /// pages in again and again.
        package var trimInterval = Duration.seconds(1)
        /// How long a thread for blocking calls must be surplus before it ends.
        package var blockingIdleLimit = Duration.seconds(10)

        /// The seed of the workers' random numbers; nil for the time at which each worker starts. For tests that repeat a run.
        package var randomSeed: UInt64?

        /// Creates the backend of a worker, by its index; nil for epoll. For tests.
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

        /// The settings that are passed to the workers.
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
