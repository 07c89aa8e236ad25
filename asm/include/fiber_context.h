// SPDX-License-Identifier: Apache-2.0

// The context switch: two functions, implemented twice.
//
// A context is the address of a saved register frame on the stack that it belongs to; it is good for exactly one jump.
//
//   fiber_context_jump(to, data)   leaves the running context and enters `to`. It returns when somebody jumps back, with the context
//                                  that this one was entered from and the data that was passed along.
//   fiber_context_make(top, size, entry)
//                                  lays a context at the top of a stack; the first jump into it calls entry(transfer), which must not
//                                  return. At its first instruction the stack is aligned as after a call, the frame pointer is zero and
//                                  the CFI says that there is no caller, so that backtraces end there.
//
// The `_asm` pair lives in asm/x86_64.S and asm/aarch64.S; the `_boost` pair enters Boost.Context's fcontext. `fiber_context_backend.h` chooses. Both keep:
//   * the callee-saved registers of the C ABI (x86-64: rbx rbp r12-r15; aarch64: x19-x30, d8-d15);
//   * the floating-point control words as the ABI has them, callee-saved: each context has its own rounding mode and exception
//     masks (x86-64: mxcsr and the x87 control word; aarch64: fpcr, by the asm pair only: Boost 1.74 leaves fpcr alone).
//     A new context starts with those of the thread that made it. The exception flags are nobody's; with Boost on x86-64 a context that
//     unmasks an x87 exception whose flag another has raised gets the signal (the asm pair clears the flags first);
//   * the red zone: both are entered by a call, so nothing lies below the return address.
// Neither keeps: the signal mask, errno and other thread-local storage, AVX-512 mask and vector registers (all caller-saved).
// Control-flow protection: the entry points carry endbr64 / bti c and the objects say so (IBT, BTI). Shadow stacks are not
// switched, so the objects do not claim SHSTK and the linker turns it off for the program; return addresses are not signed (PAC).
//
// Thread rule: a context may be entered by one thread at a time; the runtime never moves one to another thread.
#ifndef FIBER_CONTEXT_H
#define FIBER_CONTEXT_H
#include "fiber_context_backend.h"
#include <stddef.h>

typedef struct fiber_transfer {
  void *context;  // where the jump came from, to be jumped back to
  void *data;     // what the jump passed
} fiber_transfer;

typedef void (*fiber_context_entry)(fiber_transfer);

/// An optimiser must not make two calls of one: each call site of a jump has a prediction of its own, which is right only if all jumps go by the same one.
#if defined(__has_attribute)
#if __has_attribute(noduplicate)
#define FIBER_CONTEXT_JUMP __attribute__((noduplicate))
#endif
#endif
#ifndef FIBER_CONTEXT_JUMP
#define FIBER_CONTEXT_JUMP
#endif

FIBER_CONTEXT_JUMP fiber_transfer fiber_context_jump_asm(void *to, void *data);
void *fiber_context_make_asm(void *top, size_t size, fiber_context_entry entry);

#if FIBER_CONTEXT_IS_BOOST
FIBER_CONTEXT_JUMP fiber_transfer fiber_context_jump_boost(void *to, void *data);
void *fiber_context_make_boost(void *top, size_t size, fiber_context_entry entry);
#define fiber_context_jump fiber_context_jump_boost
#define fiber_context_make fiber_context_make_boost
#else
#define fiber_context_jump fiber_context_jump_asm
#define fiber_context_make fiber_context_make_asm
#endif

/// "boost" or "assembly": the pair that `fiber_context_jump` and `fiber_context_make` stand for in this build.
const char *fiber_context_backend(void);

#endif
