// SPDX-License-Identifier: Apache-2.0

// Which pair of functions switches fibers in this build: FIBER_CONTEXT_IS_BOOST is 1 for Boost's, 0 for the assembly of this project. For C and assembly.
//
// FIBER_BOOST_CONTEXT asks for Boost's (the trait BoostContext). From 1.61 to 1.86 its library exports `jump_fcontext` and `make_fcontext` as they are called here. From 1.87
// on (December 2024) they are hidden in the library, which exports C++ functions that call them. Going by such a function would cost the frame that our switch avoids, and a
// prediction of the CPU with it. So with a newer Boost the assembly is used; with an older one, too.
#ifndef FIBER_CONTEXT_BACKEND_H
#define FIBER_CONTEXT_BACKEND_H

#if FIBER_BOOST_CONTEXT
#if !__has_include(<boost/version.hpp>)
#error "The trait BoostContext needs Boost.Context, whose headers are not found: install libboost-context-dev, or depend on swift-fibers with `traits: []`."
#endif
#include <boost/version.hpp>
#endif

#if FIBER_BOOST_CONTEXT && BOOST_VERSION >= 106100 && BOOST_VERSION < 108700
#define FIBER_CONTEXT_IS_BOOST 1
#else
#define FIBER_CONTEXT_IS_BOOST 0
#endif

#endif
