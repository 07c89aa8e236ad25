// SPDX-License-Identifier: Apache-2.0

// Memory for stacks: mapping, guarding, releasing, inspecting. Any thread; each function returns 0 or a negative errno and owns nothing.
#ifndef CFIBER_STACK_H
#define CFIBER_STACK_H
#include <stddef.h>
#include <stdint.h>

enum { CFIBER_GUARD_INSTALL = 0, CFIBER_GUARD_MPROTECT = 1, CFIBER_GUARD_BATCH = 16 };

/// Maps `size` bytes for stacks, without reserving memory for them; the caller unmaps.
int cfiber_map(size_t size, void **memory);
int cfiber_unmap(void *memory, size_t size);
/// Makes each access to the range fault: by markers in the page tables (Linux 6.13; -EINVAL before), or by a separate mapping.
int cfiber_guard(void *memory, size_t size, int method);
/// Guards the lowest `size` bytes of `count` stacks that lie `stride` apart, by markers, and maps the highest page of each. At most
/// `CFIBER_GUARD_BATCH` at a time. After a failure any of them may be guarded, and guarding them again is harmless; -EBADF or -EINVAL where
/// the kernel cannot guard several at once.
int cfiber_guard_several(void *first, size_t stride, size_t count, size_t size);
/// Releases the pages of the range, which reads as zeros afterwards. Guards inside it stay.
int cfiber_give_back(void *memory, size_t size);
/// Releases a range in each of `count` slots, `offset` bytes after their starts.
int cfiber_give_back_several(void *const *slots, size_t count, size_t offset, size_t size);
/// The number of bytes at the upper end of the range, up to and including its lowest page in memory. Pages swapped out do not count.
size_t cfiber_resident_depth(const void *memory, size_t size);
/// Like realloc, in place where possible: NULL when memory is short, and then `old` is still valid. The memory is freed with `cfiber_free`.
void *cfiber_resize(void *old, size_t count, size_t size);
void cfiber_free(void *memory);
/// A number from a file of /proc/sys, or -1.
long cfiber_read_number(const char *path);
/// The number of mappings of this process, or -1.
long cfiber_count_mappings(void);
/// The soft limit on address space in bytes; UINT64_MAX when there is none.
uint64_t cfiber_address_space_limit(void);
#endif
