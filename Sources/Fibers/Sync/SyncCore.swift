// What all locks and their like have in common: how their calls begin and end, and whom they name in their messages. One worker, or any thread: see `WaitPoint`.

import CFiber
import Glibc

/// Who holds a lock: a fiber, by the address of its context, or a plain thread, by its id. Bit 1 says which, bit 0 is for whoever stores it.
typealias Holder = UInt

@usableFromInline
class SyncCore: WaitPoint, @unchecked Sendable {
    private static var threadBit: Holder { 2 }
    private static var addressBits: Holder { ~3 }

    /// The caller.
    @inline(__always)
    static var caller: Holder {
        if let context = cfiber_current() { return UInt(bitPattern: context) }
        return UInt(pthread_self()) | threadBit
    }

    /// For messages: the fiber with its id and name, or that it is a thread. A fiber of another worker must be kept from going on meanwhile.
    static func describe(_ holder: Holder) -> String {
        if holder & threadBit != 0 { return "a thread outside the runtime" }
        guard let context = UnsafeMutablePointer<cfiber_context>(bitPattern: holder & addressBits) else { return "nobody" }
        let fiber = FiberPointer(context: context)
        let id = fiber.pointee.context.id
        if id == 0 { return "a fiber that has ended" }
        return "fiber #\(id)\(fiber.name.map { " \"\($0)\"" } ?? "")"
    }

    /// Nobody stands in line, for tests.
    package final var isLineEmpty: Bool { withLock { first.pointee.isEmpty } }
}
