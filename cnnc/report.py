"""What the compiler did, as values: for tables, JSON and `model.report()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cnnc.runtime.plain import write


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a loaded model takes; `peak` is exact for one call at a time."""

    weights: int  # packed weights
    arena: int  # working memory, for one image or a group of them
    scratch: int  # private memory of all threads

    @property
    def peak(self) -> int:
        """All of it, without the caller's inputs and outputs."""
        return self.weights + self.arena + self.scratch

    def __str__(self) -> str:
        return (
            f"{megabytes(self.peak)} = weights {megabytes(self.weights)} + "
            f"arena {megabytes(self.arena)} + scratch {megabytes(self.scratch)}"
        )


@dataclass(frozen=True, slots=True)
class PassRow:
    """One pass of the pipeline."""

    name: str
    description: str
    changes: int
    seconds: float
    nodes: int  # afterwards


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One step of the schedule."""

    name: str  # as the source calls it
    op: str  # the op with what is fused into it
    sources: tuple[str, ...]  # file:line of everything in it
    output: str  # type with layout
    kernel: str  # algorithm and schedule
    symbol: str  # native function; "" where nothing native runs
    flops: int  # for one image
    predicted_us: float  # on one thread
    native: bool
    error: float = 0.0  # of an inexact algorithm: estimated, relative to the result's range
    saved_us: float = 0.0  # that it takes less than the best exact one, predicted; 0 without one


@dataclass(frozen=True, slots=True)
class Report:
    """The whole compilation of one model."""

    model: str
    target: str
    threads: int
    passes: tuple[PassRow, ...]
    kernels: tuple[KernelRow, ...]
    flops: int  # for one image
    parameters: int  # elements in constants
    memory: Memory
    functions: int  # distinct native kernels
    reorders: int
    seconds: dict[str, float]  # phase -> wall-clock seconds
    cached: bool = False  # compiled earlier: taken from the cache or a file

    @property
    def fused(self) -> int:
        """How many kernels do the work of several source ops."""
        return sum(row.op.count("+") > 0 for row in self.kernels)

    @property
    def reference(self) -> tuple[str, ...]:
        """The names of nodes that run in NumPy."""
        return tuple(row.name for row in self.kernels if not row.native)

    @property
    def inexact(self) -> tuple[KernelRow, ...]:
        """The kernels that do not sum as the definition does."""
        return tuple(row for row in self.kernels if row.error)

    def _inexact(self) -> list[str]:
        """What each inexact choice costs and saves."""
        rows = [(r.name, f"{r.error:.1e}", f"{r.saved_us:.1f}") for r in self.inexact]
        saved = sum(row.saved_us for row in self.inexact)
        head = ("inexact", "error of the range", "saves us")
        return [*table(head, rows), f"together they save {saved:.1f} us; --exact does without"]

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {**write(self), "peak_bytes": self.memory.peak}

    def summary(self) -> list[str]:
        """The work, the memory and the kernels in three lines."""
        return [
            f"{self.model} for {self.target}, {self.threads} thread(s)",
            f"  {self.flops / 1e9:.3f} GFLOP, {self.parameters:,} parameters, memory {self.memory}",
            f"  {len(self.kernels)} kernels ({self.functions} distinct functions, "
            f"{self.fused} fused, {self.reorders} reorders), "
            f"{'loaded' if self.cached else 'compiled'} in {sum(self.seconds.values()):.2f} s",
        ]

    def __str__(self) -> str:
        lines = [
            *self.summary(),
            "",
            *table(
                ("pass", "changes", "nodes", "ms", "what it does"),
                [
                    (r.name, r.changes, r.nodes, f"{1e3 * r.seconds:.1f}", r.description)
                    for r in self.passes
                ],
            ),
            "",
            *table(
                ("kernel", "op", "output", "algorithm and schedule", "predicted us"),
                [(r.name, r.op, r.output, r.kernel, f"{r.predicted_us:.1f}") for r in self.kernels],
            ),
        ]
        if self.inexact:
            lines += ["", *self._inexact()]
        if self.reference:
            lines += ["", f"running in NumPy (slow): {', '.join(self.reference)}"]
        return "\n".join(lines)


def megabytes(count: int) -> str:
    """Bytes for people: 1 MB is 10 ** 6 bytes."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Columns aligned with spaces; numbers to the right."""
    cells = [head, *[[str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    numeric = [
        all(isinstance(r[i], int) or str(r[i]).replace(".", "", 1).isdigit() for r in rows)
        for i in range(len(head))
    ]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
