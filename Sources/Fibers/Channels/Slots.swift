// SPDX-License-Identifier: Apache-2.0

// Memory for a message on its way, and the threshold above which messages are moved by calls.
//
// Code that is inlined into a program is compiled anew for each message type. An `Optional` of a large type is inspected, cleared and filled word by word, thousands of instructions for
// 64 KB, and the optimiser's time grows with the square of that. So a call with a large message compiles to a call of one generic function, marked `noninlined` below, which moves the
// message by the witnesses of its type. The compiler knows the size and keeps one of the two branches, so small messages pay nothing.

/// Bytes of the largest message that inlined code moves, and of the largest slot in a caller's frame.
@inlinable
var largestInlinedMessage: Int {
    @inline(__always) get { 1024 }
}

/// Whether messages of a type are moved by functions that are not compiled anew for it.
@inlinable @inline(__always)
func isLarge<Message: ~Copyable>(_: Message.Type) -> Bool { MemoryLayout<Message>.size > largestInlinedMessage }

/// Calls a body with memory for a message: in the caller's frame up to a kilobyte, else allocated. Swift aligns no type to more than 16 bytes. It is a whole stride, which a message of size 0
/// has, too, since a generic move may write all of it.
@inlinable @inline(__always)
func withSlot<Message: ~Copyable>(for _: Message.Type, _ body: (UnsafeMutablePointer<Message>) throws -> Void) rethrows {
    try withTemporaryMemory(byteCount: MemoryLayout<Message>.stride, alignment: 16) {
        try body($0.baseAddress.unsafelyUnwrapped.bindMemory(to: Message.self, capacity: 1))
    }
}

// Optionals of messages, for arms of a select, which must be copied and emptied before they are known to be there.

@inlinable @inline(__always)
func wrapped<Message: ~Copyable>(_ message: consuming Message) -> Message? {
    if isLarge(Message.self) { return wrappedLarge(message) }
    return consume message
}

/// Moves the message of an optional, which must have one, into a slot.
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
