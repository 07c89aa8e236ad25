// SPDX-License-Identifier: Apache-2.0

// The only switch, with the state that must travel with a fiber: Swift's exclusivity accesses and the sanitizers' notion of the current
// stack.
//
// Invariant: `current` changes on the far side of the jump, not on the near one. Everything that a switch pushes before it has left a stack
// (its own frames, the saved registers, the frames of a sanitizer) is pushed while `current` names that stack. A recursion that parks at
// each level exhausts its stack just there, and the overflow handler must find the fiber whose stack is exhausted.
#define _GNU_SOURCE
#include "cfiber_context.h"
#include "cfiber_signals.h"
#include "control_words.h"
#include "exclusivity.h"
#include "fiber_context.h"
#include "sanitizers.h"
#include <pthread.h>
#include <signal.h>
#include <string.h>

__thread cfiber_thread cfiber_this_thread __attribute__((tls_model("initial-exec")));

const char *cfiber_backend(void) { return fiber_context_backend(); }

const char *cfiber_sanitizer(void) {
#if CFIBER_ASAN
  return "address";
#elif CFIBER_TSAN
  return "thread";
#else
  return "";
#endif
}

int cfiber_knows_access_list(void) { return cfiber_this_thread.knows_access_list; }

void cfiber_distrust_access_list(void) {
  cfiber_this_thread.knows_access_list = 0;
  cfiber_this_thread.access_head = &cfiber_unknown_access_list;
}

void cfiber_thread_enter(cfiber_record *root, void *worker) {
  cfiber_thread *thread = &cfiber_this_thread;
  thread->current = root;
  thread->worker = worker;
  thread->access_head = cfiber_find_access_list();
  thread->knows_access_list = thread->access_head != &cfiber_unknown_access_list;
#if CFIBER_ASAN
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    void *low;
    pthread_attr_getstack(&attributes, &low, &root->stack_size);
    root->stack_low = low;
    pthread_attr_destroy(&attributes);
  }
#endif
#if CFIBER_TSAN
  root->tsan_fiber = __tsan_get_current_fiber();
#endif
}

void cfiber_thread_leave(cfiber_record *root) {
  (void)root;
  // The thread itself continues, and may hold locks.
  cfiber_thread plain = {.holder = cfiber_this_thread.holder, .open_locks = cfiber_this_thread.open_locks};
  cfiber_this_thread = plain;
}

static void *empty_access_list;

static inline void look_at_accesses_again(void) {
  if (!cfiber_knows_access_list()) cfiber_this_thread.access_head = &cfiber_unknown_access_list;
}

static inline int is_between_lives(const cfiber_record *context) { return (context->life & CFIBER_BETWEEN_LIVES) != 0; }

// Runs one fiber, from its start to its end, and returns the context that runs next. CFIBER_BETWEEN_LIVES is set before and afterwards.
CFIBER_NO_SANITIZE __attribute__((noinline)) static cfiber_record *live(cfiber_record *self) {
  self->life &= ~CFIBER_BETWEEN_LIVES;
  look_at_accesses_again();
  cfiber_record *next = self->run(self);
  // A fiber must not inherit the rounding mode of the previous fiber on this stack.
  if (__builtin_expect(cfiber_control_words() != self->control_words, 0)) cfiber_set_control_words(self->control_words);
  self->life = CFIBER_BETWEEN_LIVES;
  return next;
}

#if CFIBER_TSAN
// ThreadSanitizer defers a signal that arrives between two calls of libc, for the fiber that runs then and not for the thread. If that
// fiber leaves before its next call, the handler is not run until the fiber returns, which may be never. So while there is a subscriber to
// signals, none is delivered during a switch.
static __thread sigset_t signals_before;
static __thread int signals_held;

CFIBER_NO_SANITIZE static void hold_signals(void) {
  if (!cfiber_signals_are_used()) return;
  sigset_t all;
  sigfillset(&all);
  // On its way out this call runs the handlers of the signals that were deferred until now.
  pthread_sigmask(SIG_SETMASK, &all, &signals_before);
  signals_held = 1;
}

CFIBER_NO_SANITIZE static void release_signals(void) {
  if (!signals_held) return;
  signals_held = 0;
  pthread_sigmask(SIG_SETMASK, &signals_before, NULL);
}
#endif

// Reads `cfiber_this_thread` again after a jump. The compiler would otherwise keep its offset from before the jump in a register. A switch
// would have to save that register first, and the read would wait for the callee-saved registers that come from the entered stack.
static inline cfiber_thread *this_thread_again(void) {
#if defined(__x86_64__)
  cfiber_thread *thread;
  __asm__ volatile("movq cfiber_this_thread@gottpoff(%%rip), %0\n\taddq %%fs:0, %0" : "=r"(thread));
  return thread;
#else
  return &cfiber_this_thread;
#endif
}

