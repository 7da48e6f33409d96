"""The thread team: chunks, sharing, sleeping, forking, ending."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from cnnc.codegen.host import named_target, native_target
from cnnc.codegen.image import Code
from cnnc.codegen.llvm import compile_object, load_object
from cnnc.codegen.team import Team, team, team_symbols
from cnnc.codegen.team_text import team_text
from cnnc.ir.location import OptionError

TASKS = Path("/proc/self/task")
ARCH = native_target().triple.partition("-")[0]

# `rounds`: in each round the threads take CHUNKS chunks; whoever has one checks that it was left by
# the round before and marks it; when all are done, everyone checks that all are marked. `count`:
# one round that adds one for each chunk. The context is { rounds, errors, count, first round }, at
# byte 128 the step's counters, at byte SLOTS a mark of 64 bytes for each chunk.
CHUNKS, SLOTS = 12, 2048
WORK = f"""
define void @rounds(i64 %tid, i64 %threads, ptr %team, ptr %context) {{
entry:
  %rounds = load i64, ptr %context
  %errors = getelementptr i64, ptr %context, i64 1
  %base_at = getelementptr i64, ptr %context, i64 3
  %base = load i64, ptr %base_at
  %end = add i64 %base, %rounds
  %step = getelementptr i8, ptr %context, i64 128
  %slots = getelementptr i8, ptr %context, i64 {SLOTS}
  br label %round
round:
  %r = phi i64 [ %base, %entry ], [ %next, %meet ]
  %next = add i64 %r, 1
  br label %pick
pick:
  %c = call i64 @cnnc_take(ptr %step, i64 %tid, i64 %threads, i64 %r, i64 {CHUNKS})
  %some = icmp sge i64 %c, 0
  br i1 %some, label %work, label %wait
work:
  %own = getelementptr [8 x i64], ptr %slots, i64 %c
  %left = load i64, ptr %own
  %wrong = icmp ne i64 %left, %r
  %error = zext i1 %wrong to i64
  %ignored = atomicrmw add ptr %errors, i64 %error monotonic
  store i64 %next, ptr %own
  call void @cnnc_done(ptr %step, i64 1)
  br label %pick
wait:
  %target = mul i64 %next, {CHUNKS}
  call void @cnnc_wait(ptr %step, i64 %target)
  br label %look
look:
  %i = phi i64 [ 0, %wait ], [ %j, %look ]
  %slot = getelementptr [8 x i64], ptr %slots, i64 %i
  %seen = load atomic i64, ptr %slot monotonic, align 8
  %early = icmp slt i64 %seen, %next
  %one = zext i1 %early to i64
  %noted = atomicrmw add ptr %errors, i64 %one monotonic
  %j = add i64 %i, 1
  %more = icmp ult i64 %j, {CHUNKS}
  br i1 %more, label %look, label %meet
meet:
  %again = icmp slt i64 %next, %end
  br i1 %again, label %round, label %done
done:
  ret void
}}

