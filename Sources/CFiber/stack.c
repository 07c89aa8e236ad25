// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "cfiber_stack.h"
#include "number.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
#define PIDFD_SELF (-10000)  // since Linux 6.14; EBADF before
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

int cfiber_map(size_t size, void **memory) {
  // MAP_STACK prevents huge pages: one touched stack must not keep its neighbours' pages in memory.
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (p == MAP_FAILED) return -errno;
  *memory = p;
  return 0;
}

int cfiber_unmap(void *memory, size_t size) { return munmap(memory, size) == 0 ? 0 : -errno; }

int cfiber_guard(void *memory, size_t size, int method) {
  int status;
  if (method == CFIBER_GUARD_MPROTECT) {
    status = mprotect(memory, size, PROT_NONE);
  } else {
    // The kernel may ask for another call when it raced with page faults.
    do status = madvise(memory, size, MADV_GUARD_INSTALL);
    while (status != 0 && (errno == EINTR || errno == EAGAIN));
  }
  return status == 0 ? 0 : -errno;
}

// Advises several ranges in one call: saves a fifth of the cost of guarding, a third of that of a page fault, and half of that of releasing
// pages. The kernel accepts this for the calling process since 6.13.
static int advise(const struct iovec *ranges, size_t count, int advice) {
  size_t size = 0;
  for (size_t i = 0; i < count; i++) size += ranges[i].iov_len;
  long done = syscall(SYS_process_madvise, PIDFD_SELF, ranges, count, advice, 0);
  return done < 0 ? -errno : (size_t)done == size ? 0 : -EAGAIN;
}

int cfiber_guard_several(void *first, size_t stride, size_t count, size_t size) {
  if (count > CFIBER_GUARD_BATCH) return -EINVAL;
  struct iovec ranges[CFIBER_GUARD_BATCH];
  for (size_t i = 0; i < count; i++) ranges[i] = (struct iovec){(char *)first + i * stride, size};
  int status = advise(ranges, count, MADV_GUARD_INSTALL);
  if (status != 0) return status;
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  for (size_t i = 0; i < count; i++) ranges[i] = (struct iovec){(char *)first + (i + 1) * stride - page, page};
  // Without this each stack would fault when it is first used, so a failure costs no more than that.
  (void)advise(ranges, count, MADV_POPULATE_WRITE);
  return 0;
}

int cfiber_give_back(void *memory, size_t size) { return madvise(memory, size, MADV_DONTNEED) == 0 ? 0 : -errno; }

int cfiber_give_back_several(void *const *slots, size_t count, size_t offset, size_t size) {
  enum { AT_ONCE = 64 };
  struct iovec ranges[AT_ONCE];
  int status = 0;
  for (size_t done = 0, now; done < count; done += now) {
    now = count - done < AT_ONCE ? count - done : AT_ONCE;
    for (size_t i = 0; i < now; i++) ranges[i] = (struct iovec){(char *)slots[done + i] + offset, size};
    if (advise(ranges, now, MADV_DONTNEED) == 0) continue;
    for (size_t i = 0; i < now; i++) {
      int failure = cfiber_give_back(ranges[i].iov_base, size);
      if (failure != 0) status = failure;
    }
  }
  return status;
}

size_t cfiber_resident_depth(const void *memory, size_t size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = size / page;
  unsigned char present[64];
  for (size_t first = 0; first < pages; first += sizeof present) {
    size_t count = pages - first < sizeof present ? pages - first : sizeof present;
    if (mincore((char *)memory + first * page, count * page, present) != 0) return 0;
    for (size_t i = 0; i < count; i++)
      if (present[i] & 1) return size - (first + i) * page;
  }
  return 0;
}

void *cfiber_resize(void *old, size_t count, size_t size) { return reallocarray(old, count, size); }
void cfiber_free(void *memory) { free(memory); }

long cfiber_read_number(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  char text[32];
  ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  if (n <= 0) return -1;
  text[n] = 0;
  long value;
  const char *rest = text;
  return parse_number(&rest, &value) ? value : -1;
}

long cfiber_count_mappings(void) {
  int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  char text[4096];
  long lines = 0;
  ssize_t n;
  while ((n = read(fd, text, sizeof text)) > 0)
    for (ssize_t i = 0; i < n; i++) lines += text[i] == '\n';
  close(fd);
  return lines;
}

uint64_t cfiber_address_space_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return UINT64_MAX;
  return limit.rlim_cur;
}
