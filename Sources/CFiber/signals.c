// SPDX-License-Identifier: Apache-2.0

// Invariants:
//   * a subscriber has one pending bit for each signal, as the kernel has for the process. A signal that arrives while its bit is set
//     merges with the earlier one, and a flood of one signal does not displace another. Nothing can overflow, so nothing is lost;
//   * the handler that sets the first pending bit of a subscriber writes to its eventfd, after it sets the bit. So a reader that has
//     drained the eventfd and then found no bit is woken by the next signal;
//   * from the first subscription to a signal to the end of the last one, the signal has our handler, unless another library replaces it.
//     The next subscription installs ours again; the end of a subscription never overwrites another library's handler;
//   * the handler accesses a subscriber only between raising and lowering its `inside`, and checks the mask again after raising it. So once
//     the mask has been cleared and `inside` is 0, no thread writes to the descriptor any more;
//   * subscribers belong to one process: a child after fork starts without any, and with the dispositions from before the subscriptions.
// The handler takes no lock and never waits; it may run on several threads at once.
//
// A handler is used instead of a signalfd. A signalfd needs the signal blocked in every thread, including those of other libraries, and
// children inherit the block.
#define _GNU_SOURCE
#include "cfiber_signals.h"
#include "cfiber_system.h"
#include "dispositions.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

enum { SUBSCRIBERS = 64, SIGNALS = 64 };

static struct subscriber {
  _Atomic uint64_t mask;  // read by the handler; 0: no subscriber, or one that is leaving
  _Atomic uint64_t pending;
  _Atomic uint64_t arrivals[SIGNALS];  // when each pending signal first arrived, by `arrival`
  atomic_int inside;
  _Atomic int fd;
} subscribers[SUBSCRIBERS];

static _Atomic uint64_t arrival;  // counts the signals of the process that became pending
static atomic_int subscribed;     // the number of used slots, for readers without the lock
static _Atomic pid_t process;     // the process that these subscribers belong to
// The dispositions before ours: `earlier` before the latest installation of our handler, `below` before the first one that another handler
// may pass on to.
static _Atomic(const struct sigaction *) earlier[SIGNALS + 1], below[SIGNALS + 1];
// Set once another library has installed a handler over ours: that handler may pass signals on to ours at any later time, or install ours
// again.
static atomic_int is_covered[SIGNALS + 1];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // guards the rest, and changes of the table
static struct {
  int64_t id;  // 0: free
  uint64_t mask;
  const void *owner;
} slots[SUBSCRIBERS];
static int64_t last_id;
static int users[SIGNALS + 1];

static uint64_t bit(int number) { return 1ULL << (number - 1); }

// The handler.

static void enqueue(struct subscriber *s, int number) {
  // The time first, so that a reader that sees the bit also sees the time. Two threads that handle one signal at once may both write it;
  // either time is correct.
  if (!(atomic_load(&s->pending) & bit(number))) atomic_store(&s->arrivals[number - 1], atomic_fetch_add(&arrival, 1));
  if (atomic_fetch_or(&s->pending, bit(number)) == 0) cfiber_wake_send(atomic_load(&s->fd));
}

// Returns whether the signal has a subscriber.
static int deliver(int number) {
  int count = 0;
  for (struct subscriber *s = subscribers; s < subscribers + SUBSCRIBERS; s++) {
    if (!(atomic_load(&s->mask) & bit(number))) continue;
    atomic_fetch_add(&s->inside, 1);
    // Checked again, now that the subscriber cannot leave: it may have left already, and another may use its slot.
    if (atomic_load(&s->mask) & bit(number)) {
      enqueue(s, number);
      count++;
    }
    atomic_fetch_sub(&s->inside, 1);
  }
  return count > 0;
}

static void handler(int number, siginfo_t *info, void *context);

static int is_ours(const struct sigaction *action) { return (action->sa_flags & SA_SIGINFO) && action->sa_sigaction == handler; }

static int install_handler(int number) {
  struct sigaction ours = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
  sigfillset(&ours.sa_mask);
  return sigaction(number, &ours, NULL) == 0 ? 0 : -errno;
}

// Handles a signal that has no subscriber: it has the effect that it had before there were subscribers.
static void pass_on(int number, siginfo_t *info, void *context) {
  struct sigaction now;
  if (sigaction(number, NULL, &now) != 0) return;
  int is_child = getpid() != atomic_load(&process);
  if (is_ours(&now)) {
    // This process is a child, or another handler has installed ours again after the last subscriber left.
    sigaction(number, atomic_load(&earlier[number]), NULL);
    // A subscriber that arrived meanwhile is either found here, or has found our handler gone and installs it.
    if (!is_child && deliver(number)) {
      install_handler(number);
      return;
    }
  } else if (is_child || atomic_load(&is_covered[number])) {
    // A handler over ours passes the signal on, possibly without `info` and `context`. Sending it again would bring it here again.
    const struct sigaction *action = atomic_load(&below[number]);
    if (cfiber_is_function(action) && action->sa_handler != now.sa_handler) cfiber_call(action, number, info, context);
    return;
  }
  // The signal stays blocked until this handler returns. The handler may also have begun just before the last subscriber left.
  cfiber_send_again(number, info);
}

