// SPDX-License-Identifier: Apache-2.0

// Looks at, counts and fails what the kernel asks of the C library and the operating system; for test binaries only.
//
// The functions are interposed by defining functions of the same names in the test binary: calls of the statically linked Fibers code and of all
// shared libraries bind to these. Unarmed they only pass the call on. Counting and failing concern the calling thread alone, so tests of other threads
// are not disturbed. Under sanitizers, which interpose the same functions, nothing is interposed and `cfaults_available` returns 0.
#ifndef CFAULTS_H
#define CFAULTS_H
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/// Non-zero where calls can be counted and failed.
int cfaults_available(void);

// Allocation.

/// Starts counting the calling thread's allocations: malloc, calloc, realloc, reallocarray, aligned_alloc, posix_memalign, memalign.
void cfaults_allocations_begin(void);
/// Stops, and returns how many there were since.
size_t cfaults_allocations_end(void);

// Failures.

typedef enum cfaults_call {
  CFAULTS_MMAP,
  CFAULTS_MADVISE,
  CFAULTS_MPROTECT,
  CFAULTS_MINCORE,
  CFAULTS_REALLOCARRAY,
  CFAULTS_STRDUP,
  CFAULTS_EPOLL_CREATE,
  CFAULTS_EPOLL_CTL,
  CFAULTS_EPOLL_WAIT,  // epoll_pwait2, by its number
  CFAULTS_EVENTFD,
  CFAULTS_SIGALTSTACK,
  CFAULTS_OPEN,
  CFAULTS_GETRANDOM,  // by its number, as libswiftCore calls it
  CFAULTS_CALLS
} cfaults_call;

/// Makes the `n`-th call (from 1) of that kind by the calling thread fail with `error`, and with `repeat` all that follow. One arming at a time.
void cfaults_arm(cfaults_call call, size_t n, int error, int repeat);
/// Ends that, and returns how many calls of the kind were made since.
size_t cfaults_disarm(void);

// Slow disks.

/// Holds up the next pwrite, whichever thread makes it, until it is let go; only where `cfaults_available`.
void cfaults_hold_write(void);
/// Non-zero while one is held.
int cfaults_holds_write(void);
void cfaults_release_write(void);

// Clocks.

/// Shifts the time of day that the calling thread reads (clock_gettime, gettimeofday, time) against the real one; 0 ends it.
void cfaults_shift_time_of_day(int64_t seconds);
/// The seconds of the day's time as clock_gettime, gettimeofday and time tell it.
void cfaults_read_time_of_day(int64_t seconds[3]);
/// Stops the monotonic clock that the calling thread reads, until it is let go; only where `cfaults_available`.
void cfaults_stop_clock(void);
void cfaults_release_clock(void);

// Signals.

/// Sends the calling thread a signal about every `interval` nanoseconds, whatever it is doing, inside system calls too; the signal does nothing and is not blocked meanwhile.
/// Returns 0 or an error number. One at a time.
int cfaults_signals_begin(int signal, int64_t interval);
/// Ends that, on the same thread, and returns how many came.
size_t cfaults_signals_end(void);

// Processes, which Swift does not fork, and threads.

/// fork, or with `raw` the system call alone, without what the C library and others do around it.
pid_t cfaults_fork(int raw);
/// Sends a signal to one thread of this process, by the kernel's id.
int cfaults_signal_thread(pid_t thread, int signal);

// Leaks.

/// What the calling thread allocates until the end is meant to leak: LeakSanitizer, where there is one, does not tell of it. They nest.
void cfaults_leaks_begin(void);
void cfaults_leaks_end(void);

/// The test library keeps a backtrace of errors that are thrown, hundreds of bytes for each, and lets go of only some. From here on, and for the rest
/// of the process, it hears of none: for processes that measure memory.
void cfaults_forget_thrown_errors(void);

// Observations.

/// How many calls of a kind the calling thread has made in its life; 0 where calls cannot be counted.
size_t cfaults_calls(cfaults_call call);

/// The addresses of the calling thread's dynamic accesses in progress, innermost first, as libswiftCore keeps them; returns how many.
size_t cfaults_accesses(const void **addresses, size_t capacity);

/// Nanoseconds of processor time that the calling thread has used.
int64_t cfaults_thread_time(void);

/// Bytes that the whole process holds from malloc; 0 under sanitizers.
size_t cfaults_heap_bytes(void);

/// A descriptor of a file in memory, which takes none for what was not written, and which may be as large as a file can be; negative when there is none to be had.
int cfaults_memory_file(void);

/// The kernel's id of the calling thread.
pid_t cfaults_thread_id(void);
#endif
