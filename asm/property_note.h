// SPDX-License-Identifier: Apache-2.0

// What an object says about control-flow protection: IBT and BTI yes; shadow stacks (SHSTK) and signed return addresses (PAC) no. Each object must say
// it, also the one that is empty on this machine: the linker keeps only what all of them claim.
    .section .note.gnu.property, "a"
    .p2align 3
    .long 4, 16, 5
    .asciz "GNU"
#if defined(__x86_64__)
    .long 0xc0000002, 4, 1, 0
#else
    .long 0xc0000000, 4, 1, 0
#endif
