// System calls that return a negative errno instead of setting one: errno is thread-local storage, which a compiler may cache across a switch.
// None of them blocks, except `cfiber_epoll_wait`. Any thread.
#ifndef CFIBER_SYSTEM_H
#define CFIBER_SYSTEM_H
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

/// Nanoseconds of CLOCK_MONOTONIC.
static inline int64_t cfiber_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/// The CPU's time counter: a few nanoseconds to read, where a look at the clock costs tens. For "has about so much time passed" only.
static inline uint64_t cfiber_counter(void) {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  uint64_t value;
  __asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
  return value;
#endif
}

/// About half a millisecond of `cfiber_counter`: on x86-64 0.3 to 0.7, depending on the CPU.
static inline uint64_t cfiber_counter_interval(void) {
#if defined(__x86_64__)
  return 1400000;
#else
  uint64_t frequency;
  __asm__ volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
  return frequency / 2000;
#endif
}

// Sockets. Sending never raises SIGPIPE; descriptors are made non-blocking and close-on-exec.

static inline ssize_t cfiber_recv(int fd, void *buffer, size_t size) {
  ssize_t n;
  do n = recv(fd, buffer, size, 0);
  while (__builtin_expect(n < 0 && errno == EINTR, 0));
  return n < 0 ? -errno : n;
}

static inline ssize_t cfiber_send(int fd, const void *buffer, size_t size) {
  ssize_t n;
  do n = send(fd, buffer, size, MSG_NOSIGNAL);
  while (__builtin_expect(n < 0 && errno == EINTR, 0));
  return n < 0 ? -errno : n;
}

ssize_t cfiber_send_vector(int fd, const struct iovec *vectors, size_t count);
int cfiber_accept(int fd, struct sockaddr_storage *address, socklen_t *length);
int cfiber_socket(int domain, int type);
int cfiber_connect(int fd, const struct sockaddr *address, socklen_t length);
int cfiber_bind(int fd, const struct sockaddr *address, socklen_t length);
int cfiber_listen(int fd, int backlog);
int cfiber_local_address(int fd, struct sockaddr_storage *address, socklen_t *length);
int cfiber_peer_address(int fd, struct sockaddr_storage *address, socklen_t *length);
int cfiber_set_option(int fd, int level, int name, int value);
int cfiber_get_option(int fd, int level, int name, int *value);
int cfiber_socket_pair(int *first, int *second);
int cfiber_linger(int fd, int on, int seconds);
int cfiber_shutdown(int fd, int how);
/// The descriptor is gone afterwards whatever is returned.
int cfiber_close(int fd);
int cfiber_duplicate(int fd);

// The reactor.

int cfiber_epoll_create(void);
int cfiber_epoll_add(int epoll, int fd, uint32_t events, uint64_t data);
int cfiber_epoll_modify(int epoll, int fd, uint32_t events, uint64_t data);
int cfiber_epoll_remove(int epoll, int fd);
/// Waits up to `timeout` nanoseconds (negative: without end; a signal ends it with 0 events). Before Linux 5.11 it rounds up to milliseconds.
int cfiber_epoll_wait(int epoll, struct epoll_event *events, int count, int64_t timeout);
static inline uint64_t cfiber_event_data(const struct epoll_event *event) { return event->data.u64; }
static inline uint32_t cfiber_event_flags(const struct epoll_event *event) { return event->events; }

/// Whether a read (or a write) would answer at once: 1, 0, or a negative errno.
int cfiber_is_ready(int fd, int write);

/// An eventfd, non-blocking and close-on-exec.
int cfiber_wake_create(void);
/// Async-signal-safe.
int cfiber_wake_send(int fd);
int cfiber_wake_drain(int fd);

/// The size of a raw soft limit, for error messages: RLIMIT_NOFILE.
uint64_t cfiber_descriptor_limit(void);
/// The text of an errno, any thread.
const char *cfiber_error_text(int error, char *buffer, size_t size);
#endif
