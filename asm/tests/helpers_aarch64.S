// SPDX-License-Identifier: Apache-2.0

// aarch64: what context_test.c cannot say in C. See context_test.h for what each function does.
#include "fiber_context_backend.h"

#if defined(__aarch64__)

#if FIBER_CONTEXT_IS_BOOST
#define JUMP fiber_context_jump_boost
#else
#define JUMP fiber_context_jump_asm
#endif

    .text

    .globl test_jump_with_registers
    .type test_jump_with_registers, %function
test_jump_with_registers:           // x0: transfer, x1: expected, x2: seen
    .cfi_startproc
    stp x29, x30, [sp, #-192]!
    .cfi_def_cfa_offset 192
    .cfi_rel_offset x29, 0
    .cfi_rel_offset x30, 8
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    stp x0, x2, [sp, #160]
    .cfi_rel_offset x19, 16
    .cfi_rel_offset x20, 24
    .cfi_rel_offset x21, 32
    .cfi_rel_offset x22, 40
    .cfi_rel_offset x23, 48
    .cfi_rel_offset x24, 56
    .cfi_rel_offset x25, 64
    .cfi_rel_offset x26, 72
    .cfi_rel_offset x27, 80
    .cfi_rel_offset x28, 88
    ldp x19, x20, [x1, #0]
    ldp x21, x22, [x1, #16]
    ldp x23, x24, [x1, #32]
    ldp x25, x26, [x1, #48]
    ldp x27, x28, [x1, #64]
    ldr x29, [x1, #80]
    ldp d8, d9, [x1, #88]
    ldp d10, d11, [x1, #104]
    ldp d12, d13, [x1, #120]
    ldp d14, d15, [x1, #136]
    ldp x0, x1, [x0]
    bl JUMP
    ldp x9, x10, [sp, #160]
    stp x0, x1, [x9]
    stp x19, x20, [x10, #0]
    stp x21, x22, [x10, #16]
    stp x23, x24, [x10, #32]
    stp x25, x26, [x10, #48]
    stp x27, x28, [x10, #64]
    str x29, [x10, #80]
    stp d8, d9, [x10, #88]
    stp d10, d11, [x10, #104]
    stp d12, d13, [x10, #120]
    stp d14, d15, [x10, #136]
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x29, x30, [sp], #192
    ret
    .cfi_endproc
    .size test_jump_with_registers, .-test_jump_with_registers

    .globl test_jump_over_red_zone
    .type test_jump_over_red_zone, %function
test_jump_over_red_zone:            // x0: transfer, x1: words, x2: seen; there is no red zone, so the words lie right at sp
    .cfi_startproc
    stp x29, x30, [sp, #-16]!
    .cfi_def_cfa_offset 16
    .cfi_rel_offset x29, 0
    .cfi_rel_offset x30, 8
    stp x0, x2, [sp, #-16]!
    .cfi_def_cfa_offset 32
    sub sp, sp, #128
    .cfi_def_cfa_offset 160
    mov x9, #0
1:  ldr x10, [x1, x9]
    str x10, [sp, x9]
    add x9, x9, #8
    cmp x9, #128
    b.ne 1b
    ldp x0, x1, [x0]
    bl JUMP
    ldp x11, x2, [sp, #128]
    stp x0, x1, [x11]
    mov x9, #0
1:  ldr x10, [sp, x9]
    str x10, [x2, x9]
    add x9, x9, #8
    cmp x9, #128
    b.ne 1b
    add sp, sp, #144
    .cfi_def_cfa_offset 16
    ldp x29, x30, [sp], #16
    ret
    .cfi_endproc
    .size test_jump_over_red_zone, .-test_jump_over_red_zone

    .globl test_entry_probe
    .type test_entry_probe, %function
test_entry_probe:                   // x0, x1: the transfer; its data is a struct entry_probe
    .cfi_startproc
    mov x9, sp
    stp x9, x29, [x1]
    stp x29, x30, [sp, #-16]!
    .cfi_def_cfa_offset 16
    .cfi_rel_offset x29, 0
    .cfi_rel_offset x30, 8
    mov x29, sp
    stp x0, x1, [sp, #-16]!
    .cfi_def_cfa_offset 32
    mov w0, #20
    bl test_frame_chain
    ldp x0, x1, [sp], #16
    .cfi_def_cfa_offset 16
    bl test_entry_probed
    brk #1
    .cfi_endproc
    .size test_entry_probe, .-test_entry_probe

    .globl test_frame_chain
    .type test_frame_chain, %function
test_frame_chain:                   // w0: further frames
    .cfi_startproc
    stp x29, x30, [sp, #-16]!
    .cfi_def_cfa_offset 16
    .cfi_rel_offset x29, 0
    .cfi_rel_offset x30, 8
    mov x29, sp
    cbz w0, 1f
    sub w0, w0, #1
    bl test_frame_chain
    b 2f
1:  mov x0, x29
    bl test_count_frames
2:  ldp x29, x30, [sp], #16
    ret
    .cfi_endproc
    .size test_frame_chain, .-test_frame_chain

#endif
    .section .note.GNU-stack, "", %progbits
