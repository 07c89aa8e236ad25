// SPDX-License-Identifier: Apache-2.0

// Tests of fiber_context.h, against the pair that FIBER_BOOST_CONTEXT and the version of Boost choose. Prints `ok NAME` or `not ok NAME: why` per test and
// `N passed, N failed` at the end. Arguments, if any, are parts of the names of the tests to run.
//
// Contexts that a test is done with are abandoned where they stand: they own nothing but their stack.
// A test that crashes is reported by the signal handler, which ends the program.
#define _GNU_SOURCE
#include "context_test.h"

#include <errno.h>
#include <signal.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <unwind.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define NOINLINE __attribute__((noinline))

static const bool is_boost = FIBER_CONTEXT_IS_BOOST;

// MARK: reporting

static const char *running_test = "";
static char failure[256];
static int passed, failed;

/// Notes the first expectation of a test that does not hold. May be called in any context.
#define EXPECT(condition, ...)                    \
  do {                                            \
    if (!(condition)) note_failure(__VA_ARGS__);  \
  } while (0)

static NOINLINE __attribute__((format(printf, 1, 2))) void note_failure(const char *format, ...) {
  if (failure[0]) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(failure, sizeof failure, format, arguments);
  va_end(arguments);
}

static void report_crash(int number) {
  // Only a broken test gets here, on the alternate stack: snprintf of integers and strings is as safe as it needs to be.
  char text[512];
  int length = snprintf(text, sizeof text, "not ok %s: killed by signal %d%s%s\n%d passed, %d failed\n", running_test, number,
                        failure[0] ? " after: " : "", failure, passed, failed + 1);
  if (write(STDOUT_FILENO, text, (size_t)length) < 0) _exit(2);
  _exit(1);
}

// MARK: random numbers and stacks

