// SPDX-License-Identifier: Apache-2.0

// System calls that return a negative errno instead of setting one: errno is thread-local storage, which a compiler may cache across a
// switch. None of them blocks, except `cfiber_epoll_wait`. Any thread.
#ifndef CFIBER_SYSTEM_H
#define CFIBER_SYSTEM_H
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

/// Nanoseconds of CLOCK_MONOTONIC.
static inline int64_t cfiber_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/// For loops that spin on memory which another thread will change: lets the other hardware thread of the core run, and saves power.
static inline void cfiber_relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield");
#endif
}

/// The CPU's time counter: a few nanoseconds to read, where reading the clock costs tens. Only for estimating whether some time has passed.
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

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
// The sanitizers see there which memory is read and written.
#define CFIBER_SYSTEM_CALLS_BY_LIBC 1
#endif
#endif

/// Calls recvfrom or sendto without an address, directly in the kernel: the two calls of every echo. Through libc each would cost a jump
/// through a table, a page of code that has left the cache during the last call, a check for thread cancellation, and errno.
static inline ssize_t cfiber_transfer(long number, int fd, const void *memory, size_t size, int flags) {
#if defined(__x86_64__)
  register long r10 __asm__("r10") = flags;
  register long r8 __asm__("r8") = 0;
  register long r9 __asm__("r9") = 0;
  ssize_t result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"((long)fd), "S"(memory), "d"(size), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
#else
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = fd;
  register const void *x1 __asm__("x1") = memory;
  register long x2 __asm__("x2") = (long)size;
  register long x3 __asm__("x3") = flags;
  register long x4 __asm__("x4") = 0;
  register long x5 __asm__("x5") = 0;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
#endif
}

static inline ssize_t cfiber_recv(int fd, void *buffer, size_t size) {
  ssize_t n;
#if CFIBER_SYSTEM_CALLS_BY_LIBC
  do n = recv(fd, buffer, size, 0);
  while (n < 0 && errno == EINTR);
  return n < 0 ? -errno : n;
#else
  do n = cfiber_transfer(SYS_recvfrom, fd, buffer, size, 0);
  while (__builtin_expect(n == -EINTR, 0));
  return n;
#endif
}

static inline ssize_t cfiber_send(int fd, const void *buffer, size_t size) {
  ssize_t n;
#if CFIBER_SYSTEM_CALLS_BY_LIBC
  do n = send(fd, buffer, size, MSG_NOSIGNAL);
  while (n < 0 && errno == EINTR);
  return n < 0 ? -errno : n;
#else
  do n = cfiber_transfer(SYS_sendto, fd, buffer, size, MSG_NOSIGNAL);
  while (__builtin_expect(n == -EINTR, 0));
  return n;
#endif
}

ssize_t cfiber_send_vector(int fd, const struct iovec *vectors, size_t count);
/// `peer`, unless null, receives the address of the other end.
int cfiber_accept(int fd, struct sockaddr_storage *peer);
int cfiber_socket(int domain, int type);
int cfiber_connect(int fd, const struct sockaddr *address, socklen_t length);
int cfiber_bind(int fd, const struct sockaddr *address, socklen_t length);
int cfiber_listen(int fd, int backlog);
int cfiber_local_address(int fd, struct sockaddr_storage *address, socklen_t *length);
int cfiber_peer_address(int fd, struct sockaddr_storage *address, socklen_t *length);
/// Describes a descriptor, for messages: "socket 5 (127.0.0.1:80, peer 127.0.0.1:9)". Writes to `text`, cut to `size` bytes.
void cfiber_describe(int fd, char *text, size_t size);
int cfiber_set_option(int fd, int level, int name, int value);
int cfiber_get_option(int fd, int level, int name, int *value);
int cfiber_socket_pair(int *first, int *second);
int cfiber_linger(int fd, int on, int seconds);
int cfiber_shutdown(int fd, int how);

// Datagrams.

/// Like `struct mmsghdr`, which the C library declares for _GNU_SOURCE only.
typedef struct cfiber_datagram {
  struct msghdr header;
  unsigned int length;  // received: the bytes that were sent, which may be more than fitted; sent: the bytes that were sent
} cfiber_datagram;

/// One datagram with the data that its header points to; it must not move after `cfiber_seal`.
typedef struct cfiber_envelope {
  cfiber_datagram datagram;
  struct iovec piece;
  struct sockaddr_storage name;
} cfiber_envelope;

/// Points the header to the bytes, which are only read if the datagram is sent, and to room for the sender's address.
static inline cfiber_datagram *cfiber_seal(cfiber_envelope *envelope, const void *memory, size_t size) {
  envelope->piece = (struct iovec){.iov_base = (void *)memory, .iov_len = size};
  envelope->datagram = (cfiber_datagram){
      .header = {.msg_name = &envelope->name, .msg_namelen = sizeof envelope->name, .msg_iov = &envelope->piece, .msg_iovlen = 1}};
  return &envelope->datagram;
}

/// Receives up to `count` datagrams, as many as are available, and returns their number. An error after the first is kept for the next
/// call.
int cfiber_receive_datagrams(int fd, cfiber_datagram *datagrams, unsigned count);
/// Sends up to `count` datagrams and returns how many were sent; an error only if it stopped the first.
int cfiber_send_datagrams(int fd, cfiber_datagram *datagrams, unsigned count);
int cfiber_datagram_pair(int *first, int *second);
/// Joins or leaves the multicast group with the given address, on the interface with that index (0: the system chooses).
int cfiber_multicast(int fd, const struct sockaddr *group, socklen_t length, unsigned interface, int join);

/// The descriptor is closed afterwards whatever is returned.
int cfiber_close(int fd);
int cfiber_duplicate(int fd);

// The reactor.

int cfiber_epoll_create(void);
int cfiber_epoll_add(int epoll, int fd, uint32_t events, uint64_t data);
int cfiber_epoll_modify(int epoll, int fd, uint32_t events, uint64_t data);
int cfiber_epoll_remove(int epoll, int fd);
/// Waits up to `timeout` nanoseconds (negative: no limit; a signal ends the wait with 0 events). Before Linux 5.11 it rounds up to
/// milliseconds.
int cfiber_epoll_wait(int epoll, struct epoll_event *events, int count, int64_t timeout);
static inline uint64_t cfiber_event_data(const struct epoll_event *event) { return event->data.u64; }
static inline uint32_t cfiber_event_flags(const struct epoll_event *event) { return event->events; }

/// Whether a read (or a write) would return at once: 1, 0, or a negative errno.
int cfiber_is_ready(int fd, int write);
/// Creates an epoll descriptor that is readable while `fd` is readable (or writable), and that does not keep it open. -EPERM for
/// descriptors that epoll refuses.
int cfiber_epoll_for(int fd, int write);

/// An eventfd, non-blocking and close-on-exec.
int cfiber_wake_create(void);
/// Async-signal-safe.
int cfiber_wake_send(int fd);
int cfiber_wake_drain(int fd);

/// The soft limit on descriptors (RLIMIT_NOFILE), for error messages.
uint64_t cfiber_descriptor_limit(void);
/// The text of an errno. Any thread.
const char *cfiber_error_text(int error, char *buffer, size_t size);
#endif