define void @count(i64 %tid, i64 %threads, ptr %team, ptr %context) {{
entry:
  %sum = getelementptr i64, ptr %context, i64 2
  %base_at = getelementptr i64, ptr %context, i64 3
  %r = load i64, ptr %base_at
  %step = getelementptr i8, ptr %context, i64 128
  br label %pick
pick:
  %c = call i64 @cnnc_take(ptr %step, i64 %tid, i64 %threads, i64 %r, i64 {CHUNKS})
  %some = icmp sge i64 %c, 0
  br i1 %some, label %work, label %done
work:
  %ignored = atomicrmw add ptr %sum, i64 1 monotonic
  call void @cnnc_done(ptr %step, i64 1)
  br label %pick
done:
  ret void
}}
"""
DECLARE = """
declare i64 @cnnc_take(ptr, i64, i64, i64, i64)
declare void @cnnc_done(ptr, i64)
declare void @cnnc_wait(ptr, i64)
"""
LOADING = threading.Lock()
CONDITION_TRIPLE = f"{ARCH}-unknown-posix"  # names no system: threads sleep on a condition variable


@cache
def _loaded() -> Code:
    return load_object(compile_object(DECLARE + WORK, native_target()), team_symbols())


def loaded() -> Code:
    """The functions above, for a `Team`; the cache alone would let go what a second thread made."""
    with LOADING:
        return _loaded()


@cache
def work(triple: str) -> Code:
    """The functions above together with a team of their own for the system of `triple`."""
    return load_object(compile_object(team_text(triple) + WORK, native_target()))


Data = ctypes.Array[ctypes.c_int64]


def context(rounds: int = 1) -> Data:
    return (ctypes.c_int64 * (SLOTS // 8 + 8 * CHUNKS))(rounds)


@pytest.fixture(params=["native", "condition"])
def raw_team(request: pytest.FixtureRequest) -> Iterator[Callable[[int, int, str, Data], None]]:
    """`run(threads, spin_ns, function, context)` on a team of its own, without `Team`."""
    triple = native_target().triple if request.param == "native" else CONDITION_TRIPLE
    code = work(triple)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    create = ctypes.CFUNCTYPE(pointer, number, number)(code.address("cnnc_team_create"))
    call = ctypes.CFUNCTYPE(None, pointer, pointer, pointer)(code.address("cnnc_team_run"))
    destroy = ctypes.CFUNCTYPE(None, pointer)(code.address("cnnc_team_destroy"))
    made: list[int] = []

    def run(threads: int, spin_ns: int, function: str, data: Data) -> None:
        made.append(create(threads, spin_ns))
        for _ in range(2):
            call(made[-1], code.address(function), ctypes.addressof(data))
            data[3] += data[0]

    yield run
    for handle in made:
        destroy(handle)


@pytest.mark.parametrize(
    ("threads", "spin_ns", "rounds"),
    [(1, 0, 1000), (2, 50_000, 50_000), (2, 0, 2_000), (4, 2_000, 20_000), (4, 0, 2_000)],
)
def test_every_chunk_is_done_once_in_each_round(
    raw_team: Callable[[int, int, str, Data], None], threads: int, spin_ns: int, rounds: int
) -> None:
    data = context(rounds)
    raw_team(threads, spin_ns, "rounds", data)
    assert data[1] == 0
    assert [data[SLOTS // 8 + 8 * i] for i in range(CHUNKS)] == [2 * rounds] * CHUNKS


@pytest.mark.parametrize("threads", [2, 4])
def test_team_of_the_process_keeps_rounds(threads: int) -> None:
    data = context(50_000)
    team(threads).run(address("rounds"), ctypes.addressof(data))
    assert data[1] == 0
    assert data[SLOTS // 8] == 50_000


def address(function: str) -> int:
    return loaded().address(function)


def count(own: Team, data: Data) -> None:
    own.run(address("count"), ctypes.addressof(data))
    data[3] += 1


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_prepared_runs_each_time(threads: int) -> None:
    data = context()
    call = Team(threads).prepare(address("count"), ctypes.addressof(data))
    for turn in range(1, 100):
        call()
        data[3] += 1
        assert data[2] == turn * CHUNKS


@pytest.mark.parametrize("threads", [1, 3])
def test_many_python_threads_take_turns(threads: int) -> None:
    shared = Team(threads)
    contexts = [context() for _ in range(8)]

    def calls(data: Data) -> None:
        for _ in range(200):
            count(shared, data)

    callers = [threading.Thread(target=calls, args=(data,)) for data in contexts]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [data[2] for data in contexts] == [200 * CHUNKS] * 8


def test_teams_are_shared_by_size() -> None:
    assert team(3) is team(3)
    assert team(3) is not team(2)
    assert team(3).threads == 3


def test_needs_a_thread() -> None:
    with pytest.raises(OptionError, match="threads must be at least 1, got 0"):
        Team(0)


def test_idle_team_takes_no_processor_time() -> None:
    data = context()
    own = Team(3)
    count(own, data)
    spent = []
    for _ in range(3):  # other threads of this process may have to end something first
        before = time.process_time()
        time.sleep(0.1)
        spent.append(time.process_time() - before)
    assert min(spent) < 0.01  # a worker that is awake takes all of the 0.1 s
    own.close()


@pytest.mark.skipif(not TASKS.exists(), reason="counts threads in /proc")
def test_teams_leave_no_threads() -> None:
    def threads() -> int:
        return len(list(TASKS.iterdir()))

    data = context()
    gc.collect()  # of teams from before
    before = threads()
    for i in range(200):
        own = Team(3)
        count(own, data)
        assert threads() >= before + 2
        if i % 2:
            own.close()
        del own
    gc.collect()
    deadline = time.monotonic() + 5  # the system takes a joined thread off its list a bit later
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before
    assert data[2] == 200 * CHUNKS


def test_closed_team_starts_anew() -> None:
    data = context()
    own = Team(2)
    for _ in range(3):
        count(own, data)
        own.close()
    assert data[2] == 3 * CHUNKS


def script(text: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that starts with a team of 3 and `count()`, which runs it."""
    start = f"""
import ctypes, os, sys, threading, time
from cnnc.codegen.host import native_target
from cnnc.codegen.llvm import compile_object, load_object
from cnnc.codegen.team import Team, team_symbols
text = {DECLARE + WORK!r}
code = load_object(compile_object(text, native_target()), team_symbols())
data = (ctypes.c_int64 * 1024)()
own = Team(3)
def count():
    own.run(code.address("count"), ctypes.addressof(data))
    data[3] += 1
    return data[2] // {CHUNKS}
"""
    return subprocess.run(
        [sys.executable, "-c", start + text], capture_output=True, text=True, timeout=30
    )


def test_team_works_in_a_forked_child() -> None:
    done = script(
        """
assert count() == 1
def long():  # holds the team while the process forks
    rounds = (ctypes.c_int64 * 1024)(30000)
    own.run(code.address("rounds"), ctypes.addressof(rounds))
runner = threading.Thread(target=long)
runner.start()
child = os.fork()
if child == 0:
    assert count() == 2 and count() == 3
    sys.exit(7)  # the child ends the way programs do, finalizers included
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
runner.join()
assert count() == 2
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_program_ends_with_workers_asleep() -> None:
    done = script("print(count())")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_program_ends_while_a_daemon_thread_runs() -> None:
    done = script(
        """
rounds = (ctypes.c_int64 * 1024)(1 << 40)
run = lambda: own.run(code.address("rounds"), ctypes.addressof(rounds))
threading.Thread(target=run, daemon=True).start()
time.sleep(0.1)
print("leaving")
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="bounds the address space")
def test_threads_that_cannot_be_had_are_an_error() -> None:
    done = script(
        """
count()
import resource
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), -1))
try:
    Team(1000).run(code.address("count"), ctypes.addressof(data))
except Exception as error:
    print(error)
print(count(), len(os.listdir("/proc/self/task")))
"""
    )
    assert "cannot start 999 threads" in done.stdout
    assert "help: ask for fewer threads" in done.stdout
    assert done.stdout.endswith("2 3\n"), done.stderr


@pytest.mark.parametrize("triple", ["aarch64-unknown-linux-gnu", "arm64-apple-darwin24"])
def test_text_compiles_for_other_systems(triple: str) -> None:
    target = replace(named_target("aarch64"), triple=triple)
    code = compile_object(team_text(triple), target, optimise=True)
    assert b"cnnc_team_create" in code
    assert (b"pthread_cond_wait" in code) == ("darwin" in triple)
