// SPDX-License-Identifier: Apache-2.0

// x86-64 System V: the context switch of fiber_context.h.
//
// A saved context, from the address that names it upwards:
//
//      0  mxcsr (4)   4  x87 control word (2)   6  unused
//      8  r12    16  r13    24  r14    32  r15    40  rbx    48  rbp
//     56  the address to go on at
//     64  the stack of whoever called the jump
//
// Saved: the registers above. Not saved: rax rcx rdx rsi rdi r8-r11, all vector, mask and x87 data registers, the status flags of mxcsr:
// caller-saved by the ABI.
//
// The jump ends in `ret`. The CPU predicts returns with a stack of its own to which the `call` that brought us here has added an
// entry; leaving by `ret` takes that entry off again. As long as all jumps come from one call site the entry is even right, and
// the returns above it stay paired with their calls. A switch that leaves by `jmp` shifts them all by one.
#include "fiber_context_backend.h"

#if defined(__x86_64__)

#define MXCSR 0
#define X87CW 4
#define R12 8
#define RBX 40
#define RESUME 56
#define FRAME 64
// The bits of mxcsr that a callee must preserve; the low six record exceptions and are nobody's.
#define MXCSR_CONTROL 0xffffffc0

    .text

    .globl fiber_context_jump_asm
    .hidden fiber_context_jump_asm
    .type fiber_context_jump_asm, @function
    .p2align 5
fiber_context_jump_asm:             // rdi: context to enter, rsi: data
    .cfi_startproc
    endbr64
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbp, 0
    pushq %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbx, 0
    pushq %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r15, 0
    pushq %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r14, 0
    pushq %r13
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r13, 0
    pushq %r12
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r12, 0
    subq $8, %rsp
    .cfi_adjust_cfa_offset 8
    stmxcsr MXCSR(%rsp)
    fnstcw X87CW(%rsp)
    // Loading the control words costs more than the rest of the switch, and they differ only where somebody changed them.
    movl MXCSR(%rsp), %ecx
    movzwl X87CW(%rsp), %edx
    xorl MXCSR(%rdi), %ecx
    xorw X87CW(%rdi), %dx
    andl $MXCSR_CONTROL, %ecx
    movq %rsp, %rax                 // the context that leaves; from here on the CFI holds for the one that comes
    movq %rdi, %rsp
    orl %edx, %ecx
    jne 2f
1:  addq $8, %rsp
    .cfi_adjust_cfa_offset -8
    popq %r12
    .cfi_adjust_cfa_offset -8
    .cfi_same_value r12
    popq %r13
    .cfi_adjust_cfa_offset -8
    .cfi_same_value r13
    popq %r14
    .cfi_adjust_cfa_offset -8
    .cfi_same_value r14
    popq %r15
    .cfi_adjust_cfa_offset -8
    .cfi_same_value r15
    popq %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_same_value rbx
    popq %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_same_value rbp
    movq %rsi, %rdx
    ret
    .cfi_adjust_cfa_offset 56
    .cfi_rel_offset r12, 8
    .cfi_rel_offset r13, 16
    .cfi_rel_offset r14, 24
    .cfi_rel_offset r15, 32
    .cfi_rel_offset rbx, 40
    .cfi_rel_offset rbp, 48
2:  ldmxcsr MXCSR(%rsp)
    fnclex                          // else an exception that the other one had masked would be raised here
    fldcw X87CW(%rsp)
    jmp 1b
    .cfi_endproc
    .size fiber_context_jump_asm, .-fiber_context_jump_asm

    .globl fiber_context_make_asm
    .hidden fiber_context_make_asm
    .type fiber_context_make_asm, @function
    .p2align 4
