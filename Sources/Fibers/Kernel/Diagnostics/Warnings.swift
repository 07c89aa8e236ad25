// SPDX-License-Identifier: Apache-2.0

// What a worker tells the handlers of the program. Owner worker only.

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Tells the runtime's handler of a condition that the program should know: in a fiber of its own, where it may wait and holds up nobody, or, when there is none to be had, here.
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

    /// Tells the runtime's handler of an error of the running fiber that nobody else will hear of.
    package func reportUnhandled(_ error: any Error) {
        pointee.workers.settings.report(UnhandledFiberError(fiberID: running.id, fiberName: running.name, error: error))
    }
}
