// SPDX-License-Identifier: Apache-2.0

// Signals as what is pending for each subscriber, in the order of arrival, and a descriptor that says when something is.
#ifndef CFIBER_SIGNALS_H
#define CFIBER_SIGNALS_H
#include <stdint.h>

/// Subscribes to the signals whose bits are set (bit n - 1 for signal n). Returns a subscriber, which is never the same as another before or after it, or a
/// negative errno. `fd` is an eventfd, which the caller owns; it is written to when a signal comes and none was pending. `owner` is for `cfiber_signals_end`.
/// Any thread.
int64_t cfiber_signals_subscribe(uint64_t mask, const void *owner, int *fd);
/// Takes the pending signal that came first: its number, or 0 when none is pending. One thread at a time, and not after the subscription has ended.
///
/// To wait: take; when there is none, drain `fd`, take again, and only then wait until `fd` is readable.
int cfiber_signals_take(int64_t subscriber);
/// Ends a subscription, unless it has ended already. With a signal's last one its earlier disposition comes back, if ours is still there. Any thread.
void cfiber_signals_unsubscribe(int64_t subscriber);
/// Ends all subscriptions of an owner. Any thread.
void cfiber_signals_end(const void *owner);
/// Whether there is any subscriber. Any thread.
int cfiber_signals_are_used(void);
#endif
