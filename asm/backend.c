// SPDX-License-Identifier: Apache-2.0

#include "fiber_context.h"

// A message and no warning: nothing is wrong, but who has asked for Boost shall know.
#if FIBER_BOOST_CONTEXT && !FIBER_CONTEXT_IS_BOOST
#pragma message("Only Boost 1.61 to 1.86 can be called: fibers are switched by the assembly of swift-fibers. Depend on it with `traits: []` to need no Boost at all.")
#endif

const char *fiber_context_backend(void) {
#if FIBER_CONTEXT_IS_BOOST
  return "boost";
#else
  return "assembly";
#endif
}
