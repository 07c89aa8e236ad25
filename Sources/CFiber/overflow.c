// Invariants:
//   * the handler runs on an alternate stack that each worker thread installs, since the fiber's own stack is what has run out;
//   * it calls async-signal-safe functions only, and reads nothing but this thread's current context;
//   * it never ends the process itself: it puts back the disposition that it found and returns, the access faults again, and the crash
//     reporter or the core dump sees the fault as if we had not been there. Faults that are not overflows go to the earlier handler.
#define _GNU_SOURCE
#include "cfiber_overflow.h"
#include "cfiber_context.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALTERNATE_STACK_SIZE (128 * 1024)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // guards users and the installation
static int users;
static int installed;  // our handler is in the chain: as the disposition, or behind one that somebody has installed since
static struct sigaction earlier;

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

static void explain(const cfiber_context *fiber) {
  line l = {.length = 0};
  size_t size = (fiber->stack_size + 4095) / 4096 * 4, guard = fiber->guard_size / 1024;
  add(&l, "\nfiber stack overflow: fiber #");
  add_number(&l, fiber->id);
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
    if (n <= 0 && errno != EINTR) break;
    if (n > 0) done += (size_t)n;
  }
}

static void handler(int number, siginfo_t *info, void *context) {
  int saved = errno;
  const cfiber_context *fiber = cfiber_this_thread.current;
  uintptr_t address = (uintptr_t)info->si_addr;
  int overflow = info->si_code > 0 && fiber != NULL && fiber->guard_size != 0 && address < (uintptr_t)fiber->stack_low &&
                 address >= (uintptr_t)fiber->stack_low - fiber->guard_size;
  if (overflow) explain(fiber);
  if (!overflow && (earlier.sa_flags & SA_SIGINFO) && earlier.sa_sigaction != NULL) {
    earlier.sa_sigaction(number, info, context);
  } else if (!overflow && earlier.sa_handler != SIG_DFL && earlier.sa_handler != SIG_IGN) {
    earlier.sa_handler(number);
  } else {
    sigaction(number, &earlier, NULL);
    if (info->si_code <= 0) raise(number);  // sent by somebody, so returning would not repeat it
  }
  errno = saved;
}

int cfiber_overflow_enter(void **state) {
  // The earlier alternate stack, remembered at the start of the new one's mapping.
  char *memory = mmap(NULL, ALTERNATE_STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return -errno;
  stack_t stack = {.ss_sp = memory + sizeof(stack_t), .ss_size = ALTERNATE_STACK_SIZE - sizeof(stack_t)};
  if (sigaltstack(&stack, (stack_t *)(void *)memory) != 0) {
    int error = errno;
    munmap(memory, ALTERNATE_STACK_SIZE);
    return -error;
  }
  pthread_mutex_lock(&lock);
  users++;
  if (!installed) {
    installed = 1;
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &earlier);
  }
  pthread_mutex_unlock(&lock);
  *state = memory;
  return 0;
}

void cfiber_overflow_leave(void *state) {
  pthread_mutex_lock(&lock);
  if (--users == 0) {
    struct sigaction now;
    // Somebody who has since chained to ours keeps it; it passes on everything once no fiber runs.
    if (sigaction(SIGSEGV, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == handler)
      installed = sigaction(SIGSEGV, &earlier, NULL) != 0;
  }
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
