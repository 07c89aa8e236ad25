// SPDX-License-Identifier: Apache-2.0

// Describes a descriptor in words, for messages that stop the program.
#define _GNU_SOURCE
#include "cfiber_system.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

// "127.0.0.1:80", "[::1]:80", "unix:/run/x"; empty for a socket without an address.
static void describe_address(const struct sockaddr_storage *address, socklen_t length, char *text, size_t size) {
  char host[INET6_ADDRSTRLEN] = "";
  text[0] = 0;
  if (address->ss_family == AF_INET) {
    const struct sockaddr_in *in = (const struct sockaddr_in *)address;
    inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
    snprintf(text, size, "%s:%d", host, ntohs(in->sin_port));
  } else if (address->ss_family == AF_INET6) {
    const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)address;
    inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host);
    snprintf(text, size, "[%s]:%d", host, ntohs(in->sin6_port));
  } else if (address->ss_family == AF_UNIX && length > offsetof(struct sockaddr_un, sun_path)) {
    const struct sockaddr_un *un = (const struct sockaddr_un *)address;
    size_t path = length - offsetof(struct sockaddr_un, sun_path);
    // A path in the file system ends with NUL; an abstract one begins with it.
    int is_abstract = un->sun_path[0] == 0;
    snprintf(text, size, "unix:%s%.*s", is_abstract ? "@" : "", (int)(path - is_abstract), un->sun_path + is_abstract);
  }
}

void cfiber_describe(int fd, char *text, size_t size) {
  char local[160] = "", peer[160] = "", path[64], target[160];
  struct sockaddr_storage address;
  socklen_t length = sizeof address;
  if (getsockname(fd, (struct sockaddr *)&address, &length) == 0) {
    describe_address(&address, length, local, sizeof local);
    length = sizeof address;
    if (getpeername(fd, (struct sockaddr *)&address, &length) == 0) describe_address(&address, length, peer, sizeof peer);
    snprintf(text, size, "socket %d%s%s%s%s%s", fd, local[0] || peer[0] ? " (" : "", local, peer[0] ? (local[0] ? ", peer " : "peer ") : "", peer,
             local[0] || peer[0] ? ")" : "");
    return;
  }
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(path, target, sizeof target - 1);
  target[n > 0 ? n : 0] = 0;
  snprintf(text, size, n > 0 ? "descriptor %d (%s)" : "descriptor %d", fd, target);
}
