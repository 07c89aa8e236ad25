// SPDX-License-Identifier: Apache-2.0

// Files, pipes, terminals and child processes: system calls that return a negative errno. Which of them may block says so; those are for threads
// other than workers.
#ifndef CFIBER_FILES_H
#define CFIBER_FILES_H
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// Descriptors.

/// Opens /dev/null for each of the descriptors 0 to 2 that is closed; once per process, when it has succeeded. 0 or a negative errno. Any thread.
int cfiber_fill_standard_streams(void);

/// What a descriptor is, for deciding how to wait for it.
enum {
  CFIBER_KIND_FILE = 0,    // epoll refuses it, and it never waits for anybody: regular files, directories, /dev/null
  CFIBER_KIND_FIFO = 1,    // pipes, with a name or without
  CFIBER_KIND_SOCKET = 2,
  CFIBER_KIND_OTHER = 3,   // anything else that epoll takes: terminals, eventfds
};
/// One of the kinds. Any thread; may wait for a file system.
int cfiber_kind(int fd);
/// 1 for regular files, directories and block devices: what processes lock, and what has a file system in between. 0 for anything else.
int cfiber_is_on_disk(int fd);
/// What a path names: a kind, where only FIFOs and sockets are told from files. May block.
int cfiber_path_kind(const char *path);
/// Opens without waiting for a peer, close-on-exec, and without making a terminal the process's own. Says what it has opened. May block, also for
/// whoever has a lease on a file.
int cfiber_open(const char *path, int flags, mode_t permissions, int *kind);
/// What tells one file from another, also from a later one that has been given the same inode number.
typedef struct cfiber_file_identity {
  uint64_t device, inode;
  int64_t born_seconds;       // of its creation; 0 where the file system keeps no such time
  uint32_t born_nanoseconds;
} cfiber_file_identity;
/// Of what a path names; a symbolic link is not followed. May block.
int cfiber_identify(const char *path, cfiber_file_identity *identity);
/// 1 if a path names that file, else 0. May block.
int cfiber_names(const char *path, const cfiber_file_identity *identity);
/// Removes the path if it names that file. A file that takes the path at the same time stays there, but may be missing for some microseconds. May block.
void cfiber_remove_file(const char *path, const cfiber_file_identity *identity);
/// The flags of what is open, which all share that have it open.
int cfiber_flags(int fd);
int cfiber_set_flags(int fd, int flags);
/// Opens what is blocking once more, so that the new descriptor can be non-blocking alone. An error where the system refuses that or would open
/// something else. May block.
int cfiber_reopen(int fd, int kind);
/// Whether two descriptors share what is open. Where the system does not tell, 1 if they may: if both lead to the same thing.
int cfiber_may_share(int fd, int other);
/// A second descriptor, close-on-exec, as a program expects it: to a pipe that is non-blocking, one that blocks.
int cfiber_duplicate_for_child(int fd);
/// The two ends of a pipe, close-on-exec; non-blocking where asked for.
int cfiber_pipe(int *reader, int *writer, int nonblocking_reader, int nonblocking_writer);

// Bytes. The calls do not wait on a non-blocking descriptor, nor on a socket.

ssize_t cfiber_read(int fd, void *buffer, size_t size, int kind);
/// Never raises SIGPIPE.
ssize_t cfiber_write(int fd, const void *buffer, size_t size, int kind);
/// At an offset, or where the descriptor stands if that is negative. May block.
ssize_t cfiber_read_at(int fd, void *buffer, size_t size, int64_t offset);
ssize_t cfiber_write_at(int fd, const void *buffer, size_t size, int64_t offset);
/// From a file to a socket; may block on the file, and on a non-blocking socket not. Never raises SIGPIPE. What Linux cannot send directly (files of /proc) is copied. 0 at
/// the end of the file.
ssize_t cfiber_send_file(int socket, int file, int64_t offset, size_t size);
int64_t cfiber_seek(int fd, int64_t offset, int whence);
/// May block, as the rest of the section.
int64_t cfiber_file_size(int fd);
int cfiber_truncate(int fd, int64_t size);
int cfiber_sync(int fd, int data_only);
/// Whether the system would give so many bytes of memory now: 1 or 0. They are not taken.
int cfiber_has_memory(size_t size);

// Child processes.

/// Where a child's standard streams come from, besides descriptors.
enum { CFIBER_STREAM_INHERIT = -1, CFIBER_STREAM_NULL = -2, CFIBER_STREAM_AS_OUTPUT = -3 };
typedef struct cfiber_command {
  const char *program;       // searched for in PATH unless it has a slash
  char *const *arguments;    // NULL at the end, the program's name first
  char *const *environment;  // NULL at the end; NULL: this process's own
  const char *directory;     // NULL: this process's own
  int streams[3];
} cfiber_command;
/// Starts a program with its three standard streams and no other descriptor, no signal blocked and none ignored. Returns its id and a descriptor of
/// the process, which is -1 if nothing is left of the child already: see `cfiber_child_status`. Blocks until the program has been loaded.
int cfiber_spawn(const cfiber_command *command, int *process);
/// Whether a child has ended, and then nothing is left of it: 1 with its exit code, 2 with the signal that ended it, 3 if nobody knows how, 0 while it runs. The system
/// forgets how a child has ended if the process ignores SIGCHLD or something else in it has waited for the child, except that Linux 6.15 and later tell those who hold its descriptor.
int cfiber_child_status(int process, int *value);
int cfiber_child_signal(int process, int signal);
/// Kills a child and waits for its end. Blocks, but for as long as a killed process takes to end.
void cfiber_child_discard(int process);
/// Kills a child and leaves the waiting to a thread of its own. Takes the descriptor over.
void cfiber_child_abandon(int process);
#endif
