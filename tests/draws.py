"""What the uses of ops in random networks are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from elementwise_cases import TAME
from hypothesis import strategies as st

from cnnc.ir.op import Array, Elementwise, Fusable, Op, Step, Unary
from cnnc.ir.ops import Add, Clip, Div, LeakyRelu, Mul, Sub
from cnnc.ir.types import Shape, TensorType

Draw = st.DrawFn
# An op and its operands after the first: shapes for constants that are free, or what they are.
Use = tuple[Op, tuple[Shape | Array, ...]]
Uses = dict[str, Callable[[Draw, TensorType], Use]]

# `TAME` but for those which have attributes to draw.
_UNARY = tuple(op for op in TAME if op not in (LeakyRelu, Clip))


def sizes(x: TensorType) -> tuple[int, ...]:
    """The dimensions after the batch, which are numbers."""
    return TensorType(x.shape[1:]).dims


def pair(draw: Draw, low: int, high: int) -> tuple[int, int]:
    return draw(st.integers(low, high)), draw(st.integers(low, high))


def border(draw: Draw, high: tuple[int, int]) -> tuple[int, int, int, int]:
    rows, columns = (st.integers(0, h) for h in high)
    return draw(rows), draw(columns), draw(rows), draw(columns)


def unary(draw: Draw) -> Unary:
    """Any unary op."""
    if draw(st.booleans()):
        ramps = [LeakyRelu(alpha=0.01), LeakyRelu(alpha=0.2), Clip(low=-0.5), Clip(high=0.7)]
        return draw(st.sampled_from(ramps))
    return draw(st.sampled_from(_UNARY))()


def smaller(draw: Draw, x: TensorType) -> Shape:
    """A shape without batch that broadcasts to x."""
    inner = tuple(dim if draw(st.booleans()) else 1 for dim in sizes(x))
    options = [inner, (1, *inner), inner[-1:], ()]
    if x.rank == 4:
        options += [(sizes(x)[0], 1, 1), (1, sizes(x)[0], 1, 1)]
    return draw(st.sampled_from(options))


def epilogue(draw: Draw, op: Fusable, own: tuple[Shape, ...], x: TensorType) -> Use:
    """Sometimes a step or two on the op's result."""
    result = op.infer(x, *map(TensorType, own))
    steps: list[Step] = []
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        binary = draw(st.sampled_from([None, Add, Sub, Mul, Div]))
        step: Elementwise = binary() if binary else unary(draw)
        steps.append(Step(step, at=int(binary in (Sub, Mul) and draw(st.booleans()))))
        own += (smaller(draw, result),) if binary else ()
    return replace(op, epilogue=tuple(steps)), own
