// SPDX-License-Identifier: Apache-2.0

// Where fibers of one worker wait for each other, first come first served: the kernel's own wait list with a class around it.

import Fibers

final class WaitingRoom {
    private let list = UnsafeMutablePointer<WaitList>.allocate(capacity: 1)

    init() { list.initialize(to: WaitList()) }
    deinit { list.deallocate() }

    /// Waits to be called; false when the deadline (monotonic nanoseconds) or a cancellation came first.
    func wait(until deadline: Int64 = .max) -> Bool {
        Worker.here("WaitingRoom.wait").park(in: list, .other, until: deadline) == .ready
    }

    func callAll() { Worker.here("WaitingRoom.callAll").wakeAll(&list.pointee, .ready) }
}

/// Descriptors that jobs may have open, far enough below the limit of the process. Who finds too few waits in line.
final class DescriptorBudget {
    private var free: Int
    private var line: [(count: Int, room: WaitingRoom)] = []

    init(_ count: Int) { free = count }

    func take(_ count: Int) {
        guard count > 0 else { return }
        if line.isEmpty && free >= count {
            free -= count
        } else {
            let room = WaitingRoom()
            line.append((count, room))
            _ = room.wait()
        }
    }

    func give(_ count: Int) {
        free += count
        while let first = line.first, first.count <= free {
            free -= first.count
            line.removeFirst()
            first.room.callAll()
        }
    }
}
