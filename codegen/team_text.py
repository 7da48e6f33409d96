"""The thread team and how it shares work, as LLVM text; `cnnc.codegen.team` runs it."""

from __future__ import annotations

from cnnc.codegen.gate_text import gate_text
from cnnc.ir.calling import STEP_LINE

# Architecture -> declaration and call of the instruction that tells the core of a spin.
_PAUSE = {
    "x86_64": (
        "declare void @llvm.x86.sse2.pause()",
        "call void @llvm.x86.sse2.pause()",
    ),
    "aarch64": (
        "declare void @llvm.aarch64.hint(i32)",
        "call void @llvm.aarch64.hint(i32 1)",
    ),
}
_PAUSE["arm64"] = _PAUSE["aarch64"]

# Byte offsets in a team: a gate that opens for each run, how many threads are in it, what they run,
# and the workers. What different threads write stays at least 128 bytes apart, because processors
# fetch lines of 64 in pairs.
_START, _INSIDE, _JOB, _WORKERS = 0, 256, 384, 512
_CLOSED = -(1 << 62)
_WORKER_BYTES = 24  # team, number, thread handle

_LAYOUT = f"""
%cnnc_worker = type {{ ptr, i64, ptr }}
%cnnc_job = type {{ ptr, ptr, i64, i64, i32 }} ; function, context, threads, spin_ns, stop

declare ptr @aligned_alloc(i64, i64)
declare void @free(ptr)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(ptr, ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @sigfillset(ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define internal ptr @cnnc_job_of(ptr %team) alwaysinline {{
  %job = getelementptr i8, ptr %team, i64 {_JOB}
  ret ptr %job
}}

define internal ptr @cnnc_worker_of(ptr %team, i64 %tid) alwaysinline {{
  %first = getelementptr i8, ptr %team, i64 {_WORKERS}
  %worker = getelementptr %cnnc_worker, ptr %first, i64 %tid
  ret ptr %worker
}}
"""

# Work is shared out in rounds: a step's memory is one line for the chunks that are done and one for
# each thread's share of the chunks. All numbers only ever grow: in round r a share of n chunks is
# taken while its counter is below (r + 1) * n, and a step is over when (r + 1) * chunks are done. A
# thread that comes late finds nothing to take and goes on; nobody waits for it.
_SHARES = f"""
declare i32 @sched_yield()

define i64 @cnnc_take(ptr %step, i64 %tid, i64 %threads, i64 %round, i64 %chunks) {{
entry:
  %least = sub i64 %threads, 1
  br label %share
share:
  %k = phi i64 [ 0, %entry ], [ %next, %empty ]
  %turn = add i64 %tid, %k
  %whose = urem i64 %turn, %threads
  %low = mul i64 %whose, %chunks
  %low_up = add i64 %low, %least
  %first = udiv i64 %low_up, %threads
  %high_up = add i64 %low_up, %chunks
  %end = udiv i64 %high_up, %threads
  %count = sub i64 %end, %first
  %base = mul i64 %round, %count
  %limit = add i64 %base, %count
  %line = add i64 %whose, 1
  %offset = mul i64 %line, {STEP_LINE}
  %counter = getelementptr i8, ptr %step, i64 %offset
  %seen = load atomic i64, ptr %counter monotonic, align 8
  br label %look
look:
  %value = phi i64 [ %seen, %share ], [ %other, %try ]
  %some = icmp slt i64 %value, %limit
  br i1 %some, label %try, label %empty
try:
  %taken = add i64 %value, 1
  %both = cmpxchg ptr %counter, i64 %value, i64 %taken monotonic monotonic
  %other = extractvalue {{ i64, i1 }} %both, 0
  %won = extractvalue {{ i64, i1 }} %both, 1
  br i1 %won, label %found, label %look
found:
  %in_share = sub i64 %value, %base
  %chunk = add i64 %first, %in_share
  ret i64 %chunk
empty:
  %next = add i64 %k, 1
  ; A single chunk is thread 0's: small steps stay in its cache.
  %single = icmp eq i64 %chunks, 1
  %round_over = icmp uge i64 %next, %threads
  %over = or i1 %single, %round_over
  br i1 %over, label %none, label %share
none:
  ret i64 -1
}}

; Counted once for all that a thread has done of a step: the counter's line is everybody's, and to
; move it between threads takes longer than to take a chunk of one's own.
define void @cnnc_done(ptr %step, i64 %chunks) {{
entry:
  %none = icmp eq i64 %chunks, 0
  br i1 %none, label %over, label %add
add:
  %before = atomicrmw add ptr %step, i64 %chunks release
  br label %over
over:
  ret void
}}

; Passes a moment: a spin, or after many tries a turn for others on the processor.
define internal i64 @cnnc_linger(i64 %tries) {{
entry:
  %tried = add i64 %tries, 1
  %short = icmp ult i64 %tried, 2000
  br i1 %short, label %pause, label %yield
pause:
  PAUSE
  ret i64 %tried
yield:
  %yielded = call i32 @sched_yield()
  ret i64 %tried
}}

; Returns when `target` chunks are done.
define void @cnnc_wait(ptr %step, i64 %target) {{
entry:
  br label %look
look:
  %tries = phi i64 [ 0, %entry ], [ %tried, %again ]
  %done = load atomic i64, ptr %step acquire, align 8
  %more = icmp slt i64 %done, %target
  br i1 %more, label %again, label %over
again:
  %tried = call i64 @cnnc_linger(i64 %tries)
  br label %look
over:
  ret void
}}
"""

