// SPDX-License-Identifier: Apache-2.0

// A class whose dynamic exclusivity checks the optimiser cannot remove: its properties are public, and who changes them is not known in this file.

public final class Tally {
    public var count = 0
    public var other = 0
    public var deep = [0, 0, 0, 0]

    public init() {}
}

/// Changes a value through a function that the optimiser does not look into, so that the access to where it lies stays open meanwhile.
@inline(never) @_optimize(none)
func change<Value>(_ value: inout Value, _ body: (inout Value) throws -> Void) rethrows {
    try body(&value)
}

/// The address by which libswiftCore knows accesses to a property.
func address(of value: inout Int) -> UnsafeRawPointer { withUnsafePointer(to: &value) { UnsafeRawPointer($0) } }
