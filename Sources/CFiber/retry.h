// SPDX-License-Identifier: Apache-2.0

// Repeats a call that a signal interrupted before it did anything. For the body of a function that returns its result or -errno.
#ifndef CFIBER_RETRY_H
#define CFIBER_RETRY_H
#include <errno.h>

#define RETRY(type, call)                          \
  type result;                                     \
  do result = (call);                              \
  while (result < 0 && errno == EINTR);            \
  return result < 0 ? -errno : result
#endif
