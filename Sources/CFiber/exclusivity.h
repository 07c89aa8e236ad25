// SPDX-License-Identifier: Apache-2.0

// Swift's dynamic exclusivity checking, as far as a switch must know it.
#ifndef CFIBER_EXCLUSIVITY_H
#define CFIBER_EXCLUSIVITY_H

// libswiftCore's own interface for tasks: takes the accesses in progress off the thread's list into 16 bytes of state, and puts them back.
void swift_task_exitThreadLocalContext(char *state);
void swift_task_enterThreadLocalContext(char *state);

/// What `cfiber_find_access_list` returns when it cannot find the list: always non-zero, so that each switch calls.
extern void *cfiber_unknown_access_list;

/// The address of the head of the calling thread's list of accesses in progress, non-NULL exactly while one is.
void **cfiber_find_access_list(void);
#endif
