// Plain threads.
#ifndef CFIBER_THREAD_H
#define CFIBER_THREAD_H
#include <pthread.h>
#include <stdint.h>

/// Starts a thread that gets no signals, and that somebody has to join or detach. 0 or a negative errno. Any thread.
int cfiber_start_thread(pthread_t *thread, void (*run)(void *argument), void *argument);
/// Waits for a condition until a time in monotonic nanoseconds. 0, or -ETIMEDOUT.
int cfiber_condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t deadline);
#endif
