// SPDX-License-Identifier: Apache-2.0

// Names of hosts and services, looked up by the system's resolver.
#ifndef CFIBER_NAMES_H
#define CFIBER_NAMES_H
#include <stddef.h>
#include <sys/socket.h>

/// Two results of getaddrinfo that are declared for GNU programs only: the name exists, but has no address, or none of the family.
enum { CFIBER_NAME_NODATA = -5, CFIBER_NAME_ADDRFAMILY = -9 };

/// Looks up a host, and a service unless that is NULL, for sockets of a type (SOCK_STREAM, SOCK_DGRAM). Blocks: for threads that no other
/// thread waits for.
///
/// Returns 0, and then `addresses` has `count` Internet addresses in the system's order, which the caller frees (`cfiber_free`). Otherwise
/// returns a status of getaddrinfo, with the error number in `error` if it is EAI_SYSTEM. If descriptors were short, it is EAI_SYSTEM with
/// EMFILE or ENFILE, whatever the system reports.
int cfiber_look_up(const char *host, const char *service, int type, struct sockaddr_storage **addresses, size_t *count, int *error);
/// The system's text for a status. Any thread.
const char *cfiber_look_up_text(int status);
#endif
