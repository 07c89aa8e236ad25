// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "cfaults.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CFAULTS_SANITIZED 1
#endif
#endif

// In the program itself, so the access cannot allocate: malloc comes through here.
#define THREAD static __thread __attribute__((tls_model("initial-exec")))

THREAD int counting;
THREAD size_t allocations;
THREAD int armed;
THREAD struct {
  cfaults_call call;
  size_t n, made;
  int error, repeat;
} plan;
THREAD size_t calls[CFAULTS_CALLS];
THREAD int64_t time_of_day_shift;
THREAD struct timespec stopped_at;
THREAD int clock_is_stopped;

void cfaults_allocations_begin(void) {
  allocations = 0;
  counting = 1;
}

size_t cfaults_allocations_end(void) {
  counting = 0;
  return allocations;
}

void cfaults_arm(cfaults_call call, size_t n, int error, int repeat) {
  plan.call = call, plan.n = n, plan.made = 0, plan.error = error, plan.repeat = repeat;
  armed = 1;
}

size_t cfaults_disarm(void) {
  armed = 0;
  return plan.made;
}

size_t cfaults_calls(cfaults_call call) { return calls[call]; }
size_t cfaults_heap_bytes(void) {
  struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

pid_t cfaults_thread_id(void) { return gettid(); }

int64_t cfaults_thread_time(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void cfaults_shift_time_of_day(int64_t seconds) { time_of_day_shift = seconds; }

void cfaults_read_time_of_day(int64_t seconds[3]) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  struct timeval micro;
  gettimeofday(&micro, NULL);
  seconds[0] = exact.tv_sec, seconds[1] = micro.tv_sec, seconds[2] = time(NULL);
}

void cfaults_stop_clock(void) {
  clock_gettime(CLOCK_MONOTONIC, &stopped_at);
  clock_is_stopped = 1;
}

void cfaults_release_clock(void) { clock_is_stopped = 0; }

// 0: nothing; 1: the next one is to be held; 2: one is held.
static atomic_int hold;
void cfaults_hold_write(void) { atomic_store(&hold, 1); }
int cfaults_holds_write(void) { return atomic_load(&hold) == 2; }
void cfaults_release_write(void) { atomic_store(&hold, 0); }

static struct {
  timer_t timer;
  struct sigaction action;
  sigset_t mask;
  int number;
  atomic_size_t count;
} storm;

static void count_signal(int number) {
  (void)number;
  atomic_fetch_add_explicit(&storm.count, 1, memory_order_relaxed);
}

int cfaults_signals_begin(int signal, int64_t interval) {
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = signal};
  event._sigev_un._tid = gettid();
  if (timer_create(CLOCK_MONOTONIC, &event, &storm.timer) != 0) return errno;
  struct sigaction action = {.sa_handler = count_signal, .sa_flags = SA_RESTART};
  sigset_t wanted;
  sigemptyset(&wanted);
  sigaddset(&wanted, signal);
  storm.number = signal;
  atomic_store(&storm.count, 0);
  sigaction(signal, &action, &storm.action);
  pthread_sigmask(SIG_UNBLOCK, &wanted, &storm.mask);
  struct timespec pause = {interval / 1000000000, interval % 1000000000};
  struct itimerspec times = {pause, pause};
  timer_settime(storm.timer, 0, &times, NULL);
  return 0;
}

size_t cfaults_signals_end(void) {
  // A signal that is pending still is delivered when this call returns, while its handler is there.
  timer_delete(storm.timer);
  pthread_sigmask(SIG_SETMASK, &storm.mask, NULL);
  sigaction(storm.number, &storm.action, NULL);
  return atomic_load(&storm.count);
}

pid_t cfaults_fork(int raw) { return raw ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork(); }

int cfaults_signal_thread(pid_t thread, int signal) { return (int)syscall(SYS_tgkill, getpid(), thread, signal); }

void __lsan_disable(void) __attribute__((weak));
void __lsan_enable(void) __attribute__((weak));

void cfaults_leaks_begin(void) {
  if (__lsan_disable != NULL) __lsan_disable();
}

void cfaults_leaks_end(void) {
  if (__lsan_enable != NULL) __lsan_enable();
}

