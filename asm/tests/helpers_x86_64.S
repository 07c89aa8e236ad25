// SPDX-License-Identifier: Apache-2.0

// x86-64: what context_test.c cannot say in C. See context_test.h for what each function does.
#include "fiber_context_backend.h"

#if defined(__x86_64__)

#if FIBER_CONTEXT_IS_BOOST
#define JUMP fiber_context_jump_boost
#else
#define JUMP fiber_context_jump_asm
#endif

    .macro save reg
    pushq %\reg
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset \reg, 0
    .endm

    .macro restore reg
    popq %\reg
    .cfi_adjust_cfa_offset -8
    .cfi_same_value \reg
    .endm

    .text

    .globl test_jump_with_registers
    .type test_jump_with_registers, @function
test_jump_with_registers:           // rdi: transfer, rsi: expected, rdx: seen
    .cfi_startproc
    endbr64
    save rbx
    save rbp
    save r12
    save r13
    save r14
    save r15
    subq $24, %rsp
    .cfi_adjust_cfa_offset 24
    movq %rdi, (%rsp)
    movq %rdx, 8(%rsp)
    movq 0(%rsi), %rbx
    movq 8(%rsi), %rbp
    movq 16(%rsi), %r12
    movq 24(%rsi), %r13
    movq 32(%rsi), %r14
    movq 40(%rsi), %r15
    movq 8(%rdi), %rsi
    movq (%rdi), %rdi
    call JUMP
    movq 8(%rsp), %rcx
    movq %rbx, 0(%rcx)
    movq %rbp, 8(%rcx)
    movq %r12, 16(%rcx)
    movq %r13, 24(%rcx)
    movq %r14, 32(%rcx)
    movq %r15, 40(%rcx)
    movq (%rsp), %rcx
    movq %rax, (%rcx)
    movq %rdx, 8(%rcx)
    addq $24, %rsp
    .cfi_adjust_cfa_offset -24
    restore r15
    restore r14
    restore r13
    restore r12
    restore rbp
    restore rbx
    ret
    .cfi_endproc
    .size test_jump_with_registers, .-test_jump_with_registers

    .globl test_jump_over_red_zone
    .type test_jump_over_red_zone, @function
test_jump_over_red_zone:            // rdi: transfer, rsi: words, rdx: seen
    .cfi_startproc
    endbr64
    movq $-16, %rcx                 // the words go to where a leaf function keeps its locals: below rsp
1:  movq 128(%rsi,%rcx,8), %rax
    movq %rax, (%rsp,%rcx,8)
    incq %rcx
    jne 1b
    leaq -128(%rsp), %rsp
    .cfi_adjust_cfa_offset 128
    pushq %rdi
    .cfi_adjust_cfa_offset 8
    pushq %rdx
    .cfi_adjust_cfa_offset 8
    subq $8, %rsp
    .cfi_adjust_cfa_offset 8
    movq 8(%rdi), %rsi
    movq (%rdi), %rdi
    call JUMP
    movq %rdx, %r8
    addq $8, %rsp
    .cfi_adjust_cfa_offset -8
    popq %rdx
    .cfi_adjust_cfa_offset -8
    popq %rdi
    .cfi_adjust_cfa_offset -8
    leaq 128(%rsp), %rsp
    .cfi_adjust_cfa_offset -128
    movq %rax, (%rdi)
    movq %r8, 8(%rdi)
    movq $-16, %rcx
1:  movq (%rsp,%rcx,8), %rax
    movq %rax, 128(%rdx,%rcx,8)
    incq %rcx
    jne 1b
    ret
    .cfi_endproc
    .size test_jump_over_red_zone, .-test_jump_over_red_zone

    .globl test_entry_probe
    .type test_entry_probe, @function
test_entry_probe:                   // rdi, rsi: the transfer; its data is a struct entry_probe
    .cfi_startproc
    endbr64
    movq %rsp, (%rsi)
    movq %rbp, 8(%rsi)
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbp, 0
    movq %rsp, %rbp
    .cfi_def_cfa_register rbp
    pushq %rdi
    pushq %rsi
    movl $20, %edi
    call test_frame_chain
    popq %rsi
    popq %rdi
    call test_entry_probed
    ud2
    .cfi_endproc
    .size test_entry_probe, .-test_entry_probe

    .globl test_frame_chain
    .type test_frame_chain, @function
test_frame_chain:                   // edi: further frames
    .cfi_startproc
    endbr64
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbp, 0
    movq %rsp, %rbp
    .cfi_def_cfa_register rbp
    testl %edi, %edi
    je 1f
    decl %edi
    call test_frame_chain
    jmp 2f
1:  movq %rbp, %rdi
    call test_count_frames
2:  popq %rbp
    .cfi_def_cfa rsp, 8
    .cfi_same_value rbp
    ret
    .cfi_endproc
    .size test_frame_chain, .-test_frame_chain

#endif
    .section .note.GNU-stack, "", %progbits
