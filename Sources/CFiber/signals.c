// Invariants:
//   * a signal has our handler exactly while somebody subscribes to it; the disposition found at the first subscription returns with the last;
//   * the handler writes to the sockets of subscribers and does nothing else; a socket is closed only after no handler can still be using it;
//   * signals of one kind may merge when a subscriber does not read, as they do in the kernel; none is lost while there is room for 200.
// A handler and not a signalfd: that needs the signal blocked in every thread, also those of other libraries, and children inherit the block.
#define _GNU_SOURCE
#include "cfiber_signals.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SUBSCRIBERS = 64, SIGNALS = 64 };

static struct {
  _Atomic uint64_t mask;  // 0: free; what the handler looks at
  _Atomic int fd;
} subscribers[SUBSCRIBERS];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // guards everything below and changes of the table
static int used[SUBSCRIBERS];
static int users[SIGNALS + 1];
static struct sigaction earlier[SIGNALS + 1];
static atomic_int inside;
static atomic_int subscribed;  // how many slots are used, for those without the lock
static _Atomic pid_t process;  // whose subscribers these are

static void handler(int number) {
  int saved = errno;
  if (getpid() != atomic_load(&process)) {
    // A child between fork and exec: the sockets are its parent's.
    signal(number, SIG_DFL);
    raise(number);
    return;
  }
  unsigned char byte = (unsigned char)number;
  atomic_fetch_add(&inside, 1);
  for (int i = 0; i < SUBSCRIBERS; i++)
    if (atomic_load(&subscribers[i].mask) & (1ULL << (number - 1))) {
      ssize_t ignored = send(atomic_load(&subscribers[i].fd), &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
      (void)ignored;  // full: the subscriber has 200 unread signals and will wake anyway
    }
  atomic_fetch_sub(&inside, 1);
  errno = saved;
}

// With the lock held.
static void drop(uint64_t mask) {
  for (int s = 1; s <= SIGNALS; s++)
    if ((mask & (1ULL << (s - 1))) && --users[s] == 0) sigaction(s, &earlier[s], NULL);
}

// With the lock held: no handler uses the slot's socket afterwards.
static void retire(int slot) {
  atomic_store(&subscribers[slot].mask, 0);
  while (atomic_load(&inside) != 0) sched_yield();
}

int cfiber_signals_subscribe(uint64_t mask, int *fd) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) return -errno;
  pthread_mutex_lock(&lock);
  int slot = 0, error = 0;
  while (slot < SUBSCRIBERS && used[slot]) slot++;
  if (slot == SUBSCRIBERS) {
    error = ENOSPC;
  } else {
    // Before the handlers: a signal in between must find its subscriber.
    atomic_store(&process, getpid());
    atomic_store(&subscribers[slot].fd, pair[1]);
    atomic_store(&subscribers[slot].mask, mask);
  }
  uint64_t done = 0;
  for (int s = 1; s <= SIGNALS && !error; s++) {
    if (!(mask & (1ULL << (s - 1)))) continue;
    if (users[s] == 0) {
      struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART | SA_ONSTACK};
      sigfillset(&action.sa_mask);
      if (sigaction(s, &action, &earlier[s]) != 0) {
        error = errno;
        break;
      }
    }
    users[s]++;
    done |= 1ULL << (s - 1);
  }
  if (!error) {
    used[slot] = 1;
    atomic_fetch_add(&subscribed, 1);
  } else if (slot < SUBSCRIBERS) {
    drop(done);
    retire(slot);
  }
  pthread_mutex_unlock(&lock);
  if (error) {
    close(pair[0]);
    close(pair[1]);
    return -error;
  }
  *fd = pair[0];
  return slot;
}

int cfiber_signals_are_used(void) { return atomic_load_explicit(&subscribed, memory_order_relaxed) != 0; }

void cfiber_signals_unsubscribe(int slot) {
  pthread_mutex_lock(&lock);
  // The dispositions first: a signal in between must not find our handler and no subscriber.
  drop(atomic_load(&subscribers[slot].mask));
  retire(slot);
  close(atomic_load(&subscribers[slot].fd));
  used[slot] = 0;
  atomic_fetch_sub(&subscribed, 1);
  pthread_mutex_unlock(&lock);
}
