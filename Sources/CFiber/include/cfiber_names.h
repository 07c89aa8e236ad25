// SPDX-License-Identifier: Apache-2.0

// Names of hosts and services, by the system's resolver.
#ifndef CFIBER_NAMES_H
#define CFIBER_NAMES_H
#include <stddef.h>
#include <sys/socket.h>

/// Two of getaddrinfo's answers that are declared for GNU programs alone: the name is there, and has no address, or none of the family.
enum { CFIBER_NAME_NODATA = -5, CFIBER_NAME_ADDRFAMILY = -9 };

/// Looks up a host, and a service unless that is NULL, for sockets of a type (SOCK_STREAM, SOCK_DGRAM). Blocks: for threads that nobody waits for.
///
/// 0, and then `addresses` has `count` Internet addresses in the system's order, which the caller frees (`cfiber_free`); else a status of getaddrinfo, with the error number
/// in `error` where it is EAI_SYSTEM. Where descriptors were short it is EAI_SYSTEM with EMFILE or ENFILE, whatever the system says.
int cfiber_look_up(const char *host, const char *service, int type, struct sockaddr_storage **addresses, size_t *count, int *error);
/// The system's words for a status. Any thread.
const char *cfiber_look_up_text(int status);
#endif
