"""How the threads of a team share out a step's work, as LLVM text.

`share` runs a step in chunks, on whichever threads take them (`cnnc_take`); all are done when it
returns. Then, if a profile is asked for, `note` lets thread 0 add to the step's cycles those since
its last note: none if the counters of two processors that it ran on differ by more.
"""

from __future__ import annotations

from cnnc.ir.calling import STEP_LINE, Slot

# What a step's function takes; after them the number of the chunk, and of how many.
STEP = "ptr %context, i64 %tid, i64 %image, i64 %member, i64 %several"

SHARE_DECLARATIONS = (
    "declare i64 @cnnc_take(ptr, i64, i64, i64, i64)",
    "declare void @cnnc_done(ptr, i64)",
    "declare void @cnnc_wait(ptr, i64)",
    "declare i64 @llvm.readcyclecounter()",
    "declare i64 @llvm.umax.i64(i64, i64)",
)

_SHARE = """define internal void @share(ptr %step, i64 %number, i64 %chunks, i64 %round,
    i64 %image, i64 %member, i64 %several, i64 %tid, i64 %threads, ptr %context) #0 {{
entry:
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %all, label %shared
all:
  call void %step({arguments}, i64 0, i64 1)
  br label %done
shared:
  %lines = add i64 %threads, 1
  %step_bytes = mul i64 %lines, {line}
  %offset = mul i64 %step_bytes, %number
  %counters_at = getelementptr i64, ptr %context, i64 {counters}
  %counters = load ptr, ptr %counters_at
  %counter = getelementptr i8, ptr %counters, i64 %offset
  br label %pick
pick:
  %mine = phi i64 [ 0, %shared ], [ %more, %run ]
  %chunk = call i64 @cnnc_take(ptr %counter, i64 %tid, i64 %threads, i64 %round, i64 %chunks)
  %some = icmp sge i64 %chunk, 0
  br i1 %some, label %run, label %wait
run:
  call void %step({arguments}, i64 %chunk, i64 %chunks)
  %more = add i64 %mine, 1
  br label %pick
wait:
  call void @cnnc_done(ptr %counter, i64 %mine)
  %rounds = add i64 %round, 1
  %target = mul i64 %rounds, %chunks
  call void @cnnc_wait(ptr %counter, i64 %target)
  br label %done
done:
  call void @note(i64 %number, i64 %tid, ptr %context)
  ret void
}}

define internal void @note(i64 %number, i64 %tid, ptr %context) #0 {{
entry:
  %profile_at = getelementptr i64, ptr %context, i64 {profile}
  %profile = load ptr, ptr %profile_at
  %wanted = icmp ne ptr %profile, null
  %first = icmp eq i64 %tid, 0
  %both = and i1 %wanted, %first
  br i1 %both, label %add, label %done
add:
  %now = call i64 @llvm.readcyclecounter()
  %sum_at = getelementptr i64, ptr %profile, i64 %number
  %before_at = getelementptr i64, ptr %profile, i64 {last}
  %sum = load i64, ptr %sum_at
  %before = load i64, ptr %before_at
  %later = call i64 @llvm.umax.i64(i64 %now, i64 %before)
  %gone = sub i64 %later, %before
  %total = add i64 %sum, %gone
  store i64 %total, ptr %sum_at
  store i64 %now, ptr %before_at
  br label %done
done:
  ret void
}}
"""


def share_text(steps: int) -> str:
    """LLVM text that defines `share` and `note`, which call what `SHARE_DECLARATIONS` declare.

    Args:
        steps: how many the schedule has. Behind their cycles the profile has the last note's time.
    """
    return _SHARE.format(
        arguments=STEP,
        line=STEP_LINE,
        counters=Slot.COUNTERS,
        profile=Slot.PROFILE,
        last=steps,
    )
