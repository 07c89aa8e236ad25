// SPDX-License-Identifier: Apache-2.0

// C++ exceptions inside a context: thrown and caught through 50 frames, with parks on the way down and on the way up. The unwinder has to
// pass frames that were suspended, and the destructors in them have to run. Prints as context_test.c does.
#include <cstdio>
#include <cstring>
#include <stdexcept>

extern "C" {
#include "fiber_context.h"
}

namespace {

constexpr int depth = 50;
int destroyed;
fiber_transfer maker;

void park() { maker = fiber_context_jump(maker.context, nullptr); }

struct Witness {
  bool parks;
  ~Witness() {
    destroyed++;
    if (parks) park();
  }
};

__attribute__((noinline)) int descend(int level, bool parks) {
  Witness witness{parks && level % 10 == 0};
  if (parks && level % 7 == 0) park();
  if (level == 0) throw std::runtime_error("the bottom");
  return descend(level - 1, parks) + 1;
}

const char *outcome;

void entry(fiber_transfer t) {
  maker = t;
  for (;;) {
    bool parks = maker.data != nullptr;
    outcome = "not caught";
    destroyed = 0;
    try {
      descend(depth - 1, parks);
      outcome = "not thrown";
    } catch (const std::runtime_error &error) {
      outcome = std::strcmp(error.what(), "the bottom") ? "another exception" : destroyed == depth ? nullptr : "destructors left out";
    }
    maker = fiber_context_jump(maker.context, &maker);
  }
}

alignas(16) char stack[65536];
int passed, failed;

void run(const char *name, bool parks) {
  static void *context = fiber_context_make(stack + sizeof stack, sizeof stack, entry);
  static int anything;
  bool finished = false;
  while (!finished) {
    fiber_transfer t = fiber_context_jump(context, parks ? &anything : nullptr);
    context = t.context;
    finished = t.data != nullptr;
  }
  if (outcome) {
    std::printf("not ok %s: %s\n", name, outcome);
    failed++;
  } else {
    std::printf("ok %s\n", name);
    passed++;
  }
}

}  // namespace

int main() {
  run("exception_isCaught_fiftyFramesUp", false);
  run("exception_isCaught_throughFramesThatParked", true);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
