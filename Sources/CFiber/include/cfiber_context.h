// SPDX-License-Identifier: Apache-2.0

// The thread's view of fibers, and the only switch.
//
// Invariants:
//   * a fiber that leaves takes its exclusivity accesses along: between two switches the thread's access list holds only accesses of the
//     running fiber;
//   * `cfiber_this_thread.current` is the record on whose stack the thread runs, NULL on a thread without a worker. A switch changes it
//     once it runs on the new stack, so that an overflow in the middle of a switch is attributed to the fiber whose stack is exhausted.
// Thread rule: owner worker only, except where a function says otherwise.
#ifndef CFIBER_CONTEXT_H
#define CFIBER_CONTEXT_H
#include "cfiber_record.h"
#include <stddef.h>
#include <stdint.h>

typedef struct cfiber_thread {
  cfiber_record *current;
  void *worker;              // Swift: the worker
  void **access_head;        // head of this thread's exclusivity list, or a dummy that always reads non-zero
  int knows_access_list;
  uint64_t holder;           // identifies the thread to locks; 0 until first requested. Stays when the worker leaves
  intptr_t open_locks;       // how many locks the thread has acquired by `lock()` outside a worker and not unlocked
} cfiber_thread;

extern __thread cfiber_thread cfiber_this_thread __attribute__((tls_model("initial-exec")));

static inline cfiber_record *cfiber_current(void) { return cfiber_this_thread.current; }
static inline void *cfiber_worker(void) { return cfiber_this_thread.worker; }
static inline uint64_t cfiber_thread_holder(void) { return cfiber_this_thread.holder; }
static inline void cfiber_count_open_lock(intptr_t change) { cfiber_this_thread.open_locks += change; }


/// Prefetches a record that will be needed soon; any address is valid.
static inline void cfiber_prefetch(const void *address) { __builtin_prefetch(address); }

/// Prepares the calling thread for switches; `root` represents the thread's own stack. `cfiber_worker` returns `worker`.
void cfiber_thread_enter(cfiber_record *root, void *worker);
/// Undoes `cfiber_thread_enter`; no fiber of the thread may run afterwards.
void cfiber_thread_leave(cfiber_record *root);

/// Creates a new context at the top of the stack that `stack_low` and `stack_size` describe. The first switch to it calls `run`.
void cfiber_prepare(cfiber_record *self, cfiber_record *(*run)(cfiber_record *));
/// Drops a context that will never be entered again, before its stack is released.
void cfiber_forget(cfiber_record *self);

/// Leaves the running context and enters `to`; returns when another context switches back. It is the only place in the program that changes
/// stacks: the CPU predicts the return after a switch by its call site.
void cfiber_switch(cfiber_record *to);

/// Sets `name` from UTF-8, cut at a character boundary.
void cfiber_set_name(cfiber_record *self, const char *utf8, size_t length);
/// Clears the name at the end of the fiber's lifetime.
void cfiber_clear_name(cfiber_record *self);

/// Non-zero when the exclusivity list of the calling thread was found, so that a switch need not call libswiftCore.
int cfiber_knows_access_list(void);
/// Makes each later switch of the calling thread call libswiftCore, as if the list had not been found; for tests.
void cfiber_distrust_access_list(void);

/// "boost" or "assembly".
const char *cfiber_backend(void);
/// "address", "thread" or "" .
const char *cfiber_sanitizer(void);
#endif
