// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "cfiber_files.h"
#include "cfiber_system.h"
#include "retry.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int kind_of(const struct stat *info) {
  switch (info->st_mode & S_IFMT) {
  case S_IFREG: case S_IFDIR: case S_IFBLK: return CFIBER_KIND_FILE;
  case S_IFIFO: return CFIBER_KIND_FIFO;
  case S_IFSOCK: return CFIBER_KIND_SOCKET;
  default: return CFIBER_KIND_OTHER;
  }
}

int cfiber_kind(int fd) {
  struct stat info;
  if (fstat(fd, &info) != 0) return -errno;
  int kind = kind_of(&info);
  if (kind != CFIBER_KIND_OTHER) return kind;
  // Only epoll can tell what it accepts.
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  if (epoll < 0) return -errno;
  struct epoll_event event = {.events = EPOLLIN};
  int status = epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : errno;
  close(epoll);
  return status == 0 ? kind : status == EPERM ? CFIBER_KIND_FILE : -status;
}

int cfiber_is_on_disk(int fd) {
  struct stat info;
  return fstat(fd, &info) != 0 ? -errno : kind_of(&info) == CFIBER_KIND_FILE;
}

int cfiber_path_kind(const char *path) {
  struct stat info;
  if (stat(path, &info) != 0) return -errno;
  int kind = kind_of(&info);
  return kind == CFIBER_KIND_OTHER ? CFIBER_KIND_FILE : kind;
}

static int open_again(const char *path, int flags, mode_t permissions) { RETRY(int, open(path, flags, permissions)); }

int cfiber_open(const char *path, int flags, mode_t permissions, int *kind) {
  // Without O_NONBLOCK opening a FIFO waits for a process at the other end, and opening a serial line waits for a carrier.
  int fd = open_again(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, permissions);
  // Another process has a lease on the file: the kernel has asked for its return, and opens the file when the lease is returned or expires.
  struct stat info;
  if (fd == -EAGAIN && stat(path, &info) == 0 && S_ISREG(info.st_mode)) fd = open_again(path, flags | O_CLOEXEC | O_NOCTTY, permissions);
  if (fd < 0) return fd;
  *kind = cfiber_kind(fd);
  int status = *kind < 0 ? *kind : 0;
  // A device that epoll cannot watch must block in its calls.
  if (*kind == CFIBER_KIND_FILE) status = cfiber_set_flags(fd, flags & O_APPEND);
  if (status == 0) return fd;
  close(fd);
  return status;
}

int cfiber_fill_standard_streams(void) {
  // Held throughout: a second runtime must not open anything before the first one has filled the gaps.
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  static int is_done;
  int status = 0;
  pthread_mutex_lock(&lock);
  for (int fd = STDIN_FILENO; !is_done && status == 0 && fd <= STDERR_FILENO;) {
    if (fcntl(fd, F_GETFD) >= 0) {
      fd++;
      continue;
    }
    // The new descriptor gets the lowest free number. It is not close-on-exec: children have standard streams, too.
    int null = open_again("/dev/null", O_RDWR, 0);
    if (null < 0) status = null;
    // Another thread of the program was faster, so the missing number is already taken.
    if (null > STDERR_FILENO) close(null);
  }
  if (status == 0) is_done = 1;
  pthread_mutex_unlock(&lock);
  return status;
}

int cfiber_set_flags(int fd, int flags) { return fcntl(fd, F_SETFL, flags) == 0 ? 0 : -errno; }

int cfiber_flags(int fd) {
  int flags = fcntl(fd, F_GETFL);
  return flags < 0 ? -errno : flags;
}

static int set_nonblocking(int fd) {
  int flags = cfiber_flags(fd);
  return flags < 0 ? flags : cfiber_set_flags(fd, flags | O_NONBLOCK);
}

int cfiber_reopen(int fd, int kind) {
  int flags = cfiber_flags(fd);
  if (flags < 0 || (flags & O_NONBLOCK)) return flags < 0 ? flags : -EALREADY;
  // Reopens only descriptors that open the same object again: the master of a pseudo-terminal would open another terminal, and other
  // devices another object.
  unsigned number;
  if (kind != CFIBER_KIND_FIFO && (!isatty(fd) || ioctl(fd, TIOCGPTN, &number) == 0)) return -ENOTSUP;
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return open_again(path, (flags & (O_ACCMODE | O_APPEND)) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0);
}

int cfiber_may_share(int fd, int other) {
  long order = syscall(SYS_kcmp, getpid(), getpid(), 0 /* KCMP_FILE */, fd, other);
  if (order >= 0) return order == 0;
  struct stat info, other_info;
  if (fstat(fd, &info) != 0 || fstat(other, &other_info) != 0) return 0;
  return info.st_dev == other_info.st_dev && info.st_ino == other_info.st_ino;
}