static uint64_t next_random(uint64_t *state) {  // splitmix64
  uint64_t z = (*state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// memory:  | fence | base ... stack ... top | fence |
// The upper fence holds plausible return addresses, so that an unwinder which does not stop at the entry is led on; it begins at
// the aligned top, which is where that unwinder looks.
#define FENCE 256

typedef struct stack {
  unsigned char *memory, *base, *top;
  size_t size;
} stack;

static uint64_t fence_word(void) { return (uint64_t)(uintptr_t)&next_random + 1; }

/// A stack of `size` bytes, which may be odd, whose lowest address is `skew` past a multiple of 64.
static stack stack_new(size_t size, size_t skew) {
  stack s = {.size = size};
  size_t bytes = (FENCE + skew + size + FENCE + 63) / 64 * 64;
  if (posix_memalign((void **)&s.memory, 64, bytes)) abort();
  s.base = s.memory + FENCE + skew;
  s.top = s.base + size;
  memset(s.memory, 0xa5, FENCE + skew);
  memset(s.base, 0x5a, size);
  uint64_t word = fence_word();
  for (unsigned char *at = (unsigned char *)((uintptr_t)s.top & -16ul); at + 8 <= s.top + FENCE; at += 8) memcpy(at, &word, 8);
  return s;
}

static bool contains(const stack *s, uintptr_t address) { return address >= (uintptr_t)s->base && address <= (uintptr_t)s->top; }

/// Frees the stack and expects that nobody wrote outside of it.
static void stack_end(stack *s) {
  for (unsigned char *at = s->memory; at < s->base; at++) EXPECT(*at == 0xa5, "written %td bytes below the stack", s->base - at);
  uint64_t word = fence_word();
  for (unsigned char *at = (unsigned char *)((uintptr_t)s->top & -16ul); at + 8 <= s->top + FENCE; at += 8) {
    for (int i = 0; i < 8; i++) {
      EXPECT(at + i < s->top || at[i] == (unsigned char)(word >> 8 * i), "written %td bytes above the top", at + i - s->top);
    }
  }
  free(s->memory);
}

static void *context_on(const stack *s, fiber_context_entry entry) { return fiber_context_make(s->top, s->size, entry); }

// MARK: many contexts that jump among each other; number 0 is the test itself

#define CONTEXTS 4000
static void *parked[CONTEXTS + 1];
static size_t running;

/// Jumps from the running context to number `next`.
static void go(size_t next) {
  size_t self = running;
  if (next == self) return;
  running = next;
  fiber_transfer t = fiber_context_jump(parked[next], (void *)self);
  parked[(size_t)t.data] = t.context;
  EXPECT(running == self, "context %zu was resumed in place of %zu", self, running);
}

/// The first thing in an entry that was reached by `go`: its number.
static size_t arrive(fiber_transfer t) {
  parked[(size_t)t.data] = t.context;
  return running;
}

// MARK: data

static void backend_isTheOneAskedFor(void) {
  EXPECT(!strcmp(fiber_context_backend(), is_boost ? "boost" : "assembly"), "it is %s", fiber_context_backend());
}

static NOINLINE void answer(fiber_transfer t) {
  for (;;) t = fiber_context_jump(t.context, (void *)~(uintptr_t)t.data);
}

static void data_crossesBothWays(void) {
  stack s = stack_new(16384, 0);
  uint64_t seed = 1;
  fiber_transfer t = {context_on(&s, answer), NULL};
  for (int i = 0; i < 10000; i++) {
    uintptr_t data = i == 0 ? 0 : i == 1 ? UINTPTR_MAX : next_random(&seed);
    t = fiber_context_jump(t.context, (void *)data);
    EXPECT((uintptr_t)t.data == ~data, "round %d: sent %#zx, received %#zx", i, (size_t)data, (size_t)t.data);
    EXPECT(contains(&s, (uintptr_t)t.context), "round %d: the context %p is not on its stack", i, t.context);
  }
  stack_end(&s);
}

// MARK: callee-saved registers

static const char *const register_names[REGISTERS] = REGISTER_NAMES;

/// One jump with random values in all callee-saved registers.
static void jump_checked(fiber_transfer *t, uint64_t *seed, const char *who) {
  uint64_t expected[REGISTERS], seen[REGISTERS];
  for (int i = 0; i < REGISTERS; i++) expected[i] = next_random(seed);
  test_jump_with_registers(t, expected, seen);
  for (int i = 0; i < REGISTERS; i++) {
    EXPECT(seen[i] == expected[i], "%s: %s was %#zx, is %#zx", who, register_names[i], (size_t)expected[i], (size_t)seen[i]);
  }
}

static void registers_partner(fiber_transfer t) {
  uint64_t seed = 3;
  for (;;) {
    t.data = (void *)~(uintptr_t)t.data;
    jump_checked(&t, &seed, "the context");
  }
}

static void registers_areKept_acrossThousandsOfSwitches(void) {
  stack s = stack_new(16384, 0);
  uint64_t seed = 2;
  fiber_transfer t = {context_on(&s, registers_partner), NULL};
  for (int i = 0; i < 20000; i++) {
    uintptr_t data = next_random(&seed);
    t.data = (void *)data;
    jump_checked(&t, &seed, "the maker");
    EXPECT((uintptr_t)t.data == ~data, "the data was lost");
  }
  stack_end(&s);
}

static void red_zone_check(fiber_transfer *t, uint64_t *seed, const char *who) {
  uint64_t words[RED_ZONE_WORDS], seen[RED_ZONE_WORDS];
  for (int i = 0; i < RED_ZONE_WORDS; i++) words[i] = next_random(seed);
  test_jump_over_red_zone(t, words, seen);
  for (int i = 0; i < RED_ZONE_WORDS; i++) EXPECT(seen[i] == words[i], "%s: word %d was overwritten", who, i);
}

static void red_zone_partner(fiber_transfer t) {
  uint64_t seed = 5;
  for (;;) red_zone_check(&t, &seed, "the context");
}

static void redZone_isKept_aroundAJump(void) {
  stack s = stack_new(16384, 0);
  uint64_t seed = 4;
  fiber_transfer t = {context_on(&s, red_zone_partner), NULL};
  for (int i = 0; i < 2000; i++) red_zone_check(&t, &seed, "the maker");
  stack_end(&s);
}

// MARK: floating-point control

// A control value: x86-64: mxcsr without its flags, and the x87 control word above it; aarch64: fpcr.
#if defined(__x86_64__)
static uint64_t control_get(void) {
  uint32_t sse;
  uint16_t x87;
  __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(sse), "=m"(x87));
  return (sse & ~0x3fu) | (uint64_t)x87 << 32;
}
static void control_set(uint64_t control) {
  uint32_t sse = (uint32_t)control;
  uint16_t x87 = (uint16_t)(control >> 32);
  __asm__ volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(sse), "m"(x87) : "memory");
}
static uint32_t flags_get(void) {
  uint32_t sse;
  __asm__ volatile("stmxcsr %0" : "=m"(sse));
  return sse & 0x3f;
}
static void flags_set(uint32_t flags) {
  uint32_t sse = (uint32_t)control_get() | flags;
  __asm__ volatile("ldmxcsr %0" : : "m"(sse) : "memory");
}
#define ALL_FLAGS 0x3f
#define CONTROL(sse, x87) ((uint64_t)(sse) | (uint64_t)(x87) << 32)
static const uint64_t rounding[4] = {  // to nearest, up, down, to zero
    CONTROL(0x1f80, 0x037f), CONTROL(0x5f80, 0x0b7f), CONTROL(0x3f80, 0x077f), CONTROL(0x7f80, 0x0f7f)};
// The first is what programs start with. Some differ in mxcsr only, some in the x87 word only.
static const uint64_t controls[] = {
    CONTROL(0x1f80, 0x037f), CONTROL(0x5f80, 0x0b7f), CONTROL(0x3f80, 0x077f), CONTROL(0x7f80, 0x0f7f), CONTROL(0x3f80, 0x037f),
    CONTROL(0x1f80, 0x0b7f), CONTROL(0x9f80, 0x037f), CONTROL(0x1fc0, 0x037f), CONTROL(0x1d80, 0x037f), CONTROL(0x1f80, 0x027f),
    CONTROL(0x1f80, 0x037b), CONTROL(0x0000, 0x0340)};
