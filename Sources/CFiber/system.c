// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "cfiber_system.h"
#include "retry.h"
#include "sanitizers.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

ssize_t cfiber_send_vector(int fd, const struct iovec *vectors, size_t count) {
  struct msghdr message = {.msg_iov = (struct iovec *)vectors, .msg_iovlen = count};
  RETRY(ssize_t, sendmsg(fd, &message, MSG_NOSIGNAL));
}

int cfiber_accept(int fd, struct sockaddr_storage *peer) {
  socklen_t length = sizeof *peer;
  RETRY(int, accept4(fd, (struct sockaddr *)peer, peer == NULL ? NULL : &length, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

int cfiber_socket(int domain, int type) {
  int fd = socket(domain, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  return fd < 0 ? -errno : fd;
}

int cfiber_connect(int fd, const struct sockaddr *address, socklen_t length) {
  if (connect(fd, address, length) == 0) return 0;
  // An interrupted connect continues in the background, just as with EINPROGRESS.
  return errno == EINTR ? -EINPROGRESS : -errno;
}

int cfiber_bind(int fd, const struct sockaddr *address, socklen_t length) { return bind(fd, address, length) == 0 ? 0 : -errno; }
int cfiber_listen(int fd, int backlog) { return listen(fd, backlog) == 0 ? 0 : -errno; }

int cfiber_local_address(int fd, struct sockaddr_storage *address, socklen_t *length) {
  return getsockname(fd, (struct sockaddr *)address, length) == 0 ? 0 : -errno;
}

int cfiber_peer_address(int fd, struct sockaddr_storage *address, socklen_t *length) {
  return getpeername(fd, (struct sockaddr *)address, length) == 0 ? 0 : -errno;
}

int cfiber_set_option(int fd, int level, int name, int value) {
  return setsockopt(fd, level, name, &value, sizeof value) == 0 ? 0 : -errno;
}

int cfiber_get_option(int fd, int level, int name, int *value) {
  socklen_t size = sizeof *value;
  return getsockopt(fd, level, name, value, &size) == 0 ? 0 : -errno;
}

static int make_pair(int type, int *first, int *second) {
  int pair[2];
  if (socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) return -errno;
  *first = pair[0];
  *second = pair[1];
  return 0;
}

int cfiber_socket_pair(int *first, int *second) { return make_pair(SOCK_STREAM, first, second); }
int cfiber_datagram_pair(int *first, int *second) { return make_pair(SOCK_DGRAM, first, second); }

_Static_assert(
    sizeof(cfiber_datagram) == sizeof(struct mmsghdr) && offsetof(cfiber_datagram, header) == offsetof(struct mmsghdr, msg_hdr) &&
        offsetof(cfiber_datagram, length) == offsetof(struct mmsghdr, msg_len),
    "the kernel reads a cfiber_datagram as an mmsghdr");

int cfiber_receive_datagrams(int fd, cfiber_datagram *datagrams, unsigned count) {
  if (count != 1) {
    RETRY(int, recvmmsg(fd, (struct mmsghdr *)datagrams, count, MSG_TRUNC, NULL));
  }
  ssize_t size;
  do size = recvmsg(fd, &datagrams->header, MSG_TRUNC);
  while (size < 0 && errno == EINTR);
  if (size < 0) return -errno;
  datagrams->length = (unsigned)size;
  return 1;
}

int cfiber_send_datagrams(int fd, cfiber_datagram *datagrams, unsigned count) {
  if (count != 1) {
    RETRY(int, sendmmsg(fd, (struct mmsghdr *)datagrams, count, MSG_NOSIGNAL));
  }
  ssize_t size;
  do size = sendmsg(fd, &datagrams->header, MSG_NOSIGNAL);
  while (size < 0 && errno == EINTR);
  if (size < 0) return -errno;
  datagrams->length = (unsigned)size;
  return 1;
}

int cfiber_multicast(int fd, const struct sockaddr *group, socklen_t length, unsigned interface, int join) {
  struct group_req request = {.gr_interface = interface};
  if (length > sizeof request.gr_group) return -EINVAL;
  memcpy(&request.gr_group, group, length);
  int level = group->sa_family == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP;
  return setsockopt(fd, level, join ? MCAST_JOIN_GROUP : MCAST_LEAVE_GROUP, &request, sizeof request) == 0 ? 0 : -errno;
}

int cfiber_linger(int fd, int on, int seconds) {
  struct linger value = {.l_onoff = on, .l_linger = seconds};
  return setsockopt(fd, SOL_SOCKET, SO_LINGER, &value, sizeof value) == 0 ? 0 : -errno;
}

int cfiber_shutdown(int fd, int how) { return shutdown(fd, how) == 0 ? 0 : -errno; }
int cfiber_close(int fd) { return close(fd) == 0 ? 0 : -errno; }

int cfiber_duplicate(int fd) {
  int second = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  return second < 0 ? -errno : second;
}

int cfiber_epoll_create(void) {
  int fd = epoll_create1(EPOLL_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

static int control(int epoll, int operation, int fd, uint32_t events, uint64_t data) {
  struct epoll_event event = {.events = events, .data.u64 = data};
  return epoll_ctl(epoll, operation, fd, &event) == 0 ? 0 : -errno;
}

int cfiber_epoll_add(int epoll, int fd, uint32_t events, uint64_t data) { return control(epoll, EPOLL_CTL_ADD, fd, events, data); }
int cfiber_epoll_modify(int epoll, int fd, uint32_t events, uint64_t data) { return control(epoll, EPOLL_CTL_MOD, fd, events, data); }
int cfiber_epoll_remove(int epoll, int fd) { return control(epoll, EPOLL_CTL_DEL, fd, 0, 0); }

// Called by its number, since glibc provides it only from 2.35 on, and two platforms that Swift supports have 2.34. The raw call is no
// cancellation point, but worker threads are never cancelled. ThreadSanitizer must see the call: for the order of memory accesses before an
// event, and for signals that arrive meanwhile.
static int wait_with_nanoseconds(int epoll, struct epoll_event *events, int count, const struct timespec *timeout) {
#if CFIBER_TSAN && __GLIBC_PREREQ(2, 35)
  return epoll_pwait2(epoll, events, count, timeout, NULL);
#else
  return (int)syscall(SYS_epoll_pwait2, epoll, events, count, timeout, NULL, 0);
#endif
}

int cfiber_epoll_wait(int epoll, struct epoll_event *events, int count, int64_t timeout) {
  struct timespec limit = {.tv_sec = timeout / 1000000000, .tv_nsec = timeout % 1000000000};
  // Another worker may find this out at any time.
  static atomic_int lacks_nanoseconds;
  // A call that has returned events must not be repeated: each event is reported once.
  int done = 1, n;
  if (timeout == 0) {
    n = epoll_wait(epoll, events, count, 0);
  } else if (atomic_load_explicit(&lacks_nanoseconds, memory_order_relaxed)) {
    done = 0;
  } else {
    n = wait_with_nanoseconds(epoll, events, count, timeout < 0 ? NULL : &limit);
    // The call is missing (before Linux 5.11), or refused by a sandbox that does not know it.
    done = !(n < 0 && (errno == ENOSYS || errno == EPERM));
    if (!done) atomic_store_explicit(&lacks_nanoseconds, 1, memory_order_relaxed);
  }
  if (!done) {
    int64_t milliseconds = timeout < 0 ? -1 : timeout / 1000000 + (timeout % 1000000 != 0);
    n = epoll_wait(epoll, events, count, milliseconds > INT32_MAX ? INT32_MAX : (int)milliseconds);
  }
  if (n < 0) return errno == EINTR ? 0 : -errno;
  return n;
}

int cfiber_is_ready(int fd, int write) {
  struct pollfd query = {.fd = fd, .events = write ? POLLOUT : POLLIN | POLLRDHUP};
  int n;
  do n = poll(&query, 1, 0);
  while (n < 0 && errno == EINTR);
  if (n < 0) return -errno;
  return query.revents & POLLNVAL ? -EBADF : n;
}

int cfiber_epoll_for(int fd, int write) {
  int epoll = cfiber_epoll_create();
  if (epoll < 0) return epoll;
  // The same conditions as in `cfiber_is_ready`.
  int status = cfiber_epoll_add(epoll, fd, write ? EPOLLOUT : EPOLLIN | EPOLLRDHUP, 0);
  if (status == 0) return epoll;
  close(epoll);
  return status;
}

int cfiber_wake_create(void) {
  int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

int cfiber_wake_send(int fd) {
  uint64_t one = 1;
  RETRY(int, (int)write(fd, &one, sizeof one));
}

int cfiber_wake_drain(int fd) {
  uint64_t count;
  RETRY(int, (int)read(fd, &count, sizeof count));
}

uint64_t cfiber_descriptor_limit(void) {
  struct rlimit limit;
  return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 0;
}

const char *cfiber_error_text(int error, char *buffer, size_t size) { return strerror_r(error, buffer, size); }
