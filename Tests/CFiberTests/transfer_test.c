// SPDX-License-Identifier: Apache-2.0

// The two system calls that are made without libc, on whatever machine this is compiled for: what they return, and that they raise no signal.
#define _GNU_SOURCE
#include "cfiber_system.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int failures;

static void check(const char *name, ssize_t result, ssize_t expected) {
  if (result == expected) return;
  printf("not ok %s: %zd and not %zd\n", name, result, expected);
  failures++;
}

int main(void) {
  int pair[2];
  char text[16] = {0};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) != 0) return 1;
  check("recv of nothing", cfiber_recv(pair[0], text, sizeof text), -EAGAIN);
  check("send", cfiber_send(pair[1], "hello", 5), 5);
  check("recv", cfiber_recv(pair[0], text, sizeof text), 5);
  check("text", strcmp(text, "hello"), 0);
  close(pair[0]);
  check("send to nobody", cfiber_send(pair[1], "x", 1), -EPIPE);
  check("recv from a number that is not open", cfiber_recv(pair[0], text, sizeof text), -EBADF);
  uint64_t before = cfiber_counter();
  usleep(20000);
  check("20 ms are more than half of one", cfiber_counter() - before > cfiber_counter_interval(), 1);
  return failures != 0;
}