fiber_context_make_asm:             // rdi: top of the stack, rsi: its size (unused), rdx: entry
    .cfi_startproc
    endbr64
    andq $-16, %rdi
    leaq -FRAME(%rdi), %rax         // resumed with rsp == the aligned top
    stmxcsr MXCSR(%rax)
    fnstcw X87CW(%rax)
    movw $0, 6(%rax)
    xorl %ecx, %ecx
    movq %rcx, R12(%rax)
    movq %rcx, R12+8(%rax)
    movq %rcx, R12+16(%rax)
    movq %rcx, R12+24(%rax)
    movq %rdx, RBX(%rax)
    movq %rcx, RBX+8(%rax)          // frame pointer zero: the end of the chain
    leaq .Lstart_asm(%rip), %rcx
    movq %rcx, RESUME(%rax)
    ret
    .cfi_endproc
    .size fiber_context_make_asm, .-fiber_context_make_asm

    // The first frame of every stack. rbx: entry; rax, rdx: the transfer.
    // Unwinders look a return address up by the byte before it. Until the first jump into a context has left the jump, its return address
    // is .Lstart_asm: the byte before must be of this function too, or they find no CFI and walk off the stack.
    .type fiber_context_start_asm, @function
    .p2align 4
fiber_context_start_asm:
    .cfi_startproc
    .cfi_undefined rip
    nop
.Lstart_asm:
    endbr64
    movq %rax, %rdi
    movq %rdx, %rsi
    call *%rbx                      // rsp was a multiple of 16, so entry sees 8 mod 16
    ud2
    .cfi_endproc
    .size fiber_context_start_asm, .-fiber_context_start_asm

#if FIBER_CONTEXT_IS_BOOST
// Boost's jump_fcontext leaves by `jmp`. Entered by a call it would push a prediction that nothing takes off; so it is entered by a `jmp`
// too, with the resume address pushed by hand, and the `ret` below is the partner of the call that brought us here.
    .globl fiber_context_jump_boost
    .hidden fiber_context_jump_boost
    .type fiber_context_jump_boost, @function
    .p2align 5
fiber_context_jump_boost:           // rdi: context to enter, rsi: data
    .cfi_startproc
    endbr64
    leaq 1f(%rip), %rax
    pushq %rax
    .cfi_adjust_cfa_offset 8
    jmp *jump_fcontext@GOTPCREL(%rip)
    .cfi_adjust_cfa_offset -8
1:  endbr64                         // Boost has popped the resume address; rax, rdx: the transfer
    ret
    .cfi_endproc
    .size fiber_context_jump_boost, .-fiber_context_jump_boost

    .globl fiber_context_make_boost
    .hidden fiber_context_make_boost
    .type fiber_context_make_boost, @function
    .p2align 4
fiber_context_make_boost:           // rdi: top of the stack, rsi: its size, rdx: entry
    .cfi_startproc
    endbr64
    pushq %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbx, 0
    movq %rdx, %rbx
    leaq fiber_context_start_boost(%rip), %rdx
    call *make_fcontext@GOTPCREL(%rip)
    movq %rax, %rdi                 // run it up to its first stop, handing it the entry: nothing of Boost's layout is assumed
    movq %rbx, %rsi
    call *jump_fcontext@GOTPCREL(%rip)
    endbr64                         // Boost comes back by an indirect `jmp`
    popq %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_same_value rbx
    ret
    .cfi_endproc
    .size fiber_context_make_boost, .-fiber_context_make_boost

    // The first frame of every stack. rdi: the context that makes us, rsi: entry.
    .type fiber_context_start_boost, @function
    .p2align 4
fiber_context_start_boost:
    .cfi_startproc
    .cfi_undefined rip
    endbr64
    xorl %ebp, %ebp
    movq %rsi, %rbx
    andq $-16, %rsp
    call *jump_fcontext@GOTPCREL(%rip)
    endbr64                         // as above
    movq %rax, %rdi
    movq %rdx, %rsi
    call *%rbx
    ud2
    .cfi_endproc
    .size fiber_context_start_boost, .-fiber_context_start_boost
#endif
#endif

#include "property_note.h"
    // Outside the condition: one object without it makes the stack of the whole program executable.
    .section .note.GNU-stack, "", %progbits
