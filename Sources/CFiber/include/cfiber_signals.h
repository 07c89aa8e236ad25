// SPDX-License-Identifier: Apache-2.0

// Signals, as a set of pending ones for each subscriber, in the order of arrival, and a descriptor that reports when one is pending.
#ifndef CFIBER_SIGNALS_H
#define CFIBER_SIGNALS_H
#include <stdint.h>

/// Subscribes to the signals whose bits are set (bit n - 1 for signal n). Returns a subscriber id, which is never reused, or a negative
/// errno. `fd` is an eventfd, which the caller owns; it is written to when a signal arrives and none was pending. `owner` is for
/// `cfiber_signals_end`. Any thread.
int64_t cfiber_signals_subscribe(uint64_t mask, const void *owner, int *fd);
/// Takes the pending signal that arrived first: its number, or 0 when none is pending. One thread at a time, and not after the subscription
/// has ended.
///
/// To wait: take; if nothing is pending, drain `fd`, take again, and only then wait until `fd` is readable.
int cfiber_signals_take(int64_t subscriber);
/// Ends a subscription, unless it has already ended. The end of a signal's last subscription restores the earlier disposition, if our
/// handler is still installed. Any thread.
void cfiber_signals_unsubscribe(int64_t subscriber);
/// Ends all subscriptions of an owner. Any thread.
void cfiber_signals_end(const void *owner);
/// Whether there is any subscriber. Any thread.
int cfiber_signals_are_used(void);
#endif
