// SPDX-License-Identifier: Apache-2.0

// Invariants:
//   * the handler runs on an alternate stack that each worker thread installs, since the fiber's own stack is exhausted. A handler below
//     ours runs there, too, even one that was installed without SA_ONSTACK;
//   * it calls only async-signal-safe functions, and reads only this thread's current context and dispositions that never change;
//   * it never ends the process itself. The disposition below it decides, as the kernel would have applied it, so that the crash reporter
//     or the core dump sees the fault as if our handler did not exist;
//   * a handler that was installed over ours may pass faults on to ours at any later time. Ours is then installed again on top, by another
//     function with its own disposition below. So faults that the other handler passes on go to the disposition that was below ours the
//     first time, and do not circulate.
#define _GNU_SOURCE
#include "cfiber_overflow.h"
#include "cfiber_context.h"
#include "dispositions.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALTERNATE_STACK_SIZE (128 * 1024)

// Guards users, used and the installation.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;

enum { ENTRIES = 8 };
// The disposition below each of the functions that may be installed. It stays when a function is uninstalled, for a handler that has just
// begun.
static _Atomic(const struct sigaction *) below[ENTRIES];
static int used[ENTRIES];  // installed, or below a handler that was installed over it
static const struct sigaction standard;  // all zeros: SIG_DFL
// The fiber whose overflow this thread has explained: if two of our handlers are in the chain, both see it.
static __thread uint64_t explained __attribute__((tls_model("initial-exec")));

typedef struct line {
  char text[640];
  size_t length;
} line;

static void add(line *l, const char *text) {
  while (*text && l->length < sizeof l->text) l->text[l->length++] = *text++;
}

static void add_number(line *l, uint64_t value) {
  char digits[21];
  int i = 20;
  digits[i] = 0;
  do digits[--i] = (char)('0' + value % 10);
  while ((value /= 10) != 0);
  add(l, digits + i);
}

static void explain(const cfiber_record *fiber) {
  line l = {.length = 0};
  size_t size = (fiber->stack_size + 4095) / 4096 * 4, guard = fiber->guard_size / 1024;
  add(&l, "\nfiber stack overflow: fiber #");
  add_number(&l, cfiber_id(fiber));
  if (fiber->name[0]) {
    add(&l, " \"");
    add(&l, fiber->name);
    add(&l, "\"");
  }
  add(&l, " used up its stack of ");
  add_number(&l, size);
  add(&l, " KiB (thread ");
  add_number(&l, (uint64_t)gettid());
  add(&l, ").\nTo give fibers more: FiberRuntime.Configuration(stackSize: ");
  add_number(&l, (size + guard) * 2);
  add(&l, " * 1024); it is now ");
  add_number(&l, size + guard);
  add(&l, " * 1024, guard included. Otherwise recurse less deeply or keep large values on the heap.\n\n");
  for (size_t done = 0; done < l.length;) {
    ssize_t n = write(STDERR_FILENO, l.text + done, l.length - done);
    if (n == 0 || (n < 0 && errno != EINTR)) break;
    if (n > 0) done += (size_t)n;
  }
}

static void explain_overflow(const siginfo_t *info) {
  const cfiber_record *fiber = cfiber_this_thread.current;
  uintptr_t address = (uintptr_t)info->si_addr;
  int overflow = info->si_code > 0 && fiber != NULL && fiber->guard_size != 0 && address < (uintptr_t)fiber->stack_low &&
                 address >= (uintptr_t)fiber->stack_low - fiber->guard_size;
  if (!overflow || explained == cfiber_id(fiber)) return;
  explained = cfiber_id(fiber);
  explain(fiber);
}

