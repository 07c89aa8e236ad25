// SPDX-License-Identifier: Apache-2.0

// Plain threads.
#ifndef CFIBER_THREAD_H
#define CFIBER_THREAD_H
#include <pthread.h>
#include <sched.h>
#include <stdint.h>

/// Starts a thread that receives only the signals of its own faults and SIGPROF; the caller joins or detaches it. 0 or a negative errno.
/// Any thread.
int cfiber_start_thread(pthread_t *thread, void (*run)(void *argument), void *argument);
/// Waits for a condition variable until a time in monotonic nanoseconds. 0, or -ETIMEDOUT.
int cfiber_condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t deadline);
/// Calls `ended` when the calling thread ends, with the number that identifies the thread to locks and with the number of locks acquired by
/// `lock()` that it still holds. There is one `ended` for the process. 0 or a negative errno; after an error the end is not reported.
int cfiber_note_thread_end(uint64_t holder, void (*ended)(uint64_t holder, intptr_t open_locks));
/// The kernel's id of the calling thread.
int cfiber_thread_id(void);
/// Reads the name of a thread of this process into `name`, which is empty if there is no such thread.
void cfiber_thread_name(int id, char name[16]);
/// Names the calling thread, for debuggers; 15 bytes are kept.
void cfiber_name_thread(const char *name);

/// The name of the program's handler that the calling thread runs outside fibers, for messages; NULL while it runs none.
const char *cfiber_handler(void);
void cfiber_set_handler(const char *name);

/// The CPUs that a thread may run on.
typedef struct cfiber_cpus {
  cpu_set_t set;
  int count;
} cfiber_cpus;

/// Reads the CPUs of the calling thread. 0 or a negative errno.
int cfiber_allowed_cpus(cfiber_cpus *cpus);
/// Binds the calling thread to the n-th of the CPUs, modulo their number. 0 or a negative errno.
int cfiber_pin(const cfiber_cpus *cpus, int n);
/// Lets the calling thread run on all of the CPUs again. 0 or a negative errno.
int cfiber_unpin(const cfiber_cpus *cpus);
/// How many CPUs the control groups of this process, of either version, allow, rounded up; INT_MAX if there is no limit.
int cfiber_cpu_quota(void);
/// The same, from the files below a directory, which holds /proc/self and the mounts; for tests.
int cfiber_cpu_quota_below(const char *root);

/// Sleeps while `*word` is `expected`, until a time in monotonic nanoseconds at the latest (INT64_MAX: no limit). May return early;
/// -ETIMEDOUT when the time has passed.
int cfiber_futex_wait(uint32_t *word, uint32_t expected, int64_t deadline);
/// Wakes one thread that sleeps on `word`. The word may already be freed: then a thread that uses the memory for another word may wake
/// early.
void cfiber_futex_wake(uint32_t *word);
/// Wakes all threads that sleep on `word`.
void cfiber_futex_wake_all(uint32_t *word);
#endif
