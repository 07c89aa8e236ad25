// SPDX-License-Identifier: Apache-2.0

// Finds the word in which libswiftCore keeps the head of a thread's list of dynamic accesses in progress.
//
// A switch must save that list with the fiber. Otherwise all other fibers see the accesses of a parked fiber, and each of their accesses
// searches them. Calling libswiftCore at each switch costs more than the switch; testing whether the list is empty costs half a nanosecond.
// There is no interface for that test, so this file searches for the word. With one access open, exactly one word of libswiftCore's
// thread-local block (or, linked statically, the program's) must hold the address of that access's buffer, and it must be zero again once
// the access ends. In any other case each switch calls libswiftCore, which is slower but correct.
#define _GNU_SOURCE
#include "exclusivity.h"
#include "sanitizers.h"
#include <link.h>
#include <stddef.h>
#include <stdint.h>

void *cfiber_unknown_access_list = &cfiber_unknown_access_list;

// The buffer of an access is three words; the runtime's type is ValueBuffer.
void swift_beginAccess(void *pointer, void *buffer[3], uintptr_t flags, void *pc);
void swift_endAccess(void *buffer[3]);
#define ACCESS_MODIFY_TRACKED 0x21

typedef struct block {
  uintptr_t code;  // an address inside the wanted object
  void **words;
  size_t count;
} block;

static int find_block(struct dl_phdr_info *info, size_t size, void *data) {
  block *wanted = data;
  int inside = 0;
  size_t tls_size = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
    uintptr_t start = info->dlpi_addr + segment->p_vaddr;
    if (segment->p_type == PT_LOAD && wanted->code >= start && wanted->code < start + segment->p_memsz) inside = 1;
    if (segment->p_type == PT_TLS) tls_size = segment->p_memsz;
  }
  if (!inside) return 0;
  if (size >= offsetof(struct dl_phdr_info, dlpi_tls_data) + sizeof info->dlpi_tls_data && info->dlpi_tls_data != NULL) {
    wanted->words = info->dlpi_tls_data;
    wanted->count = tls_size / sizeof(void *);
  }
  return 1;
}

CFIBER_NO_SANITIZE void **cfiber_find_access_list(void) {
  static char dummy;
  char outer[16] = {0};
  void *buffer[3];
  void **found = NULL;
  int hits = 0;
  // The calling thread may itself be inside an access.
  swift_task_exitThreadLocalContext(outer);
  // The first access of a thread may allocate its block, so it is made before the block is looked up.
  swift_beginAccess(&dummy, buffer, ACCESS_MODIFY_TRACKED, NULL);
  block tls = {.code = (uintptr_t)&swift_task_exitThreadLocalContext};
  dl_iterate_phdr(find_block, &tls);
  for (size_t i = 0; i < tls.count; i++)
    if (tls.words[i] == (void *)buffer) found = &tls.words[i], hits++;
  swift_endAccess(buffer);
  int cleared = found != NULL && *found == NULL;
  swift_task_enterThreadLocalContext(outer);
  return hits == 1 && cleared ? found : &cfiber_unknown_access_list;
}