#else
static uint64_t control_get(void) {
  uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  return control;
}
static void control_set(uint64_t control) { __asm__ volatile("msr fpcr, %0" : : "r"(control) : "memory"); }
static uint32_t flags_get(void) {
  uint64_t flags;
  __asm__ volatile("mrs %0, fpsr" : "=r"(flags));
  return (uint32_t)flags & 0x1f;
}
static void flags_set(uint32_t flags) { __asm__ volatile("msr fpsr, %0" : : "r"((uint64_t)flags) : "memory"); }
#define ALL_FLAGS 0x1f
static const uint64_t rounding[4] = {0, 1 << 22, 2 << 22, 3 << 22};
static const uint64_t controls[] = {0, 1 << 22, 2 << 22, 3 << 22, 1 << 24, 1 << 25, 1 << 24 | 1 << 22};
#endif

static size_t hops;
static uint64_t hop_seed;

/// Goes to a random one of the contexts 1 to `contexts`, or home when all hops are done.
static void hop(size_t contexts) {
  if (hops == 0) return go(0);
  hops--;
  go(1 + next_random(&hop_seed) % contexts);
}

static void controls_resident(fiber_transfer t) {
  size_t self = arrive(t);
  uint64_t mine = controls[self - 1];
  control_set(mine);
  for (;;) {
    hop(COUNT(controls));
    EXPECT(control_get() == mine, "context %zu set %#zx and has %#zx", self, (size_t)mine, (size_t)control_get());
  }
}

static void controlWords_areEachContextsOwn(void) {
  stack stacks[COUNT(controls)];
  uint64_t mine = controls[1];
  for (size_t i = 0; i < COUNT(controls); i++) {
    stacks[i] = stack_new(16384, 0);
    parked[1 + i] = context_on(&stacks[i], controls_resident);
  }
  control_set(mine);
  hop_seed = 6;
  for (int i = 0; i < 100; i++) {
    hops = 50;
    hop(COUNT(controls));
    EXPECT(control_get() == mine, "the test set %#zx and has %#zx", (size_t)mine, (size_t)control_get());
  }
  control_set(controls[0]);
  for (size_t i = 0; i < COUNT(controls); i++) stack_end(&stacks[i]);
}

static void controls_heir(fiber_transfer t) {
  for (;;) t = fiber_context_jump(t.context, (void *)(uintptr_t)control_get());
}

static void newContext_inheritsTheControlWords_ofItsMaker(void) {
  for (size_t maker = 0; maker < COUNT(controls); maker++) {
    for (size_t starter = 0; starter < COUNT(controls); starter++) {
      stack s = stack_new(16384, 0);
      control_set(controls[maker]);
      void *context = context_on(&s, controls_heir);
      uint64_t after_make = control_get();
      control_set(controls[starter]);
      fiber_transfer t = fiber_context_jump(context, NULL);
      uint64_t after_jump = control_get();
      control_set(controls[0]);
      EXPECT(after_make == controls[maker], "make changed %#zx to %#zx", (size_t)controls[maker], (size_t)after_make);
      EXPECT((uint64_t)(uintptr_t)t.data == controls[maker], "made under %#zx, started with %#zx", (size_t)controls[maker], (size_t)t.data);
      EXPECT(after_jump == controls[starter], "the starter had %#zx, now %#zx", (size_t)controls[starter], (size_t)after_jump);
      stack_end(&s);
    }
  }
}

/// 1/10 and -1/10 in both formats tell the four rounding modes apart: bit 0 and 1 are set where the magnitude was rounded up.
static unsigned tenths(void) {
  volatile double one = 1, ten = 10;
  volatile double plus = one / ten, minus = -one / ten;
  uint64_t bits[2];
  memcpy(&bits[0], (const void *)&plus, 8);
  memcpy(&bits[1], (const void *)&minus, 8);
  unsigned result = ((bits[0] & 3) == 2) | ((bits[1] & 3) == 2) << 1;
#if defined(__x86_64__)
  volatile long double long_one = 1, long_ten = 10;
  volatile long double long_plus = long_one / long_ten, long_minus = -long_one / long_ten;
  memcpy(&bits[0], (const void *)&long_plus, 8);
  memcpy(&bits[1], (const void *)&long_minus, 8);
  result |= (bits[0] & 1) << 2 | (bits[1] & 1) << 3;
#endif
  return result;
}

static unsigned tenths_expected(int mode) {
  static const unsigned both[4] = {3, 1, 2, 0};
#if defined(__x86_64__)
  return both[mode] | both[mode] << 2;
#else
  return both[mode];
#endif
}

static void arithmetic_resident(fiber_transfer t) {
  size_t self = arrive(t);
  int mode = (int)(self - 1) % 4;
  control_set(rounding[mode]);
  for (;;) {
    EXPECT(tenths() == tenths_expected(mode), "mode %d rounded to %#x in place of %#x", mode, tenths(), tenths_expected(mode));
    hop(8);
  }
}

