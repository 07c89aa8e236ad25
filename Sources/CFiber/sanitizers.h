// SPDX-License-Identifier: Apache-2.0

// The sanitizer of this build, and the few of its functions that a switch must call.
#ifndef CFIBER_SANITIZERS_H
#define CFIBER_SANITIZERS_H
#include <stddef.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CFIBER_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define CFIBER_TSAN 1
#endif
#endif

#if CFIBER_ASAN
void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *fake_stack, const void **old_bottom, size_t *old_size);
void __asan_unpoison_memory_region(void const volatile *, size_t);
void __lsan_register_root_region(const void *, size_t);
void __lsan_unregister_root_region(const void *, size_t);
#endif
#if CFIBER_TSAN
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
#endif

// The switch itself must not be instrumented: it enters on one stack and leaves on another.
#define CFIBER_NO_SANITIZE __attribute__((no_sanitize("address", "thread"), disable_sanitizer_instrumentation))
#endif
