#include "fiber_context.h"

const char *fiber_context_backend(void) {
#if FIBER_BOOST_CONTEXT
  return "boost";
#else
  return "assembly";
#endif
}
