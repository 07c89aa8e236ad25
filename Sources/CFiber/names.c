// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "cfiber_names.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Static_assert(CFIBER_NAME_NODATA == EAI_NODATA && CFIBER_NAME_ADDRFAMILY == EAI_ADDRFAMILY, "as netdb.h has them");

static int is_shortage(int error) { return error == EMFILE || error == ENFILE; }

/// Returns EMFILE or ENFILE where no descriptor is available, else 0.
static int shortage(void) {
  int fd = open("/", O_PATH | O_CLOEXEC);
  if (fd < 0) return is_shortage(errno) ? errno : 0;
  close(fd);
  return 0;
}

static int is_internet(const struct addrinfo *info) { return info->ai_family == AF_INET || info->ai_family == AF_INET6; }

int cfiber_look_up(const char *host, const char *service, int type, struct sockaddr_storage **addresses, size_t *count, int *error) {
  // Not AI_ADDRCONFIG: it removes ::1 from localhost if only the loopback interface has IPv6. Addresses without a route are sorted last in
  // any case (RFC 6724).
  struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = type};
  struct addrinfo *found = NULL;
  *addresses = NULL, *count = 0, *error = 0;
  errno = 0;
  int status = getaddrinfo(host, service, &hints, &found);
  if (status != 0) {
    int number = errno;
    // Without a descriptor for /etc/hosts or for a socket, glibc reports that the name does not exist, or that the server is slow.
    if (!is_shortage(number)) {
      int lack = shortage();
      if (lack != 0) number = lack;
    }
    if (is_shortage(number)) status = EAI_SYSTEM;
    if (status == EAI_SYSTEM) *error = number;
    return status;
  }
  size_t n = 0;
  for (struct addrinfo *info = found; info; info = info->ai_next) n += is_internet(info);
  struct sockaddr_storage *all = n == 0 ? NULL : calloc(n, sizeof *all);
  if (n != 0 && !all) {
    freeaddrinfo(found);
    return EAI_MEMORY;
  }
  for (struct addrinfo *info = found; info; info = info->ai_next) {
    if (is_internet(info)) memcpy(&all[(*count)++], info->ai_addr, info->ai_addrlen);
  }
  freeaddrinfo(found);
  *addresses = all;
  return 0;
}

const char *cfiber_look_up_text(int status) { return gai_strerror(status); }
