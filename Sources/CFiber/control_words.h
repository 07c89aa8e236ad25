// SPDX-License-Identifier: Apache-2.0

// The floating-point control words of the running context: rounding mode and exception masks, without the flags.
#ifndef CFIBER_CONTROL_WORDS_H
#define CFIBER_CONTROL_WORDS_H
#include <stdint.h>

static inline uint64_t cfiber_control_words(void) {
#if defined(__x86_64__)
  uint32_t mxcsr;
  uint16_t x87;
  __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
  __asm__ volatile("fnstcw %0" : "=m"(x87));
  return (uint64_t)x87 << 32 | (mxcsr & ~0x3fu);
#else
  uint64_t fpcr;
  __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
  return fpcr;
#endif
}

static inline void cfiber_set_control_words(uint64_t words) {
#if defined(__x86_64__)
  uint32_t mxcsr = (uint32_t)words;
  uint16_t x87 = (uint16_t)(words >> 32);
  __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
  __asm__ volatile("fnclex\n\tfldcw %0" : : "m"(x87));
#else
  __asm__ volatile("msr fpcr, %0" : : "r"(words));
#endif
}
#endif