static void arithmetic_roundsByTheContextsOwnMode(void) {
  stack stacks[8];
  for (int i = 0; i < 8; i++) {
    stacks[i] = stack_new(16384, 0);
    parked[1 + i] = context_on(&stacks[i], arithmetic_resident);
  }
  hop_seed = 7;
  for (int i = 0; i < 100; i++) {
    hops = 50;
    hop(8);
    EXPECT(tenths() == tenths_expected(0), "the test, rounding to nearest, got %#x", tenths());
  }
  for (int i = 0; i < 8; i++) stack_end(&stacks[i]);
}

static void flags_resident(fiber_transfer t) {
#if defined(__x86_64__)
  control_set(CONTROL(0x0000, 0x037f));  // every SSE exception would trap: flags that are merely set must not
#endif
  uint64_t mine = control_get();
  for (;;) {
    EXPECT(control_get() == mine, "the control word changed to %#zx", (size_t)control_get());
    volatile double two = 2;
    EXPECT(two * two == 4, "two and two");
    t = fiber_context_jump(t.context, NULL);
  }
}

static void statusFlags_haveNoEffect_onOtherContexts(void) {
  stack s = stack_new(16384, 0);
  fiber_transfer t = {context_on(&s, flags_resident), NULL};
  uint64_t mine = control_get();
  for (uint32_t flags = 0; flags <= ALL_FLAGS; flags++) {
    flags_set(flags);
    EXPECT((flags_get() & flags) == flags, "the flags cannot be set");
    t = fiber_context_jump(t.context, NULL);
    EXPECT(control_get() == mine, "the test's control word changed to %#zx", (size_t)control_get());
    EXPECT(tenths() == tenths_expected(0), "the test's rounding changed");
  }
  stack_end(&s);
}

// MARK: the first frame

static uint64_t frames_counted;
static bool chain_outside;
static const stack *chain_stack;

void test_count_frames(void *frame) {
  frames_counted = 0;
  chain_outside = false;
  for (void **at = frame; at && frames_counted < 100; at = *at) {
    frames_counted++;
    if (!contains(chain_stack, (uintptr_t)at)) {
      chain_outside = true;
      return;
    }
  }
}

void test_entry_probed(fiber_transfer t) {
  fiber_context_jump(t.context, t.data);
  abort();
}

static void entry_findsAnAlignedStack_andNoFramePointer(void) {
#if defined(__x86_64__)
  const unsigned remainder = 8;
#else
  const unsigned remainder = 0;
#endif
  for (size_t offset = 0; offset < 130; offset++) {
    stack s = stack_new(8192 + offset, offset % 3 ? 0 : offset);
    chain_stack = &s;
    entry_probe probe = {0};
    fiber_transfer t = fiber_context_jump(context_on(&s, test_entry_probe), &probe);
    EXPECT(t.data == &probe, "the data was lost");
    EXPECT(probe.stack_pointer % 16 == remainder, "top %p: the stack pointer is %#zx", (void *)s.top, (size_t)probe.stack_pointer);
    EXPECT(contains(&s, probe.stack_pointer) && (uintptr_t)s.top - probe.stack_pointer <= 256, "top %p: the stack pointer is %#zx",
           (void *)s.top, (size_t)probe.stack_pointer);
    EXPECT(probe.frame_pointer == 0, "the frame pointer is %#zx", (size_t)probe.frame_pointer);
    // 21 of test_frame_chain, 1 of the entry
    EXPECT(!chain_outside && frames_counted == 22, "the chain has %zu frames and %s", (size_t)frames_counted,
           chain_outside ? "leaves the stack" : "stays on the stack");
    stack_end(&s);
  }
}

/// Hides from the compiler where the pointer comes from, so that it cannot take its alignment for granted.
static uintptr_t address_of(const void *pointer) {
  __asm__ volatile("" : "+r"(pointer) : : "memory");
  return (uintptr_t)pointer;
}

static NOINLINE void vectors_entry(fiber_transfer t) {
  alignas(16) char a[16] = {0};
  alignas(32) char b[32] = {0};
  alignas(64) char c[64] = {0};
  EXPECT(address_of(a) % 16 == 0, "16: %#zx", (size_t)address_of(a));
  EXPECT(address_of(b) % 32 == 0, "32: %#zx", (size_t)address_of(b));
  EXPECT(address_of(c) % 64 == 0, "64: %#zx", (size_t)address_of(c));
#if defined(__x86_64__)
  __asm__ volatile("movaps %%xmm0, %0" : "=m"(a) : : "memory");
  if (__builtin_cpu_supports("avx")) __asm__ volatile("vmovaps %%ymm0, %0\n\tvzeroupper" : "=m"(b) : : "memory");
  if (__builtin_cpu_supports("avx512f")) __asm__ volatile("vmovaps %%zmm0, %0\n\tvzeroupper" : "=m"(c) : : "memory");
#endif
  fiber_context_jump(t.context, NULL);
  abort();
}

