"""Measuring a compiled model against the NumPy reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep

import numpy as np

from cnnc.cli.graphs import input_types
from cnnc.codegen.measure import measure_peak
from cnnc.ir.graph import Graph
from cnnc.ir.op import Array
from cnnc.model import CompiledModel
from cnnc.runtime.inputs import random_inputs
from cnnc.runtime.reference import evaluate

Outputs = dict[str, Array]

TOLERANCE = 1e-3  # of the output's range
_REFERENCE_SECONDS = 3.0  # within them the reference may run more than once
_REFERENCE_RUNS = 5  # at most
_NATIVE_SECONDS = 0.1  # of native runs in a turn, at least: the system counts in 10 ms
# NumPy's BLAS keeps its threads spinning for about 0.1 s after the last product (OpenBLAS, measured
# by their processor time): native runs right behind it would share their cores with them.
_PAUSE_SECONDS = 0.3
_PEAK_SECONDS = 0.1
_FOREIGN = 0.1  # cores


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured; times are of whole calls, in seconds: medians, and the best."""

    batch: int
    threads: int
    flops: int  # of one call
    native_seconds: float
    native_best: float
    native_runs: int
    reference_seconds: float
    reference_best: float
    reference_runs: int
    peak_gflops: float  # of all threads
    max_abs_error: float
    max_rel_error: float  # of the output's range
    foreign_cores: float | None  # taken by other processes during the runs, if known
    alone_seconds: float | None = None  # one image, where there are several

    @property
    def batch_ratio(self) -> float | None:
        """The time of the batch by that of as many calls with one image."""
        return (
            None
            if self.alone_seconds is None
            else (self.native_seconds / self.batch / self.alone_seconds)
        )

    @property
    def is_disturbed(self) -> bool:
        """Whether other processes took so much that the times do not count."""
        return self.foreign_cores is not None and self.foreign_cores > _FOREIGN

    @property
    def speed_up(self) -> float:
        """How many times faster than the reference."""
        return self.reference_seconds / self.native_seconds

    @property
    def gflops(self) -> float:
        """GFLOP/s of the native code."""
        return self.flops / self.native_seconds / 1e9

    @property
    def peak_fraction(self) -> float:
        """The rate as a part of the peak."""
        return self.gflops / self.peak_gflops

    @property
    def is_right(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_rel_error <= TOLERANCE  # false for NaN


@dataclass(frozen=True, slots=True)
class Layer:
    """One kernel, measured; times for one call."""

    name: str
    op: str
    kernel: str
    seconds: float
    predicted_seconds: float  # on as many threads
    gflops: float
    peak_fraction: float


def measure(graph: Graph, model: CompiledModel, batch: int, repeats: int) -> Result:
    """Runs both on the same seeded input, taking turns.

    Args:
        graph: the portable graph that `model` is compiled from.
        model: what to measure.
        batch: images in one call.
        repeats: how many native runs, at least.

    Raises:
        InputError: the model's batch is fixed to another number.
    """
    inputs = batch_inputs(graph, batch)
    watch = _Window()
    wanted, first = _timed(lambda: evaluate(graph, inputs))
    slow = [watch.close()]  # what went by during the reference runs, and the native ones
    error, relative = errors(wanted, model.run(inputs))
    del wanted
    rounds = max(1, min(_REFERENCE_RUNS, repeats, int(_REFERENCE_SECONDS / first)))
    reference, fast = [first], list[tuple[float, float | None]]()
    native, alone = list[float](), list[float]()
    single = batch_inputs(graph, 1)
    out = {name: np.empty_like(array) for name, array in model.run(inputs).items()}
    for turn in range(rounds):
        if turn:
            watch = _Window()
            reference.append(_timed(lambda: evaluate(graph, inputs))[1])
            slow.append(watch.close())
        sleep(_PAUSE_SECONDS)
        model.run(inputs, out)  # the reference has emptied the caches
        window = _Window()
        while window.seconds < _NATIVE_SECONDS or len(native) * rounds < repeats * (turn + 1):
            native.append(_timed(lambda: model.run(inputs, out))[1])
            if batch > 1:
                alone.append(_timed(lambda: model.run(single))[1])
        fast.append(window.close())
    return Result(
        batch=batch,
        threads=model.threads,
        flops=model.report().flops * batch,
        native_seconds=median(native),
        native_best=min(native),
        native_runs=len(native),
        reference_seconds=median(reference),
        reference_best=min(reference),
        reference_runs=len(reference),
        peak_gflops=measure_peak(_PEAK_SECONDS) * model.threads,
        max_abs_error=error,
        max_rel_error=relative,
        foreign_cores=_foreign(slow, fast),
        alone_seconds=median(alone) if alone else None,
    )


def profile(graph: Graph, model: CompiledModel, result: Result) -> tuple[Layer, ...]:
    """The time of each kernel in one call like those of `result`."""
    rows = model.report().kernels
    times = model.profile(batch_inputs(graph, result.batch))
    found = []
    for row, seconds in zip(rows, times.values(), strict=True):
        gflops = row.flops * result.batch / seconds / 1e9 if seconds else 0.0
        found.append(
            Layer(
                name=row.name,
                op=row.op,
                kernel=row.kernel,
                seconds=seconds,
                predicted_seconds=1e-6 * row.predicted_us * result.batch / result.threads,
                gflops=gflops,
                peak_fraction=gflops / result.peak_gflops,
            )
        )
    return tuple(found)


def batch_inputs(graph: Graph, batch: int) -> dict[str, Array]:
    """Seeded inputs of that many images. Raises `InputError` if their number is fixed."""
    return random_inputs(input_types(graph, batch))


def errors(wanted: Mapping[str, Array], found: Mapping[str, Array]) -> tuple[float, float]:
    """The largest error of all outputs: (absolute, relative to the range of its output).

    NaN where one side has a NaN or an infinity and the other does not have the same.
    """
    pairs = [_error(wanted[name].astype(np.float64), found[name]) for name in wanted]
    absolute, relative = np.max(pairs, axis=0)  # keeps NaN
    return float(absolute), float(relative)


def _error(wanted: Array, found: Array) -> tuple[float, float]:
    same = (wanted == found) | (np.isnan(wanted) & np.isnan(found))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(wanted - found))
    if not np.isfinite(difference).all():
        return nan, nan
    error = float(np.max(difference, initial=0.0))
    finite = wanted[np.isfinite(wanted)]
    extent = float(np.ptp(finite)) if finite.size else 0.0
    scale = extent or float(np.max(np.abs(finite), initial=0.0)) or 1.0  # a constant output
    return error, error / scale


class _Window:
    """A stretch of time, and the processor time that went by in it."""

    def __init__(self) -> None:
        self._start, self._used = perf_counter(), _used_by_others()

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return perf_counter() - self._start

    def close(self) -> tuple[float, float | None]:
        """(seconds, processor seconds of other processes, if known)."""
        now, before = _used_by_others(), self._used
        return self.seconds, None if now is None or before is None else now - before


def _used_by_others() -> float | None:
    """Processor seconds of all other processes so far; None where the system does not tell."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    user, nice, system, _, _, interrupt, soft, steal = map(int, first.split()[1:9])
    ticks = user + nice + system + interrupt + soft + steal
    return ticks / os.sysconf("SC_CLK_TCK") - process_time()


def _foreign(*kinds: Sequence[tuple[float, float | None]]) -> float | None:
    """How many cores other processes took on average, in that kind of window where it was more."""
    found = []
    for windows in kinds:
        used = [other for _, other in windows if other is not None]
        if len(used) < len(windows):
            return None
        found.append(max(sum(used), 0.0) / sum(seconds for seconds, _ in windows))
    return max(found)


def _timed(function: Callable[[], Outputs]) -> tuple[Outputs, float]:
    start = perf_counter()
    result = function()
    return result, perf_counter() - start
