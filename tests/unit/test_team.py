"""The thread team: barriers, sharing, sleeping, forking, ending."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from cnnc.codegen.host import Code, compile_object, load_object, named_target, native_target
from cnnc.codegen.team import Team, default_threads, quota_cpus, team, team_symbols
from cnnc.codegen.team_text import team_text
from cnnc.ir.location import OptionError

TASKS = Path("/proc/self/task")
ARCH = native_target().triple.partition("-")[0]

# `phases`: in each phase every thread notes the phase in its slot, all meet, every thread counts
# the slots that do not hold the phase, all meet. `count`: every thread adds one.
# The context is { phases, errors or count, then a slot of 64 bytes for each thread }.
WORK = """
define void @phases(i64 %tid, i64 %threads, ptr %team, ptr %context) {
entry:
  %phases = load i64, ptr %context
  %errors = getelementptr i64, ptr %context, i64 1
  %slots = getelementptr i8, ptr %context, i64 64
  %own = getelementptr [8 x i64], ptr %slots, i64 %tid
  br label %phase
phase:
  %p = phi i64 [ 0, %entry ], [ %next, %meet ]
  %next = add i64 %p, 1
  store i64 %next, ptr %own
  call void @cnnc_barrier(ptr %team, i64 %threads)
  br label %look
look:
  %i = phi i64 [ 0, %phase ], [ %j, %look ]
  %slot = getelementptr [8 x i64], ptr %slots, i64 %i
  %seen = load i64, ptr %slot
  %bad = icmp ne i64 %seen, %next
  %one = zext i1 %bad to i64
  %ignored = atomicrmw add ptr %errors, i64 %one monotonic
  %j = add i64 %i, 1
  %more = icmp ult i64 %j, %threads
  br i1 %more, label %look, label %meet
meet:
  call void @cnnc_barrier(ptr %team, i64 %threads)
  %again = icmp ult i64 %next, %phases
  br i1 %again, label %phase, label %done
done:
  ret void
}