// SIGSEGV is blocked here, so that a fault of our own ends the process instead of recurring. The handler below gets the mask that it
// requested.
static void handle(int entry, int number, siginfo_t *info, void *context) {
  int saved = errno;
  explain_overflow(info);
  const struct sigaction *action = atomic_load(&below[entry]);
  // Only one thread uses a disposition that is for a single use.
  while ((action->sa_flags & (int)SA_RESETHAND) && !atomic_compare_exchange_weak(&below[entry], &action, &standard)) {}
  int is_sent = info->si_code <= 0;
  if (cfiber_is_function(action)) {
    cfiber_call_with_mask(action, number, info, context);
  } else if (!is_sent || !cfiber_is_ignored(action)) {
    // The kernel ignores no fault, whatever the disposition. An access faults again when this returns; a signal that was sent must be sent
    // again.
    sigaction(number, &standard, NULL);
    if (is_sent) cfiber_send_again(number, info);
  }
  errno = saved;
}

#define ENTRY(n) \
  static void entry_##n(int number, siginfo_t *info, void *context) { handle(n, number, info, context); }
ENTRY(0) ENTRY(1) ENTRY(2) ENTRY(3) ENTRY(4) ENTRY(5) ENTRY(6) ENTRY(7)

static void (*const functions[ENTRIES])(int, siginfo_t *, void *) = {entry_0, entry_1, entry_2, entry_3, entry_4, entry_5, entry_6, entry_7};

static int entry_of(const struct sigaction *action) {
  for (int i = 0; i < ENTRIES; i++)
    if ((action->sa_flags & SA_SIGINFO) && action->sa_sigaction == functions[i]) return i;
  return -1;
}

// With the lock held. Where all entries are used up, by handlers that were installed over ours while a runtime ran, the last of those
// stays: overflows are no longer explained, and nothing else is lost.
static void install(void) {
  struct sigaction now;
  if (sigaction(SIGSEGV, NULL, &now) != 0 || entry_of(&now) >= 0) return;
  const struct sigaction *action = cfiber_remember(&now);
  if (action == NULL) return;
  // Takes the entry that had the same disposition below it, else a free one.
  int entry = -1;
  for (int i = ENTRIES - 1; i >= 0; i--)
    if (!used[i]) entry = i;
  for (int i = 0; i < ENTRIES; i++)
    if (used[i] && atomic_load(&below[i]) == action) entry = i;
  if (entry < 0) return;
  atomic_store(&below[entry], action);
  used[entry] = 1;
  struct sigaction ours = {.sa_sigaction = functions[entry], .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigemptyset(&ours.sa_mask);
  sigaction(SIGSEGV, &ours, NULL);
}

// With the lock held. A handler that was installed over ours keeps a reference to ours, and may pass faults on to it.
static void uninstall(void) {
  struct sigaction now;
  int entry = sigaction(SIGSEGV, NULL, &now) == 0 ? entry_of(&now) : -1;
  if (entry >= 0 && sigaction(SIGSEGV, atomic_load(&below[entry]), NULL) == 0) used[entry] = 0;
}

int cfiber_overflow_enter(void **state) {
  // The previous alternate stack is stored at the start of the new one's mapping.
  char *memory = mmap(NULL, ALTERNATE_STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return -errno;
  stack_t stack = {.ss_sp = memory + sizeof(stack_t), .ss_size = ALTERNATE_STACK_SIZE - sizeof(stack_t)};
  if (sigaltstack(&stack, (stack_t *)(void *)memory) != 0) {
    int error = errno;
    munmap(memory, ALTERNATE_STACK_SIZE);
    return -error;
  }
  explained = 0;  // the next runtime reuses fiber ids
  pthread_mutex_lock(&lock);
  users++;
  // Each time, since another library may have replaced our handler meanwhile.
  install();
  pthread_mutex_unlock(&lock);
  *state = memory;
  return 0;
}

void cfiber_overflow_leave(void *state) {
  pthread_mutex_lock(&lock);
  if (--users == 0) uninstall();
  pthread_mutex_unlock(&lock);
  stack_t *before = state;
  if (before->ss_flags & SS_DISABLE) {
    stack_t none = {.ss_flags = SS_DISABLE};
    sigaltstack(&none, NULL);
  } else {
    sigaltstack(before, NULL);
  }
  munmap(state, ALTERNATE_STACK_SIZE);
}
