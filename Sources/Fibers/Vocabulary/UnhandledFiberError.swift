// SPDX-License-Identifier: Apache-2.0

/// An error that a fiber threw and that was never joined.
public struct UnhandledFiberError: Error, CustomStringConvertible {
    public let fiberID: UInt64
    public let fiberName: String?
    public let error: any Error

    public var description: String {
        let name = fiberName.map { " \"\($0)\"" } ?? ""
        return "fiber #\(fiberID)\(name) ended with an error that nobody joined: \(error)"
    }

    /// Writes the description as one line.
    public func printToStandardError() {
        printLineToStandardError(description)
    }
}
