// SPDX-License-Identifier: Apache-2.0

/// The system refused a resource that the runtime needs: stacks, address space, memory or descriptors.
///
/// A call that throws it has had no partial effect: the runtime stays usable, and the same call succeeds once the limit is raised or
/// resources are released.
public struct ResourceError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The resource that ran out. More may be added.
    public struct Resource: Hashable, Sendable {
        enum Kind: Hashable { case memory, addressSpace, mappings, descriptors, kernel }
        let kind: Kind

        /// Memory, or the memory that the kernel commits to (`vm.overcommit_memory`).
        public static let memory = Resource(kind: .memory)
        /// Address space of the process (`ulimit -v`).
        public static let addressSpace = Resource(kind: .addressSpace)
        /// Memory mappings of the process (`vm.max_map_count`).
        public static let mappings = Resource(kind: .mappings)
        /// File descriptors of the process or the system (`ulimit -n`, `fs.file-max`).
        public static let descriptors = Resource(kind: .descriptors)
        /// Anything else that the kernel refused.
        public static let kernel = Resource(kind: .kernel)
    }

    public let resource: Resource
    /// The system's error number.
    public let errno: Int32
    /// What the runtime was doing.
    public let operation: String
    /// The value of the limit, where it is known.
    public let limit: UInt64?
    /// What to raise or to change.
    public let remedy: String

    package init(_ resource: Resource, errno: Int32, operation: String, limit: UInt64? = nil, remedy: String) {
        self.resource = resource
        self.errno = errno
        self.operation = operation
        self.limit = limit
        self.remedy = remedy
    }

    public var description: String {
        let bound = limit.map { " (limit \($0))" } ?? ""
        return "\(operation) failed: \(errorText(errno))\(bound). \(remedy)"
    }
}
