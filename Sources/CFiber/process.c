// SPDX-License-Identifier: Apache-2.0

// Invariants:
//   * a child is identified by its descriptor from the moment at which `cfiber_spawn` returns, and nothing else waits for it. So the
//     descriptor names that child, running or ended, even if its process id is reused;
//   * the caller that reaps a child gets its status; an abandoned child is killed and reaped here;
//   * where the process ignores SIGCHLD the kernel reaps the child, and a wait ends with ECHILD once the child has ended, never before.
#define _GNU_SOURCE
#include "cfiber_files.h"
#include "cfiber_thread.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

// glibc has wrappers from 2.36 on.
static int open_process(pid_t pid) {
  int fd = (int)syscall(SYS_pidfd_open, pid, 0);  // always close-on-exec
  return fd < 0 ? -errno : fd;
}

static int wait_for(int process, siginfo_t *info, int options) {
  int status;
  do {
    info->si_pid = 0;
    status = waitid((idtype_t)3 /* P_PIDFD */, (id_t)process, info, WEXITED | options);
  } while (status != 0 && errno == EINTR);
  return status == 0 ? 0 : -errno;
}

// Adds the actions that the child performs before it executes the program. `copies` are descriptors beyond the three, so that no stream is
// overwritten before it has been passed on.
static int add_actions(posix_spawn_file_actions_t *actions, const cfiber_command *command, int copies[3]) {
  int error = 0;
  for (int i = 0; i < 3 && !error; i++) {
    switch (command->streams[i]) {
    case CFIBER_STREAM_INHERIT: break;
    case CFIBER_STREAM_NULL: error = posix_spawn_file_actions_addopen(actions, i, "/dev/null", O_RDWR, 0); break;
    case CFIBER_STREAM_AS_OUTPUT: error = posix_spawn_file_actions_adddup2(actions, 1, i); break;
    default:
      copies[i] = fcntl(command->streams[i], F_DUPFD_CLOEXEC, 3);
      error = copies[i] < 0 ? errno : posix_spawn_file_actions_adddup2(actions, copies[i], i);
    }
  }
  // Also closes descriptors that were opened without close-on-exec.
  if (!error) error = posix_spawn_file_actions_addclosefrom_np(actions, 3);
  if (!error && command->directory) error = posix_spawn_file_actions_addchdir_np(actions, command->directory);
  return error;
}

int cfiber_spawn(const cfiber_command *command, int *process) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  int error = posix_spawn_file_actions_init(&actions);
  if (error) return -error;
  error = posix_spawnattr_init(&attributes);
  if (error) {
    posix_spawn_file_actions_destroy(&actions);
    return -error;
  }
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  int copies[3] = {-1, -1, -1};
  pid_t pid = -1;
  error = add_actions(&actions, command, copies);
  if (!error) {
    char *const *environment = command->environment ? command->environment : environ;
    error = strchr(command->program, '/')
                ? posix_spawn(&pid, command->program, &actions, &attributes, command->arguments, environment)
                : posix_spawnp(&pid, command->program, &actions, &attributes, command->arguments, environment);
  }
  for (int i = 0; i < 3; i++)
    if (copies[i] >= 0) close(copies[i]);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error) return -error;
  int opened = open_process(pid);
  siginfo_t info;
  int value;
  // A child that the kernel has reaped may have released its process id to an unrelated process by now. That process must not be waited for
  // here, and its end cannot be observed.
  if (opened >= 0 && wait_for(opened, &info, WNOHANG | WNOWAIT) == -ECHILD && cfiber_child_status(opened, &value) == 3) {
    close(opened);
    opened = -ESRCH;
  }
  *process = opened == -ESRCH ? -1 : opened;
  if (opened >= 0 || opened == -ESRCH) return pid;
  // The child is ours and not reaped, so it still has its process id.
  if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0) kill(pid, SIGKILL);
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {}
  return opened;
}

// Finds the wait status of a process that has been reaped. Returns 0 where the kernel does not report it (before Linux 6.15).
static int find_status(int process, int *status) {
  // struct pidfd_info in its first version; the C library's headers may be older.
  struct {
    uint64_t mask, cgroup;
    uint32_t ids[11];
    int32_t status;
  } info = {.mask = 1 << 3 /* PIDFD_INFO_EXIT */};
  _Static_assert(sizeof info == 64, "the size is part of the request's number");
  if (ioctl(process, _IOWR(0xff, 11, info) /* PIDFD_GET_INFO */, &info) != 0 || !(info.mask & 1 << 3)) return 0;
  *status = info.status;
  return 1;
}

int cfiber_child_status(int process, int *value) {
  siginfo_t info;
  int status = wait_for(process, &info, WNOHANG);
  if (status == -ECHILD) {
    int ended;
    if (!find_status(process, &ended)) return 3;
    *value = WIFEXITED(ended) ? WEXITSTATUS(ended) : WTERMSIG(ended);
    return WIFEXITED(ended) ? 1 : 2;
  }
  if (status < 0) return status;
  if (info.si_pid == 0) return 0;
  *value = info.si_status;
  return info.si_code == CLD_EXITED ? 1 : 2;
}

int cfiber_child_signal(int process, int signal) {
  return syscall(SYS_pidfd_send_signal, process, signal, NULL, 0) == 0 ? 0 : -errno;
}

void cfiber_child_discard(int process) {
  siginfo_t info;
  cfiber_child_signal(process, SIGKILL);
  wait_for(process, &info, 0);
}

static void reap(void *process) {
  siginfo_t info;
  wait_for((int)(intptr_t)process, &info, 0);
  close((int)(intptr_t)process);
}

void cfiber_child_abandon(int process) {
  cfiber_child_signal(process, SIGKILL);
  int value;
  if (cfiber_child_status(process, &value) != 0) {
    close(process);
    return;
  }
  pthread_t thread;
  if (cfiber_start_thread(&thread, reap, (void *)(intptr_t)process) == 0) {
    pthread_detach(thread);
  } else {
    reap((void *)(intptr_t)process);  // a short wait is better than a zombie
  }
}
