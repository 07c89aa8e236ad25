// SPDX-License-Identifier: Apache-2.0

// Reports from a worker to the program's handlers. Owner worker only.

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Reports a condition to the runtime's handler. The handler runs in a fiber of its own, where it may wait and delays no other fiber;
    /// if no fiber can be started, it runs here.
    package func warn(_ message: String) {
        let workers = pointee.workers
        if !pointee.ending.isAbandoned, pointee.ending.isActive || workers.activate(self),
            let (_, place) = try? start(name: "onWarning", { FiberCore.run($0, $1, Void.self, staysHome: false) })
        {
            place.initializeMemory(as: (() throws -> Void).self, to: { workers.settings.warn(message) })
        } else {
            workers.settings.warn(message)
        }
    }

    /// Reports an error of the running fiber that no other code will receive.
    package func reportUnhandled(_ error: any Error) {
        pointee.workers.settings.report(UnhandledFiberError(fiberID: running.id, fiberName: running.name, error: error))
    }
}
