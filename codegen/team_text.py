"""The thread team and its barrier as LLVM text; `cnnc.codegen.team` runs it."""

from __future__ import annotations

# Linux's numbers of the system call `futex`, by architecture.
_FUTEX = {"x86_64": 202, "aarch64": 98}

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

# Byte offsets in a team. A gate is a word that moves on, the number of threads that sleep until it
# does, and room for a mutex and a condition variable; what different threads write stays at least
# 128 bytes apart, because processors fetch lines of 64 in pairs.
_START, _BARRIER, _ARRIVED, _JOB, _WORKERS = 0, 256, 512, 640, 768
_WORKER_BYTES = 24  # team, number, thread handle

_LAYOUT = f"""
%cnnc_worker = type {{ ptr, i64, ptr }}
%cnnc_job = type {{ ptr, ptr, i64, i64, i32 }} ; function, context, threads, spin_ns, stop

declare ptr @aligned_alloc(i64, i64)
declare void @free(ptr)
declare i32 @clock_gettime(i32, ptr)
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

# A gate opens by moving its word on. Whoever waits first announces itself in `sleepers` and then
# looks at the word once more; whoever opens moves the word first and then looks at `sleepers`. In
# the one order of sequentially consistent operations at least one of them sees the other.
_GATE = """
define internal i64 @cnnc_now(ptr %time) {
  %ok = call i32 @clock_gettime(i32 CLOCK, ptr %time)
  %seconds = load i64, ptr %time
  %rest = getelementptr i64, ptr %time, i64 1
  %ns = load i64, ptr %rest
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %ns
  ret i64 %now
}

; Spins for at most `spin_ns`; whether the word has left `old`.
define internal i1 @cnnc_spin(ptr %gate, i32 %old, i64 %spin_ns) {
entry:
  %time = alloca [2 x i64]
  br label %round
round:
  %end = phi i64 [ 0, %entry ], [ %known_end, %clock ]
  br label %look
look:
  %tries = phi i32 [ 0, %round ], [ %tried, %again ]
  %word = load atomic i32, ptr %gate acquire, align 4
  %moved = icmp ne i32 %word, %old
  br i1 %moved, label %yes, label %again
again:
  PAUSE
  %tried = add i32 %tries, 1
  %enough = icmp eq i32 %tried, 16
  br i1 %enough, label %clock, label %look
clock:
  %now = call i64 @cnnc_now(ptr %time)
  %first = icmp eq i64 %end, 0
  %new_end = add i64 %now, %spin_ns
  %known_end = select i1 %first, i64 %new_end, i64 %end
  %over = icmp sge i64 %now, %known_end
  br i1 %over, label %no, label %round
yes:
  ret i1 true
no:
  ret i1 false
}

; Returns when the word has left `old`: spins, then sleeps.
define internal void @cnnc_await(ptr %gate, i32 %old, i64 %spin_ns) {
entry:
  %moved = call i1 @cnnc_spin(ptr %gate, i32 %old, i64 %spin_ns)
  br i1 %moved, label %done, label %tired
tired:
  %sleepers = getelementptr i32, ptr %gate, i64 1
  %before = atomicrmw add ptr %sleepers, i32 1 seq_cst
  br label %look
look:
  %word = load atomic i32, ptr %gate seq_cst, align 4
  %awake = icmp ne i32 %word, %old
  br i1 %awake, label %leave, label %rest
rest:
  call void @cnnc_sleep(ptr %gate, i32 %old)
  br label %look
leave:
  %after = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  br label %done
done:
  ret void
}

define internal void @cnnc_open(ptr %gate) {
entry:
  %word = atomicrmw add ptr %gate, i32 1 seq_cst
  %sleepers = getelementptr i32, ptr %gate, i64 1
  %count = load atomic i32, ptr %sleepers seq_cst, align 4
  %none = icmp eq i32 %count, 0
  br i1 %none, label %done, label %wake
wake:
  call void @cnnc_wake(ptr %gate)
  br label %done
done:
  ret void
}
"""

# 128 and 129 are FUTEX_WAIT and FUTEX_WAKE, private to the process. The kernel compares the word
# and goes to sleep in one step, and does not sleep if the word has moved.
_FUTEX_SLEEP = """
declare i64 @syscall(i64, ...)

define internal void @cnnc_sleep(ptr %gate, i32 %old) {
  %r = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %gate, i32 128, i32 %old, ptr null)
  ret void
}

define internal void @cnnc_wake(ptr %gate) {
  %r = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %gate, i32 129, i32 2147483647)
  ret void
}

define internal void @cnnc_gate_create(ptr %gate) {
  ret void
}

