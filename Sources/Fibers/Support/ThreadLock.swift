// SPDX-License-Identifier: Apache-2.0

// A lock and a condition variable of the operating system, for code that plain threads share with workers. Held for a few instructions,
// never across a park.

import CFiber
import Glibc

package final class ThreadLock: @unchecked Sendable {
    fileprivate let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)

    package init() { pthread_mutex_init(mutex, nil) }

    deinit {
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
    }

    func lock() { pthread_mutex_lock(mutex) }
    func unlock() { pthread_mutex_unlock(mutex) }

    package func withLock<Result>(_ body: () -> Result) -> Result {
        lock()
        defer { unlock() }
        return body()
    }
}

/// A value protected by a lock. `Synchronization.Mutex` would suffice, but the thread sanitizer does not see it.
package final class Guarded<Value>: @unchecked Sendable {
    private let lock = ThreadLock()
    private var content: Value

    package init(_ value: Value) { content = value }

    package func withLock<Result>(_ body: (inout Value) -> Result) -> Result {
        lock.withLock { body(&content) }
    }

    /// A copy of the value.
    package var value: Value { withLock { $0 } }
}

package final class ThreadCondition: @unchecked Sendable {
    private let lock: ThreadLock
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    package init(_ lock: ThreadLock) {
        self.lock = lock
        pthread_cond_init(condition, nil)
    }

    deinit {
        pthread_cond_destroy(condition)
        condition.deallocate()
    }

    func signal() { pthread_cond_signal(condition) }
    package func broadcast() { pthread_cond_broadcast(condition) }

    /// Releases the lock, waits for a signal until a time in monotonic nanoseconds, and acquires the lock again. May return early.
    package func wait(until deadline: Int64) {
        _ = cfiber_condition_wait(condition, lock.mutex, deadline)
    }
}
