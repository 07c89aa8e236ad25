// SPDX-License-Identifier: Apache-2.0

// What helpers_x86_64.S and helpers_aarch64.S give to context_test.c.
#ifndef CONTEXT_TEST_H
#define CONTEXT_TEST_H
#include <stdint.h>

#include "fiber_context.h"

// The callee-saved registers, in the order in which the helpers load and store them, and their DWARF numbers.
// -1: the unwinder of libgcc cannot be asked for it.
#if defined(__x86_64__)
#define REGISTERS 6
#define REGISTER_NAMES {"rbx", "rbp", "r12", "r13", "r14", "r15"}
#define REGISTER_DWARF {3, 6, 12, 13, 14, 15}
#else
#define REGISTERS 19
#define REGISTER_NAMES \
  {"x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x29", "d8", "d9", "d10", "d11", "d12", "d13", "d14", "d15"}
#define REGISTER_DWARF {19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, -1, -1, -1, -1, -1, -1, -1, -1}
#endif

#define RED_ZONE_WORDS 16

typedef struct entry_probe {
  uint64_t stack_pointer;  // both at the first instruction of the entry
  uint64_t frame_pointer;
} entry_probe;

/// Jumps to `transfer->context` with `transfer->data` while every callee-saved register holds its word of `expected`; afterwards stores
/// the registers to `seen` and what came back to `transfer`.
void test_jump_with_registers(fiber_transfer *transfer, const uint64_t expected[REGISTERS], uint64_t seen[REGISTERS]);

/// The same with `words` in the red zone, stepped over as inline assembly has to (aarch64: in the lowest words of the frame).
void test_jump_over_red_zone(fiber_transfer *transfer, const uint64_t words[RED_ZONE_WORDS], uint64_t seen[RED_ZONE_WORDS]);

/// An entry whose first instructions fill the entry_probe that it is handed. Then builds `test_frame_chain` of 20 on its own frame record,
/// and goes on in `test_entry_probed`.
void test_entry_probe(fiber_transfer transfer);
void test_entry_probed(fiber_transfer transfer);

/// Calls itself `depth` times with a frame record each, then calls `test_count_frames(innermost frame pointer)`.
void test_frame_chain(unsigned depth);
void test_count_frames(void *frame);

#endif