define internal void @cnnc_gate_destroy(ptr %gate) {
  ret void
}
"""

# The waker takes the mutex after it has moved the word, so that it cannot come between a sleeper's
# look at the word and its sleep.
_CONDITION_SLEEP = """
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_mutex_destroy(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @pthread_cond_destroy(ptr)

define internal void @cnnc_sleep(ptr %gate, i32 %old) {
entry:
  %mutex = getelementptr i8, ptr %gate, i64 64
  %condition = getelementptr i8, ptr %gate, i64 160
  %locked = call i32 @pthread_mutex_lock(ptr %mutex)
  %word = load atomic i32, ptr %gate seq_cst, align 4
  %awake = icmp ne i32 %word, %old
  br i1 %awake, label %leave, label %rest
rest:
  %slept = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %leave
leave:
  %unlocked = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}

define internal void @cnnc_wake(ptr %gate) {
  %mutex = getelementptr i8, ptr %gate, i64 64
  %condition = getelementptr i8, ptr %gate, i64 160
  %locked = call i32 @pthread_mutex_lock(ptr %mutex)
  %woken = call i32 @pthread_cond_broadcast(ptr %condition)
  %unlocked = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}

define internal void @cnnc_gate_create(ptr %gate) {
  %mutex = getelementptr i8, ptr %gate, i64 64
  %condition = getelementptr i8, ptr %gate, i64 160
  %m = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %c = call i32 @pthread_cond_init(ptr %condition, ptr null)
  ret void
}

define internal void @cnnc_gate_destroy(ptr %gate) {
  %mutex = getelementptr i8, ptr %gate, i64 64
  %condition = getelementptr i8, ptr %gate, i64 160
  %c = call i32 @pthread_cond_destroy(ptr %condition)
  %m = call i32 @pthread_mutex_destroy(ptr %mutex)
  ret void
}
"""

# Threads at a barrier have work in hand, so they spin longer than idle workers. The last one resets
# the count before it opens the gate: nobody can arrive at the next barrier earlier.
_BARRIER_TEXT = f"""
define void @cnnc_barrier(ptr %team, i64 %threads) {{
entry:
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %done, label %arrive
arrive:
  %gate = getelementptr i8, ptr %team, i64 {_BARRIER}
  %arrived = getelementptr i8, ptr %team, i64 {_ARRIVED}
  %old = load atomic i32, ptr %gate monotonic, align 4
  %earlier = atomicrmw add ptr %arrived, i32 1 acq_rel
  %count = trunc i64 %threads to i32
  %others = sub i32 %count, 1
  %last = icmp eq i32 %earlier, %others
  br i1 %last, label %open, label %wait
open:
  store atomic i32 0, ptr %arrived monotonic, align 4
  call void @cnnc_open(ptr %gate)
  ret void
wait:
  %job = call ptr @cnnc_job_of(ptr %team)
  %spin = getelementptr %cnnc_job, ptr %job, i64 0, i32 3
  %short = load i64, ptr %spin
  %spin_ns = mul i64 %short, 4
  call void @cnnc_await(ptr %gate, i32 %old, i64 %spin_ns)
  ret void
done:
  ret void
}}
"""

# A run ends with a barrier, so the start gate never moves on by more than one while a worker works.
_RUN = f"""
define internal ptr @cnnc_work(ptr %worker) {{
entry:
  %team = load ptr, ptr %worker
  %number = getelementptr %cnnc_worker, ptr %worker, i64 0, i32 1
  %tid = load i64, ptr %number
  %start = getelementptr i8, ptr %team, i64 {_START}
  %job = call ptr @cnnc_job_of(ptr %team)
  %context_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 1
  %threads_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 2
  %spin_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 3
  %stop_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 4
  %threads = load i64, ptr %threads_at
  %spin_ns = load i64, ptr %spin_at
  br label %wait
wait:
  %runs = phi i32 [ 0, %entry ], [ %run, %work ]
  call void @cnnc_await(ptr %start, i32 %runs, i64 %spin_ns)
  %run = add i32 %runs, 1
  %stop = load i32, ptr %stop_at
  %leave = icmp ne i32 %stop, 0
  br i1 %leave, label %done, label %work
work:
  %function = load ptr, ptr %job
  %context = load ptr, ptr %context_at
  call void %function(i64 %tid, i64 %threads, ptr %team, ptr %context)
  call void @cnnc_barrier(ptr %team, i64 %threads)
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
  br i1 %alone, label %work, label %start
start:
  %context_at = getelementptr %cnnc_job, ptr %job, i64 0, i32 1
  store ptr %function, ptr %job
  store ptr %context, ptr %context_at
  %gate = getelementptr i8, ptr %team, i64 {_START}
  call void @cnnc_open(ptr %gate)
  br label %work
work:
  call void %function(i64 0, i64 %threads, ptr %team, ptr %context)
  call void @cnnc_barrier(ptr %team, i64 %threads)
  ret void
}}
"""

# Workers take no signals: the program's own threads handle them.
_LIFE = f"""
define internal void @cnnc_stop(ptr %team, i64 %last) {{
entry:
  %job = call ptr @cnnc_job_of(ptr %team)
  %stop = getelementptr %cnnc_job, ptr %job, i64 0, i32 4
  store i32 1, ptr %stop
  %gate = getelementptr i8, ptr %team, i64 {_START}
  %barrier = getelementptr i8, ptr %team, i64 {_BARRIER}
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
  call void @cnnc_gate_destroy(ptr %barrier)
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
  %barrier = getelementptr i8, ptr %team, i64 {_BARRIER}
  call void @cnnc_gate_create(ptr %gate)
  call void @cnnc_gate_create(ptr %barrier)
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
    `void cnnc_barrier(ptr team, i64 threads)`, inside a run, on every thread of the team;
    `void cnnc_team_destroy(ptr team)`, with no run under way.

    On Linux threads sleep in `futex`, elsewhere on a POSIX condition variable.
    """
    arch, _, system = triple.partition("-")
    linux, darwin = "linux" in system, "darwin" in system or "macos" in system
    futex = _FUTEX.get(arch) if linux else None
    sleep = _CONDITION_SLEEP if futex is None else _FUTEX_SLEEP.replace("FUTEX", str(futex))
    declaration, pause = _PAUSE.get(arch, ("", ""))
    clock = "1" if linux else "6" if darwin else "4"  # CLOCK_MONOTONIC
    gate = _GATE.replace("CLOCK", clock).replace("PAUSE", pause)
    life = _LIFE.replace("SETMASK", "2" if linux else "3")  # SIG_SETMASK
    return declaration + _LAYOUT + sleep + gate + _BARRIER_TEXT + _RUN + life
