// SPDX-License-Identifier: Apache-2.0

// What a signal did before our handler was installed: remembered, called, and given the signal again.
//
// Async-signal-safe, except `cfiber_remember`.
#ifndef CFIBER_DISPOSITIONS_H
#define CFIBER_DISPOSITIONS_H
#include <signal.h>

/// A copy of a disposition that never changes and is never freed, so that a handler may read it at any time; NULL when memory is short. Equal ones share a
/// copy, so there are only as many as the process has had different dispositions. Any thread.
const struct sigaction *cfiber_remember(const struct sigaction *action);
/// Whether it is a function, and neither the default nor to be ignored.
int cfiber_is_function(const struct sigaction *action);
int cfiber_is_ignored(const struct sigaction *action);
/// Calls the function of a disposition, as one handler calls the one before it.
void cfiber_call(const struct sigaction *action, int number, siginfo_t *info, void *context);
/// Calls it as the kernel would have: with the signals blocked that it asked for on top of those that `context` had blocked.
void cfiber_call_with_mask(const struct sigaction *action, int number, siginfo_t *info, void *context);
/// Sends the calling thread a signal once more, from the same sender. It is delivered when the thread no longer blocks it.
void cfiber_send_again(int number, siginfo_t *info);
#endif
