#define _GNU_SOURCE
#include "cfiber_thread.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

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
  // Signals of the process are for the program's own threads; the new one inherits the mask.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int status = pthread_create(thread, NULL, enter, start);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (status != 0) free(start);
  return -status;
}

int cfiber_condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t deadline) {
  struct timespec time = {deadline / 1000000000, deadline % 1000000000};
  return -pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &time);
}
