// SPDX-License-Identifier: Apache-2.0

// The disposition that a signal had before our handler was installed: remembering it, calling it, and sending it the signal again.
//
// Async-signal-safe, except `cfiber_remember`.
#ifndef CFIBER_DISPOSITIONS_H
#define CFIBER_DISPOSITIONS_H
#include <signal.h>

/// Returns a copy of a disposition that never changes and is never freed, so that a handler may read it at any time; NULL when memory is
/// short. Equal dispositions share a copy, so there are only as many copies as the process has had different dispositions. Any thread.
const struct sigaction *cfiber_remember(const struct sigaction *action);
/// Whether the disposition is a function, neither the default nor to be ignored.
int cfiber_is_function(const struct sigaction *action);
int cfiber_is_ignored(const struct sigaction *action);
/// Calls the function of a disposition, as one handler calls the previous one.
void cfiber_call(const struct sigaction *action, int number, siginfo_t *info, void *context);
/// Calls it as the kernel would have: with the disposition's mask added to the signals that `context` had blocked.
void cfiber_call_with_mask(const struct sigaction *action, int number, siginfo_t *info, void *context);
/// Sends the calling thread a signal again, from the same sender. It is delivered when the thread no longer blocks it.
void cfiber_send_again(int number, siginfo_t *info);
#endif