# A run is open until its caller has finished: a worker that wakes too late does not enter. `inside`
# counts the workers in the run, from CLOSED up where no more may enter.
_RUN = f"""
define internal i1 @cnnc_enter(ptr %inside) {{
entry:
  %seen = load atomic i64, ptr %inside monotonic, align 8
  br label %look
look:
  %count = phi i64 [ %seen, %entry ], [ %other, %try ]
  %open = icmp sge i64 %count, 0
  br i1 %open, label %try, label %closed
try:
  %one_more = add i64 %count, 1
  %both = cmpxchg ptr %inside, i64 %count, i64 %one_more acquire monotonic
  %other = extractvalue {{ i64, i1 }} %both, 0
  %won = extractvalue {{ i64, i1 }} %both, 1
  br i1 %won, label %entered, label %look
entered:
  ret i1 true
closed:
  ret i1 false
}}

define internal ptr @cnnc_work(ptr %worker) {{
entry:
  %team = load ptr, ptr %worker
  %number = getelementptr %cnnc_worker, ptr %worker, i64 0, i32 1
  %tid = load i64, ptr %number
  %start = getelementptr i8, ptr %team, i64 {_START}
  %inside = getelementptr i8, ptr %team, i64 {_INSIDE}
  %job = call ptr @cnnc_job_of(ptr %team)
  %context_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 1
  %threads_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 2
  %spin_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 3
  %stop_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 4
  %threads = load i64, ptr %threads_at
  %spin_ns = load i64, ptr %spin_at
  br label %wait
wait:
  %runs = phi i32 [ 0, %entry ], [ %run, %ask ], [ %run, %work ]
  call void @cnnc_await(ptr %start, i32 %runs, i64 %spin_ns)
  %run = load atomic i32, ptr %start acquire, align 4
  %stop = load atomic i32, ptr %stop_at acquire, align 4
  %leave = icmp ne i32 %stop, 0
  br i1 %leave, label %done, label %ask
ask:
  %entered = call i1 @cnnc_enter(ptr %inside)
  br i1 %entered, label %work, label %wait
work:
  %function = load ptr, ptr %job
  %context = load ptr, ptr %context_at
  call void %function(i64 %tid, i64 %threads, ptr %team, ptr %context)
  %left = atomicrmw sub ptr %inside, i64 1 release
  br label %wait
done:
  ret ptr null
}}

define void @cnnc_team_run(ptr %team, ptr %function, ptr %context) {{
entry:
  %job = call ptr @cnnc_job_of(ptr %team)
  %threads_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 2
  %threads = load i64, ptr %threads_at
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %only, label %start
only:
  call void %function(i64 0, i64 1, ptr %team, ptr %context)
  ret void
start:
  %context_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 1
  store ptr %function, ptr %job
  store ptr %context, ptr %context_at
  %inside = getelementptr i8, ptr %team, i64 {_INSIDE}
  store atomic i64 0, ptr %inside release, align 8
  %gate = getelementptr i8, ptr %team, i64 {_START}
  call void @cnnc_open(ptr %gate)
  call void %function(i64 0, i64 %threads, ptr %team, ptr %context)
  %before = atomicrmw add ptr %inside, i64 {_CLOSED} acq_rel
  br label %look
look:
  %tries = phi i64 [ 0, %start ], [ %tried, %again ]
  %count = load atomic i64, ptr %inside acquire, align 8
  %some = icmp ne i64 %count, {_CLOSED}
  br i1 %some, label %again, label %over
again:
  %tried = call i64 @cnnc_linger(i64 %tries)
  br label %look
over:
  ret void
}}
"""

# To hand over an argument takes Python longer than to load all of them.
_CALL = """
define void @cnnc_team_call(ptr %request) {
entry:
  %function_at = getelementptr ptr, ptr %request, i64 1
  %context_at = getelementptr ptr, ptr %request, i64 2
  %team = load ptr, ptr %request
  %function = load ptr, ptr %function_at
  %context = load ptr, ptr %context_at
  call void @cnnc_team_run(ptr %team, ptr %function, ptr %context)
  ret void
}
"""

