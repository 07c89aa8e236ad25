// SPDX-License-Identifier: Apache-2.0

// Floor 0: the parts that Swift cannot express. The switch with its annotations, stack memory, per-thread state, and system calls that
// return -errno.
#ifndef CFIBER_H
#define CFIBER_H
#include "cfiber_context.h"
#include "cfiber_files.h"
#include "cfiber_names.h"
#include "cfiber_overflow.h"
#include "cfiber_signals.h"
#include "cfiber_stack.h"
#include "cfiber_system.h"
#include "cfiber_thread.h"
#endif
