// SPDX-License-Identifier: Apache-2.0

// Identifies the file that a path names, and removes the path if it names a certain file.
#define _GNU_SOURCE
#include "cfiber_files.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

int cfiber_identify(const char *path, cfiber_file_identity *identity) {
  struct statx info;
  if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &info) == 0) {
    int is_born = (info.stx_mask & STATX_BTIME) != 0;
    *identity = (cfiber_file_identity){
        .device = makedev(info.stx_dev_major, info.stx_dev_minor), .inode = info.stx_ino,
        .born_seconds = is_born ? info.stx_btime.tv_sec : 0, .born_nanoseconds = is_born ? info.stx_btime.tv_nsec : 0};
    return 0;
  }
  // A sandbox may not support the call.
  if (errno != ENOSYS && errno != EPERM) return -errno;
  struct stat plain;
  if (lstat(path, &plain) != 0) return -errno;
  *identity = (cfiber_file_identity){.device = plain.st_dev, .inode = plain.st_ino};
  return 0;
}

int cfiber_names(const char *path, const cfiber_file_identity *identity) {
  cfiber_file_identity found;
  return cfiber_identify(path, &found) == 0 && found.device == identity->device && found.inode == identity->inode &&
         found.born_seconds == identity->born_seconds && found.born_nanoseconds == identity->born_nanoseconds;
}

void cfiber_remove_file(const char *path, const cfiber_file_identity *identity) {
  if (!cfiber_names(path, identity)) return;
  // Another file may take the path between this check and a removal, and a removal cannot be undone. So the file is renamed to a name that
  // no other program uses and is checked again. If it is the wrong file, it is renamed back.
  char aside[PATH_MAX];
  int length = snprintf(aside, sizeof aside, "%s.closing-%" PRIx64, path, identity->inode);
  if (length < 0 || (size_t)length >= sizeof aside || renameat2(AT_FDCWD, path, AT_FDCWD, aside, RENAME_NOREPLACE) != 0) {
    // ENOENT: the path is gone. Otherwise the file system, or a sandbox, does not support this, and the small risk is accepted.
    if (errno != ENOENT) unlink(path);
    return;
  }
  if (cfiber_names(aside, identity)) {
    unlink(aside);
  } else if (renameat2(AT_FDCWD, aside, AT_FDCWD, path, RENAME_NOREPLACE) != 0) {
    // A third file has meanwhile taken the path, and so would have replaced the second one as well.
    unlink(aside);
  }
}