// Without 32 and 64 byte locals the compiler does not realign the frame: here it relies on the entry's stack pointer.
static NOINLINE void vector16_entry(fiber_transfer t) {
  alignas(16) char a[16] = {0};
  EXPECT(address_of(a) % 16 == 0, "16 alone: %#zx", (size_t)address_of(a));
#if defined(__x86_64__)
  __asm__ volatile("movaps %%xmm0, %0" : "=m"(a) : : "memory");
#endif
  fiber_context_jump(t.context, NULL);
  abort();
}

static void alignedLocals_areAligned(void) {
  for (size_t offset = 0; offset < 64; offset++) {
    stack s = stack_new(16384 + offset, 0);
    fiber_context_jump(context_on(&s, vectors_entry), NULL);
    fiber_context_jump(context_on(&s, vector16_entry), NULL);
    stack_end(&s);
  }
}

#define PRINTED_FORMAT "%f %.3f %g %Lf %d %f %f %f %f %f %f"
#define PRINTED_VALUES 3.25, 2.0 / 3, 1e300, 1.5L, 42, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0
static char printed[256];

static void printing_entry(fiber_transfer t) {
  for (;;) {
    snprintf(printed, sizeof printed, PRINTED_FORMAT, PRINTED_VALUES);
    t = fiber_context_jump(t.context, NULL);
  }
}

static void floatingPointVarargs_arePrinted(void) {
  char expected[256];
  snprintf(expected, sizeof expected, PRINTED_FORMAT, PRINTED_VALUES);
  for (size_t offset = 0; offset < 32; offset++) {
    stack s = stack_new(32768 + offset, 0);
    fiber_transfer t = {context_on(&s, printing_entry), NULL};
    for (int i = 0; i < 3; i++) {
      printed[0] = 0;
      t = fiber_context_jump(t.context, NULL);
      EXPECT(!strcmp(printed, expected), "printed %s", printed);
    }
    stack_end(&s);
  }
}

// MARK: many contexts

static uint64_t visits[CONTEXTS + 1];

static NOINLINE uint64_t wander(size_t self, unsigned depth) {
  volatile uint64_t locals[8];
  uint64_t seed = self * 100 + depth;
  for (int i = 0; i < 8; i++) locals[i] = next_random(&seed);
  uint64_t hopped = 0;
  for (int round = 0; depth == 0 ? round < 1 << 30 : round < 2; round++) {
    if (depth > 0) hopped += wander(self, depth - 1);
    uint64_t before = visits[self];
    hop(CONTEXTS);
    hopped++;
    EXPECT(visits[self] == before, "context %zu ran elsewhere", self);
    visits[self]++;
    seed = self * 100 + depth;
    for (int i = 0; i < 8; i++) EXPECT(locals[i] == next_random(&seed), "context %zu lost its locals", self);
    if (depth == 0 && round >= (int)(self % 5)) break;
  }
  return hopped;
}

static void wander_entry(fiber_transfer t) {
  size_t self = arrive(t);
  for (uint64_t hopped = 0;;) {
    hopped += wander(self, self % 4);
    EXPECT(visits[self] == hopped, "context %zu hopped %zu times and counted %zu", self, (size_t)hopped, (size_t)visits[self]);
  }
}

static void thousandsOfContexts_interleaveInAnyOrder(void) {
  static stack stacks[CONTEXTS];
  uint64_t seed = 8;
  for (int i = 0; i < CONTEXTS; i++) {
    stacks[i] = stack_new(4096 + next_random(&seed) % 4096, next_random(&seed) % 64);
    parked[1 + i] = context_on(&stacks[i], wander_entry);
  }
  memset(visits, 0, sizeof visits);
  hop_seed = 9;
  for (int i = 0; i < 10; i++) {
    hops = 20000;
    hop(CONTEXTS);
  }
  uint64_t total = 0;
  for (int i = 1; i <= CONTEXTS; i++) total += visits[i];
  // every hop ends in a visit, but for a context's first and its last; a hop to oneself is one of both
  EXPECT(total > 200000 - 2 * CONTEXTS && total <= 200000 + 10, "%zu visits", (size_t)total);
  for (int i = 0; i < CONTEXTS; i++) stack_end(&stacks[i]);
}

static NOINLINE uint64_t fill_and_sum(size_t bytes, fiber_transfer *t) {
  volatile unsigned char *area = __builtin_alloca(bytes);
  for (size_t i = 0; i < bytes; i++) area[i] = (unsigned char)(i * 7);
  *t = fiber_context_jump(t->context, NULL);
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes; i++) sum += area[i] == (unsigned char)(i * 7);
  return sum;
}

static void fill_entry(fiber_transfer t) {
  size_t bytes = (size_t)t.data;
  for (;;) {
    uint64_t sum = fill_and_sum(bytes, &t);
    EXPECT(sum == bytes, "%zu of %zu bytes survived", (size_t)sum, bytes);
  }
}

static void oddSizesAndUnalignedTops_keepWithinTheStack(void) {
  for (size_t offset = 0; offset < 400; offset++) {
    stack s = stack_new(3001 + offset, offset * 5 % 67);
    fiber_transfer t = fiber_context_jump(context_on(&s, fill_entry), (void *)(size_t)2000);
    for (int i = 0; i < 3; i++) t = fiber_context_jump(t.context, NULL);
    stack_end(&s);
  }
}

