// SPDX-License-Identifier: Apache-2.0

// Files, pipes, terminals and child processes: system calls that return a negative errno. The functions that may block say so; they are for
// threads other than workers.
#ifndef CFIBER_FILES_H
#define CFIBER_FILES_H
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// Descriptors.

/// Opens /dev/null for each of the descriptors 0 to 2 that is closed; does so only once per process, after success. 0 or a negative errno.
/// Any thread.
int cfiber_fill_standard_streams(void);

/// The kind of a descriptor, which decides how to wait for it.
enum {
  CFIBER_KIND_FILE = 0,    // epoll refuses it, and its calls wait for no peer: regular files, directories, /dev/null
  CFIBER_KIND_FIFO = 1,    // pipes, named or not
  CFIBER_KIND_SOCKET = 2,
  CFIBER_KIND_OTHER = 3,   // anything else that epoll accepts: terminals, eventfds
};
/// Returns the kind of a descriptor. Any thread; may wait for a file system.
int cfiber_kind(int fd);
/// 1 for regular files, directories and block devices: the objects that processes lock and that a file system stands behind. 0 for anything
/// else.
int cfiber_is_on_disk(int fd);
/// Returns the kind of the object that a path names; it distinguishes only FIFOs and sockets from files. May block.
int cfiber_path_kind(const char *path);
/// Opens without waiting for a peer, close-on-exec, and without making a terminal the controlling one. Stores the kind in `kind`. May
/// block, also for the holder of a lease on the file.
int cfiber_open(const char *path, int flags, mode_t permissions, int *kind);
/// Distinguishes a file from all others, including a later one that has the same inode number.
typedef struct cfiber_file_identity {
  uint64_t device, inode;
  int64_t born_seconds;       // time of creation; 0 where the file system does not record it
  uint32_t born_nanoseconds;
} cfiber_file_identity;
/// Identifies the file that a path names; a symbolic link is not followed. May block.
int cfiber_identify(const char *path, cfiber_file_identity *identity);
/// 1 if the path names that file, else 0. May block.
int cfiber_names(const char *path, const cfiber_file_identity *identity);
/// Removes the path if it names that file. A file that takes the path at the same time stays there, but may be missing for some
/// microseconds. May block.
void cfiber_remove_file(const char *path, const cfiber_file_identity *identity);
/// The status flags of the open file, which all descriptors of it share.
int cfiber_flags(int fd);
int cfiber_set_flags(int fd, int flags);
/// Opens the file of a blocking descriptor again, so that only the new descriptor becomes non-blocking. Returns an error where the system
/// refuses that or would open another object. May block.
int cfiber_reopen(int fd, int kind);
/// Whether two descriptors share an open file. Where the system does not tell, 1 if they may: if both refer to the same object.
int cfiber_may_share(int fd, int other);
/// Creates a second descriptor, close-on-exec, as a program expects it: for a non-blocking pipe, one that blocks.
int cfiber_duplicate_for_child(int fd);
/// Creates the two ends of a pipe, close-on-exec; non-blocking on request.
int cfiber_pipe(int *reader, int *writer, int nonblocking_reader, int nonblocking_writer);

// Bytes. On a non-blocking descriptor, and on any socket, the calls do not wait.

ssize_t cfiber_read(int fd, void *buffer, size_t size, int kind);
/// Never raises SIGPIPE.
ssize_t cfiber_write(int fd, const void *buffer, size_t size, int kind);
/// Reads at an offset, or at the descriptor's position if the offset is negative. May block.
ssize_t cfiber_read_at(int fd, void *buffer, size_t size, int64_t offset);
ssize_t cfiber_write_at(int fd, const void *buffer, size_t size, int64_t offset);
/// Sends from a file to a socket. May block on the file, but not on a non-blocking socket. Never raises SIGPIPE. Files that Linux cannot
/// send directly (files of /proc) are copied. 0 at the end of the file.
ssize_t cfiber_send_file(int socket, int file, int64_t offset, size_t size);
int64_t cfiber_seek(int fd, int64_t offset, int whence);
/// May block, like the rest of this section.
int64_t cfiber_file_size(int fd);
int cfiber_truncate(int fd, int64_t size);
int cfiber_sync(int fd, int data_only);
/// Whether the system could provide this many bytes of memory now: 1 or 0. The memory is not kept.
int cfiber_has_memory(size_t size);

// Child processes.

/// The sources of a child's standard streams, besides descriptors.
enum { CFIBER_STREAM_INHERIT = -1, CFIBER_STREAM_NULL = -2, CFIBER_STREAM_AS_OUTPUT = -3 };
typedef struct cfiber_command {
  const char *program;       // searched for in PATH unless it contains a slash
  char *const *arguments;    // NULL at the end, the program's name first
  char *const *environment;  // NULL at the end; NULL: this process's own
  const char *directory;     // NULL: this process's own
  int streams[3];
} cfiber_command;
/// Starts a program with its three standard streams and no other descriptor, no signal blocked and none ignored. Returns its process id and
/// a descriptor of the process. The descriptor is -1 if the child has already been reaped: see `cfiber_child_status`. Blocks until the
/// program has been loaded.
int cfiber_spawn(const cfiber_command *command, int *process);
/// Whether a child has ended; if so, it is reaped. Returns 1 with its exit code, 2 with the signal that ended it, 3 if its status is
/// unknown, 0 while it runs. The kernel drops the status of a child if the process ignores SIGCHLD or another part of it has waited for the
/// child. Linux 6.15 and later still report the status through the child's descriptor.
int cfiber_child_status(int process, int *value);
int cfiber_child_signal(int process, int signal);
/// Kills a child and waits for its end. Blocks, but only until the killed process has ended.
void cfiber_child_discard(int process);
/// Kills a child and leaves the wait to a thread of its own. Takes ownership of the descriptor.
void cfiber_child_abandon(int process);
#endif
