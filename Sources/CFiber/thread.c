// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "cfiber_thread.h"
#include "cfiber_context.h"
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct start {
  void (*run)(void *);
  void *argument;
};

static void *enter(void *start) {
  struct start s = *(struct start *)start;
  free(start);
  s.run(s.argument);
  return NULL;
}

int cfiber_start_thread(pthread_t *thread, void (*run)(void *argument), void *argument) {
  struct start *start = malloc(sizeof *start);
  if (!start) return -ENOMEM;
  *start = (struct start){run, argument};
  // Signals of the process are for the program's own threads; the new thread inherits the mask. Profilers send SIGPROF to the thread whose
  // time is up, and Swift's crash reporter stops other threads by SIGUSR1, SIGUSR2 or SIGPROF, whichever of them the thread does not block.
  sigset_t blocked, before;
  sigfillset(&blocked);
  static const int accepted[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS, SIGPROF};
  for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) sigdelset(&blocked, accepted[i]);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  int status = pthread_create(thread, NULL, enter, start);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (status != 0) free(start);
  return -status;
}

int cfiber_condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t deadline) {
  struct timespec time = {deadline / 1000000000, deadline % 1000000000};
  return -pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &time);
}

static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static int key_status;
static void (*_Atomic thread_ended)(uint64_t holder, intptr_t open_locks);

static void note_end(void *value) {
  (void)value;
  thread_ended(cfiber_this_thread.holder, cfiber_this_thread.open_locks);
}

static void make_key(void) { key_status = pthread_key_create(&key, note_end); }

int cfiber_note_thread_end(uint64_t holder, void (*ended)(uint64_t holder, intptr_t open_locks)) {
  thread_ended = ended;
  pthread_once(&key_once, make_key);
  cfiber_this_thread.holder = holder;
  return key_status != 0 ? -key_status : -pthread_setspecific(key, &key);
}

int cfiber_thread_id(void) { return (int)syscall(SYS_gettid); }

void cfiber_thread_name(int id, char name[16]) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%d/comm", id);
  FILE *file = fopen(path, "re");
  if (!file || !fgets(name, 16, file)) name[0] = 0;
  if (file) fclose(file);
  name[strcspn(name, "\n")] = 0;
}

void cfiber_name_thread(const char *name) {
  char text[16];
  snprintf(text, sizeof text, "%s", name);
  pthread_setname_np(pthread_self(), text);
}

static _Thread_local const char *handler;
const char *cfiber_handler(void) { return handler; }
void cfiber_set_handler(const char *name) { handler = name; }

int cfiber_allowed_cpus(cfiber_cpus *cpus) {
  if (sched_getaffinity(0, sizeof cpus->set, &cpus->set) != 0) return -errno;
  cpus->count = CPU_COUNT(&cpus->set);
  return 0;
}

int cfiber_pin(const cfiber_cpus *cpus, int n) {
  n %= cpus->count;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &cpus->set) || n-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    return sched_setaffinity(0, sizeof one, &one) == 0 ? 0 : -errno;
  }
  return -EINVAL;
}

int cfiber_unpin(const cfiber_cpus *cpus) { return sched_setaffinity(0, sizeof cpus->set, &cpus->set) == 0 ? 0 : -errno; }

int cfiber_futex_wait(uint32_t *word, uint32_t expected, int64_t deadline) {
  struct timespec until = {.tv_sec = deadline / 1000000000, .tv_nsec = deadline % 1000000000};
  // Unlike FUTEX_WAIT, this operation takes an absolute time.
  long result = syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, expected, deadline == INT64_MAX ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY);
  return result < 0 ? -errno : 0;
}

void cfiber_futex_wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); }

void cfiber_futex_wake_all(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }
