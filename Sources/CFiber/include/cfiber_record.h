// SPDX-License-Identifier: Apache-2.0

// The fiber record: the kernel's state of one fiber, including the registers that a switch saves. It lies at the top of the fiber's own
// stack. A worker's thread has a record for its own stack, too: the root.
//
// Invariants:
//   * the fields are grouped by use, one cache line per group, since each line of a long-parked fiber is a miss: a park, a claim, a wake-up
//     and a switch touch the first line; the inbox, the end of a fiber and the wake-up of its joiners touch the second;
//   * the claim word comes first, so that a pointer to it is a pointer to the record (`Waiter` on the Swift side);
//   * fields marked "Swift" are read only by the Swift side, through the accessors in FiberRecord.swift; a reference among them holds a
//     reference count;
//   * `sp` is the saved context of a fiber that is not running, and stale while it runs.
// Thread rule: owner worker only, except for the claim word, and for `outcome` and `next`, which the thread that has claimed a park writes.
#ifndef CFIBER_RECORD_H
#define CFIBER_RECORD_H
#include <stddef.h>
#include <stdint.h>

#define CFIBER_NAME_SIZE 40

/// In `life`: the context is parked at the end of a fiber's lifetime, and the next switch to it begins another.
#define CFIBER_BETWEEN_LIVES 0x8000000000000000
/// The rest of `life` is a number. Below it is a kind, 0 for fibers, and below that a bit for the word in which a lock stores its holder.
#define CFIBER_HOLDER_SHIFT 3
#define CFIBER_HOLDER_KIND 6
#define CFIBER_HOLDER_THREAD 2

/// The sizes in bytes of `CancelScope`, and of a closure, which is two references.
#define CFIBER_SCOPE_SIZE 64
#define CFIBER_CLOSURE_SIZE 16

#if defined(__clang__)
#define CFIBER_SWIFT_NAME(name) __attribute__((swift_name(#name)))
#else
#define CFIBER_SWIFT_NAME(name)
#endif

typedef struct cfiber_record {
  // Parks and switches.
  uint64_t claim_word;       // atomic; Swift: `ClaimWord`
  uint8_t outcome;           // what ended the last park; written by the claimant
  uint8_t attention;         // what the next park must heed (Swift: `Attention`)
  uint8_t reason_kind;       // why the fiber waits, for dumps
  uint8_t unused;
  int32_t reason_subject;
  // The data that the fiber touches first when it resumes, and, if marked, the fiber that will resume some time later: prefetched, and
  // dereferenced only if marked as such.
  const void *touches[2];
  void *sp;                  // saved context
  void *access_set[2];       // accesses parked with the fiber; layout owned by libswiftCore
  uint64_t life;             // identifies the present lifetime to locks (Swift: `Holder`), 0 for none; and CFIBER_BETWEEN_LIVES

  // The end of a lifetime, and the way back to the fiber's own worker.
  struct cfiber_record *next;  // link of the one list that holds the record: inbox or pool
  void *worker;              // Swift
  void *joiners;             // Swift: the `WaitList` of fibers that wait for the end of this lifetime
  void *core;                // Swift: a reference to the heap part of the fiber, or NULL
  void *locals;              // Swift: a reference to the fiber-locals set around the spawn or since, or NULL
  // The sum of the addresses of the locks acquired by `lock()` and not unlocked.
  uintptr_t open_locks CFIBER_SWIFT_NAME(openLocks);
  uint64_t control_words;    // floating-point rounding and masks with which each fiber begins
  int32_t timer_index CFIBER_SWIFT_NAME(timerIndex);  // position in the worker's timer queue, -1 outside
  uint8_t is_named;          // `name` is not empty
  uint8_t is_child;          // the fiber belongs to a group

  // The scope around the whole fiber. Other code reads these fields, only on the slow path of a cancellation or a deadline.
  uint64_t base[CFIBER_SCOPE_SIZE / 8];  // Swift: `CancelScope`

  // The beginning of a lifetime, deadlines, groups.

  // When the present park ends, at a deadline; INT64_MAX for never. The timer queue may hold an earlier time.
  int64_t wake_at CFIBER_SWIFT_NAME(wakeAt);
  void *scope;               // Swift: the innermost `CancelScope`
  // The children of a group, in the order in which they were spawned.
  struct cfiber_record *next_sibling CFIBER_SWIFT_NAME(nextSibling);
  struct cfiber_record *previous_sibling CFIBER_SWIFT_NAME(previousSibling);
  uintptr_t body[CFIBER_CLOSURE_SIZE / 8];    // Swift: the fiber's closure, of a type that only `runner` knows, until it runs
  uintptr_t runner[CFIBER_CLOSURE_SIZE / 8];  // Swift: a closure that runs it

  // The stack.
  /// Runs one fiber to its end and returns the record of the fiber to continue with.
  struct cfiber_record *(*run)(struct cfiber_record *self);
  char *stack_low;           // lowest usable byte; the guard lies below
  size_t stack_size;         // usable bytes from stack_low to the top
  size_t guard_size;
  void *fake_stack;          // AddressSanitizer's handle while parked
  void *tsan_fiber;          // ThreadSanitizer's handle
  // UTF-8, NUL-terminated, empty when unnamed; stored here so that a signal handler can print it.
  char name[CFIBER_NAME_SIZE];
} cfiber_record;

_Static_assert(offsetof(cfiber_record, claim_word) == 0, "a pointer to the claim word is one to the record");
_Static_assert(offsetof(cfiber_record, sp) == 32 && offsetof(cfiber_record, next) == 64, "parks and switches touch one line");
_Static_assert(offsetof(cfiber_record, base) == 128, "the end of a life touches one line more");
_Static_assert(offsetof(cfiber_record, wake_at) == 192 && offsetof(cfiber_record, run) == 256, "each part has a line");
_Static_assert(sizeof(cfiber_record) == 344, "the record costs each parked fiber as much of its one page");

/// Resets a record: all fields are zero, except those whose empty value is not zero.
static inline void cfiber_record_begin(cfiber_record *self) {
  *self = (cfiber_record){.timer_index = -1, .wake_at = INT64_MAX};
}

// Swift accesses fields that have another type there through these functions: a pointer to one field is no access to the others, which
// another thread may be writing.
__attribute__((returns_nonnull)) static inline void *cfiber_joiners(cfiber_record *self) { return &self->joiners; }
__attribute__((returns_nonnull)) static inline void *cfiber_core(cfiber_record *self) { return &self->core; }
__attribute__((returns_nonnull)) static inline void *cfiber_locals(cfiber_record *self) { return &self->locals; }
__attribute__((returns_nonnull)) static inline void *cfiber_base(cfiber_record *self) { return self->base; }
__attribute__((returns_nonnull)) static inline void *cfiber_body(cfiber_record *self) { return self->body; }
__attribute__((returns_nonnull)) static inline void *cfiber_runner(cfiber_record *self) { return self->runner; }
__attribute__((returns_nonnull)) static inline const char *cfiber_name(const cfiber_record *self) { return self->name; }

/// The number of the fiber that runs in this record; 0 between lifetimes, and for a thread's own stack.
static inline uint64_t cfiber_id(const cfiber_record *self) {
  return self->life & CFIBER_HOLDER_KIND ? 0 : (self->life & ~CFIBER_BETWEEN_LIVES) >> CFIBER_HOLDER_SHIFT;
}
#endif
