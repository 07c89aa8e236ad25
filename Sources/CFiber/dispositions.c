// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "dispositions.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

// The kernel has 64 signals. A set of glibc has 128 bytes, and the bytes beyond these 8 are never initialised where the kernel fills the
// set in.
enum { MASK_SIZE = 8 };

struct node {
  struct sigaction action;
  struct node *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // guards `all`
static struct node *all;

static int equal(const struct sigaction *a, const struct sigaction *b) {
  return a->sa_flags == b->sa_flags && a->sa_handler == b->sa_handler && memcmp(&a->sa_mask, &b->sa_mask, MASK_SIZE) == 0;
}

const struct sigaction *cfiber_remember(const struct sigaction *action) {
  pthread_mutex_lock(&lock);
  struct node *node = all;
  while (node != NULL && !equal(&node->action, action)) node = node->next;
  if (node == NULL && (node = malloc(sizeof *node)) != NULL) {
    *node = (struct node){*action, all};
    all = node;
  }
  pthread_mutex_unlock(&lock);
  return node != NULL ? &node->action : NULL;
}

// `sa_handler` and `sa_sigaction` share one word, and SIG_DFL and SIG_IGN mean the same with and without SA_SIGINFO.
int cfiber_is_function(const struct sigaction *action) { return action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN; }
int cfiber_is_ignored(const struct sigaction *action) { return action->sa_handler == SIG_IGN; }

void cfiber_call(const struct sigaction *action, int number, siginfo_t *info, void *context) {
  if (action->sa_flags & SA_SIGINFO) {
    action->sa_sigaction(number, info, context);
  } else {
    action->sa_handler(number);
  }
}

void cfiber_call_with_mask(const struct sigaction *action, int number, siginfo_t *info, void *context) {
  sigset_t mask, before;
  sigemptyset(&mask);
  memcpy(&mask, &((ucontext_t *)context)->uc_sigmask, MASK_SIZE);
  sigorset(&mask, &mask, &action->sa_mask);
  if (!(action->sa_flags & SA_NODEFER)) sigaddset(&mask, number);
  pthread_sigmask(SIG_SETMASK, &mask, &before);
  cfiber_call(action, number, info, context);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void cfiber_send_again(int number, siginfo_t *info) {
  if (syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), number, info) != 0) raise(number);
}
