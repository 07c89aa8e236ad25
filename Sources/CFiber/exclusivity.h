// SPDX-License-Identifier: Apache-2.0

// The parts of Swift's dynamic exclusivity checking that a switch needs.
#ifndef CFIBER_EXCLUSIVITY_H
#define CFIBER_EXCLUSIVITY_H

// libswiftCore's own interface for tasks: removes the accesses in progress from the thread's list into 16 bytes of state, and restores
// them.
void swift_task_exitThreadLocalContext(char *state);
void swift_task_enterThreadLocalContext(char *state);

/// The result of `cfiber_find_access_list` when it cannot find the list: always non-zero, so that each switch calls libswiftCore.
extern void *cfiber_unknown_access_list;

/// Returns the address of the head of the calling thread's list of accesses in progress. The head is non-NULL exactly while an access is in
/// progress.
void **cfiber_find_access_list(void);
#endif