// Completes a switch on the side of the context that was entered, and returns that context: a jump passes its destination along. `current`
// still names the context that left.
CFIBER_NO_SANITIZE static inline cfiber_record *arrived(fiber_transfer transfer) {
  cfiber_thread *thread = this_thread_again();
  cfiber_record *self = transfer.data;
  thread->current->sp = transfer.context;
  // First of all: from here on frames are pushed onto this stack.
  thread->current = self;
#if CFIBER_ASAN
  __sanitizer_finish_switch_fiber(self->fake_stack, NULL, NULL);
#endif
#if CFIBER_TSAN
  release_signals();
#endif
  return self;
}

// The first C frame on each stack.
CFIBER_NO_SANITIZE static void first_frame(fiber_transfer transfer) {
#if CFIBER_ASAN
  ((cfiber_record *)transfer.data)->fake_stack = NULL;
#endif
  cfiber_record *self = arrived(transfer);
  self->control_words = cfiber_control_words();
  cfiber_switch(live(self));
  __builtin_unreachable();
}

#if CFIBER_ASAN
// The size of the stack and of the record above it, which holds references, too: up to the end of the page.
static size_t root_size(const cfiber_record *self) {
  uintptr_t end = ((uintptr_t)(self->stack_low + self->stack_size) + 4095) & ~(uintptr_t)4095;
  return end - (uintptr_t)self->stack_low;
}
#endif

void cfiber_prepare(cfiber_record *self, cfiber_record *(*run)(cfiber_record *)) {
  self->run = run;
#if CFIBER_ASAN
  // The last owner of this memory may have left it poisoned.
  __asan_unpoison_memory_region(self->stack_low, self->stack_size);
  __lsan_register_root_region(self->stack_low, root_size(self));
#endif
#if CFIBER_TSAN
  self->tsan_fiber = __tsan_create_fiber(0);
#endif
  self->sp = fiber_context_make(self->stack_low + self->stack_size, self->stack_size, first_frame);
}

void cfiber_forget(cfiber_record *self) {
#if CFIBER_ASAN
  __asan_unpoison_memory_region(self->stack_low, self->stack_size);
  __lsan_unregister_root_region(self->stack_low, root_size(self));
#endif
#if CFIBER_TSAN
  // ThreadSanitizer reuses the state of a destroyed fiber for a new one. Until the new one has run, that state still has the earlier
  // fiber's history, parts of which are gone, and destroying it fails an internal check of ThreadSanitizer
  // (`parts->Queued(trace.local_head)`) or crashes. Entering it with synchronisation (flags 0) begins a new history.
  void *here = __tsan_get_current_fiber(), *fiber = self->tsan_fiber;
  __tsan_switch_to_fiber(fiber, 0);
  __tsan_switch_to_fiber(here, 0);
  __tsan_destroy_fiber(fiber);
#endif
  (void)self;
}

// Switches away from a fiber that has accesses in progress: they go with it. A separate function, so that the switch proper has nothing to
// do afterwards and needs no register that it would have to save.
CFIBER_NO_SANITIZE __attribute__((noinline)) static void switch_with_accesses(cfiber_record *to) {
  cfiber_record *self = cfiber_this_thread.current;
  swift_task_exitThreadLocalContext((char *)self->access_set);
  // The list is empty now. If the list cannot be seen, it must look empty for the duration of the switch.
  if (!cfiber_knows_access_list()) cfiber_this_thread.access_head = &empty_access_list;
  cfiber_switch(to);
  look_at_accesses_again();
  if (self->access_set[0] != NULL) swift_task_enterThreadLocalContext((char *)self->access_set);
}

// A finished fiber stays parked in here, in a frame that owns nothing, and the next fiber on its stack runs in here, too. So a fiber begins
// and ends without a return that belongs to another call, which the CPU would mispredict.
CFIBER_NO_SANITIZE __attribute__((noinline)) void cfiber_switch(cfiber_record *to) {
  if (__builtin_expect(*cfiber_this_thread.access_head != NULL, 0)) {
    switch_with_accesses(to);
    return;
  }
  for (;;) {
#if CFIBER_ASAN
    cfiber_record *self = cfiber_this_thread.current;
    __sanitizer_start_switch_fiber(is_between_lives(self) ? NULL : (void **)&self->fake_stack, to->stack_low, to->stack_size);
    if (is_between_lives(self)) self->fake_stack = NULL;
#endif
#if CFIBER_TSAN
    hold_signals();
    __tsan_switch_to_fiber(to->tsan_fiber, 0);
#endif
    cfiber_record *here = arrived(fiber_context_jump(to->sp, to));
    if (__builtin_expect(!is_between_lives(here), 1)) return;
    to = live(here);
  }
}

void cfiber_set_name(cfiber_record *self, const char *utf8, size_t length) {
  if (length >= CFIBER_NAME_SIZE) {
    length = CFIBER_NAME_SIZE - 1;
    while (length > 0 && ((unsigned char)utf8[length] & 0xc0) == 0x80) length--;
  }
  memcpy(self->name, utf8, length);
  self->name[length] = 0;
  self->is_named = length != 0;
}

void cfiber_clear_name(cfiber_record *self) {
  self->name[0] = 0;
  self->is_named = 0;
}