# Workers take no signals: the program's own threads handle them.
_LIFE = f"""
define internal void @cnnc_stop(ptr %team, i64 %last) {{
entry:
  %job = call ptr @cnnc_job_of(ptr %team)
  %stop = getelementptr %cnnc_job, ptr %job, i64 0, i32 4
  store atomic i32 1, ptr %stop release, align 4
  %gate = getelementptr i8, ptr %team, i64 {_START}
  call void @cnnc_open(ptr %gate)
  br label %next
next:
  %tid = phi i64 [ 1, %entry ], [ %after, %join ]
  %more = icmp ult i64 %tid, %last
  br i1 %more, label %join, label %done
join:
  %worker = call ptr @cnnc_worker_of(ptr %team, i64 %tid)
  %thread_at = getelementptr %cnnc_worker, ptr %worker, i64 0, i32 2
  %thread = load ptr, ptr %thread_at
  %joined = call i32 @pthread_join(ptr %thread, ptr null)
  %after = add i64 %tid, 1
  br label %next
done:
  call void @cnnc_gate_destroy(ptr %gate)
  call void @free(ptr %team)
  ret void
}}

; A team of `threads`, the caller's one included; null if the system gives no more threads.
define ptr @cnnc_team_create(i64 %threads, i64 %spin_ns) {{
entry:
  %every = alloca [128 x i8], align 8
  %own = alloca [128 x i8], align 8
  %list = mul i64 %threads, {_WORKER_BYTES}
  %least = add i64 %list, {_WORKERS + 127}
  %bytes = and i64 %least, -128
  %team = call ptr @aligned_alloc(i64 128, i64 %bytes)
  %none = icmp eq ptr %team, null
  br i1 %none, label %failed, label %fill
fill:
  call void @llvm.memset.p0.i64(ptr %team, i8 0, i64 %bytes, i1 false)
  %gate = getelementptr i8, ptr %team, i64 {_START}
  call void @cnnc_gate_create(ptr %gate)
  %job = call ptr @cnnc_job_of(ptr %team)
  %threads_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 2
  %spin_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 3
  store i64 %threads, ptr %threads_at
  store i64 %spin_ns, ptr %spin_at
  %filled = call i32 @sigfillset(ptr %every)
  %masked = call i32 @pthread_sigmask(i32 SETMASK, ptr %every, ptr %own)
  br label %next
next:
  %tid = phi i64 [ 1, %fill ], [ %after, %started ]
  %more = icmp ult i64 %tid, %threads
  br i1 %more, label %start, label %complete
start:
  %worker = call ptr @cnnc_worker_of(ptr %team, i64 %tid)
  %number = getelementptr %cnnc_worker, ptr %worker, i64 0, i32 1
  %thread_at = getelementptr %cnnc_worker, ptr %worker, i64 0, i32 2
  store ptr %team, ptr %worker
  store i64 %tid, ptr %number
  %error = call i32 @pthread_create(ptr %thread_at, ptr null, ptr @cnnc_work, ptr %worker)
  %bad = icmp ne i32 %error, 0
  br i1 %bad, label %give_up, label %started
started:
  %after = add i64 %tid, 1
  br label %next
complete:
  %restored = call i32 @pthread_sigmask(i32 SETMASK, ptr %own, ptr null)
  ret ptr %team
give_up:
  call void @cnnc_stop(ptr %team, i64 %tid)
  %back = call i32 @pthread_sigmask(i32 SETMASK, ptr %own, ptr null)
  br label %failed
failed:
  ret ptr null
}}

define void @cnnc_team_destroy(ptr %team) {{
  %job = call ptr @cnnc_job_of(ptr %team)
  %threads_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 2
  %threads = load i64, ptr %threads_at
  call void @cnnc_stop(ptr %team, i64 %threads)
  ret void
}}
"""


def team_text(triple: str) -> str:
    """LLVM text that defines a thread team for the system of `triple`.

    `ptr cnnc_team_create(i64 threads, i64 spin_ns)`, null where threads cannot be had;
    `void cnnc_team_run(ptr team, ptr function, ptr context)`, one run of a team at a time;
    `void cnnc_team_call(ptr request)`, the same with its three arguments in memory;
    `i64 cnnc_take(ptr step, i64 tid, i64 threads, i64 round, i64 chunks)`, inside a run: a chunk
    of the step that nobody has taken in this round, or -1;
    `void cnnc_done(ptr step, i64 chunks)`: so many more chunks are done;
    `void cnnc_wait(ptr step, i64 chunks)`: until so many chunks are done, over all rounds;
    `void cnnc_team_destroy(ptr team)`, with no run under way.

    How threads sleep between runs is in `cnnc.codegen.gate_text`.
    """
    arch, _, system = triple.partition("-")
    declaration, pause = _PAUSE.get(arch, ("", ""))
    life = _LIFE.replace("SETMASK", "2" if "linux" in system else "3")  # SIG_SETMASK
    run = (_SHARES + _RUN + _CALL).replace("PAUSE", pause)
    return declaration + _LAYOUT + gate_text(arch, system, pause) + run + life
