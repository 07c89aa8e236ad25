// Signals as bytes: each subscriber has a socket from which it reads the numbers of the signals that it asked for.
#ifndef CFIBER_SIGNALS_H
#define CFIBER_SIGNALS_H
#include <stdint.h>

/// Subscribes to the signals whose bits are set (bit n - 1 for signal n). Returns a subscriber and, in `fd`, a non-blocking socket to read bytes from, which
/// the caller closes; or a negative errno. Any thread.
int cfiber_signals_subscribe(uint64_t mask, int *fd);
/// Ends a subscription. With a signal's last one its earlier disposition comes back. Any thread.
void cfiber_signals_unsubscribe(int subscriber);
/// Whether there is any subscriber. Any thread.
int cfiber_signals_are_used(void);
#endif