// The hooks of libswiftCore, as it exports them.
extern _Atomic(void *) _swift_willThrow __attribute__((weak));
extern _Atomic(void *) _swift_willThrowTypedImpl __attribute__((weak));

void cfaults_forget_thrown_errors(void) {
  if (&_swift_willThrow != NULL) _swift_willThrow = NULL;
  if (&_swift_willThrowTypedImpl != NULL) _swift_willThrowTypedImpl = NULL;
}

#if CFAULTS_SANITIZED
int cfaults_available(void) { return 0; }
#else
int cfaults_available(void) { return 1; }

// Counts a call; true when it shall fail, with errno set.
static int fails(cfaults_call call) {
  calls[call]++;
  if (!armed || plan.call != call) return 0;
  plan.made++;
  if (plan.repeat ? plan.made < plan.n : plan.made != plan.n) return 0;
  errno = plan.error;
  return 1;
}

// A system call without libc's `syscall`, which is interposed below.
static long call_kernel(long number, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
#else
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  long result = x0;
#endif
  if ((unsigned long)result < -4095UL) return result;
  errno = (int)-result;
  return -1;
}

// Calls that go to the kernel by their number, since older C libraries lack them.
long syscall(long number, ...) {
  va_list list;
  va_start(list, number);
  long arguments[6];
  for (int i = 0; i < 6; i++) arguments[i] = va_arg(list, long);
  va_end(list);
  if (number == SYS_epoll_pwait2 && fails(CFAULTS_EPOLL_WAIT)) return -1;
  if (number == SYS_getrandom && fails(CFAULTS_GETRANDOM)) return -1;
  return call_kernel(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

// glibc's allocator under its other names: no look-up, which would allocate.
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

static inline void count(void) { allocations += (size_t)counting; }

void *malloc(size_t size) {
  count();
  return __libc_malloc(size);
}

void *calloc(size_t count_, size_t size) {
  count();
  return __libc_calloc(count_, size);
}

void *realloc(void *old, size_t size) {
  count();
  return __libc_realloc(old, size);
}

void *memalign(size_t alignment, size_t size) {
  count();
  return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
  count();
  return __libc_memalign(alignment, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
  count();
  if (alignment % sizeof(void *) != 0 || (alignment & (alignment - 1)) != 0) return EINVAL;
  void *p = __libc_memalign(alignment, size);
  if (p == NULL) return ENOMEM;
  *memory = p;
  return 0;
}

void *reallocarray(void *old, size_t items, size_t size) {
  count();
  if (fails(CFAULTS_REALLOCARRAY)) return NULL;
  size_t bytes;
  if (__builtin_mul_overflow(items, size, &bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  return __libc_realloc(old, bytes);
}

char *strdup(const char *text) {
  if (fails(CFAULTS_STRDUP)) return NULL;
  size_t size = strlen(text) + 1;
  char *copy = malloc(size);
  return copy == NULL ? NULL : memcpy(copy, text, size);
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) {
  int next = 1;
  if (atomic_compare_exchange_strong(&hold, &next, 2))
    while (atomic_load(&hold) == 2) usleep(100);
  return syscall(SYS_pwrite64, fd, bytes, size, offset);
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
  if (fails(CFAULTS_MMAP)) return MAP_FAILED;
  return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
}

int madvise(void *address, size_t size, int advice) {
  if (fails(CFAULTS_MADVISE)) return -1;
  return (int)syscall(SYS_madvise, address, size, advice);
}

int mprotect(void *address, size_t size, int protection) {
  if (fails(CFAULTS_MPROTECT)) return -1;
  return (int)syscall(SYS_mprotect, address, size, protection);
}

int mincore(void *address, size_t size, unsigned char *present) {
  if (fails(CFAULTS_MINCORE)) return -1;
  return (int)syscall(SYS_mincore, address, size, present);
}

int epoll_create1(int flags) {
  if (fails(CFAULTS_EPOLL_CREATE)) return -1;
  return (int)syscall(SYS_epoll_create1, flags);
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event) {
  if (fails(CFAULTS_EPOLL_CTL)) return -1;
  return (int)syscall(SYS_epoll_ctl, epoll, operation, fd, event);
}

int eventfd(unsigned count_, int flags) {
  if (fails(CFAULTS_EVENTFD)) return -1;
  return (int)syscall(SYS_eventfd2, count_, flags);
}

int sigaltstack(const stack_t *restrict stack, stack_t *restrict before) {
  if (fails(CFAULTS_SIGALTSTACK)) return -1;
  return (int)syscall(SYS_sigaltstack, stack, before);
}

int open(const char *path, int flags, ...) {
  if (fails(CFAULTS_OPEN)) return -1;
  int mode = 0;
  if (flags & (O_CREAT | O_TMPFILE)) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, int);
    va_end(arguments);
  }
  return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

// Clocks are read very often, so the real function, which needs no system call, is looked up once; before that has been done the kernel is asked.
static int (*libc_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor(101))) static void find_clock(void) {
  *(void **)&libc_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (clock == CLOCK_MONOTONIC && clock_is_stopped) {
    *now = stopped_at;
    return 0;
  }
  int status = libc_clock_gettime ? libc_clock_gettime(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
  if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += time_of_day_shift;
  return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  *now = (struct timeval){exact.tv_sec, exact.tv_nsec / 1000};
  if (zone != NULL) *(struct timezone *)zone = (struct timezone){0, 0};
  return 0;
}

time_t time(time_t *copy) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (copy != NULL) *copy = exact.tv_sec;
  return exact.tv_sec;
}
#endif

// libswiftCore's interface for tasks: off the thread's list into the state (head, tail), and back. A node begins {address, pc, next and flags}.
void swift_task_exitThreadLocalContext(char *state);
void swift_task_enterThreadLocalContext(char *state);

size_t cfaults_accesses(const void **addresses, size_t capacity) {
  union {
    void *words[2];
    char bytes[16];
  } state = {{NULL, NULL}};
  swift_task_exitThreadLocalContext(state.bytes);
  size_t found = 0;
  for (uintptr_t *node = state.words[0]; node != NULL && found < capacity; node = (uintptr_t *)(node[2] & ~(uintptr_t)3))
    addresses[found++] = (const void *)node[0];
  swift_task_enterThreadLocalContext(state.bytes);
  return found;
}

int cfaults_memory_file(void) { return memfd_create("test", MFD_CLOEXEC); }

void fibers_tests_on_main_thread(void) __attribute__((weak));
void fibers_net_tests_on_main_thread(void) __attribute__((weak));

// The test library starts the process of an exit test with /dev/null for standard error, unless the test observes it: why the process ended would be lost.
// Such a process, whose parent is this very program, writes where its parent does.
static void keep_last_words(void) {
  struct stat error, null;
  if (fstat(STDERR_FILENO, &error) != 0 || stat("/dev/null", &null) != 0) return;
  if (!S_ISCHR(error.st_mode) || error.st_rdev != null.st_rdev) return;
  char path[64], mine[4096], parents[4096];
  snprintf(path, sizeof path, "/proc/%d/exe", (int)getppid());
  ssize_t length = readlink("/proc/self/exe", mine, sizeof mine);
  if (length <= 0 || readlink(path, parents, sizeof parents) != length || memcmp(mine, parents, (size_t)length) != 0) return;
  snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getppid(), STDERR_FILENO);
  int fd = open(path, O_WRONLY | O_APPEND | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) return;
  dup2(fd, STDERR_FILENO);
  close(fd);
}

// Before `main`, and after libswiftCore has read its environment.
__attribute__((constructor)) static void begin(void) {
  // Exit tests end in crashes on purpose. Their processes inherit this and do without Swift's crash reporter, which takes its time, and under
  // AddressSanitizer waits for ever. This process keeps it.
  setenv("SWIFT_BACKTRACE", "enable=no", 1);
  keep_last_words();
  // A test that needs the process's first thread, or a process without any other, has this program started again with a variable set; `main` gives that
  // thread away.
  if (getenv("FIBERS_TESTS_ON_MAIN_THREAD") != NULL && fibers_tests_on_main_thread != NULL) {
    fibers_tests_on_main_thread();
    _exit(0);
  }
  if (getenv("FIBERS_NET_TESTS_ON_MAIN_THREAD") != NULL && fibers_net_tests_on_main_thread != NULL) {
    fibers_net_tests_on_main_thread();
    _exit(0);
  }
}