define void @count(i64 %tid, i64 %threads, ptr %team, ptr %context) {
  %sum = getelementptr i64, ptr %context, i64 1
  %ignored = atomicrmw add ptr %sum, i64 1 monotonic
  ret void
}
"""
CONDITION_TRIPLE = f"{ARCH}-unknown-posix"  # names no system: threads sleep on a condition variable


@cache
def loaded() -> Code:
    """The functions above, for a `Team`."""
    declare = "declare void @cnnc_barrier(ptr, i64)\n"
    return load_object(compile_object(declare + WORK, native_target()), team_symbols())


@cache
def work(triple: str) -> Code:
    """The functions above together with a team of their own for the system of `triple`."""
    return load_object(compile_object(team_text(triple) + WORK, native_target()))


def context(threads: int, phases: int = 0) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * (8 + 8 * threads))(phases)


@pytest.fixture(params=["native", "condition"])
def raw_team(request: pytest.FixtureRequest) -> Iterator[Callable[[int, int, str, int], None]]:
    """`run(threads, spin_ns, function, context)` on a team of its own, without `Team`."""
    triple = native_target().triple if request.param == "native" else CONDITION_TRIPLE
    code = work(triple)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    create = ctypes.CFUNCTYPE(pointer, number, number)(code.address("cnnc_team_create"))
    call = ctypes.CFUNCTYPE(None, pointer, pointer, pointer)(code.address("cnnc_team_run"))
    destroy = ctypes.CFUNCTYPE(None, pointer)(code.address("cnnc_team_destroy"))
    made: list[int] = []

    def run(threads: int, spin_ns: int, function: str, data: int) -> None:
        made.append(create(threads, spin_ns))
        call(made[-1], code.address(function), data)
        call(made[-1], code.address(function), data)

    yield run
    for handle in made:
        destroy(handle)


@pytest.mark.parametrize(
    ("threads", "spin_ns", "phases"),
    [(1, 0, 1000), (2, 50_000, 50_000), (2, 0, 2_000), (4, 2_000, 20_000), (4, 0, 2_000)],
)
def test_no_thread_passes_a_barrier_early(
    raw_team: Callable[[int, int, str, int], None], threads: int, spin_ns: int, phases: int
) -> None:
    data = context(threads, phases)
    raw_team(threads, spin_ns, "phases", ctypes.addressof(data))
    assert data[1] == 0
    assert [data[8 + 8 * i] for i in range(threads)] == [phases] * threads


@pytest.mark.parametrize("threads", [2, 4])
def test_team_of_the_process_keeps_phases(threads: int) -> None:
    data = context(threads, 50_000)  # two barriers each
    team(threads).run(address("phases"), ctypes.addressof(data))
    assert data[1] == 0
    assert data[8 + 8 * (threads - 1)] == 50_000


def address(function: str) -> int:
    return loaded().address(function)


@pytest.mark.parametrize("threads", [1, 3])
def test_many_python_threads_take_turns(threads: int) -> None:
    shared = Team(threads)
    data = context(threads)

    def calls() -> None:
        for _ in range(200):
            shared.run(address("count"), ctypes.addressof(data))

    callers = [threading.Thread(target=calls) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert data[1] == 8 * 200 * threads


def test_teams_are_shared_by_size() -> None:
    assert team(3) is team(3)
    assert team(3) is not team(2)
    assert team(3).threads == 3


def test_needs_a_thread() -> None:
    with pytest.raises(OptionError, match="threads must be at least 1, got 0"):
        Team(0)


def test_idle_team_takes_no_processor_time() -> None:
    data = context(3)
    own = Team(3)
    own.run(address("count"), ctypes.addressof(data))
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.01
    own.close()


@pytest.mark.skipif(not TASKS.exists(), reason="counts threads in /proc")
def test_teams_leave_no_threads() -> None:
    def threads() -> int:
        return len(list(TASKS.iterdir()))

    data = context(3)
    before = threads()
    for i in range(200):
        own = Team(3)
        own.run(address("count"), ctypes.addressof(data))
        assert threads() >= before + 2
        if i % 2:
            own.close()
        del own
    gc.collect()
    deadline = time.monotonic() + 5  # the system takes a joined thread off its list a bit later
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == before
    assert data[1] == 600


def test_closed_team_starts_anew() -> None:
    data = context(2)
    own = Team(2)
    for _ in range(3):
        own.run(address("count"), ctypes.addressof(data))
        own.close()
    assert data[1] == 6


def script(text: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that starts with a team of 3 and `count()`, which runs it."""
    start = f"""
import ctypes, os, sys, threading, time
from cnnc.codegen.host import compile_object, load_object, native_target
from cnnc.codegen.team import Team, team_symbols
text = "declare void @cnnc_barrier(ptr, i64)" + {WORK!r}
code = load_object(compile_object(text, native_target()), team_symbols())
data = (ctypes.c_int64 * 1024)()
own = Team(3)
def count():
    own.run(code.address("count"), ctypes.addressof(data))
    return data[1]
"""
    return subprocess.run(
        [sys.executable, "-c", start + text], capture_output=True, text=True, timeout=30
    )


def test_team_works_in_a_forked_child() -> None:
    done = script(
        """
assert count() == 3
def long():  # holds the team while the process forks
    phases = (ctypes.c_int64 * 64)(30000)
    own.run(code.address("phases"), ctypes.addressof(phases))
runner = threading.Thread(target=long)
runner.start()
child = os.fork()
if child == 0:
    assert count() == 6 and count() == 9
    sys.exit(7)  # the child ends the way programs do, finalizers included
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
runner.join()
assert count() == 6
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_program_ends_with_workers_asleep() -> None:
    done = script("print(count())")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_program_ends_while_a_daemon_thread_runs() -> None:
    done = script(
        """
phases = (ctypes.c_int64 * 64)(1 << 40)
run = lambda: own.run(code.address("phases"), ctypes.addressof(phases))
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
    assert done.stdout.endswith("6 3\n"), done.stderr


@pytest.mark.parametrize("triple", ["aarch64-unknown-linux-gnu", "arm64-apple-darwin24"])
def test_text_compiles_for_other_systems(triple: str) -> None:
    target = replace(named_target("aarch64"), triple=triple)
    code = compile_object(team_text(triple), target, optimise=True)
    assert b"cnnc_team_create" in code
    assert (b"pthread_cond_wait" in code) == ("darwin" in triple)


# -- default_threads -----------------------------------------------------------------------------


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("contents", "cpus"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (  # the parent's quota bounds the child
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
            },
            3.0,
        ),
        (  # version 1; the path is the host's, the files lie at the top
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/12ab\n3:cpuset:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_quota(tmp_path: Path, contents: dict[str, str], cpus: float | None) -> None:
    assert quota_cpus(files(tmp_path, contents)) == cpus


def test_default_threads_are_at_least_one_and_within_the_affinity() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
