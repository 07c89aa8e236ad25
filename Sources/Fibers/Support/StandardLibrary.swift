// SPDX-License-Identifier: Apache-2.0

// The calls of the standard library that are not part of its public interface, each behind a plain name with the reason for it. No other
// file makes such a call, except for the first frame of a fiber (Life.swift), so a toolchain that changes them affects only this file.
// (`_fastPath` and `_slowPath` are used everywhere.) Any thread.

/// Calls a body with a pointer to a local variable, as `withUnsafeMutablePointer` does, but without the stack protector. The stack
/// protector would write a canary into each frame that passes such a pointer on, and compare it at the end. That would cost time in each
/// park, for a node of a few words that is never indexed.
///
/// The body may park. Nothing else may capture the variable meanwhile.
@inlinable @inline(__always)
func withLocalPointer<Value, Result, Failure: Error>(
    to value: inout Value, _ body: (UnsafeMutablePointer<Value>) throws(Failure) -> Result
) throws(Failure) -> Result {
    try _withUnprotectedUnsafeMutablePointer(to: &value, body)
}

/// Calls a body with memory that lies in the caller's frame up to a kilobyte, as `withUnsafeTemporaryAllocation` does, but without the
/// stack protector.
@inlinable @inline(__always)
func withTemporaryMemory<Result>(
    byteCount: Int, alignment: Int, _ body: (UnsafeMutableRawBufferPointer) throws -> Result
) rethrows -> Result {
    try _withUnprotectedUnsafeTemporaryAllocation(byteCount: byteCount, alignment: alignment, body)
}

extension Unmanaged {
    /// Calls a body with the object without counting a reference: something else retains the object meanwhile. `takeUnretainedValue` would
    /// count one, which costs two atomic operations.
    @inlinable @inline(__always)
    func withObject<Result>(_ body: (Instance) throws -> Result) rethrows -> Result {
        try _withUnsafeGuaranteedRef(body)
    }
}

/// Whether values of a type may be copied byte by byte, and need no destruction. Swift has no `is any BitwiseCopyable` test for a generic
/// type.
@inlinable @inline(__always)
func isTrivial<Value>(_: Value.Type) -> Bool { _isPOD(Value.self) }