// MARK: signals

static volatile sig_atomic_t signals_here, signals_there;
static stack signal_stack;

static void scribble(int number) {
  (void)number;
  volatile uint64_t noise[64];
  for (int i = 0; i < 64; i++) noise[i] = UINT64_MAX;
  if (contains(&signal_stack, (uintptr_t)noise)) {
    signals_there++;
  } else {
    signals_here++;
  }
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void signals_onTheContextsStack_corruptNothing(void) {
  signal_stack = stack_new(65536, 0);
  signals_here = signals_there = 0;
  struct sigaction action = {.sa_handler = scribble, .sa_flags = SA_RESTART}, before;
  sigaction(SIGALRM, &action, &before);
  struct itimerval timer = {{0, 100}, {0, 100}}, off = {{0, 0}, {0, 0}};
  fiber_transfer t = {context_on(&signal_stack, registers_partner), NULL};
  uint64_t seed = 10;
  setitimer(ITIMER_REAL, &timer, NULL);
  for (double end = seconds() + 0.3; seconds() < end;) {
    for (int i = 0; i < 1000; i++) {
      uintptr_t data = next_random(&seed);
      t.data = (void *)data;
      jump_checked(&t, &seed, "the maker");
      EXPECT((uintptr_t)t.data == ~data, "the data was lost");
    }
  }
  setitimer(ITIMER_REAL, &off, NULL);
  sigaction(SIGALRM, &before, NULL);
  EXPECT(signals_here > 0 && signals_there > 0, "%d signals on the test's stack, %d on the context's", (int)signals_here,
         (int)signals_there);
  stack_end(&signal_stack);
}

// MARK: unwinding

#define DEPTH 50
#define MOST_FRAMES 100

typedef struct trace {
  int frames;
  _Unwind_Reason_Code end;
  uintptr_t function[MOST_FRAMES];  // first address of each frame's function; 0 for the end that libgcc reports as a frame
  uint64_t registers[REGISTERS];    // as they were in the frame that called the jump, if there is a jump
} trace;

static uintptr_t start_function;    // fiber_context_start_*, which has no public name

static _Unwind_Reason_Code trace_frame(struct _Unwind_Context *frame, void *argument) {
  static const int dwarf[REGISTERS] = REGISTER_DWARF;
  trace *t = argument;
  if (t->frames == MOST_FRAMES) return _URC_NORMAL_STOP;
  uintptr_t function = _Unwind_GetIP(frame) ? _Unwind_GetRegionStart(frame) : 0;
  if (t->frames && t->function[t->frames - 1] == (uintptr_t)fiber_context_jump) {
    for (int i = 0; i < REGISTERS; i++) {
      if (dwarf[i] >= 0) t->registers[i] = _Unwind_GetGR(frame, dwarf[i]);
    }
  }
  t->function[t->frames++] = function;
  return _URC_NO_REASON;
}

static trace trace_here(void) {
  trace t;
  memset(&t, 0, sizeof t);
  t.end = _Unwind_Backtrace(trace_frame, &t);
  return t;
}

static NOINLINE int trace_deep(int depth, trace *result) {
  volatile int frame = depth;
  if (depth == 0) {
    *result = trace_here();
  } else {
    trace_deep(depth - 1, result);
  }
  return frame;
}

static NOINLINE void trace_entry(fiber_transfer t) {
  for (;;) {
    trace_deep(DEPTH, t.data);
    t = fiber_context_jump(t.context, NULL);
  }
}

static void backtrace_endsAfterTheEntry(void) {
  stack s = stack_new(65536, 0);
  fiber_transfer t = {context_on(&s, trace_entry), NULL};
  trace result;
  for (int i = 0; i < 2; i++) {
    t = fiber_context_jump(t.context, &result);
    EXPECT(result.end == _URC_END_OF_STACK, "it ended with %d after %d frames", (int)result.end, result.frames);
    // trace_here, which may be inlined, then DEPTH + 1 of trace_deep, the entry, the start, the end
    EXPECT(result.frames >= DEPTH + 4 && result.frames <= DEPTH + 5, "it has %d frames", result.frames);
    if (result.frames < DEPTH + 4) break;
    EXPECT(result.function[result.frames - 3] == (uintptr_t)trace_entry, "the third last frame is not the entry");
    EXPECT(result.function[result.frames - 1] == 0, "the last frame is not the end");
    start_function = result.function[result.frames - 2];
    EXPECT(start_function != 0, "the first frame of the stack is unknown");
  }
  stack_end(&s);
}

// Stops at every instruction of the jump and unwinds from there: x86-64 by the trap flag, aarch64 by planting one breakpoint after the other.
// What lies below the stack pointer (and the red zone) is overwritten first, as any signal might do. Boost's own instructions carry no unwind information and are passed over.

static struct {
  stack stack;
  uint64_t here[REGISTERS], there[REGISTERS];  // what the two callers of the jump have in their registers
  bool started;                                // the context has reached its entry
  bool different_control;                      // the two have different control words
  int jumps, stops;
#if defined(__x86_64__)
  volatile sig_atomic_t trace;
  uintptr_t previous;
#else
  int armed_jump;
  uint32_t *breakpoint, instruction;
#endif
} stepping;

static void step_arrived(uintptr_t pc, uintptr_t sp) {
  stepping.stops++;
  size_t at = pc - (uintptr_t)fiber_context_jump;
  bool there = contains(&stepping.stack, sp);
#if defined(__x86_64__)
  memset((void *)(sp - 1128), 0xee, 1000);
#else
  memset((void *)(sp - 1000), 0xee, 1000);
#endif
  const char *side = there ? stepping.started ? "context" : "new context" : "maker";
  trace t = trace_here();
  EXPECT(t.end == _URC_END_OF_STACK, "jump+%zu (%s): unwinding ended with %d after %d frames", at, side, (int)t.end, t.frames);
  int jump = 0;
  while (jump < t.frames && t.function[jump] != (uintptr_t)fiber_context_jump) jump++;
  int above = t.frames - jump - 1;
  EXPECT(above >= 2, "jump+%zu (%s): no caller of the jump was found", at, side);
  if (above < 2) return;
  uintptr_t caller = t.function[jump + 1];
  if (there && !stepping.started) {
    EXPECT(caller == start_function && above == 2, "jump+%zu (%s): %d frames above, the next is not the start", at, side, above);
    return;
  }
  EXPECT(caller == (uintptr_t)test_jump_with_registers, "jump+%zu (%s): the caller is not the one that called", at, side);
  EXPECT(!there || (t.function[t.frames - 2] == start_function && above <= 5), "jump+%zu (%s): %d frames, none of them the start", at, side,
         above);
  static const int dwarf[REGISTERS] = REGISTER_DWARF;
  for (int i = 0; i < REGISTERS; i++) {
    uint64_t expected = (there ? stepping.there : stepping.here)[i];
    EXPECT(dwarf[i] < 0 || t.registers[i] == expected, "jump+%zu (%s): the caller's %s is %#zx, unwound to %#zx", at, side,
           register_names[i], (size_t)expected, (size_t)t.registers[i]);
  }
}

#if defined(__x86_64__)
/// With -fcf-protection, does what a processor with IBT does: an indirect jump or call must land on endbr64.
static void step_check_landing(uintptr_t pc) {
#if defined(__CET__) && (__CET__ & 1)
  extern char __executable_start, etext;
  const unsigned char *from = (const unsigned char *)stepping.previous;
  uint32_t landing;
  if (!from || pc < (uintptr_t)&__executable_start || pc >= (uintptr_t)&etext) return;
  if (*from == 0xf2) from++;  // bnd
  if ((*from & 0xf0) == 0x40) from++;
  int operation = from[1] >> 3 & 7;
  if (*from != 0xff || (operation != 2 && operation != 4)) return;
  memcpy(&landing, (const void *)pc, 4);
  EXPECT(landing == 0xfa1e0ff3, "an indirect branch lands at jump%+td, which is no endbr64", (ptrdiff_t)(pc - (uintptr_t)fiber_context_jump));
#else
  (void)pc;
#endif
}

static void step_trapped(int number, siginfo_t *info, void *argument) {
  (void)number, (void)info;
  int saved_errno = errno;
  greg_t *registers = ((ucontext_t *)argument)->uc_mcontext.gregs;
  if (stepping.trace) {
    uintptr_t pc = (uintptr_t)registers[REG_RIP];
    registers[REG_EFL] |= 0x100;
    step_check_landing(pc);
    stepping.previous = pc;
    if (pc >= (uintptr_t)fiber_context_jump && pc < (uintptr_t)fiber_context_make) step_arrived(pc, (uintptr_t)registers[REG_RSP]);
  } else {
    registers[REG_EFL] &= ~(greg_t)0x100;
    stepping.previous = 0;
  }
  errno = saved_errno;
}
#else
static void step_write(uint32_t *at, uint32_t instruction) {
  *(volatile uint32_t *)at = instruction;
  __builtin___clear_cache((char *)at, (char *)(at + 1));
}

static void step_trapped(int number, siginfo_t *info, void *argument) {
  (void)number, (void)info;
  mcontext_t *registers = &((ucontext_t *)argument)->uc_mcontext;
  if ((uint32_t *)registers->pc != stepping.breakpoint) report_crash(SIGTRAP);
  step_write(stepping.breakpoint, stepping.instruction);
  step_arrived(registers->pc, registers->sp);
}
#endif

static void step_jump(fiber_transfer *t, const uint64_t registers[REGISTERS]) {
  uint64_t seen[REGISTERS];
#if defined(__aarch64__)
  if (stepping.jumps == stepping.armed_jump) step_write(stepping.breakpoint, 0xd4200000);
#endif
  stepping.jumps++;
  test_jump_with_registers(t, registers, seen);
}

static NOINLINE void step_entry(fiber_transfer t) {
  stepping.started = true;
  if (stepping.different_control) control_set(rounding[1]);
  for (;;) step_jump(&t, stepping.there);
}

/// Into a new context, back, into it again, back.
static void step_there_and_back(void) {
  stepping.stack = stack_new(65536, 0);
  stepping.started = false;
  stepping.jumps = 0;
#if defined(__x86_64__)
  stepping.trace = 1;
  __asm__ volatile("int3" : : : "memory");
#endif
  fiber_transfer t = {context_on(&stepping.stack, step_entry), NULL};
  step_jump(&t, stepping.here);
  step_jump(&t, stepping.here);
#if defined(__x86_64__)
  stepping.trace = 0;
  __asm__ volatile("nop" : : : "memory");
#endif
  stack_end(&stepping.stack);
}

static void unwinding_works_atEveryInstructionOfTheJump(void) {
  struct sigaction action = {.sa_sigaction = step_trapped, .sa_flags = SA_SIGINFO | SA_ONSTACK}, before;
  sigaction(SIGTRAP, &action, &before);
  uint64_t seed = 11;
  for (int i = 0; i < REGISTERS; i++) {
    stepping.here[i] = next_random(&seed);
    stepping.there[i] = next_random(&seed);
  }
  if (!start_function) backtrace_endsAfterTheEntry();
  stepping.stops = 0;
  for (int different = 0; different < 2; different++) {
    stepping.different_control = different;
#if defined(__x86_64__)
    step_there_and_back();
#else
    uint32_t *begin = (uint32_t *)(uintptr_t)fiber_context_jump, *end = (uint32_t *)(uintptr_t)fiber_context_make;
    uintptr_t page = (uintptr_t)begin & -(uintptr_t)sysconf(_SC_PAGESIZE);
    EXPECT(!mprotect((void *)page, (uintptr_t)end - page, PROT_READ | PROT_WRITE | PROT_EXEC), "the code cannot be made writable: errno %d",
           errno);
    for (uint32_t *at = begin; at < end && !failure[0]; at++) {
      stepping.breakpoint = at;
      stepping.instruction = *at;
      for (stepping.armed_jump = 0; stepping.armed_jump < 4; stepping.armed_jump++) {
        step_there_and_back();
        step_write(at, stepping.instruction);
      }
    }
#endif
  }
  // four jumps twice, each of which passes at least the call and the return of the pair
  EXPECT(stepping.stops >= (is_boost ? 4 : 8 * 25), "only %d stops", stepping.stops);
  sigaction(SIGTRAP, &before, NULL);
}

// MARK: main

#define TEST(name) {#name, name}
static const struct {
  const char *name;
  void (*run)(void);
} tests[] = {
    TEST(backend_isTheOneAskedFor),
    TEST(data_crossesBothWays),
    TEST(registers_areKept_acrossThousandsOfSwitches),
    TEST(redZone_isKept_aroundAJump),
    TEST(controlWords_areEachContextsOwn),
    TEST(newContext_inheritsTheControlWords_ofItsMaker),
    TEST(arithmetic_roundsByTheContextsOwnMode),
    TEST(statusFlags_haveNoEffect_onOtherContexts),
    TEST(entry_findsAnAlignedStack_andNoFramePointer),
    TEST(alignedLocals_areAligned),
    TEST(floatingPointVarargs_arePrinted),
    TEST(thousandsOfContexts_interleaveInAnyOrder),
    TEST(oddSizesAndUnalignedTops_keepWithinTheStack),
    TEST(signals_onTheContextsStack_corruptNothing),
    TEST(backtrace_endsAfterTheEntry),
    TEST(unwinding_works_atEveryInstructionOfTheJump),
};

/// Boost leaves fpcr alone on aarch64, and the header says so.
static bool is_promised(void (*test)(void)) {
#if defined(__aarch64__)
  return !is_boost || (test != controlWords_areEachContextsOwn && test != newContext_inheritsTheControlWords_ofItsMaker &&
                       test != arithmetic_roundsByTheContextsOwnMode);
#else
  (void)test;
  return true;
#endif
}

static bool is_chosen(const char *name, int count, char **parts) {
  for (int i = 0; i < count; i++) {
    if (strstr(name, parts[i])) return true;
  }
  return count == 0;
}

int main(int count, char **arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  static alignas(16) char crash_stack[65536];
  stack_t alternate = {.ss_sp = crash_stack, .ss_size = sizeof crash_stack};
  sigaltstack(&alternate, NULL);
  static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP};
  struct sigaction action = {.sa_handler = report_crash, .sa_flags = SA_ONSTACK};
  for (size_t i = 0; i < COUNT(crashes); i++) sigaction(crashes[i], &action, NULL);

  for (size_t i = 0; i < COUNT(tests); i++) {
    if (!is_chosen(tests[i].name, count - 1, arguments + 1)) continue;
    if (!is_promised(tests[i].run)) {
      printf("skipped %s: not promised by this backend\n", tests[i].name);
      continue;
    }
    running_test = tests[i].name;
    failure[0] = 0;
    tests[i].run();
    control_set(controls[0]);
    if (failure[0]) {
      printf("not ok %s: %s\n", running_test, failure);
      failed++;
    } else {
      printf("ok %s\n", running_test);
      passed++;
    }
  }
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
