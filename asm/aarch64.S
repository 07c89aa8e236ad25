// SPDX-License-Identifier: Apache-2.0

// aarch64 AAPCS64: the context switch of fiber_context.h.
//
// A saved context, from the address that names it upwards:
//
//      0  d8  d9     16  d10 d11    32  d12 d13    48  d14 d15
//     64  x19 x20    80  x21 x22    96  x23 x24   112  x25 x26   128  x27 x28
//    144  x29 (frame pointer)   152  x30 (the address to go on at)
//    160  fpcr     168  unused
//    176  the stack of whoever called the jump
//
// Saved: the registers above. Not saved: x0-x18, v0-v7, v16-v31 and the upper halves of v8-v15, fpsr (flags, nobody's), SVE and SME state
// (caller-saved; a jump in streaming mode is not supported), x18 (the platform's).
#include "fiber_context_backend.h"

#if defined(__aarch64__)

#define FRAME 176

    .text

    .globl fiber_context_jump_asm
    .hidden fiber_context_jump_asm
    .type fiber_context_jump_asm, %function
    .p2align 5
fiber_context_jump_asm:             // x0: context to enter, x1: data
    .cfi_startproc
    bti c
    sub sp, sp, #FRAME
    .cfi_def_cfa_offset FRAME
    stp d8, d9, [sp, #0]
    stp d10, d11, [sp, #16]
    stp d12, d13, [sp, #32]
    stp d14, d15, [sp, #48]
    stp x19, x20, [sp, #64]
    stp x21, x22, [sp, #80]
    stp x23, x24, [sp, #96]
    stp x25, x26, [sp, #112]
    stp x27, x28, [sp, #128]
    stp x29, x30, [sp, #144]
    .cfi_rel_offset x29, 144
    .cfi_rel_offset x30, 152
    .cfi_rel_offset x19, 64
    .cfi_rel_offset x20, 72
    .cfi_rel_offset x21, 80
    .cfi_rel_offset x22, 88
    .cfi_rel_offset x23, 96
    .cfi_rel_offset x24, 104
    .cfi_rel_offset x25, 112
    .cfi_rel_offset x26, 120
    .cfi_rel_offset x27, 128
    .cfi_rel_offset x28, 136
    mrs x9, fpcr
    str x9, [sp, #160]
    ldr x10, [x0, #160]
    mov x11, sp                     // the context that leaves; from here on the CFI holds for the one that comes
    mov sp, x0
    cmp x9, x10                     // writing fpcr is slow, and it differs only where somebody changed it
    b.ne 2f
1:  ldp d8, d9, [sp, #0]
    ldp d10, d11, [sp, #16]
    ldp d12, d13, [sp, #32]
    ldp d14, d15, [sp, #48]
    ldp x19, x20, [sp, #64]
    ldp x21, x22, [sp, #80]
    ldp x23, x24, [sp, #96]
    ldp x25, x26, [sp, #112]
    ldp x27, x28, [sp, #128]
    ldp x29, x30, [sp, #144]
    add sp, sp, #FRAME
    .cfi_remember_state
    .cfi_def_cfa_offset 0
    .cfi_restore x29
    .cfi_restore x30
    .cfi_restore x19
    .cfi_restore x20
    .cfi_restore x21
    .cfi_restore x22
    .cfi_restore x23
    .cfi_restore x24
    .cfi_restore x25
    .cfi_restore x26
    .cfi_restore x27
    .cfi_restore x28
    mov x0, x11                     // the transfer: x0, x1
    ret                             // pairs with the bl that brought us here
    .cfi_restore_state
2:  msr fpcr, x10
    b 1b
    .cfi_endproc
    .size fiber_context_jump_asm, .-fiber_context_jump_asm

    .globl fiber_context_make_asm
    .hidden fiber_context_make_asm
    .type fiber_context_make_asm, %function
    .p2align 4
fiber_context_make_asm:             // x0: top of the stack, x1: its size (unused), x2: entry
    .cfi_startproc
    bti c
    and x0, x0, #~15
    sub x0, x0, #FRAME
    stp xzr, xzr, [x0, #0]
    stp xzr, xzr, [x0, #16]
    stp xzr, xzr, [x0, #32]
    stp xzr, xzr, [x0, #48]
    stp x2, xzr, [x0, #64]          // x19: entry
    stp xzr, xzr, [x0, #80]
    stp xzr, xzr, [x0, #96]
    stp xzr, xzr, [x0, #112]
    stp xzr, xzr, [x0, #128]
    adrp x9, .Lstart_asm
    add x9, x9, #:lo12:.Lstart_asm
    stp xzr, x9, [x0, #144]         // frame pointer zero: the end of the chain
    mrs x9, fpcr
    stp x9, xzr, [x0, #160]
    ret
    .cfi_endproc
    .size fiber_context_make_asm, .-fiber_context_make_asm

    // The first frame of every stack. x19: entry; x0, x1: the transfer.
    // Unwinders look a return address up by the byte before it. Until the first jump into a context has left the jump, its return address
    // is .Lstart_asm: the byte before must be of this function too, or they find no CFI and walk off the stack.
    .type fiber_context_start_asm, %function
    .p2align 4
fiber_context_start_asm:
    .cfi_startproc
    .cfi_undefined x30
    nop
.Lstart_asm:
    bti j                           // entered by a return, which needs no landing pad; harmless
    mov x29, xzr
    mov x30, xzr
    blr x19
    brk #1
    .cfi_endproc
    .size fiber_context_start_asm, .-fiber_context_start_asm

#if FIBER_CONTEXT_IS_BOOST
// Boost's aarch64 jump_fcontext leaves by `ret`, so a plain branch to it keeps call and return paired.
    .globl fiber_context_jump_boost
    .hidden fiber_context_jump_boost
    .type fiber_context_jump_boost, %function
    .p2align 4
fiber_context_jump_boost:           // x0: context to enter, x1: data
    .cfi_startproc
    bti c
    b jump_fcontext
    .cfi_endproc
    .size fiber_context_jump_boost, .-fiber_context_jump_boost

    .globl fiber_context_make_boost
    .hidden fiber_context_make_boost
    .type fiber_context_make_boost, %function
    .p2align 4
fiber_context_make_boost:           // x0: top of the stack, x1: its size, x2: entry
    .cfi_startproc
    bti c
    stp x29, x30, [sp, #-32]!
    .cfi_def_cfa_offset 32
    .cfi_rel_offset x29, 0
    .cfi_rel_offset x30, 8
    mov x29, sp
    str x19, [sp, #16]
    .cfi_rel_offset x19, 16
    mov x19, x2
    adrp x2, fiber_context_start_boost
    add x2, x2, #:lo12:fiber_context_start_boost
    bl make_fcontext
    mov x1, x19                     // run it up to its first stop, handing it the entry: nothing of Boost's layout is assumed
    bl jump_fcontext
    ldr x19, [sp, #16]
    ldp x29, x30, [sp], #32
    .cfi_def_cfa_offset 0
    .cfi_restore x29
    .cfi_restore x30
    .cfi_restore x19
    ret
    .cfi_endproc
    .size fiber_context_make_boost, .-fiber_context_make_boost

    // The first frame of every stack. x0: the context that makes us, x1: entry.
    .type fiber_context_start_boost, %function
    .p2align 4
fiber_context_start_boost:
    .cfi_startproc
    .cfi_undefined x30
    bti jc
    mov x29, xzr
    mov x30, xzr
    mov x19, x1
    bl jump_fcontext
    mov x30, xzr
    blr x19
    brk #1
    .cfi_endproc
    .size fiber_context_start_boost, .-fiber_context_start_boost
#endif
#endif

#include "property_note.h"
    // Outside the condition: one object without it makes the stack of the whole program executable.
    .section .note.GNU-stack, "", %progbits
