# SPDX-License-Identifier: Apache-2.0

# For gdb: `gdb -batch -x backtrace.py --args context_test data_crossesBothWays`. Steps through four jumps (into a new context, back,
# into it again, back) and asks for a backtrace at each instruction of ours. Prints as context_test.c does.
import os

import gdb

failures = {}
checked = {"maker": 0, "context": 0}


def frames():
    found, frame = [], gdb.newest_frame()
    while frame is not None and len(found) < 40:
        found.append(frame)
        frame = frame.older()
    return found


def check(test, allowed):
    """Returns the side on which the backtrace ends and notes what is wrong with it."""
    found = frames()
    names = [f.name() for f in found]
    text = gdb.execute("bt", to_string=True)
    side = "maker" if names[-1] == "main" else "context"
    checked[side] += 1
    why = None
    if "Backtrace stopped" in text or "??" in text or None in names:
        why = "gdb is lost"
    elif side == "context" and not names[-1].startswith("fiber_context_start_"):
        why = "ends at " + names[-1]
    elif side == "context" and found[-1].unwind_stop_reason() != gdb.FRAME_UNWIND_OUTERMOST:
        why = "gdb sees no reason to stop: " + gdb.frame_stop_reason_string(found[-1].unwind_stop_reason())
    elif allowed is not None and [n for n in names if n not in ("fiber_context_start_asm", "fiber_context_start_boost")] not in allowed:
        why = "unexpected frames"
    if why:
        failures.setdefault(test, "%s at %s:\n%s" % (why, gdb.execute("x/i $pc", to_string=True).strip(), "\n".join(text.splitlines()[:6])))
    return side


gdb.execute("set pagination off")
gdb.execute("set confirm off")
gdb.execute("set debuginfod enabled off")
gdb.execute("set print frame-arguments none")
# What gdb says at each stop would bury the results.
gdb.flush()
output = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
try:
    gdb.parse_and_eval("(long)&fiber_context_jump_boost")
    suffix = "boost"
except gdb.error:
    suffix = "asm"
jump = "fiber_context_jump_" + suffix
gdb.execute("tbreak main", to_string=True)
gdb.execute("run", to_string=True)
gdb.execute("break *&%s" % jump, to_string=True)

test_stack = ["data_crossesBothWays", "main"]
for passage in range(4):
    gdb.execute("continue", to_string=True)
    for _ in range(200):
        name = gdb.newest_frame().name()
        if name == jump or name == "fiber_context_start_" + suffix:
            head = [name] if name == jump else []
            check("bt_isRight_atEveryInstructionOfTheJump", [head + test_stack, head + ["answer"], head])
        elif name in ("answer", "data_crossesBothWays"):
            break
        gdb.execute("stepi", to_string=True)
    side = check("bt_endsAtTheStart_insideTheContext", [test_stack, ["answer"]])
    if side != ("context", "maker")[passage % 2]:
        failures.setdefault("bt_endsAtTheStart_insideTheContext", "jump %d arrived at the %s" % (passage, side))
gdb.execute("kill", to_string=True)
gdb.flush()
os.dup2(output, 1)

fewest = 4 if suffix == "boost" else 40
if min(checked.values()) < fewest:
    failures.setdefault("bt_isRight_atEveryInstructionOfTheJump", "only %s instructions seen" % checked)
tests = ["bt_isRight_atEveryInstructionOfTheJump", "bt_endsAtTheStart_insideTheContext"]
for test in tests:
    print("not ok %s: %s" % (test, failures[test]) if test in failures else "ok %s" % test)
print("%d passed, %d failed" % (len(tests) - len(failures), len(failures)))
