// The part of a fiber that C touches, and the one switch.
//
// Invariants:
//   * `sp` is the saved context of a fiber that is not running, and stale while it runs;
//   * a fiber that leaves takes its exclusivity accesses along: between two switches the thread's access list holds only accesses of the
//     fiber that runs;
//   * `cfiber_this_thread.current` is the context on whose stack the thread runs, NULL on a thread without a worker. A switch changes it once it stands on the
//     new stack, so that an overflow in the middle of a switch is blamed on the fiber that ran out.
// Thread rule: owner worker only, except where a function says otherwise.
#ifndef CFIBER_CONTEXT_H
#define CFIBER_CONTEXT_H
#include <stddef.h>
#include <stdint.h>

#define CFIBER_NAME_SIZE 40

/// In `life`: the context is parked at the end of a life, and the next switch to it begins another.
#define CFIBER_BETWEEN_LIVES 0x8000000000000000
/// The rest of `life` is a number, below it a kind, 0 for fibers, and below that a bit for the word in which a lock keeps its holder.
#define CFIBER_HOLDER_SHIFT 3
#define CFIBER_HOLDER_KIND 6
#define CFIBER_HOLDER_THREAD 2

/// The C part of a fiber record, which lies at the top of the fiber's own stack. The first four words are what a switch touches.
typedef struct cfiber_context {
  void *sp;                  // saved context
  void *access_set[2];       // accesses parked with the fiber; layout owned by libswiftCore
  uint64_t life;             // what lives here, as locks know it (`Holder` on the Swift side), 0 for nothing; and CFIBER_BETWEEN_LIVES
  struct cfiber_context *next;  // in the one list that it stands in: inbox or pool
  /// Runs one life of a fiber to its end and returns the context to go on with.
  struct cfiber_context *(*run)(struct cfiber_context *self);
  char *stack_low;           // lowest usable byte; the guard lies below
  size_t stack_size;         // usable bytes from stack_low to the top
  size_t guard_size;
  uint64_t control_words;    // floating-point rounding and masks that each life begins with
  void *fake_stack;          // AddressSanitizer's handle while parked
  void *tsan_fiber;          // ThreadSanitizer's handle
  char name[CFIBER_NAME_SIZE];  // UTF-8, NUL-terminated, empty when unnamed; here so that a signal handler can print it
} cfiber_context;

typedef struct cfiber_thread {
  cfiber_context *current;
  void *worker;              // of the Swift side
  void **access_head;        // head of this thread's exclusivity list, or a dummy that always reads non-zero
  int knows_access_list;
  uint64_t holder;           // the thread itself, as locks know it; 0 until it is asked for. Stays when the worker goes
  intptr_t open_locks;       // how many locks it has taken by `lock()` outside a worker and not unlocked
} cfiber_thread;

/// The number of the fiber that lives here; 0 between lives, and for a thread's own stack.
static inline uint64_t cfiber_id(const cfiber_context *self) {
  return self->life & CFIBER_HOLDER_KIND ? 0 : (self->life & ~CFIBER_BETWEEN_LIVES) >> CFIBER_HOLDER_SHIFT;
}

extern __thread cfiber_thread cfiber_this_thread __attribute__((tls_model("initial-exec")));

static inline cfiber_context *cfiber_current(void) { return cfiber_this_thread.current; }
static inline void *cfiber_worker(void) { return cfiber_this_thread.worker; }
static inline uint64_t cfiber_thread_holder(void) { return cfiber_this_thread.holder; }
static inline void cfiber_count_open_lock(intptr_t change) { cfiber_this_thread.open_locks += change; }


/// Fetches a record that will be needed soon; any address will do.
static inline void cfiber_prefetch(const void *address) { __builtin_prefetch(address); }

/// Makes the calling thread ready to switch; `root` stands for the thread's own stack. `worker` is handed back by `cfiber_worker`.
void cfiber_thread_enter(cfiber_context *root, void *worker);
/// Undoes `cfiber_thread_enter`; no fiber of the thread may run afterwards.
void cfiber_thread_leave(cfiber_context *root);

/// Lays a new context at the top of the stack that `stack_low` and `stack_size` give. The first switch to it calls `run`.
void cfiber_prepare(cfiber_context *self, cfiber_context *(*run)(cfiber_context *));
/// Forgets a context that will never be entered again, before its stack is given back.
void cfiber_forget(cfiber_context *self);

/// Leaves the running context and enters `to`; returns when somebody switches back. The only place in the program from which stacks are
/// changed: the CPU predicts the return behind a switch by its call site.
void cfiber_switch(cfiber_context *to);

/// Sets `name` from UTF-8, cut at a character boundary.
void cfiber_set_name(cfiber_context *self, const char *utf8, size_t length);

/// Non-zero when the exclusivity list of the calling thread was found, so that a switch need not call libswiftCore.
int cfiber_knows_access_list(void);
/// Makes each later switch of the calling thread call libswiftCore, as if the list had not been found; for tests.
void cfiber_distrust_access_list(void);

/// "boost" or "assembly".
const char *cfiber_backend(void);
/// "address", "thread" or "" .
const char *cfiber_sanitizer(void);
#endif