static void handler(int number, siginfo_t *info, void *context) {
  int saved = errno;
  // In a child between fork and exec, the descriptors are the parent's, and after vfork so is the memory.
  if (getpid() != atomic_load(&process) || !deliver(number)) pass_on(number, info, context);
  errno = saved;
}

// Subscribing, with the lock held.

static int install(int number) {
  struct sigaction now;
  if (sigaction(number, NULL, &now) != 0) return -errno;
  if (is_ours(&now)) return 0;
  const struct sigaction *before = cfiber_remember(&now);
  if (before == NULL) return -ENOMEM;
  // Stored before our handler can run.
  atomic_store(&earlier[number], before);
  if (users[number] > 0) atomic_store(&is_covered[number], 1);
  if (!atomic_load(&is_covered[number])) atomic_store(&below[number], before);
  return install_handler(number);
}

static void uninstall(int number) {
  struct sigaction now;
  if (sigaction(number, NULL, &now) != 0) return;
  if (is_ours(&now) && sigaction(number, atomic_load(&earlier[number]), &now) == 0) {
    if (is_ours(&now)) return;
    // Another library installed its handler between the two calls.
    sigaction(number, &now, NULL);
  }
  atomic_store(&is_covered[number], 1);
}

static void drop(uint64_t mask) {
  for (int number = 1; number <= SIGNALS; number++)
    if ((mask & bit(number)) && --users[number] == 0) uninstall(number);
}

static void retire(int slot) {
  struct subscriber *s = &subscribers[slot];
  // The dispositions first: a signal in between must not find our handler without a subscriber.
  drop(slots[slot].mask);
  atomic_store(&s->mask, 0);
  while (atomic_load(&s->inside) != 0) sched_yield();
  close(atomic_load(&s->fd));
  slots[slot].id = 0;
  slots[slot].mask = 0;
  atomic_fetch_sub(&subscribed, 1);
}

// Forks.

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }

// In a child, with the lock held. The threads whose handlers were inside do not exist here. The descriptors stay open until the child
// executes a program.
static void forget_parent(void) {
  for (int i = 0; i < SUBSCRIBERS; i++) {
    if (slots[i].id != 0) drop(slots[i].mask);
    slots[i].id = 0;
    slots[i].mask = 0;
    atomic_store(&subscribers[i].mask, 0);
    atomic_store(&subscribers[i].inside, 0);
  }
  atomic_store(&subscribed, 0);
}

static void begin_child(void) {
  forget_parent();
  pthread_mutex_unlock(&lock);
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork, begin_child); }

// The interface.

int64_t cfiber_signals_subscribe(uint64_t mask, const void *owner, int *fd) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  int ours = cfiber_wake_create();
  if (ours < 0) return ours;
  // One descriptor for each side, since either may close first.
  int theirs = cfiber_duplicate(ours);
  if (theirs < 0) {
    close(ours);
    return theirs;
  }
  pthread_mutex_lock(&lock);
  // This happens after a fork that bypassed the C library.
  if (atomic_load(&process) != getpid()) forget_parent();
  int slot = 0;
  while (slot < SUBSCRIBERS && slots[slot].id != 0) slot++;
  int64_t result = slot < SUBSCRIBERS ? ++last_id * SUBSCRIBERS + slot : -ENOSPC;
  if (slot < SUBSCRIBERS) {
    struct subscriber *s = &subscribers[slot];
    slots[slot].id = result;
    slots[slot].owner = owner;
    atomic_fetch_add(&subscribed, 1);
    atomic_store(&process, getpid());
    atomic_store(&s->pending, 0);
    atomic_store(&s->fd, ours);
    // Before the handlers are installed: a signal in between must find its subscriber.
    atomic_store(&s->mask, mask);
    int error = 0;
    for (int number = 1; number <= SIGNALS && error == 0; number++) {
      if (!(mask & bit(number))) continue;
      error = install(number);
      if (error != 0) break;
      users[number]++;
      slots[slot].mask |= bit(number);
    }
    if (error != 0) {
      retire(slot);
      result = error;
    }
  } else {
    close(ours);
  }
  pthread_mutex_unlock(&lock);
  if (result < 0) {
    close(theirs);
  } else {
    *fd = theirs;
  }
  return result;
}

int cfiber_signals_take(int64_t subscriber) {
  struct subscriber *s = &subscribers[subscriber % SUBSCRIBERS];
  uint64_t pending = atomic_load(&s->pending), oldest = UINT64_MAX;
  int first = 0;
  for (uint64_t rest = pending; rest != 0; rest &= rest - 1) {
    int index = __builtin_ctzll(rest);
    uint64_t time = atomic_load(&s->arrivals[index]);
    if (time < oldest) oldest = time, first = index + 1;
  }
  if (first != 0) atomic_fetch_and(&s->pending, ~bit(first));
  return first;
}

void cfiber_signals_unsubscribe(int64_t subscriber) {
  int slot = (int)(subscriber % SUBSCRIBERS);
  pthread_mutex_lock(&lock);
  if (slots[slot].id == subscriber) retire(slot);
  pthread_mutex_unlock(&lock);
}

void cfiber_signals_end(const void *owner) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < SUBSCRIBERS; i++)
    if (slots[i].id != 0 && slots[i].owner == owner) retire(i);
  pthread_mutex_unlock(&lock);
}

int cfiber_signals_are_used(void) { return atomic_load_explicit(&subscribed, memory_order_relaxed) != 0; }
