"""What a core reaches, measured: its clock and its multiply-adds. Both are for display."""

from __future__ import annotations

import ctypes
from functools import cache
from time import thread_time

from cnnc.codegen.host import has_fma, native_target
from cnnc.codegen.llvm import compile_object, load_object


@cache
def measure_peak(seconds: float = 0.02) -> float:
    """GFLOP/s that one core reaches on fused multiply-adds at its full vector width.

    Best of short runs within `seconds`; for display, no choice of the compiler depends on it.
    """
    target = native_target()
    accumulators = 24 if target.registers >= 32 else 12
    text = peak_text(target.lanes, accumulators, fused=has_fma(target))
    values = (ctypes.c_float * ((2 + accumulators) * target.lanes))(*[0.5] * 2 * target.lanes)
    per_step = 2.0 * target.lanes * accumulators
    return per_step * _steps_per_second(text, ctypes.addressof(values), seconds) / 1e9


@cache
def measure_ghz(seconds: float = 0.01) -> float:
    """The clock of one busy core, from a chain of dependent additions of one cycle each."""
    values = (ctypes.c_int64 * 3)(1, 3, 5)
    steps = _steps_per_second(chain_text(64), ctypes.addressof(values), seconds)
    return steps * 64 / 1e9


def _steps_per_second(text: str, data: int, seconds: float) -> float:
    code = load_object(compile_object(text, native_target()))
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(code.address("measure"))
    steps, best = 1000, 0.0
    # Not by the wall's clock: while another process has the core, this one does not count.
    end = thread_time() + seconds
    while best == 0.0 or thread_time() < end:
        start = thread_time()
        function(data, steps)
        taken = thread_time() - start
        if taken < 5e-4:  # too short to time: the call itself would count
            steps *= 4
        else:
            best = max(best, steps / taken)
    return best


def _loop(before: list[str], phis: list[str], body: list[str], after: list[str]) -> str:
    """`void measure(ptr data, i64 steps)`: one loop around `body`."""
    lines = [
        "define void @measure(ptr %data, i64 %steps) {",
        "entry:",
        *before,
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]",
        *phis,
        *body,
        "  %next = add i64 %i, 1",
        "  %more = icmp ult i64 %next, %steps",
        "  br i1 %more, label %loop, label %done",
        "done:",
        *after,
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


def peak_text(lanes: int, accumulators: int, *, fused: bool) -> str:
    """A module whose loop does nothing but `accumulators` independent multiply-adds a step."""
    vector = f"<{lanes} x float>"
    before, phis, body, after = [], [], [], []
    for i in range(accumulators + 2):  # the factors come from memory, so that nothing folds
        before.append(f"  %p{i} = getelementptr {vector}, ptr %data, i64 {i}")
        before.append(f"  %v{i} = load {vector}, ptr %p{i}, align 4")
    for i in range(2, accumulators + 2):
        phis.append(f"  %a{i} = phi {vector} [ %v{i}, %entry ], [ %b{i}, %loop ]")
        if fused:
            args = f"{vector} %a{i}, {vector} %v0, {vector} %v1"
            body.append(f"  %b{i} = call {vector} @llvm.fma.v{lanes}f32({args})")
        else:
            body.append(f"  %m{i} = fmul {vector} %a{i}, %v0")
            body.append(f"  %b{i} = fadd {vector} %m{i}, %v1")
        # Computed anew: an address that outlives the loop would take a register or the stack.
        after.append(f"  %q{i} = getelementptr {vector}, ptr %data, i64 {i}")
        after.append(f"  store {vector} %b{i}, ptr %q{i}, align 4")
    declare = f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})"
    return f"{declare}\n{_loop(before, phis, body, after)}"


def chain_text(links: int) -> str:
    """A module whose loop is a chain of `links` dependent operations of one cycle each."""
    before = []
    for i in range(3):
        before.append(f"  %p{i} = getelementptr i64, ptr %data, i64 {i}")
        before.append(f"  %v{i} = load i64, ptr %p{i}")
    phis = [f"  %x0 = phi i64 [ %v0, %entry ], [ %x{links}, %loop ]"]
    # Sums and exclusive ors take turns: a run of sums would fold into a multiplication.
    body = [
        f"  %x{i + 1} = {'xor' if i % 2 else 'add'} i64 %x{i}, %v{1 + i % 2}" for i in range(links)
    ]
    return _loop(before, phis, body, [f"  store i64 %x{links}, ptr %p0"])
