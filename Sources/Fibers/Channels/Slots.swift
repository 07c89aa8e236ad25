// SPDX-License-Identifier: Apache-2.0

// Memory for a message in transit, and the size above which messages are moved by calls.
//
// Code that is inlined into a program is specialised for each message type. The specialised code inspects, clears and fills an `Optional`
// of a large type word by word: thousands of instructions for 64 KB, and the optimiser's time grows with the square of that. A call with a
// large message therefore compiles to a call of one generic function that is never specialised (`@_semantics` below) and moves the message
// by the value witnesses of its type. The size is a compile-time constant, so only one of the two branches is compiled, and small messages
// pay nothing.

/// The size in bytes of the largest message that inlined code moves, and of the largest slot in a caller's frame.
@inlinable
var largestInlinedMessage: Int {
    @inline(__always) get { 1024 }
}

/// Whether unspecialised functions move messages of a type.
@inlinable @inline(__always)
func isLarge<Message: ~Copyable>(_: Message.Type) -> Bool { MemoryLayout<Message>.size > largestInlinedMessage }

/// Calls `body` with memory for a message: in the caller's frame up to a kilobyte, otherwise allocated. Swift aligns no type to more than
/// 16 bytes. The memory is a whole stride, also for a message of size 0, because a generic move may write all of it.
@inlinable @inline(__always)
func withSlot<Message: ~Copyable>(for _: Message.Type, _ body: (UnsafeMutablePointer<Message>) throws -> Void) rethrows {
    try withTemporaryMemory(byteCount: MemoryLayout<Message>.stride, alignment: 16) {
        try body($0.baseAddress.unsafelyUnwrapped.bindMemory(to: Message.self, capacity: 1))
    }
}

// Optionals of messages, for the arms of a select. A `take()` copies and clears the optional before the check for nil, so for a large type
// it happens in a function that is not specialised.

@inlinable @inline(__always)
func wrapped<Message: ~Copyable>(_ message: consuming Message) -> Message? {
    if isLarge(Message.self) { return wrappedLarge(message) }
    return consume message
}

/// Moves the message out of an optional, which must not be nil, into a slot.
@inlinable @inline(__always)
func unwrap<Message: ~Copyable>(_ message: inout Message?, to slot: UnsafeMutablePointer<Message>) {
    if isLarge(Message.self) { return unwrapLarge(&message, to: slot) }
    slot.initialize(to: message.take()!)
}

@usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
func wrappedLarge<Message: ~Copyable>(_ message: consuming Message) -> Message? { message }

@usableFromInline @inline(never) @_semantics("optimize.sil.specialize.generic.never")
func unwrapLarge<Message: ~Copyable>(_ message: inout Message?, to slot: UnsafeMutablePointer<Message>) {
    slot.initialize(to: message.take()!)
}
