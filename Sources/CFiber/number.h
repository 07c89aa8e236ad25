// SPDX-License-Identifier: Apache-2.0

// Parses numbers in files of the kernel. It avoids strtol and scanf: compiled against a newer glibc, they become functions that an older
// one lacks.
#ifndef CFIBER_NUMBER_H
#define CFIBER_NUMBER_H
#include <limits.h>

/// Reads a decimal number after blanks, and advances `text` past it; a number that is too large becomes `LONG_MAX`. If there is no number,
/// returns false and changes nothing.
static inline int parse_number(const char **text, long *value) {
  const char *at = *text;
  while (*at == ' ' || *at == '\t') at++;
  int is_negative = *at == '-';
  if (is_negative) at++;
  if (*at < '0' || *at > '9') return 0;
  long number = 0;
  for (; *at >= '0' && *at <= '9'; at++)
    if (__builtin_mul_overflow(number, 10, &number) || __builtin_add_overflow(number, *at - '0', &number)) number = LONG_MAX;
  *value = is_negative ? -number : number;
  *text = at;
  return 1;
}
#endif
