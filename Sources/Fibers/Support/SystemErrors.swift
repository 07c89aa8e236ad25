// SPDX-License-Identifier: Apache-2.0

// Converts error numbers to errors that name the remedy. Any thread.

import CFiber
import Glibc

/// The system's text for an error number.
package func errorText(_ errno: Int32) -> String {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: 128) { buffer in
        String(cString: cfiber_error_text(errno, buffer.baseAddress, buffer.count))
    }
}

extension ResourceError {
    /// The error for a descriptor that the kernel refused.
    package static func descriptors(_ errno: Int32, _ operation: String) -> ResourceError {
        switch errno {
        case EMFILE:
            ResourceError(
                .descriptors, errno: errno, operation: operation, limit: cfiber_descriptor_limit(),
                remedy: "Raise the process's limit on open files (ulimit -n, LimitNOFILE=) or close some.")
        case ENFILE:
            ResourceError(
                .descriptors, errno: errno, operation: operation, remedy: "Raise the system's limit on open files: sysctl fs.file-max.")
        case ENOMEM, ENOBUFS:
            ResourceError(
                .memory, errno: errno, operation: operation,
                remedy: "The kernel is short of memory; free some or raise the limit of the container.")
        default:
            ResourceError(
                .kernel, errno: errno, operation: operation, remedy: "The kernel or a sandbox refuses it; see `man 2 \(operation)`.")
        }
    }

    /// The error for a standard stream that is closed and cannot be opened.
    static func standardStreams(_ errno: Int32) -> ResourceError {
        let operation = "opening /dev/null for a closed standard stream"
        if [EMFILE, ENFILE, ENOMEM].contains(errno) { return .descriptors(errno, operation) }
        return ResourceError(
            .kernel, errno: errno, operation: operation,
            remedy: "Start the program with descriptors 0, 1 and 2 open, or with a /dev/null that it may read and write.")
    }

    /// The error for a thread that the system refused.
    static func threads(_ errno: Int32, _ operation: String) -> ResourceError {
        ResourceError(
            .kernel, errno: errno, operation: operation,
            remedy: "Allow the process more threads (ulimit -u, pids.max of its control group, sysctl kernel.threads-max), or more memory.")
    }

    /// The error for memory that the system refused; `bytes` were requested.
    package static func memory(_ errno: Int32, _ operation: String, bytes: Int) -> ResourceError {
        let space = cfiber_address_space_limit()
        if errno == ENOMEM, space != .max {
            return ResourceError(
                .addressSpace, errno: errno, operation: operation, limit: space,
                remedy:
                    "\(bytes) more bytes do not fit the limit on address space: raise it (ulimit -v) or make stacks smaller (Configuration.stackSize)."
            )
        }
        if errno == ENOMEM, cfiber_read_number("/proc/sys/vm/overcommit_memory") == 2 {
            return ResourceError(
                .memory, errno: errno, operation: operation,
                remedy:
                    "The kernel promises no more than it has (sysctl vm.overcommit_memory is 2, and stacks are reserved in advance): set it to 0 or 1, or raise vm.overcommit_ratio."
            )
        }
        return ResourceError(
            .memory, errno: errno, operation: operation,
            remedy: "\(bytes) more bytes are not to be had: free memory, or run fewer fibers at a time.")
    }

    /// The error for one mapping too many; `stacks` are in use.
    static func mappings(_ errno: Int32, _ operation: String, stacks: Int) -> ResourceError {
        let limit = cfiber_read_number("/proc/sys/vm/max_map_count")
        return ResourceError(
            .mappings, errno: errno, operation: operation, limit: limit > 0 ? UInt64(limit) : nil,
            remedy:
                "Each guarded stack costs two mappings here and \(stacks) stacks are mapped: raise sysctl vm.max_map_count (for N fibers to 2 N + 1,000), or use Linux 6.13 or newer with guards: .automatic, where guards cost none."
        )
    }
}
