// SPDX-License-Identifier: Apache-2.0

// Handles the overflow of a fiber's stack: one clear message on standard error, then the crash as it would have been.
#ifndef CFIBER_OVERFLOW_H
#define CFIBER_OVERFLOW_H

/// Installs the SIGSEGV handler, unless it is already installed, and an alternate signal stack for the calling thread. 0 or a negative
/// errno.
int cfiber_overflow_enter(void **state);
/// Undoes `cfiber_overflow_enter`: the thread's alternate stack at once, the handler with the last call, if it is still ours.
void cfiber_overflow_leave(void *state);
#endif
