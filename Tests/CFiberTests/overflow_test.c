// SPDX-License-Identifier: Apache-2.0

// A stack that runs out inside the switch: the overflow handler must name the fiber that ran out, whichever push it is that does not fit.
//
// Each case is a child process: a fiber whose stack pointer stands so many bytes above its guard switches to another one. Either there is room for the switch, or the child
// ends by SIGSEGV after the handler's message about the fiber that left. The amounts of room cover all of the switch, and more; the fiber leaves outside any Swift access, or
// as if it were inside one, which takes a frame more.
#define _GNU_SOURCE
#include "cfiber_context.h"
#include "cfiber_overflow.h"
#include "exclusivity.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { GUARD = 64 * 1024, USABLE = 64 * 1024, MOST_ROOM = 1024, SWITCHED = 42 };

// What libswiftCore would do: this program has no accesses in progress.
static void *no_accesses;
void *cfiber_unknown_access_list = &cfiber_unknown_access_list;
void **cfiber_find_access_list(void) { return &no_accesses; }
void swift_task_exitThreadLocalContext(char *state) { (void)state; }
void swift_task_enterThreadLocalContext(char *state) { (void)state; }

static cfiber_record root, leaving, entered;
static size_t room;
static int with_accesses;

// Calls `cfiber_switch(to)` with the stack pointer at `sp`, and never returns.
static void switch_at(char *sp, cfiber_record *to) {
#if defined(__x86_64__)
  __asm__ volatile("movq %0, %%rsp\n\tcall *%1\n\tud2" : : "r"(sp), "r"(cfiber_switch), "D"(to) : "memory");
#else
  register cfiber_record *x0 __asm__("x0") = to;
  __asm__ volatile("mov sp, %0\n\tblr %1\n\tbrk #1" : : "r"(sp), "r"(cfiber_switch), "r"(x0) : "memory");
#endif
  __builtin_unreachable();
}

static cfiber_record *leave(cfiber_record *self) {
  switch_at(self->stack_low + room, &entered);
  return NULL;
}

static cfiber_record *end(cfiber_record *self) {
  (void)self;
  _exit(SWITCHED);
}

static void make(cfiber_record *context, uint64_t id, const char *name, cfiber_record *(*run)(cfiber_record *)) {
  char *memory = mmap(NULL, GUARD + USABLE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, GUARD, PROT_NONE) != 0) abort();
  context->stack_low = memory + GUARD;
  context->stack_size = USABLE;
  context->guard_size = GUARD;
  context->life = id << CFIBER_HOLDER_SHIFT;
  cfiber_set_name(context, name, strlen(name));
  cfiber_prepare(context, run);
}

static void run_child(int output) {
  // The crash is meant.
  struct rlimit none = {0, 0};
  setrlimit(RLIMIT_CORE, &none);
  dup2(output, STDERR_FILENO);
  void *state;
  if (cfiber_overflow_enter(&state) != 0) abort();
  cfiber_thread_enter(&root, NULL);
  if (with_accesses) cfiber_distrust_access_list();
  make(&leaving, 7, "leaving", leave);
  make(&entered, 8, "entered", end);
  cfiber_switch(&leaving);
}

// Tries each amount of room and returns how many things were wrong.
static int run(const char *name) {
  int switched = 0, overflowed = 0, wrong = 0;
  for (room = 0; room <= MOST_ROOM; room += 16) {
    int ends[2];
    if (pipe(ends) != 0) abort();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
      run_child(ends[1]);
      _exit(1);
    }
    close(ends[1]);
    char text[2048];
    size_t length = 0;
    ssize_t n;
    while ((n = read(ends[0], text + length, sizeof text - 1 - length)) > 0) length += (size_t)n;
    text[length] = 0;
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == SWITCHED) {
      switched++;
    } else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV &&
               strstr(text, "fiber stack overflow: fiber #7 \"leaving\" used up its stack of 64 KiB")) {
      overflowed++;
    } else {
      printf("%zu bytes of room: status %#x, and \"%s\"\n", room, (unsigned)status, text);
      wrong++;
    }
  }
  // Both must happen, or the switch lies outside what was tried.
  if (switched == 0 || overflowed == 0) {
    printf("%d children switched and %d overflowed\n", switched, overflowed);
    wrong++;
  }
  printf("%s %s\n", wrong ? "not ok" : "ok", name);
  return wrong;
}

int main(void) {
  int failed = run("overflow_namesTheFiberThatLeaves_whenTheSwitchDoesNotFit") != 0;
  with_accesses = 1;
  failed += run("overflow_namesTheFiberThatLeaves_whenTheSwitchWithAccessesDoesNotFit") != 0;
  printf("%d passed, %d failed\n", 2 - failed, failed);
  return failed != 0;
}
