"""A gate that threads wait at, as LLVM text: they spin for a moment, and then sleep.

A gate is a word that moves on, the number of threads that sleep until it does, and room for a mutex
and a condition variable: 256 bytes.
"""

from __future__ import annotations

# Linux's numbers of the system call `futex`, by architecture.
_FUTEX = {"x86_64": 202, "aarch64": 98}

# A gate opens by moving its word on. Whoever waits first announces itself in `sleepers` and then
# looks at the word once more; whoever opens moves the word first and then looks at `sleepers`. In
# the one order of sequentially consistent operations at least one of them sees the other.
_GATE = """
declare i32 @clock_gettime(i32, ptr)

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


def gate_text(arch: str, system: str, pause: str) -> str:
    """LLVM text that defines gates.

    `void cnnc_gate_create(ptr gate)`, of memory that is zero; `void cnnc_gate_destroy(ptr gate)`;
    `void cnnc_open(ptr gate)` moves the word, an i32 at the gate, on by one;
    `void cnnc_await(ptr gate, i32 old, i64 spin_ns)` returns when it has left `old`.

    On Linux threads sleep in `futex`, elsewhere on a POSIX condition variable.

    Args:
        arch, system: parts of LLVM's triple.
        pause: the instruction that tells the core of a spin; may be empty.
    """
    linux, darwin = "linux" in system, "darwin" in system or "macos" in system
    futex = _FUTEX.get(arch) if linux else None
    sleep = _CONDITION_SLEEP if futex is None else _FUTEX_SLEEP.replace("FUTEX", str(futex))
    clock = "1" if linux else "6" if darwin else "4"  # CLOCK_MONOTONIC
    return sleep + _GATE.replace("CLOCK", clock).replace("PAUSE", pause)
