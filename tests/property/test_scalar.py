"""Every elementwise function against the op's NumPy meaning: special values and a dense sweep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from kernel_harness import Floats, run_program

from cnnc.codegen.functions import exp
from cnnc.codegen.interpret import interpret
from cnnc.codegen.scalar import SCALAR, emit_scalar
from cnnc.ir.loops import Program, ProgramBuilder
from cnnc.ir.op import Array, Binary, Elementwise, Unary
from cnnc.ir.ops import (
    OPS,
    Acos,
    Acosh,
    And,
    Asin,
    Asinh,
    Atan,
    Atanh,
    Cast,
    Celu,
    Clip,
    Cosh,
    Elu,
    Equal,
    Erf,
    Exp,
    Gelu,
    IsInf,
    LeakyRelu,
    Log,
    Logical,
    Mish,
    Not,
    Or,
    Pow,
    Selu,
    Shrink,
    Sigmoid,
    Silu,
    Sinh,
    Softplus,
    Tanh,
    ThresholdedRelu,
    Where,
    Xor,
)
from cnnc.ir.types import DType, TensorType

LANES = 16
TINY = float(np.finfo(np.float32).tiny)
# Op -> the most it may be off, in ulp of the true value; the others round as NumPy does.
ULP: dict[type[Elementwise], float] = {
    **dict.fromkeys((Sigmoid, Tanh, Silu, Elu), 3.0),
    Exp: 1.0,
    **dict.fromkeys((Log, Erf, Pow, Softplus, Mish, Gelu, Celu, Selu), 4.0),
    **dict.fromkeys((Sinh, Cosh, Asinh, Acosh, Atanh, Asin, Acos, Atan), 4.0),
}

# What exp gives below 1.7e-38 is zero. A sigmoid below the smallest normal number may be zero, too;
# silu and mish multiply by x. In units of the smallest normal number:
_FLOORS: dict[type[Elementwise], float] = {Silu: 90, Mish: 180, Exp: 2, Softplus: 2}

SPECIAL = np.array(
    [0.0, -0.0, 1, -1, 0.5, 3, -3, 6, -6, 0.625, -0.625, 1e-30, -1e-30, 1e-10, -1e-10]
    + [9, -9, 17, -17, 80, -80, 86.97, -86.97, 86.99, -86.99, 88.3, -88.3, 88.7, -88.7, 88.73]
    + [-88.73, 89, -89, 1e3, -1e3, 3.4e38, -3.4e38, 1.2e-38, np.inf, -np.inf, np.nan],
    np.float32,
)

UNARY: list[Unary] = [
    *(kind() for kind in SCALAR if issubclass(kind, Unary) and kind not in (Cast, Not)),
    LeakyRelu(alpha=0.3),
    Elu(alpha=0.3),
    Clip(low=-0.5, high=3.0),
    Clip(low=1.0, high=-1.0),
    Cast(to=DType.BOOL),
    Cast(to=DType.F32),
    IsInf(negative=False),
    Gelu(tanh=True),
    Celu(alpha=0.3),
    ThresholdedRelu(alpha=-0.5),
    Shrink(threshold=1.5, bias=0.3),
    IsInf(positive=False),
    IsInf(negative=False, positive=False),
]
BINARY: list[Binary] = [
    kind() for kind in SCALAR if issubclass(kind, Binary) and not issubclass(kind, Logical)
]
TRUTHS: list[Elementwise] = [And(), Or(), Xor(), Not(), Equal(), Cast(to=DType.F32)]


def _result(op: Elementwise, truths: Sequence[bool]) -> DType:
    dtypes = [DType.BOOL if b else DType.F32 for b in truths]
    return op.infer(*(TensorType((), dtype) for dtype in dtypes)).dtype


def program_of(op: Elementwise | None, size: int, dtypes: Sequence[DType] = ()) -> Program:
    """A loop over `size` elements, a multiple of the lanes; None stands for exp."""
    p = ProgramBuilder("scalar")
    names = op.operands if op else ("x",)
    truths = [dtype is DType.BOOL for dtype in dtypes] or [False] * len(names)
    kinds = [DType.BOOL if b else DType.F32 for b in truths]
    inputs = [p.buffer(name, kind) for name, kind in zip(names, kinds, strict=True)]
    y = p.buffer("y", _result(op, truths) if op is not None else DType.F32)
    with p.parallel("i", 0, size // LANES) as i:
        values = [p.load(x, i * LANES, LANES) for x in inputs]
        p.store(y, i * LANES, emit_scalar(op, p, *values) if op else exp(p, *values))
    return p.finish()


def run(op: Elementwise | None, arrays: Sequence[Array]) -> Array:
    size = -(-arrays[0].size // LANES) * LANES
    dtypes = [DType(a.dtype.name) for a in arrays]
    result = _result(op, [d is DType.BOOL for d in dtypes]) if op else DType.F32
    buffers = [np.resize(a, size) for a in arrays] + [np.zeros(size, result.numpy)]
    run_program(program_of(op, size, dtypes), buffers)
    return buffers[-1][: arrays[0].size]


@cache
def sweep() -> Floats:
    """Floats of every sign and exponent, all values around the interesting ones, the specials."""
    spread = np.arange(0, 2**32, 14087, dtype=np.int64).astype(np.uint32).view(np.float32)
    near = np.linspace(-20, 20, 100_001, dtype=np.float32)
    edges = np.linspace(-90, -85, 20_001, dtype=np.float32)
    normal = np.abs(spread) >= TINY  # flushed or not, what lies below is no concern of a model
    return np.concatenate([spread[normal | (spread == 0)], near, edges, -edges, SPECIAL])


def check_ulp(found: Floats, truth: np.ndarray, ulp: float, floor: float | Array) -> None:
    """`found` is within `ulp` of the float64 `truth`, or both are below `floor`; NaN, Inf alike."""
    with np.errstate(over="ignore"):
        rounded = truth.astype(np.float32)
    plain = np.isfinite(rounded)
    np.testing.assert_array_equal(found[~plain], rounded[~plain])
    with np.errstate(under="ignore"):
        spacing = np.spacing(np.maximum(np.abs(rounded[plain]), np.float32(TINY))).astype(float)
    error = np.abs(found[plain].astype(np.float64) - truth[plain])
    bad = (error > ulp * spacing) & (error > floor)
    assert not bad.any(), f"{(error / spacing)[bad].max()} ulp at result {truth[plain][bad][:5]}"


def test_every_elementwise_op_has_a_function() -> None:
    wanted = {op for op in OPS.values() if issubclass(op, Elementwise) and op.vector}
    assert set(SCALAR) == wanted


def test_exp_is_within_an_ulp() -> None:
    x = sweep()
    with np.errstate(over="ignore", under="ignore"):
        truth = np.exp(x.astype(np.float64))
    with np.errstate(over="ignore"):
        truth = np.where(truth.astype(np.float32) < 1.7e-38, 0, truth)
    found = run(None, [x])
    check_ulp(np.where(found < 1.7e-38, np.float32(0), found), truth, 1.0, 0.0)
    assert (found[x < -86.99] == 0).all() and (found[x > -86.97] > 0).all()


@pytest.mark.parametrize("op", UNARY, ids=str)
def test_unary_over_all_magnitudes(op: Unary) -> None:
    x = sweep()
    found = run(op, [x])
    with np.errstate(all="ignore"):
        if type(op) in ULP:
            floor: float | Array = TINY * _FLOORS.get(type(op), 1)
            if isinstance(op, Gelu):  # as exact as 1 + erf in float32
                floor = np.float32(2e-7) * np.abs(x[np.isfinite(x)])
            check_ulp(found, op.evaluate(x.astype(np.float64)), ULP[type(op)], floor)
        else:
            np.testing.assert_array_equal(found, op.evaluate(x))


@pytest.mark.parametrize("op", BINARY, ids=str)
def test_binary_over_all_pairs(op: Binary) -> None:
    rng = np.random.default_rng(0)
    random = rng.standard_normal(150).astype(np.float32) * np.exp2(rng.integers(-30, 30, 150))
    values = np.concatenate([SPECIAL, random.astype(np.float32)])
    a, b = (m.reshape(-1) for m in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        expected = op.evaluate(a, b)
    if type(op) in ULP:
        with np.errstate(all="ignore"):
            truth = op.evaluate(a.astype(np.float64), b.astype(np.float64))
        check_ulp(run(op, [a, b]), truth, ULP[type(op)], TINY)
    else:
        np.testing.assert_array_equal(run(op, [a, b]), expected)


@pytest.mark.parametrize("op", TRUTHS, ids=str)
def test_truth_values(op: Elementwise) -> None:
    pairs = [np.array([0, 1, 0, 1], np.bool_), np.array([0, 0, 1, 1], np.bool_)]
    arrays = pairs[: len(op.operands)]
    found, wanted = run(op, arrays), op.evaluate(*arrays)
    assert isinstance(wanted, np.ndarray) and found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("truths", [False, True])
def test_where_over_all_pairs(truths: bool) -> None:
    values = SPECIAL > 0 if truths else SPECIAL
    a, b = (m.reshape(-1) for m in np.meshgrid(values, values))
    condition = np.arange(a.size) % 3 == 0
    np.testing.assert_array_equal(run(Where(), [condition, a, b]), np.where(condition, a, b))


@pytest.mark.parametrize("op", [*UNARY, *BINARY, *TRUTHS, Where()], ids=str)
def test_interpreter_agrees(op: Elementwise) -> None:
    arrays: list[Array] = [np.roll(SPECIAL, 7 * i)[:32] for i in range(len(op.operands))]
    if op in TRUTHS or isinstance(op, Where):
        count = 1 if isinstance(op, Where) else 2
        arrays[:count] = [a > 0 for a in arrays[:count]]
    program = program_of(op, 32, [DType(a.dtype.name) for a in arrays])
    fast = run(op, arrays)
    slow = np.zeros(32, fast.dtype)
    interpret(program, dict(zip(program.buffers, [*arrays, slow], strict=True)))
    if fast.dtype == np.bool_:
        np.testing.assert_array_equal(fast, slow)
    else:
        np.testing.assert_array_max_ulp(fast, slow, maxulp=2)