int cfiber_duplicate_for_child(int fd) {
  int flags = cfiber_flags(fd);
  if (flags >= 0 && (flags & O_NONBLOCK) && cfiber_kind(fd) == CFIBER_KIND_FIFO) {
    char path[32], target[5];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    // A FIFO has a path, and opening it might wait for its other end; a pipe opens at once.
    if (readlink(path, target, sizeof target) == sizeof target && memcmp(target, "pipe:", sizeof target) == 0) {
      int own = open_again(path, (flags & (O_ACCMODE | O_APPEND)) | O_CLOEXEC, 0);
      if (own >= 0) return own;
    }
  }
  return cfiber_duplicate(fd);
}

int cfiber_pipe(int *reader, int *writer, int nonblocking_reader, int nonblocking_writer) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return -errno;
  // The ends are two open file descriptions, so that each has its own O_NONBLOCK flag.
  int status = nonblocking_reader ? set_nonblocking(ends[0]) : 0;
  if (status == 0 && nonblocking_writer) status = set_nonblocking(ends[1]);
  if (status < 0) {
    close(ends[0]);
    close(ends[1]);
    return status;
  }
  *reader = ends[0];
  *writer = ends[1];
  return 0;
}

ssize_t cfiber_read(int fd, void *buffer, size_t size, int kind) {
  RETRY(ssize_t, kind == CFIBER_KIND_SOCKET ? recv(fd, buffer, size, MSG_DONTWAIT) : read(fd, buffer, size));
}

// A write to a pipe without a reader, and a sendfile to a connection without a peer, raise SIGPIPE in the calling thread; unlike send, they
// have no flag to prevent it. So the signal is blocked meanwhile, and consumed if it was raised. Ignoring SIGPIPE would change the
// disposition that the program and its children see.
typedef struct {
  sigset_t before;
  int was_pending;
} pipe_guard;

static void guard_begin(pipe_guard *guard) {
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, &guard->before);
  guard->was_pending = 0;
  if (sigismember(&guard->before, SIGPIPE)) {
    sigset_t pending;
    guard->was_pending = sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE);
  }
}

static void guard_end(const pipe_guard *guard, ssize_t result) {
  if (result == -EPIPE && !guard->was_pending) {
    sigset_t pipe;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    struct timespec now = {0, 0};
    while (sigtimedwait(&pipe, NULL, &now) < 0 && errno == EINTR) {}
  }
  if (!sigismember(&guard->before, SIGPIPE)) pthread_sigmask(SIG_SETMASK, &guard->before, NULL);
}

static ssize_t plain_write(int fd, const void *buffer, size_t size) { RETRY(ssize_t, write(fd, buffer, size)); }
static ssize_t plain_send(int fd, const void *buffer, size_t size) { RETRY(ssize_t, send(fd, buffer, size, MSG_DONTWAIT | MSG_NOSIGNAL)); }

ssize_t cfiber_write(int fd, const void *buffer, size_t size, int kind) {
  if (kind == CFIBER_KIND_SOCKET) return plain_send(fd, buffer, size);
  pipe_guard guard;
  guard_begin(&guard);
  ssize_t n = plain_write(fd, buffer, size);
  guard_end(&guard, n);
  return n;
}

ssize_t cfiber_read_at(int fd, void *buffer, size_t size, int64_t offset) {
  RETRY(ssize_t, offset < 0 ? read(fd, buffer, size) : pread(fd, buffer, size, offset));
}

ssize_t cfiber_write_at(int fd, const void *buffer, size_t size, int64_t offset) {
  RETRY(ssize_t, offset < 0 ? write(fd, buffer, size) : pwrite(fd, buffer, size, offset));
}

static ssize_t plain_send_file(int socket, int file, int64_t offset, size_t size) {
  off_t position = offset;
  RETRY(ssize_t, sendfile(socket, file, &position, size));
}

// Bytes that are read but not sent are read again by the next call.
static ssize_t copy_to_socket(int socket, int file, int64_t offset, size_t size) {
  char buffer[16 * 1024];
  ssize_t n = cfiber_read_at(file, buffer, size < sizeof buffer ? size : sizeof buffer, offset);
  return n <= 0 ? n : plain_send(socket, buffer, (size_t)n);
}

ssize_t cfiber_send_file(int socket, int file, int64_t offset, size_t size) {
  pipe_guard guard;
  guard_begin(&guard);
  ssize_t n = plain_send_file(socket, file, offset, size);
  guard_end(&guard, n);
  // The file system does not support sending pages, or a sandbox does not know the call.
  return n == -EINVAL || n == -ENOSYS ? copy_to_socket(socket, file, offset, size) : n;
}

int64_t cfiber_seek(int fd, int64_t offset, int whence) {
  off_t position = lseek(fd, offset, whence);
  return position < 0 ? -errno : position;
}

int64_t cfiber_file_size(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 ? info.st_size : -errno;
}

int cfiber_truncate(int fd, int64_t size) { RETRY(int, ftruncate(fd, size)); }
int cfiber_sync(int fd, int data_only) { RETRY(int, data_only ? fdatasync(fd) : fsync(fd)); }

int cfiber_has_memory(size_t size) {
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 0;
  munmap(memory, size);
  return 1;
}
