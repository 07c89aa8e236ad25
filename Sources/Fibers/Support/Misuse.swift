// SPDX-License-Identifier: Apache-2.0

/// Stops the program because the programmer used the library in a way that cannot work; the message names the remedy.
///
/// Not `precondition`: that prints no message in release builds, which most programs run as.
@inline(never)
@usableFromInline
package func misuse(_ message: String) -> Never {
    fatalError(message)
}

/// Stops the program with a message unless the condition holds.
@inline(__always)
@usableFromInline
package func require(_ condition: Bool, _ message: @autoclosure () -> String) {
    if _slowPath(!condition) { misuse(message()) }
}
