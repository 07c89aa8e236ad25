// SPDX-License-Identifier: Apache-2.0

// The calls of the standard library that are not part of its public interface, each behind a plain name with the reason for it. No other file makes one, but for the first frame of a fiber
// (Life.swift), so a toolchain that changes them is met here. (`_fastPath` and `_slowPath` are used everywhere.) Any thread.

/// Calls a body with a pointer to a local variable, as `withUnsafeMutablePointer` does, but without the stack protector. That writes a canary into each frame that gives such a pointer
/// away, and compares it at the end: in each park, for a node of a few words that nobody indexes.
///
/// The body may park. The variable must be captured by nothing else meanwhile.
@inlinable @inline(__always)
func withLocalPointer<Value, Result, Failure: Error>(
    to value: inout Value, _ body: (UnsafeMutablePointer<Value>) throws(Failure) -> Result
) throws(Failure) -> Result {
    try _withUnprotectedUnsafeMutablePointer(to: &value, body)
}

/// Calls a body with memory that lies in the caller's frame up to a kilobyte, as `withUnsafeTemporaryAllocation` does, but without the stack protector.
@inlinable @inline(__always)
func withTemporaryMemory<Result>(
    byteCount: Int, alignment: Int, _ body: (UnsafeMutableRawBufferPointer) throws -> Result
) rethrows -> Result {
    try _withUnprotectedUnsafeTemporaryAllocation(byteCount: byteCount, alignment: alignment, body)
}

extension Unmanaged {
    /// Calls a body with the object and counts no reference: something else keeps the object meanwhile. `takeUnretainedValue` would count one, which is two atomic operations.
    @inlinable @inline(__always)
    func withObject<Result>(_ body: (Instance) throws -> Result) rethrows -> Result {
        try _withUnsafeGuaranteedRef(body)
    }
}

/// Whether values of a type may be copied byte by byte, and need no destruction. `is any BitwiseCopyable` is nothing that can be asked of a generic type.
@inlinable @inline(__always)
func isTrivial<Value>(_: Value.Type) -> Bool { _isPOD(Value.self) }
