"""Runs one kernel on NumPy arrays, natively or interpreted, and watches what it touches.

    site = site_for(Conv2d(), [x, weight], [False, True], native_target())
    kernel = next(iter(DirectConv.candidates(site)))
    y = run_native(kernel, site, [x, weight])

Operands are laid out as the kernel asks. Whatever a kernel must not use is NaN: the memory around
each operand, the lanes past the last channel, the result before the run. Every run is repeated for
one to three threads, whose order is reversed each time, and must give the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cnnc.codegen.emit import emit_function
from cnnc.codegen.host import named_target, native_target
from cnnc.codegen.image import Code
from cnnc.codegen.interpret import interpret
from cnnc.codegen.llvm import compile_object, load_object
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.loops import Program
from cnnc.ir.op import Array, Fusable, Op
from cnnc.ir.target import Target
from cnnc.ir.types import DType, Layout, TensorType

Floats = NDArray[np.float32]
Run = Callable[[Sequence[Floats], int, int], None]  # flat buffers, tid, threads

GUARD = 64  # elements of NaN on both sides of each buffer
# A NaN that no arithmetic yields: whoever overwrites it shows.
CANARY = np.array([0x7FC0BEEF], np.uint32).view(np.float32)[0]


def site_for(
    op: Op, arrays: Sequence[Array], constant: Sequence[bool], target: Target | None = None
) -> Site:
    """The site of `op` for operands like `arrays`, with plain layouts; by default on this machine.

    `constant` says for each operand whether it is a constant of the graph.
    """
    types = tuple(TensorType(a.shape, DType(a.dtype.name)) for a in arrays)
    result = op.infer(*types)
    results = (result,) if isinstance(result, TensorType) else result
    return Site(op, types, results, tuple(constant), target or native_target())


def planned(kernel: Kernel, site: Site, halo: Halo = NO_HALO, spare: int = 0) -> Site:
    """The site with the layouts that the kernel asks for.

    `halo` is the result's border; operands get `spare` more border than the kernel reads where it
    accepts that.
    """
    operands, result = kernel.blocks(site)
    types = []
    for i, (type, block) in enumerate(zip(site.operands, operands, strict=True)):
        border = kernel.halo(site, i)
        if spare and type.rank == 4 and not site.constant[i] and kernel.accepts_halo(site, i):
            top, left, bottom, right = border
            border = (top + spare, left, bottom, right + spare)
        types.append(type.with_layout(Layout(block, border)))
    assert not any(halo) or kernel.writes_halo(site), f"{kernel.name} cannot write a border"
    results = tuple(t.with_layout(Layout(result, halo)) for t in site.results)
    return replace(site, operands=tuple(types), results=results)


def run_native(
    kernel: Kernel,
    site: Site,
    arrays: Sequence[Array],
    *,
    halo: Halo = NO_HALO,
    spare: int = 0,
    in_place: int | None = None,
) -> Array:
    """The kernel's result for logical operands, compiled for the site's target and run here.

    Args:
        kernel: what to run.
        site: with plain layouts, from `site_for`.
        arrays: the operands; constants go through `kernel.pack`.
        halo: the result's border.
        spare: how much more border the operands have than the kernel reads.
        in_place: the operand whose memory the result takes over.
    """
    final = planned(kernel, site, halo, spare)
    program = kernel.program(final)
    function, code = _compiled(program, site.target)

    def run(buffers: Sequence[Floats], tid: int, threads: int) -> None:
        assert code is not None
        function(*(b.ctypes.data for b in buffers), tid, threads)

    return _run(kernel, final, program, arrays, run, in_place)


def run_interpreted(
    kernel: Kernel,
    site: Site,
    arrays: Sequence[Array],
    *,
    halo: Halo = NO_HALO,
    spare: int = 0,
    in_place: int | None = None,
) -> Array:
    """As `run_native`, by the interpreter of loop programs."""
    final = planned(kernel, site, halo, spare)
    program = kernel.program(final)

    def run(buffers: Sequence[Floats], tid: int, threads: int) -> None:
        interpret(program, dict(zip(program.buffers, buffers, strict=False)), tid, threads)

    return _run(kernel, final, program, arrays, run, in_place)


def compile_program(program: Program, target: Target) -> bytes:
    """Object code of a program whose symbol is `kernel`."""
    text, declared = emit_function(program, "kernel", target)
    attributes = f'attributes #0 = {{ nounwind "prefer-vector-width"="{8 * target.vector_bytes}" }}'
    return compile_object("\n".join([*sorted(declared), text, attributes, ""]), target)


@cache
def _compiled(program: Program, target: Target) -> tuple[Callable[..., None], Code]:
    code = load_object(compile_program(program, target))
    pointers = [ctypes.c_void_p] * len(program.buffers)
    kind = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_int64, ctypes.c_int64)
    return kind(code.address("kernel")), code


def run_program(
    program: Program, buffers: Sequence[Array], threads: int = 1, target: Target | None = None
) -> None:
    """Compiles a program and runs all its threads, one after the other, on flat buffers.

    `buffers` includes the scratch.
    """
    function, _code = _compiled(program, target or native_target())
    for tid in range(threads):
        function(*(b.ctypes.data for b in buffers), tid, threads)


# -- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Guarded:
    """A buffer on a cache line between guards of NaN."""

    whole: Floats
    data: Floats

    @staticmethod
    def of(elements: int) -> _Guarded:
        raw = np.full(elements + 2 * GUARD + 16, CANARY, np.float32)
        start = GUARD + (-(raw.ctypes.data // 4 + GUARD)) % 16
        return _Guarded(raw, raw[start : start + elements])

    def check(self, what: str) -> None:
        outside = self.whole.view(np.uint32).copy()
        start = (self.data.ctypes.data - self.whole.ctypes.data) // 4
        outside[start : start + self.data.size] = CANARY.view(np.uint32)
        assert (outside == CANARY.view(np.uint32)).all(), f"memory around {what} was written"


def lay_out(array: Array, type: TensorType) -> Floats:
    """A logical array as it lies in memory: borders zero, lanes past the last channel NaN."""
    if type.layout.is_plain:
        return np.ascontiguousarray(array, np.float32).reshape(-1)
    top, left, bottom, right = type.layout.halo
    bordered = np.pad(array, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, c, h, w = bordered.shape
    block = type.layout.block
    filled = np.full((n, -(-c // block) * block, h, w), np.nan, np.float32)
    filled[:, :c] = bordered
    return filled.reshape(n, -1, block, h, w).transpose(0, 1, 3, 4, 2).reshape(-1)


def read_out(flat: Floats, type: TensorType) -> Array:
    """The logical array of what lies in memory; the border must be zero."""
    if type.layout.is_plain:
        return flat.reshape(type.dims).copy()
    n, c, h, w = type.dims
    top, left, _, _ = type.layout.halo
    physical = flat.reshape((*type.physical[:4], type.layout.block))
    whole = physical.transpose(0, 1, 4, 2, 3).reshape(n, -1, *type.physical[2:4])[:, :c].copy()
    inside = whole[:, :, top : top + h, left : left + w].copy()
    whole[:, :, top : top + h, left : left + w] = 0
    assert (whole == 0).all(), "the border is not zero"
    return inside


def _run(
    kernel: Kernel,
    site: Site,
    program: Program,
    arrays: Sequence[Array],
    run: Run,
    in_place: int | None,
) -> Array:
    if in_place is not None:
        assert in_place in kernel.in_place(site), f"{kernel.name} does not work in place"
        assert site.operands[in_place].physical == site.result.physical
    laid = [
        np.asarray(kernel.pack(site, i, a), np.float32).reshape(-1) if constant else lay_out(a, t)
        for i, (a, t, constant) in enumerate(zip(arrays, site.operands, site.constant, strict=True))
    ]
    found = [_run_once(site, program, laid, run, in_place, threads) for threads in (1, 2, 3)]
    for other in found[1:]:
        np.testing.assert_array_equal(
            other.view(np.uint32), found[0].view(np.uint32), "the number of threads matters"
        )
    return found[0]


def _run_once(
    site: Site,
    program: Program,
    laid: Sequence[Floats],
    run: Run,
    in_place: int | None,
    threads: int,
) -> Array:
    operands = [_Guarded.of(a.size) for a in laid]
    for guarded, array in zip(operands, laid, strict=True):
        guarded.data[:] = array
    result = _Guarded.of(site.result.physical_elements) if in_place is None else operands[in_place]
    scratch = [_Guarded.of(length) for length in program.scratch]
    buffers = [*operands, result, *scratch]
    for name, guarded in zip(program.buffers, buffers, strict=True):
        if name in program.kept:
            guarded.data[:] = 0
    for tid in reversed(range(threads)):
        run([b.data for b in buffers], tid, threads)
    for name, guarded in zip(program.buffers, buffers, strict=True):
        guarded.check(name)
    for i, (guarded, array) in enumerate(zip(operands, laid, strict=True)):
        if i != in_place:
            np.testing.assert_array_equal(
                guarded.data.view(np.uint32), array.view(np.uint32), f"operand {i} was written"
            )
    return read_out(result.data, site.result)


# -- comparing -----------------------------------------------------------------------------------


def assert_close(
    found: Array, expected: Array, tolerance: float = 1e-4, on_the_way: float = 0.0
) -> None:
    """Fails unless `found` is `expected` up to `tolerance` of its range, NaN and Inf alike.

    Numbers of size `on_the_way` may have cancelled: 16 of their roundings may be left.
    """
    assert found.shape == expected.shape
    finite = np.isfinite(expected)
    scale = float(np.abs(expected[finite]).max(initial=1e-6))
    rounding = 16 * 2.0**-23 * on_the_way
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale + rounding)


def largest_on_the_way(op: Op, arrays: Sequence[Array]) -> float:
    """The largest finite size of what the op gives before its epilogue and after each step."""
    if not isinstance(op, Fusable):
        return 0.0
    own, extras = op.split(arrays)
    largest = 0.0
    with np.errstate(all="ignore"):
        for count in range(len(op.epilogue) + 1):
            part = replace(op, epilogue=op.epilogue[:count])
            value = np.abs(part.evaluate(*own, *extras[: part.extras]))
            largest = max(largest, float(value[np.isfinite(value)].max(initial=0.0)))
    return largest


def presets() -> tuple[Target, ...]:
    """Targets of each vector width and architecture."""
    return tuple(named_target(name) for name in ("x86-64-v3", "x86-64", "aarch64"))
